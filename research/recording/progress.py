"""The progress of a training on the screen."""

from __future__ import annotations

import time
from collections.abc import Mapping

from research.data.batches import Plan
from research.screen import Screen
from research.training.train import Report

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

# Without a terminal a line is printed after each epoch, and in between at most this often.
SECONDS_BETWEEN_LINES = 20


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
