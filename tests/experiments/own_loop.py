"""A loop of its own: validates every 10 steps, and ends once the accuracy is high enough.

- Command: python tests/experiments/own_loop.py --target 0.95
"""

from __future__ import annotations

import dataclasses

from research.data.batches import Plan
from research.experiment import Experiment, main
from research.loop import Training
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.training.optimizer import adadelta
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The options of every experiment, and this one's."""

    log_every: int = 10
    target: float = 0.98
    """Training ends when a validation reaches this accuracy."""


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
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
    gradients = state.gradients(tape, loss)
    measured = state.update(gradients)
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, **measured}


def loop(training: Training) -> None:
    """Validates every 10 steps, and ends when the target has been reached."""
    for report in training:
        training.record(report)
        if report.step % 10 == 0:
            training.validate()
            if training.validations[-1]["accuracy"] >= training.state.options.target:
                break


experiment = Experiment(config=Config, build=build, step=step, loop=loop)

if __name__ == "__main__":
    main(experiment)
