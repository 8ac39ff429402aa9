"""How long whole trainings take, how good they are, and how long Keras ``fit`` trains instead."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

from research.config import Config
from research.data.batches import steps_of_epochs
from research.data.dataset import Dataset
from research.recording.screen import Screen
from research.results.evaluation import evaluate
from research.tools.mean_and_spread import mean_and_spread
from research.training.state import State
from research.training.train import Step, train

from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

# The well-known Keras script's.
REFERENCE_EPOCHS = 12
REFERENCE_BATCH_SIZE = 128


def serve_trainings(
    config: Config, build: Callable[[Any, int], State], step: Step, data: Dataset
) -> None:
    """Answers each line of the standard input, a seed, with a line of JSON.

    It trains with that seed, on all training examples, and evaluates once on the test set. The
    answer is the test ``accuracy`` and ``loss``, and the ``seconds`` of training, without tracing.
    """
    # What an experiment prints is no answer.
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            chosen = dataclasses.replace(config, seed=int(line))
            examples, batch_size = len(data.train), chosen.batch_size
            state = build(chosen, steps_of_epochs(chosen.epochs, examples, batch_size))
            reports = train(state, step, data.train, epochs=chosen.epochs, batch_size=batch_size)
            seconds = sum(report.seconds for report in reports)
            test = evaluate(state.model, data.test)
            answer = {"seconds": seconds, "accuracy": test.accuracy, "loss": test.loss}
            print(json.dumps(answer), file=sys.__stdout__, flush=True)


def compare_trainings(
    ask_ours: Callable[[str], Any],
    ask_fit: Callable[[str], Any],
    *,
    trainings: int,
    steps: int,
    examples: int,
    as_json: bool,
    screen: Screen,
) -> None:
    """Trains with so many seeds, a turn of Keras ``fit`` after each, and prints what came of it.

    Args:
        ask_ours: see ``serve_trainings``.
        ask_fit: takes a turn and answers with its ``seconds``.
        trainings: number of seeds, from 0.
        steps: of ``fit`` in a turn; its whole training has as many as 12 epochs of batches of 128.
        examples: in the training set.
        as_json: print JSON instead of tables.
        screen: where to show progress and results.
    """
    fit_steps = steps_of_epochs(REFERENCE_EPOCHS, examples, REFERENCE_BATCH_SIZE)
    ask_fit("warm up")
    rows = list(_measure(ask_ours, ask_fit, trainings, fit_steps / steps, screen))
    if as_json:
        print(json.dumps({"trainings": rows}, indent=2))
        return
    table = Table("", "mean ± standard deviation", "median", "lowest", "highest")
    for name, digits in (
        *(("accuracy", 4), ("loss", 4), ("seconds", 1)),
        *(("fit_seconds", 0), ("fit_over_ours", 1)),
    ):
        values = [row[name] for row in rows]
        others = (statistics.median(values), min(values), max(values))
        table.add_row(
            name, mean_and_spread(values, digits), *(f"{value:.{digits}f}" for value in others)
        )
    screen.console.print(table)
    screen.say(
        f"accuracy and loss: on the test set; seconds: of training; fit_seconds: of "
        f"{REFERENCE_EPOCHS} epochs of Keras fit, from {steps} steps each time; n = {trainings}"
    )


def _measure(
    ask_ours: Callable[[str], Any],
    ask_fit: Callable[[str], Any],
    trainings: int,
    turns_of_fit: float,
    screen: Screen,
) -> Iterator[dict[str, float]]:
    """One training after the other, a row for each."""
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(
        *columns,
        console=screen.console,
        disable=not screen.console.is_terminal,
        transient=True,
    ) as progress:
        for seed in progress.track(range(trainings), description="trainings"):
            row = {"seed": seed, **ask_ours(str(seed))}
            row["fit_seconds"] = ask_fit("turn")["seconds"] * turns_of_fit
            row["fit_over_ours"] = row["fit_seconds"] / row["seconds"]
            screen.say(
                f"seed {seed} ({seed + 1}/{trainings})  test accuracy {row['accuracy']:.4f}  "
                f"trained {row['seconds']:.1f} s  Keras fit {row['fit_seconds']:.0f} s"
            )
            yield row
