"""Errors with messages for the user, and messages for errors in an experiment."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

# A frame in a traceback, as Python and TensorFlow's messages print it.
_FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>\S+).*', re.M)
# The parts of TensorFlow's messages that are not the message itself: frames with their lines of
# source, headings, names of nodes and operations, and marks below columns.
_MACHINERY = re.compile(
    r'^ *File ".+", line \d+, in .*\n.*\n'
    r"|^(in user code:|Graph execution error:|Detected at node .*|<stack traces unavailable>)$"
    r"|\{\{(function_)?node .*?\}\}|^.*\[\[\{\{node .*|\[Op:\w+\]( name:.*)?"
    r"|^Traceback \(most recent.*|^[ ~^]+$",
    re.M,
)
_HERE = Path(__file__).parent
_NOT_THE_USERS = (f"{_HERE}/", sysconfig.get_path("stdlib"), "<")
_MOST_LINES = 6


class InputError(ValueError):
    """An option, a file or a data set that the user gave can't be used.

    The message is one line that names the value, the reason and the remedy. Commands print it
    after ``error:`` and exit with status 2; nothing has been written by then.
    """

    ag_pass_through = True  # AutoGraph would put the traceback of a traced function in its message


class NonFiniteError(ArithmeticError):
    """A value became NaN or infinite. The message names it, and the step where it is known."""


class WorkerError(ConnectionError):
    """Another process of a training on several has ended, or can't be reached.

    The message is one line that names it, and says how to go on from the last checkpoint.
    """


class StorageError(OSError):
    """A file of a run can't be written: no space left, a limit, a failing disk.

    The message is one line with the file, the reason and the remedy. Earlier files are intact.
    """


def one_line(error: BaseException) -> str:
    """An error's message on one line; its type's name if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def in_few_lines(error: BaseException, step: Callable[..., Any]) -> str:
    """An error in an experiment in a few lines: the line of the experiment's code, and the message.

    Args:
        error: the error; TensorFlow's traceback may hide the experiment's frames.
        step: the experiment's step, which is named if the error has no line in the experiment.
    """
    frames = list(_FRAME.finditer("".join(traceback.format_exception(error))))
    own = [f for f in frames if _is_the_users(f["file"]) and f["function"] != "<module>"]
    code = getattr(step, "__code__", None)
    training = any(frame["file"] == str(_HERE / "training" / "train.py") for frame in frames)
    if own or not training or not isinstance(code, CodeType):
        shown = own or [frame for frame in frames if not frame["file"].startswith("<")]
        file, line, function = shown[-1].group("file", "line", "function")
    else:
        file, line, function = code.co_filename, str(code.co_firstlineno), code.co_name
        if "Graph execution error" in str(error):
            function += " (--eager shows the line)"
    where = f"{file}, line {line}, in {function}\n    {linecache.getline(file, int(line)).strip()}"
    said = [line.strip() for line in _MACHINERY.sub("", str(error)).splitlines()]
    said = [line for line in dict.fromkeys(said) if line][:_MOST_LINES]
    kind = type(error).__name__
    if not said or not said[0].startswith(f"{kind}:"):
        said[:1] = [f"{kind}: {said[0]}" if said else kind]
    return "\n".join([where, *said])


def _is_the_users(file: str) -> bool:
    return (
        not file.startswith(_NOT_THE_USERS)
        and "site-packages" not in file
        and "__autograph_generated_file" not in file
    )
