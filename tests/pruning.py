"""Replays pruning on the learning curves of 200 real trainings.

    python tests/pruning.py CURVES.json

records the curves that CURVES.json does not have yet, and then replays them in ten orders: a small
convolutional network, trained with the project's loop and settings drawn at random on 1,000
examples of MNIST, and validated 12 times on 2,000 others. The figures are in experiments/README.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.comparing.question import Metric
from research.config import parse
from research.data.batches import Plan
from research.data.dataset import Split, hold_out
from research.data.mnist import load_mnist
from research.errors import NonFiniteError
from research.experiment import Experiment
from research.files import replaced_atomically
from research.loop import Training
from research.network.layers import dropout
from research.network.mnist_cnn import Config
from research.recording.progress import TrainingProgress
from research.screen import Screen
from research.seeds import Seed, fold_in
from research.signals import StopRequest
from research.sweeping.journal import Journal
from research.sweeping.space import parse_space, words_of
from research.tools.load_experiment import load_experiment
from research.training.optimizer import adadelta
from research.training.state import State
from research.training.train import train

import numpy as np
import numpy.typing as npt
import tensorflow as tf

SETTINGS, EPOCHS = 200, 12
EXAMPLES, HELD_OUT = 1000, 2000
OVER = (
    *("learning_rate=0.1..10:log", "decay=constant,linear,cosine"),
    "dropout=0 0.25,0.25 0.5,0.4 0.6",
)
ERROR = Metric.parse("error")
REFERENCE = Path(__file__).parents[1] / "experiments" / "mnist_cnn.py"
Errors = npt.NDArray[np.float64]


class SmallCNN(tf.keras.Model):
    """The reference network with 12 filters of 5x5, every second pixel, and 64 units."""

    def __init__(self, dropout_rates: tuple[float, float], seed: int) -> None:
        super().__init__(name="small_cnn")
        self.dropout_rates = dropout_rates
        layers, start = tf.keras.layers, tf.keras.initializers.GlorotUniform
        self.conv = layers.Conv2D(12, 5, 2, activation="relu", kernel_initializer=start(seed))
        self.pool = layers.MaxPooling2D(2)
        self.dense1 = layers.Dense(64, activation="relu", kernel_initializer=start(seed + 1))
        self.dense2 = layers.Dense(10, kernel_initializer=start(seed + 2))
        self(tf.zeros([1, 28, 28, 1]))

    def logits(
        self, images: tf.Tensor, training: bool = False, seed: Seed | None = None
    ) -> tf.Tensor:
        """The network's output [B, 10] before the softmax."""
        x = self.pool(self.conv(images))
        x = tf.reshape(x, [tf.shape(x)[0], 6 * 6 * 12])
        first, second = self.dropout_rates
        if training and seed is not None and first:
            x = dropout(x, first, fold_in(seed, 0))
        x = self.dense1(x)
        if training and seed is not None and second:
            x = dropout(x, second, fold_in(seed, 1))
        return self.dense2(x)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Class probabilities [B, 10]."""
        return tf.nn.softmax(self.logits(images, training))


def build(config: Config, plan: Plan) -> State:
    """The small network with the reference's optimizer and loss."""
    return State(
        model=SmallCNN(config.dropout, config.seed),
        optimizer=adadelta(plan, config.learning_rate, config.decay),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
    )


def curve(experiment: Experiment, config: Config, splits: tuple[Split, Split]) -> list[float]:
    """The error after each epoch of a training; the last is infinite if it became non-finite."""
    plan, end = Plan(len(splits[0]), config.examples_per_step, config.epochs), []
    state = experiment.build(config, plan)
    reports = train(
        *(state, experiment.step, splits[0]),
        epochs=config.epochs,
        batch_size=config.examples_per_step,
        report_every=10_000,
    )
    evaluate = functools.partial(experiment.validate, state, splits[1], splits[0])
    with Screen() as screen:
        screen.console.quiet = True
        progress, stop = TrainingProgress(screen, plan), StopRequest()
        training = Training(evaluate, config, state, reports, *splits, None, progress, stop)
        try:
            experiment.loop(training)
        except NonFiniteError:
            end = [float("inf")]
    return [1 - each["accuracy"] for each in training.validations] + end


def record(file: Path) -> None:
    """Trains each setting that is missing once, with a seed of its own."""
    found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    experiment = dataclasses.replace(load_experiment(REFERENCE), build=build)
    splits = hold_out(load_mnist(print).train.first(EXAMPLES + HELD_OUT), HELD_OUT, 0)
    space = parse_space(OVER, Config, [], "mnist_cnn")
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder), space, ERROR, "random", 0)
        for seed in range(SETTINGS):
            words = words_of(space, journal.ask()[1])
            if seed < len(found):
                continue
            options = ["--epochs", str(EPOCHS), "--batch-size", "32", "--holdout", str(HELD_OUT)]
            config = parse(Config, [*options, *words, "--seed", str(seed)], experiment="small_cnn")
            found.append({"setting": words, "errors": curve(experiment, config, splits)})
            tf.keras.backend.clear_session()
            with replaced_atomically(file) as partial:
                partial.write_text(json.dumps(found, indent=1))
            print(seed, *words, [f"{100 * error:.2f}%" for error in found[-1]["errors"][::4]])


def replayed(journal: Journal, errors: Sequence[Sequence[float]], workers: int = 2) -> int:
    """Reports curves as so many workers in step would; returns the number of validations."""
    done, waiting, running = 0, list(errors), dict[int, tuple[int, Sequence[float]]]()
    while waiting or running:
        while waiting and len(running) < workers:
            running[journal.ask()[0]] = 0, waiting.pop(0)
        for number, (epoch, curve) in list(running.items()):
            if epoch == len(curve):
                journal.tell(number, float(curve[-1]))
                del running[number]
                continue
            done, running[number] = done + 1, (epoch + 1, curve)
            if journal.report(number, epoch + 1, float(curve[epoch])):
                journal.give_up(number)
                del running[number]
    return done


def replay(errors: Sequence[Sequence[float]], workers: int) -> tuple[list[float], list[float]]:
    """Replays the curves in ten orders.

    Returns:
        For each order the share of the validations that pruning saves, and by how much the error of
        the setting that it calls the best is above the lowest.
    """
    saved, above = [], []
    best, total = min(curve[-1] for curve in errors), sum(map(len, errors))
    # Pruning does not look at settings; those of a grid need no drawing.
    space = parse_space([f"learning_rate=0.1..10:log:{SETTINGS}"], Config, [], "mnist_cnn")
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(errors))
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(Path(folder), space, ERROR, "grid", 0)
            done = replayed(journal, [errors[n] for n in order], workers)
            saved.append(1 - done / total)
            above.append(journal.study.best_value - best)
    return saved, above


def main() -> None:
    """Records, and replays with 2, 4 and 8 workers."""
    file = Path(sys.argv[1])
    record(file)
    errors = [each["errors"] for each in json.loads(file.read_text())]
    last = sorted(curve[-1] for curve in errors)
    print(f"last errors: {last[0]:.2%}, {last[1]:.2%}, ..., {last[-1]:.2%}")
    for workers in (2, 4, 8):
        saved, above = replay(errors, workers)
        print(
            f"{workers} workers: {min(saved):.0%} to {max(saved):.0%} of the validations saved, "
            f"best setting kept in {above.count(0)} of {len(above)} orders, else the error is "
            f"{max(above):.2%} above"
        )


if __name__ == "__main__":
    main()
