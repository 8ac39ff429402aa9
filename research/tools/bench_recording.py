"""Measures the cost of recording: whole epochs of an experiment, with and without it."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.experiment import Experiment
from research.loop import Training
from research.recording.progress import TrainingProgress
from research.recording.run import Run, begin
from research.recording.start import find_start
from research.results.evaluation import evaluate
from research.screen import Screen
from research.signals import StopRequest
from research.tools.mean_and_spread import mean_and_spread
from research.training.state import State
from research.training.train import Report, train


def compare_recording(
    experiment: Experiment,
    config: Config,
    data: Dataset,
    file: Path,
    *,
    blocks: int,
    screen: Screen,
) -> dict[str, Any]:
    """Measures ``blocks`` epochs of each kind in turns; shows and returns the comparison."""
    with tempfile.TemporaryDirectory(prefix="research-bench-") as folder:
        # The only checkpoint is the one at the end of an epoch.
        config = dataclasses.replace(
            config, run_dir=Path(folder, "run"), epochs=1000, checkpoint_every="10000m"
        )
        on = recorded_epochs(experiment, config, data, file, screen)
        off = plain_epochs(experiment, config, data)
        next(on), next(off)  # warm up
        pairs = []
        for block in range(1, blocks + 1):
            # The second finds the machine warmer, so the order alternates.
            first = block % 2 == 0
            a, b = (next(on if first else off), next(off if first else on))
            pairs.append((a, b) if first else (b, a))
            screen.say(f"block {block}/{blocks}  seconds: {pairs[-1]}")
        on.close()
    ratios = [without / recorded for recorded, without in pairs]
    screen.say(
        f"Throughput with recording over that without: {mean_and_spread(ratios)} "
        f"(mean ± standard deviation), "
        f"{statistics.median(ratios):.3f} (median), n = {blocks} epochs each"
    )
    return {"seconds": pairs, "throughput_ratio": ratios}


def recorded_epochs(
    experiment: Experiment, config: Config, data: Dataset, file: Path, screen: Screen
) -> Generator[float, None, None]:
    """Yields the seconds of each recorded epoch, with the checkpoint at its end."""
    plan = Plan(len(data.train), config.examples_per_step, config.epochs)
    stop = StopRequest()  # never entered, so no signal sets it
    state = experiment.build(config, plan)
    start = find_start(config, file, data, state, plan, lambda plan: state)
    with begin(start, None, state) as run:
        reports = _reports(experiment, config, data, state, run)
        while True:
            progress = TrainingProgress(screen, plan)
            begun = time.perf_counter()
            epoch, splits = _to_end_of_epoch(reports), (data.train, data.test)
            validate = functools.partial(experiment.validate, state, data.test, data.train)
            training = Training(validate, config, state, epoch, *splits, run, progress, stop)
            with progress:
                experiment.loop(training)
            training.save()
            yield time.perf_counter() - begun


def plain_epochs(experiment: Experiment, config: Config, data: Dataset) -> Iterator[float]:
    """Yields the seconds of each epoch of training and validation alone."""
    state = experiment.build(config, Plan(len(data.train), config.examples_per_step, config.epochs))
    reports = _reports(experiment, config, data, state)
    while True:
        begun = time.perf_counter()
        for _ in _to_end_of_epoch(reports):
            pass
        evaluate(experiment.judged(state), data.test)
        yield time.perf_counter() - begun


def _reports(
    experiment: Experiment, config: Config, data: Dataset, state: State, run: Run | None = None
) -> Iterator[Report]:
    return train(
        *(state, experiment.step, data.train),
        epochs=config.epochs,
        batch_size=config.examples_per_step,
        accumulate=config.accumulate,
        indices=experiment.indices,
        report_now=run.checkpoints.due if run else lambda done: False,
        show_graph=run.show_graph if run else lambda graph: None,
    )


def _to_end_of_epoch(reports: Iterator[Report]) -> Iterator[Report]:
    for report in reports:
        yield report
        if report.epoch_ended:
            return
