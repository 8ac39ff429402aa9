"""Measures whole trainings: their time and accuracy, and the time of Keras ``fit`` beside them."""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.experiment import Experiment
from research.loop import Training
from research.recording.progress import TrainingProgress
from research.results.evaluation import evaluate
from research.screen import Screen
from research.signals import StopRequest
from research.tools.mean_and_spread import mean_and_spread
from research.training.train import train

from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

# The epochs and batch size of the well-known Keras script.
REFERENCE_EPOCHS = 12
REFERENCE_BATCH_SIZE = 128


def serve_trainings(experiment: Experiment, config: Config, data: Dataset, screen: Screen) -> None:
    """Answers each line of standard input, a seed, with a line of JSON.

    For each seed it trains on all training examples, in the experiment's own loop, and evaluates
    once on the test set. The answer has the test ``accuracy`` and ``loss``, and ``seconds``, the
    time of training without tracing and validation.
    """
    stop = StopRequest()  # which listens only where it is entered
    for line in sys.stdin:
        chosen = dataclasses.replace(config, seed=int(line))
        plan = Plan(len(data.train), chosen.examples_per_step, chosen.epochs)
        state = experiment.build(chosen, plan)
        reports = train(
            *(state, experiment.step, data.train),
            epochs=chosen.epochs,
            batch_size=chosen.examples_per_step,
            accumulate=chosen.accumulate,
            indices=experiment.indices,
        )
        splits, progress = (data.train, data.test), TrainingProgress(screen, plan)
        validate = functools.partial(experiment.validate, state, data.test, data.train)
        training = Training(validate, chosen, state, reports, *splits, None, progress, stop)
        begun = time.perf_counter()
        experiment.loop(training)
        seconds = time.perf_counter() - begun - training.wall_time.total("validation")
        test = evaluate(experiment.judged(state), data.test)
        answer = {"seconds": seconds, "accuracy": test.accuracy, "loss": test.loss}
        print(json.dumps(answer), file=sys.__stdout__, flush=True)


def compare_trainings(
    ask_ours: Callable[[str], Any],
    ask_fit: Callable[[str], Any],
    *,
    experiment: Path,
    trainings: int,
    steps: int,
    examples: int,
    screen: Screen,
) -> dict[str, Any]:
    """Trains once with each seed, with a turn of Keras ``fit`` beside it; shows the results.

    Args:
        ask_ours: sends a seed to ``serve_trainings`` and returns the answer.
        ask_fit: lets ``fit`` take a turn and returns the turn's ``seconds``.
        experiment: the experiment's file, for the messages.
        trainings: number of trainings, with seeds from 0.
        steps: steps in a turn of ``fit``; ``fit_seconds`` extrapolates to the steps of 12 epochs
            with batches of 128.
        examples: number of training examples.
        screen: where to show progress and results.

    Returns:
        The measurements; ``trainings`` has a row for each seed.
    """
    fit_steps = Plan(examples, REFERENCE_BATCH_SIZE, REFERENCE_EPOCHS).steps
    ask_fit("warm up")
    rows = _measure(ask_ours, ask_fit, trainings, fit_steps / steps, screen)
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
        f"{REFERENCE_EPOCHS} epochs of Keras fit, extrapolated from {steps} steps each time; "
        f"{experiment}, {examples:,} examples, n = {trainings}"
    )
    about = {"experiment": str(experiment), "examples": examples, "fit_steps_timed": steps}
    return about | {"trainings": rows}


def _measure(
    ask_ours: Callable[[str], Any],
    ask_fit: Callable[[str], Any],
    trainings: int,
    turns_of_fit: float,
    screen: Screen,
) -> list[dict[str, float]]:
    """Measures one training after the other; returns a row for each."""
    rows = []
    with Progress(
        *(SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn()),
        console=screen.console,
        disable=not screen.console.is_terminal,
        refresh_per_second=1,  # drawing takes time from the measured processes
        transient=True,
    ) as progress:
        for seed in progress.track(range(trainings), description="trainings"):
            # The second finds the machine warmer, so the order alternates.
            if seed % 2:
                fit, ours = ask_fit("turn"), ask_ours(str(seed))
            else:
                ours, fit = ask_ours(str(seed)), ask_fit("turn")
            row = {"seed": seed, **ours}
            row["fit_seconds"] = fit["seconds"] * turns_of_fit
            row["fit_over_ours"] = row["fit_seconds"] / row["seconds"]
            screen.say(
                f"seed {seed} ({seed + 1}/{trainings})  test accuracy {row['accuracy']:.4f}  "
                f"trained {row['seconds']:.1f} s  Keras fit {row['fit_seconds']:.0f} s"
            )
            rows.append(row)
    return rows
