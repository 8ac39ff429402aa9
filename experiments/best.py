"""The highest test accuracy within 20 minutes on two CPU cores.

The reference experiment, longer and with five changes. Images are shifted, rotated, scaled and
sheared at random. There is no dropout, which then lowers the accuracy. As in the speedrun, the
first layer is not trained, labels are smoothed, and the learning rate is higher, rises at first and
falls to zero. All five were selected on held-out training examples. One network predicts each test
image once, unchanged.

- Command: python experiments/best.py
- Duration: about 13 minutes on 2 CPU cores
- Expect: test accuracy of 99.6%; with seed 0, 99.61%
"""

from __future__ import annotations

import dataclasses

from research.data.augmentation import random_affine
from research.data.batches import Plan
from research.experiment import Experiment, main
from research.network.initialization import set_decorrelating_filters
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.training.optimizer import adadelta
from research.training.schedules import Decay
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The reference experiment's options, with other defaults."""

    epochs: float = 18
    learning_rate: float = 3.0
    decay: Decay = "linear"
    warmup_epochs: float = 1.0
    dropout: tuple[float, float] = (0.0, 0.0)


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    model = MnistCNN(config.dense_width, config.dropout, config.seed, config.precision)
    set_decorrelating_filters(model.conv1, config.seed)
    model.conv1.trainable = False
    return State(
        model=model,
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=0.1, reduction="none"
        ),
        seed=config.seed,
        clip_norm=config.clip_norm,
    )


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    seed = state.random_seed("augmentation")
    images = random_affine(images, seed, shift=2, rotation=12, scale=0.12, shear=0.15)
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        objective = tf.reduce_mean(state.loss(labels, logits))
    gradients = state.gradients(tape, objective)
    measured = state.update(gradients)
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels, logits))
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "objective": objective, "accuracy": accuracy, **measured}


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
