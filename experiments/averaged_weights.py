"""Averaged weights: their exponential moving average is judged (Polyak and Juditsky, 1992).

- Command: python experiments/averaged_weights.py
- Duration: about 10 minutes on 2 CPU cores
- Expect: with --epochs 1 and seed 0, test accuracy 98.4%, test loss 0.051 (reference 0.058)
- Verdict: better, 9 pairs, one epoch: error -0.212 points (-0.417 to -0.007)
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

    average_decay: float = 0.99
    """Factor by which a step's weights lose influence on the average with each later step."""


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    average_decay = config.average_decay
    require("average_decay", average_decay, 0 <= average_decay < 1, "give 0 to below 1")
    network = (config.dense_width, config.dropout, config.seed, config.precision)
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(*network),
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
        options=config,
        extra={"average": MnistCNN(*network)},
    )


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
    gradients = state.gradients(tape, loss)
    measured = state.update(gradients)
    # The decay rises at first, so that the average forgets the initial weights.
    done = tf.cast(state.step, tf.float32)
    decay = tf.minimum(state.options.average_decay, (1 + done) / (10 + done))
    for average, weight in zip(state.extra["average"].weights, state.model.weights, strict=True):
        average.assign(weight + decay * (average - weight))
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, **measured}


experiment = Experiment(
    config=Config, build=build, step=step, judged=lambda state: state.extra["average"]
)

if __name__ == "__main__":
    main(experiment)
