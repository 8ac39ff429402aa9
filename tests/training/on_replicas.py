"""Trains a small float64 network on logical CPUs, and with gradient accumulation.

    python on_replicas.py RESULT.npz one two ...

A program of its own: TensorFlow makes logical devices before its first use only, and mixes up the
reductions of several strategies in one process.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from research.data.augmentation import random_affine, random_shift
from research.data.dataset import Split
from research.network.layers import dropout
from research.seeds import Seed, fold_in
from research.training.state import State
from research.training.train import train

import numpy as np
import tensorflow as tf

WAYS = {"one": (1, 1), "two": (2, 1), "four": (4, 1), "accumulated": (1, 4), "both": (2, 2)}
STEPS, EXAMPLES, BATCH = 102, 103, 16  # seven steps an epoch; the last has seven examples


class Network(tf.keras.Model):
    def __init__(self) -> None:
        super().__init__(dtype="float64")
        start = tf.keras.initializers.GlorotUniform(seed=0)
        self.hidden = tf.keras.layers.Dense(24, "tanh", kernel_initializer=start, dtype="float64")
        self.last = tf.keras.layers.Dense(10, kernel_initializer=start, dtype="float64")
        self.logits(tf.zeros([1, 28, 28, 1]), tf.constant([0, 0]))
        self.built = True

    def logits(self, images: tf.Tensor, seed: Seed) -> tf.Tensor:
        x = tf.reshape(tf.cast(images, tf.float64), [-1, 28 * 28])
        x = dropout(x, 0.25, fold_in(seed, 0))  # a byte for each element
        x = dropout(self.hidden(x), 0.3, fold_in(seed, 1))  # a word for each element
        return self.last(x)


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """Augmentation, dropout, numbers of the step's own, and one update."""
    images = random_affine(images, state.random_seed("affine"), rotation=20, scale=0.1)
    images = random_shift(images, state.random_seed("shift"), pixels=2)
    noise = state.random_uniform("noise", tf.shape(images), -0.1, 0.1)
    brightness = tf.random.stateless_uniform([], state.batch_seed("brightness"), 0.8, 1.0)
    # In float64: how TensorFlow orders these sums depends on the rest of the graph.
    noisy = tf.cast(images, tf.float64) + tf.cast(noise, tf.float64)
    noisy *= tf.cast(brightness, tf.float64)
    with tf.GradientTape() as tape:
        logits = state.model.logits(noisy, state.random_seed("dropout"))
        losses = tf.nn.softmax_cross_entropy_with_logits(tf.cast(labels, tf.float64), logits)
        loss = tf.reduce_mean(losses)
    measured = state.update(state.gradients(tape, loss))
    ones = tf.ones([tf.shape(images)[0], 3])  # three bytes for an example: nowhere aligned
    mask = dropout(ones, 0.5, state.random_seed("mask"))
    gather = tf.distribute.get_replica_context().all_gather
    if state.strategy.num_replicas_in_sync > 1:
        images, noise, mask = (gather(drawn, axis=0) for drawn in (images, noise, mask))
    images = tf.ensure_shape(images, [None, 28, 28, 1])
    drawn = {"noise": tf.reshape(noise, [-1]), "mask": tf.reshape(mask, [-1])}
    return {"loss": loss, "images": images, **drawn, **measured}


@functools.cache
def strategy_of(replicas: int) -> tf.distribute.Strategy:
    """A strategy; two of several replicas would mix up their reductions."""
    if replicas == 1:
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("CPU")[:replicas]
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def main(path: str, ways: list[str]) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 28, 28, 1), np.uint8)
    split = Split(images, (np.arange(EXAMPLES) % 10).astype(np.uint8), "train")
    found: dict[str, Any] = {}
    for way in ways:
        replicas, accumulate = WAYS[way]
        with strategy_of(replicas).scope():
            state = State(
                model=Network(),
                loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
                optimizer=tf.keras.optimizers.Adadelta(1.0),
            )
        options: dict[str, Any] = {"epochs": STEPS / 7, "batch_size": BATCH, "report_every": 3}
        for report in train(state, step, split, accumulate=accumulate, **options):
            assert report.last_step is not None
            for name in ("images", "noise", "mask"):
                found[f"{way} {name} {report.step}"] = report.last_step.returned[name]
        found[f"{way} loss"] = report.history["loss"]
        for number, weight in enumerate(state.model.get_weights()):
            found[f"{way} weight {number}"] = weight
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
