"""The screen of a running experiment: lines and progress, without TensorFlow's log messages."""

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

# Without a terminal a line is printed after each epoch, and in between at most this often.
SECONDS_BETWEEN_LINES = 20


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

    def say(self, line: str) -> None:
        """Prints a line; above the progress bar, if there is one."""
        self.console.print(line, markup=False)
        self._stderr.write(line)

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


class TrainingProgress:
    """A live line with epoch, step, loss, accuracy, examples per second and time left.

    If standard output is not a terminal, plain lines appear instead, see ``SECONDS_BETWEEN_LINES``.
    After the last step a line says how long training took.

    Args:
        screen: where to print.
        plan: the whole training's epochs and steps.
        done: number of steps done already.
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
        """Shows a report."""
        self._seconds = self._seconds_reported + report.seconds
        if report.due:  # the next report counts an early one's seconds again
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
        """Prints a lasting line with the figures of a validation."""
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
