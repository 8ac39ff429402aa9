"""What recording costs: whole epochs of an experiment, with it and without."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.batches import steps_of_epochs, steps_per_epoch
from research.data.dataset import Dataset
from research.experiment import record_training
from research.recording.run import begin
from research.recording.screen import Screen, TrainingProgress
from research.recording.start import find_start
from research.results.evaluation import evaluate
from research.signals import StopRequest
from research.tools.mean_and_spread import mean_and_spread
from research.training.state import State
from research.training.train import Report, Step, train

Build = Callable[[Any, int], State]


def compare_recording(
    config: Config,
    build: Build,
    step: Step,
    data: Dataset,
    experiment: Path,
    *,
    blocks: int,
    screen: Screen,
) -> dict[str, Any]:
    """Measures ``blocks`` epochs of each kind, in turn; shows and returns how they compare."""
    with tempfile.TemporaryDirectory(prefix="research-bench-") as folder:
        # Checkpoints are no part of it: there is none but for one at the end of an epoch.
        config = dataclasses.replace(
            config, run_dir=Path(folder, "run"), epochs=1000, checkpoint_every="10000m"
        )
        on = recorded_epochs(config, build, step, data, experiment, screen)
        off = plain_epochs(config, build, step, data)
        next(on), next(off)  # these warm up
        pairs = []
        for block in range(1, blocks + 1):
            # Whichever comes second finds the machine warmer.
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
    config: Config, build: Build, step: Step, data: Dataset, experiment: Path, screen: Screen
) -> Generator[float, None, None]:
    """The seconds that each epoch of an experiment takes, a checkpoint at its end among them."""
    total_steps = steps_of_epochs(config.epochs, len(data.train), config.batch_size)
    stop = StopRequest()  # which listens only where it is entered
    state = build(config, total_steps)
    start = find_start(config, experiment, data, state, total_steps)
    per_epoch = steps_per_epoch(len(data.train), config.batch_size)
    with begin(start, None, state, per_epoch, total_steps) as record:
        reports = train(
            *(state, step, data.train),
            epochs=config.epochs,
            batch_size=config.batch_size,
            report_now=record.checkpoints.due,
            show_graph=record.show_graph,
        )
        while True:
            progress = TrainingProgress(screen, config.epochs, total_steps)
            begun = time.perf_counter()
            epoch = _to_end_of_epoch(reports)
            record_training(epoch, state, data.train, data.test, record, progress, stop)
            yield time.perf_counter() - begun


def plain_epochs(config: Config, build: Build, step: Step, data: Dataset) -> Iterator[float]:
    """The seconds that each epoch takes where all that happens is training and validation."""
    state = build(config, steps_of_epochs(config.epochs, len(data.train), config.batch_size))
    reports = train(state, step, data.train, epochs=config.epochs, batch_size=config.batch_size)
    while True:
        begun = time.perf_counter()
        for _ in _to_end_of_epoch(reports):
            pass
        evaluate(state.model, data.test)
        yield time.perf_counter() - begun


def _to_end_of_epoch(reports: Iterator[Report]) -> Iterator[Report]:
    for report in reports:
        yield report
        if report.epoch_ended:
            return
