"""The verb ``bench``: this loop beside Keras's own ``fit``, on the same machine in one run."""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from research.config import Config, require
from research.data.batches import steps_per_epoch
from research.data.dataset import NUM_CLASSES, Dataset
from research.data.mnist import load_mnist
from research.experiment import record_training
from research.network.mnist_cnn import MnistCNN
from research.recording.run import Run
from research.recording.screen import Screen, TrainingProgress
from research.results.evaluation import evaluate
from research.signals import StopRequest
from research.tools.load_experiment import EXPERIMENTS, load_experiment
from research.training.state import State
from research.training.train import Report, Step, train

import tensorflow as tf
import tyro
from rich.table import Table

Build = Callable[[Any, int], State]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure steps per second and peak memory against Keras fit. Let nothing else run."""

    experiment: Annotated[Path, tyro.conf.Positional] = EXPERIMENTS / "mnist_cnn.py"
    """The file of the experiment whose step is measured."""
    blocks: int = 5
    """Blocks of each kind; they alternate, so that a slow moment of the machine hits both."""
    steps: int = 60
    """Steps in a block."""
    json: bool = False
    """Print JSON instead of a table."""
    recording: bool = False
    """Measure instead what recording costs: whole epochs of an experiment, with it and without."""
    examples: int | None = None
    """With --recording: epochs of the first so many examples only."""
    only: Literal["ours", "fit"] | None = None
    """Run one block of one kind and print its peak memory in MiB; used for that figure."""

    def __post_init__(self) -> None:
        require("blocks", self.blocks, self.blocks >= 2, "give at least 2")
        valid = self.examples is None or (self.recording and self.examples >= 1)
        require("examples", self.examples, valid, "give at least 1, and --recording")
        require("steps", self.steps, 1 <= self.steps <= 400, "give 1 to 400")

    def run(self, screen: Screen) -> None:
        """Measures and prints."""
        config_type, build, step = load_experiment(self.experiment)
        config = config_type()
        screen.console.quiet = self.json
        data = load_mnist(screen.say)
        if self.recording:
            data = data.first(self.examples)
            self._compare_recording(config, build, step, data, screen)
            return
        ours = our_blocks(config, build, step, data, self.steps)
        fit = fit_blocks(data, config.batch_size, self.steps)
        if self.only is not None:
            next(ours if self.only == "ours" else fit)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
            return
        # A process keeps its peak: memory is measured in processes of their own.
        memory = {kind: self._peak_memory(kind) for kind in ("ours", "fit")}
        speeds: dict[str, list[float]] = {"ours": [], "fit": []}
        next(ours), next(fit)  # these warm up
        for block in range(1, self.blocks + 1):
            speeds["ours"].append(self.steps / next(ours))
            speeds["fit"].append(self.steps / next(fit))
            if not self.json:
                figures = ", ".join(f"{kind} {s[-1]:.2f}" for kind, s in speeds.items())
                screen.say(f"block {block}/{self.blocks}  steps per second: {figures}")
        ratios = [a / b for a, b in zip(speeds["ours"], speeds["fit"], strict=True)]
        if self.json:
            result = {"steps_per_second": speeds, "ratio": ratios, "peak_memory_mib": memory}
            print(json.dumps(result, indent=2))
            return
        table = Table("", "this loop", "Keras fit", "ratio")
        table.add_row("steps per second", mean(speeds["ours"]), mean(speeds["fit"]), mean(ratios))
        table.add_row(
            "peak memory, MiB",
            str(memory["ours"]),
            str(memory["fit"]),
            f"{memory['ours'] / memory['fit']:.2f}",
        )
        screen.console.print(table)
        screen.say(
            f"{self.experiment}, batch {config.batch_size}; "
            f"mean ± standard deviation, n = {self.blocks}"
        )

    def _compare_recording(
        self, config: Config, build: Build, step: Step, data: Dataset, screen: Screen
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="research-bench-") as folder:
            # Checkpoints are no part of it: there is none but for one at the end of an epoch.
            config = dataclasses.replace(
                config, run_dir=Path(folder, "run"), epochs=1000, checkpoint_every="10000m"
            )
            on = recorded_epochs(config, build, step, data, self.experiment, screen)
            off = plain_epochs(config, build, step, data)
            next(on), next(off)  # these warm up
            pairs = []
            for block in range(1, self.blocks + 1):
                # Whichever comes second finds the machine warmer.
                first = block % 2 == 0
                a, b = (next(on if first else off), next(off if first else on))
                pairs.append((a, b) if first else (b, a))
                screen.say(f"block {block}/{self.blocks}  seconds: {pairs[-1]}")
            on.close()
        ratios = [without / recorded for recorded, without in pairs]
        if self.json:
            print(json.dumps({"seconds": pairs, "throughput_ratio": ratios}, indent=2))
            return
        screen.say(
            f"Throughput with recording over that without: {mean(ratios)} (mean ± standard "
            f"deviation), {statistics.median(ratios):.3f} (median), n = {self.blocks} epochs each"
        )

    def _peak_memory(self, kind: str) -> int:
        command = [sys.executable, "-m", "research", "bench", str(self.experiment)]
        command += ["--only", kind, "--steps", str(self.steps)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(output.split()[-1])


def mean(values: list[float]) -> str:
    """Mean and standard deviation, for reading."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def recorded_epochs(
    config: Config, build: Build, step: Step, data: Dataset, experiment: Path, screen: Screen
) -> Generator[float, None, None]:
    """The seconds that each epoch of an experiment takes, a checkpoint at its end among them."""
    total_steps = config.epochs * steps_per_epoch(len(data.train), config.batch_size)
    stop = StopRequest()  # which listens only where it is entered
    with Run(config, experiment, data, screen.say) as record:
        state = build(config, total_steps)
        record.restore(state, total_steps)
        reports = train(
            *(state, step, data.train),
            epochs=config.epochs,
            batch_size=config.batch_size,
            report_now=record.checkpoint_due,
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
    state = build(config, 1)
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


def our_blocks(
    config: Config, build: Build, step: Step, data: Dataset, steps: int
) -> Iterator[float]:
    """The seconds that each block of ``steps`` steps of an experiment takes."""
    state = build(config, steps)
    done, seconds = 0, 0.0
    for report in train(
        state, step, data.train, epochs=10**6, batch_size=config.batch_size, report_every=steps
    ):
        seconds += report.seconds
        done += len(next(iter(report.history.values())))
        if done >= steps:
            yield seconds / done * steps
            done, seconds = 0, 0.0


def fit_blocks(data: Dataset, batch_size: int, steps: int) -> Iterator[float]:
    """The seconds that ``fit`` takes for ``steps`` steps of the well-known Keras script."""
    model = MnistCNN().stock_twin()
    model.compile(
        tf.keras.optimizers.Adadelta(1.0, rho=0.95, epsilon=1e-7),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    images = data.train.images.astype("float32") / 255
    labels = tf.keras.utils.to_categorical(data.train.labels, NUM_CLASSES)
    count = steps * batch_size
    while True:
        begun = time.perf_counter()
        model.fit(images[:count], labels[:count], batch_size=batch_size, verbose=0)
        yield time.perf_counter() - begun
