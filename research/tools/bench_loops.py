"""The turns of this project's loop for ``bench``, and the floor: a step's arithmetic alone."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.experiment import Experiment
from research.tools.bench_others import peak_memory
from research.training.profiler import Profile
from research.training.train import train

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

# Large enough for a matrix product to reach nearly the processor's peak.
PRODUCT_SIZE = 2048
PRODUCTS = 8
PROFILED_STEPS = 10


def serve(loop: str, experiment: Experiment, config: Config, data: Dataset, steps: int) -> None:
    """Answers each line of standard input with a line of JSON.

    To ``turn`` the answer is ``seconds``, the time of the next turn, and ``peak_memory_mib``; to
    ``operations`` it is the result of ``operations``.

    Args:
        loop: ``ours-float32``, ``ours-bfloat16``, ``products-float32`` or ``products-bfloat16``.
        experiment, config: the measured experiment and its options.
        data: the data set, of which the training examples are used.
        steps: number of steps in a turn.
    """
    kind, _, number_format = loop.partition("-")
    if number_format == "bfloat16":
        config = dataclasses.replace(config, precision="mixed_bfloat16")
    if kind == "ours":
        turns = our_turns(experiment, config, data, steps)
    else:
        turns = product_turns(experiment, config, data, steps)
    for line in sys.stdin:
        answer: dict[str, Any]
        if line.strip() == "operations":
            answer = operations(experiment, config, data)
        else:
            seconds = next(turns)
            answer = {"seconds": seconds, "peak_memory_mib": peak_memory()}
        print(json.dumps(answer), file=sys.__stdout__, flush=True)


def our_turns(experiment: Experiment, config: Config, data: Dataset, steps: int) -> Iterator[float]:
    """Yields the seconds of each turn of ``steps`` training steps."""
    state = experiment.build(config, Plan(len(data.train), config.examples_per_step, config.epochs))
    begun = time.perf_counter()
    for report in train(
        *(state, experiment.step, data.train),
        epochs=10**6,
        batch_size=config.examples_per_step,
        accumulate=config.accumulate,
        indices=experiment.indices,
        report_every=steps,
    ):
        if report.step % steps == 0:  # not at the end of an epoch
            yield time.perf_counter() - begun
            begun = time.perf_counter()


def product_turns(
    experiment: Experiment, config: Config, data: Dataset, steps: int
) -> Iterator[float]:
    """Yields the seconds of the arithmetic of ``steps`` steps as large matrix products."""
    matrix = tf.random.stateless_uniform([PRODUCT_SIZE, PRODUCT_SIZE], seed=[0, 0])
    if config.precision == "mixed_bfloat16":
        matrix = tf.cast(matrix, tf.bfloat16)
    plan = Plan(len(data.train), config.examples_per_step, config.epochs)
    model = experiment.build(config, plan).model
    wanted = steps * floating_point_operations(model, config.examples_per_step)
    while True:
        begun = time.perf_counter()
        for _ in range(PRODUCTS):
            product = tf.matmul(matrix, matrix)
        product.numpy()
        yield (time.perf_counter() - begun) / (PRODUCTS * 2 * PRODUCT_SIZE**3) * wanted


def floating_point_operations(model: tf.keras.Model, batch_size: int) -> int:
    """The additions and multiplications of a step in convolutions and dense layers.

    A layer's output, its kernel's gradient and its input's gradient take the same number each. A
    frozen kernel needs no gradient; neither does an input without trained layers below it.
    """
    total, trained_below = 0, False
    frozen = {layer.name for layer in _layers(model) if not layer.trainable}
    for layer in model.stock_twin().layers:
        if hasattr(layer, "kernel"):
            trained = layer.name not in frozen
            places = math.prod(layer.output.shape[1:-1])
            total += 2 * places * math.prod(layer.kernel.shape) * (1 + trained + trained_below)
            trained_below = trained_below or trained
    return batch_size * total


def _layers(model: tf.keras.Model) -> Iterator[tf.keras.layers.Layer]:
    """The layers of a model, and those of the models among them."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, tf.keras.Model):
            yield from _layers(layer)


def operations(experiment: Experiment, config: Config, data: Dataset) -> dict[str, float]:
    """Milliseconds per step by operation, ``<layer or scope> <operation>``, longest first.

    Operations that run at the same time both count in full.
    """
    state = experiment.build(config, Plan(len(data.train), config.examples_per_step, config.epochs))
    seconds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="research-bench-") as folder:
        profile = Profile(PROFILED_STEPS + 1, 2 * PROFILED_STEPS, Path(folder))
        for _ in train(
            *(state, experiment.step, data.train),
            epochs=10**6,
            batch_size=config.examples_per_step,
            accumulate=config.accumulate,
            indices=experiment.indices,
            until=2 * PROFILED_STEPS,
            report_every=2 * PROFILED_STEPS + 1,
            profile=profile,
        ):
            pass
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
                for event in (event for line in plane.lines for event in line.events):
                    full_name = plane.event_metadata[event.metadata_id].name
                    name, _, operation = full_name.rpartition(":")
                    scopes = name.partition("StatefulPartitionedCall/")[2].split("/")
                    if len(scopes) > 1:
                        scope = scopes[scopes[0] == "gradient_tape"]
                        seconds[f"{scope} {operation}"] += event.duration_ps / 1e12
    return {name: 1000 * total / PROFILED_STEPS for name, total in seconds.most_common()}
