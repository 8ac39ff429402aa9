"""Mixup: train on blends of two images and of their labels (Zhang et al., 2018).

- Command: python experiments/mixup.py
- Duration: about 10 minutes on 2 CPU cores
- Expect: slow learning of blends; with --epochs 1 and seed 0, test accuracy 97.6%, test loss 0.101
"""

from __future__ import annotations

import dataclasses
import math

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

    alpha: float = 0.2
    """Both parameters of the Beta distribution from which the proportions of a blend are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        valid = math.isfinite(self.alpha) and self.alpha > 0
        require("alpha", self.alpha, valid, "give a finite number above 0")


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
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
    # Two Gamma variables give a Beta one. A batch has random order, so its reverse is as random.
    seed = state.random_seed("mixup")
    first, second = tf.unstack(tf.random.stateless_gamma([2], seed, state.options.alpha))
    blend = first / (first + second)
    images = blend * images + (1 - blend) * images[::-1]
    labels = blend * labels + (1 - blend) * labels[::-1]
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
    gradients = state.gradients(tape, loss)
    measured = state.update(gradients)
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, "pictures/batch": images, **measured}


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
