"""What a running experiment shows: lines, progress, and nothing that TensorFlow mutters."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from research.data.batches import Plan
from research.files import storage_errors
from research.stderr import DivertedStderr
from research.training.train import Report

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

# Without a terminal a line is printed after each epoch, and otherwise at most so often.
SECONDS_BETWEEN_LINES = 20


class Screen:
    """Prints to standard output, and keeps a copy of every line for the run's log.

    While it is entered, standard error is diverted, see ``DivertedStderr``, and nothing that
    writes to ``sys.stdout`` or ``sys.stderr`` fails: a full disk, a terminal or a reader that is
    gone must not end what is being trained. After a first failure the stream stays silent.

    Attributes:
        console: for what has colours, tables or a progress bar.
        log_path: the log, once ``log_to`` has been called.
    """

    def __init__(self) -> None:
        self._stdout = _Output(1)
        self._streams = (_text(self._stdout, sys.stdout), _text(_Output(2), sys.stderr))
        self.console = Console(highlight=False, soft_wrap=True, file=self._streams[0])
        both_shown = self.console.is_terminal and os.isatty(2)
        self._stderr = DivertedStderr(self._show_above_progress if both_shown else None)
        self.log_path: Path | None = None

    def say(self, line: str) -> None:
        """Prints a line; above the progress bar, where there is one."""
        self.console.print(line, markup=False)
        self._stderr.write(line)

    def log_to(self, path: Path) -> None:
        """Puts everything so far, and from now on, into a file."""
        with storage_errors(path):
            self._stderr.continue_in(path)
        self.log_path = path

    def log(self, text: str) -> None:
        """Adds text to the log alone."""
        self._stderr.write(text)

    def output_error(self) -> str:
        """Why standard output has not been written in full; empty if it has been.

        It is empty, too, where its reader has left, such as ``head``, which has what it wanted.
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
    """A standard stream whose writing never fails.

    Attributes:
        error: the first failure, after which nothing more is written.
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
                select.select([], [self], [])  # another program has made it non-blocking
        return len(content)


def _text(output: _Output, like: TextIO | None) -> io.TextIOWrapper:
    """A text stream, in the encoding of another, that shows what it can't encode as escapes."""
    encoding = like.encoding if like is not None else None
    return io.TextIOWrapper(
        io.BufferedWriter(output), encoding, errors="backslashreplace", line_buffering=True
    )


class TrainingProgress:
    """A live line with epoch, step, loss, accuracy, examples per second and time left.

    Where standard output is no terminal, plain lines appear instead, now and then. After the last
    step it says how long training took.

    Args:
        screen: where to show it.
        plan: how many epochs and steps there are in all.
        done: how many of them are done already.
    """

    def __init__(self, screen: Screen, plan: Plan, done: int = 0) -> None:
        self._screen = screen
        self._plan = plan
        self._first = done
        self._last_line = time.monotonic()
        self._seconds_reported = self._seconds = 0.0
        bar = [BarColumn()] if screen.console.width >= 110 else []
        self._live = Progress(
            TextColumn("{task.description}"),
            *bar,
            TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True)),
            TextColumn("left"),
            console=screen.console,
            disable=not screen.console.is_terminal,
            transient=True,
        )
        self._task = self._live.add_task("starting", total=plan.steps, completed=done)

    def show(self, report: Report) -> None:
        """Brings the display up to a report."""
        self._seconds = self._seconds_reported + report.seconds
        if report.due:  # one that is made early tells what the next will tell again
            self._seconds_reported = self._seconds
        line = f"epoch {report.epoch}/{self._plan.epochs:g}  step {report.step:,}"
        for name in ("loss", "accuracy"):
            if name in report.metrics:
                line += f"  {name} {report.metrics[name]:.4f}"
        line += f"  {report.examples_per_second:,.0f} examples/s"
        self._live.update(self._task, completed=report.step, description=line)
        due = time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        if not self._screen.console.is_terminal and (due or report.epoch_ended):
            self._last_line = time.monotonic()
            self._screen.say(line)

    def show_validation(self, step: int, figures: Mapping[str, float]) -> None:
        """Prints a line that stays, with the figures measured after an epoch, or at the end."""
        epoch = round(step * self._plan.epochs / self._plan.steps, 2)
        shown = {k: v for k, v in figures.items() if not k.startswith("quality/")}
        values = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self._screen.say(f"epoch {epoch:g}/{self._plan.epochs:g}  validation  {values}")

    def __enter__(self) -> TrainingProgress:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()
        if self._live.finished:
            since = f" since step {self._first}" if self._first else ""
            self._screen.say(f"Training took {self._seconds:.1f} s{since}, validation apart")
