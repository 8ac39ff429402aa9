"""The screen of a program: lines and tables, without TensorFlow's log messages."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from research.errors import InputError, NonFiniteError, StorageError, one_line
from research.files import storage_errors
from research.printable import folded
from research.stderr import DivertedStderr, show_error

from rich.console import Console
from rich.text import Text


class Screen:
    """Prints to standard output, and keeps a copy of every line for the run's log.

    While the screen is entered, standard error is diverted (see ``DivertedStderr``), and writing to
    ``sys.stdout`` or ``sys.stderr`` never fails: a full disk, or a terminal or reader that is gone,
    must not end a training. After a first failure a stream drops all output.

    Attributes:
        console: prints colours, tables and a progress bar.
        log_path: the path of the log, once ``log_to`` has been called.
    """

    def __init__(self) -> None:
        self._stdout = _Output(1)
        self._streams = (_text(self._stdout, sys.stdout), _text(_Output(2), sys.stderr))
        self.console = Console(highlight=False, emoji=False, soft_wrap=True, file=self._streams[0])
        both_shown = self.console.is_terminal and os.isatty(2)
        self._stderr = DivertedStderr(self._show_above_progress if both_shown else None)
        self.log_path: Path | None = None

    @property
    def columns(self) -> int | None:
        """The width of the terminal; None if output goes elsewhere, where no line is folded."""
        # Not console.width: rich takes every terminal of the kind "dumb" for 80 columns wide.
        return shutil.get_terminal_size().columns if self.console.is_terminal else None

    @property
    def stderr(self) -> int:
        """The descriptor of standard error as it was, for the processes that a program starts."""
        return self._stderr.screen

    def say(self, line: str, shown: Text | None = None) -> None:
        """Prints a line; above the progress bar, if there is one.

        Args:
            line: the line; the log has it as it is.
            shown: what the screen shows instead: the same, folded or with colours.
        """
        self.console.print(line if shown is None else shown, markup=False)
        self._stderr.write(line)

    def say_folded(self, text: str, style: str = "") -> None:
        """Prints a text; on a terminal, lines end between words, but not before a number or "s"."""
        lines = folded(re.split(r" (?!\d|s\b)", text), self.columns, gap=" ")
        self.say(text, Text("\n".join(lines), style))

    def log_to(self, path: Path) -> None:
        """Writes all earlier and later lines to the log at ``path``."""
        with storage_errors(path):
            self._stderr.continue_in(path)
        self.log_path = path

    def log(self, text: str) -> None:
        """Writes text to the log, not to the screen."""
        self._stderr.write(text)

    def output_error(self) -> str:
        """Why standard output was not written in full; empty if it was.

        Empty also if the reader closed the pipe, as ``head`` does when it has read enough.
        """
        self._streams[0].flush()
        error = self._stdout.error
        if error is None or isinstance(error, BrokenPipeError):
            return ""
        return f"standard output can't be written ({error.strerror})"

    def _show_above_progress(self, line: bytes) -> None:
        self.console.print(Text(line.decode(errors="replace").rstrip("\n")))

    def __enter__(self) -> Screen:
        self._stderr.__enter__()
        self._before = sys.stdout, sys.stderr
        for stream in self._before:
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.flush()
        sys.stdout, sys.stderr = self._streams
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self._streams:
            stream.flush()
        sys.stdout, sys.stderr = self._before
        self._stderr.__exit__(*error)


class _Output(io.FileIO):
    """A standard stream that never fails to write.

    Attributes:
        error: the first failure, or None; after a failure the stream drops all output.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        while self.error is None:
            try:
                written: int | None = super().write(content)
            except OSError as error:
                self.error = error
            else:
                if written is not None:
                    return written
                select.select([], [self], [])  # a non-blocking stream is full: wait
        return len(content)


def _text(output: _Output, like: TextIO | None) -> io.TextIOWrapper:
    """A text stream with the encoding of ``like``; other characters become escapes."""
    encoding = like.encoding if like is not None else None
    return io.TextIOWrapper(
        io.BufferedWriter(output), encoding, errors="backslashreplace", line_buffering=True
    )


def run_and_exit(work: Callable[[Screen], int]) -> NoReturn:
    """Runs a program on a screen and exits with the status that it returns.

    The status is 2 after bad input, with one line of explanation; 1 if a file or the answer can't
    be written; and 130 after Ctrl-C.
    """
    status, message = 0, ""
    with Screen() as screen:
        try:
            status = work(screen)
        except (InputError, NonFiniteError) as error:
            status, message = 2, one_line(error)
        except StorageError as error:
            status, message = 1, str(error)
        except SystemExit as stop:
            if stop.code:
                raise
        except KeyboardInterrupt:
            status = 130
        if not status and (message := screen.output_error()):
            status = 1
    if message:
        show_error(f"error: {message}")
    sys.exit(status)
