"""What a training shows on the screen: what is trained, a line for each epoch, and its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from research.config import options_that_differ
from research.data.batches import Plan
from research.data.dataset import TEST
from research.printable import counted, folded, printable
from research.recording.environment import processor
from research.recording.run import Run
from research.screen import Screen
from research.training.state import State
from research.training.train import Report

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

# Without a live line a plain line is printed after each epoch, and in between at most this often.
SECONDS_BETWEEN_LINES = 20
# The columns of a live line that the time left takes, and those of the bar, with its gap.
TIME_LEFT, BAR = 14, 41


def show_start(screen: Screen, run: Run, state: State, plan: Plan) -> None:
    """Prints what is trained, on what, and with which options; and what the run starts from."""
    config, start = run.start.config, run.start
    parameters = sum(math.prod(weight.shape) for weight in state.weights(all_layers=True).values())
    untrained = parameters - sum(math.prod(weight.shape) for weight in state.weights().values())
    network = f"{type(state.model).__name__}, {parameters:,} parameters"
    if untrained:
        network += f", {untrained:,} of them not trained"
    replicas = state.strategy.num_replicas_in_sync
    rows = {
        "network": network.split(),
        "processor": f"{processor()}, {config.precision}".split(),
        "replicas": [str(replicas)] if replicas > 1 else [],
        "seed": [str(config.seed)],
        "options": [printable(o) for o in options_that_differ(config)] or ["the defaults"],
    }
    for name, words in rows.items():
        if words:
            label = f"{name:<11}"
            shown = Text(_beside(label, folded(words, screen.columns, len(label), " ")))
            shown.stylize("dim", 0, len(label))
            screen.say(label + " ".join(words), shown)
    there = f"Training for {counted(plan.steps - start.at.step, 'step')}; see {run.path}"
    screen.say("\n".join([*start.notes, there]))


class TrainingProgress:
    """Prints a line for each epoch and each validation, above a live line.

    A line has the means of loss and accuracy over the training steps since the line before, as far
    as this process has done them; the figures of the validation; and the time of these steps,
    without validation. Where the line is wider than the terminal, the training's accuracy is left
    out, or, if that is not enough, the line is folded between two figures. The log has it whole.

    The live line shows how many epochs are done, loss, accuracy, speed, and the time left. Where
    output is no terminal, or one that can't move its cursor, plain lines appear instead, see
    ``SECONDS_BETWEEN_LINES``.

    Args:
        screen: where to print.
        plan: the whole training's epochs and steps.
        done: number of steps done already.
    """

    def __init__(self, screen: Screen, plan: Plan, done: int = 0) -> None:
        self._screen = screen
        self._plan = plan
        self._first = self._step = done
        self._last_line = time.monotonic()
        self._seconds_reported = self._seconds = self._seconds_shown = 0.0
        self._sums: dict[str, float] = {}  # over the examples since the last line
        self._examples = 0
        self._ended_epoch = False
        bar = [BarColumn(BAR - 1, complete_style="cyan")] if (screen.columns or 0) >= 120 else []
        self._taken = TIME_LEFT + (BAR if bar else 0)
        self._live = Progress(
            TextColumn("{task.description}"),
            *bar,
            TimeRemainingColumn(compact=True, table_column=Column(min_width=5, no_wrap=True)),
            TextColumn("left"),
            console=screen.console,
            disable=not screen.console.is_interactive,
            transient=True,
        )
        self._task = self._live.add_task("starting", total=plan.steps, completed=done)

    def show(self, report: Report) -> None:
        """Shows a report; the line of an epoch that it ends waits for the validation."""
        self._finish_line()
        self._step = report.step
        self._seconds = self._seconds_reported + report.seconds
        known: dict[str, float] = {
            k: report.metrics[k] for k in ("loss", "accuracy") if k in report.metrics
        }
        if report.due:  # the next report counts an early one's steps again
            self._seconds_reported = self._seconds
            self._examples += report.examples
            for name, value in known.items():
                self._sums[name] = self._sums.get(name, 0.0) + value * report.examples
        self._ended_epoch = report.epoch_ended
        epochs = f"epoch {self._plan.epochs_done(report.step):.2f}/{self._plan.epochs:g}"
        speed = f"{report.examples_per_second:,.0f} examples/s"
        parts = [epochs, *_figures(known), speed]
        fitting = folded(parts, self._screen.columns, self._taken)[0]
        self._live.update(self._task, completed=report.step, description=f"{fitting} ")
        waited = time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        if self._live.disable and waited and not report.epoch_ended:
            self._last_line = time.monotonic()
            self._screen.say("  ".join([*parts, f"step {report.step}"]))

    def show_validation(
        self, step: int, figures: Mapping[str, float], split: str, best: bool = False
    ) -> None:
        """Prints the line of an epoch, or of the steps since the last one, with a validation.

        Args:
            step: number of steps done.
            figures: the figures by name.
            split: the name of the split that the model was validated on.
            best: whether the validation is the best so far.
        """
        self._step = step
        shown = {k: v for k, v in figures.items() if not k.startswith("quality/")}
        first, *others = _figures(shown)
        # Without held-out examples the figures are the test set's, and the screen says so.
        self._show_line([f"{TEST if split == TEST else 'validation'} {first}", *others], best)

    def show_end(self) -> None:
        """Prints how long the steps of training took, and after which epoch it ended."""
        since = f" since step {self._first}" if self._first else ""
        ended = f"{self._plan.epochs_done(self._step):g}/{self._plan.epochs:g}"
        took = f"Training steps took {self._seconds:.1f} s{since}"
        self._screen.say_folded(f"{took}; training ended after epoch {ended}")

    def _show_line(self, validation: Sequence[str] = (), best: bool = False) -> None:
        training = _figures({name: total / self._examples for name, total in self._sums.items()})
        seconds = [f"{self._seconds - self._seconds_shown:.1f} s"] if self._examples else []
        mark = ["best"] if best else []
        total = f"{self._plan.epochs:g}"
        label = f"epoch {self._plan.epochs_done(self._step):>{len(total)}g}/{total}  "
        whole = [*training, *validation, *seconds, *mark]
        short = [*training[:1], *validation, *seconds, *mark]
        columns = self._screen.columns
        for lines in (folded(whole, columns, len(label)), folded(short, columns, len(label))):
            if len(lines) == 1:
                break
        else:
            lines = folded([*training, *seconds], columns, len(label))
            lines += folded([*validation, *mark], columns, len(label))
        shown = Text(_beside(label, lines))
        if best:
            shown.highlight_regex("best$", "bold green")
        self._screen.say(label + "  ".join(whole), shown)
        self._seconds_shown, self._last_line = self._seconds, time.monotonic()
        self._sums, self._examples, self._ended_epoch = {}, 0, False

    def _finish_line(self) -> None:
        """Prints the line of an epoch that no validation has followed."""
        if self._ended_epoch:
            self._show_line()

    def __enter__(self) -> TrainingProgress:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._finish_line()
        self._live.stop()


def _figures(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4f}" for name, value in values.items()]


def _beside(label: str, lines: Sequence[str]) -> str:
    """Lines beside a label, below each other."""
    return label + f"\n{' ' * len(label)}".join(lines)
