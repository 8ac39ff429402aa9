"""Gradient accumulation: the batch in parts, which need less memory at a time.

- Command: python experiments/accumulation.py --batch-size 512 --part-size 64
- Duration: about 10 minutes on 2 CPU cores
- Expect: without dropout, the results of the whole batch but for rounding
"""

from __future__ import annotations

import dataclasses

from research.config import require
from research.data.batches import Plan
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.training.optimizer import adadelta
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The reference experiment's options, and one of this experiment."""

    part_size: int = 32
    """Examples in a part, on each replica; a batch's last part may be smaller."""


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    require("part_size", config.part_size, config.part_size >= 1, "give 1 or more")
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(config.dense_width, config.dropout, config.seed, config.precision),
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
        options=config,
    )


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    examples, part_size = tf.cast(tf.shape(images)[0], tf.float32), state.options.part_size
    gradients = [tf.zeros(weight.shape) for weight in state.model.trainable_variables]
    loss = accuracy = tf.zeros([])
    for first in tf.range(0, tf.shape(images)[0], part_size):
        seed = tf.random.experimental.stateless_fold_in(state.random_seed("dropout"), first)
        some, truth = images[first : first + part_size], labels[first : first + part_size]
        with tf.GradientTape() as tape:
            logits = state.model.logits(some, training=True, seed=seed)
            loss_of_part = tf.reduce_sum(state.loss(truth, logits)) / examples
        parts = state.gradients(tape, loss_of_part)
        gradients = [a + b for a, b in zip(gradients, parts, strict=True)]
        loss += loss_of_part
        accuracy += tf.reduce_sum(tf.keras.metrics.categorical_accuracy(truth, logits)) / examples
    measured = state.update(gradients)
    return {"loss": loss, "accuracy": accuracy, **measured}


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
