"""The errors that speak to the user rather than to the programmer."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave can't be used: an option, a file, a data set.

    The message is one line that names the value, the reason and the remedy. Commands print it
    after ``error:`` and exit with status 2; nothing has been written by then.
    """


class NonFiniteError(ArithmeticError):
    """A measured value became NaN or infinite. The message names the metric and the step."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line; the name of its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
