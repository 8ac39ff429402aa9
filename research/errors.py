"""The errors that speak to the user rather than to the programmer."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave can't be used: an option, a file, a data set.

    The message is one line that names the value, the reason and the remedy. Commands print it
    after ``error:`` and exit with status 2; nothing has been written by then.
    """


class NonFiniteError(ArithmeticError):
    """A value became NaN or infinite. The message names it, and the step where it is known."""


class StorageError(OSError):
    """A file of a run can't be written: no space left, a limit, a failing disk.

    The message is one line with the file and the reason. What was on the disk before is intact.
    """


def one_line(error: BaseException) -> str:
    """What an error says, on one line; the name of its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
