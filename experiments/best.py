"""The highest test accuracy within 20 minutes on two CPU cores.

The reference experiment, longer and with five changes. Images are shifted, turned, scaled and
slanted at random, and there is no dropout, which then does harm. As in the speedrun the first
layer is not trained, labels are smoothed, and the learning rate is higher, rises at first and falls
to zero. All of it was selected on held-out training examples. One network sees each test image
once, as it is.

- Command: python experiments/best.py
- Duration: about 13 minutes on 2 CPU cores
- Expect: test accuracy of 99.6%; with seed 0, 99.61%
"""

from __future__ import annotations

import dataclasses
from typing import Any

from research.config import Config as BaseConfig
from research.data.augmentation import random_affine
from research.experiment import main
from research.network.initialization import set_decorrelating_filters
from research.network.mnist_cnn import MnistCNN
from research.training.optimizer import Adadelta
from research.training.schedules import Decay, LearningRate
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The options of every experiment, with other defaults."""

    epochs: float = 18
    learning_rate: float = 3.0
    decay: Decay = "linear"
    warmup_epochs: float = 1.0
    dropout: tuple[float, float] = (0.0, 0.0)


def build(config: Config, total_steps: int) -> State:
    """The model, the optimizer and the loss."""
    warmup_steps = round(total_steps * config.warmup_epochs / config.epochs)
    learning_rate = LearningRate(config.learning_rate, total_steps, config.decay, warmup_steps)
    model = MnistCNN(config.dense_width, config.dropout, config.seed, config.precision)
    set_decorrelating_filters(model.conv1, config.seed)
    model.conv1.trainable = False
    return State(
        model=model,
        optimizer=Adadelta(learning_rate, rho=0.95, epsilon=1e-7),
        loss=tf.keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1, reduction="none"
        ),
        seed=config.seed,
        clip_norm=config.clip_norm,
    )


def step(state: State, images: Any, labels: Any) -> dict[str, Any]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    seed = state.random_seed("augmentation")
    images = random_affine(images, seed, shift=2, rotation=12, scale=0.12, shear=0.15)
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
    gradients = state.gradients(tape, loss)
    measured = state.update(gradients)
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, **measured}


if __name__ == "__main__":
    main(Config, build, step)
