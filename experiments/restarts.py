"""A schedule of its own: cosine with warm restarts (Loshchilov and Hutter, SGDR, 2017).

- Command: python experiments/restarts.py
- Duration: about 10 minutes on 2 CPU cores
- Expect: a learning rate that returns to 1 after 1 and 3 epochs, then after 7
"""

from __future__ import annotations

import dataclasses

from research.data.batches import Plan
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.training.optimizer import Adadelta
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The options of every experiment, and this one's."""

    cycle_epochs: float | None = 1.0
    """Epochs until the first restart; each cycle is twice as long. None: all of them."""


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    epochs = config.epochs if config.cycle_epochs is None else config.cycle_epochs
    cycle = max(1, round(epochs * plan.steps_per_epoch))
    schedule = tf.keras.optimizers.schedules.CosineDecayRestarts(config.learning_rate, cycle)
    return State(
        model=MnistCNN(config.dense_width, config.dropout, config.seed, config.precision),
        optimizer=Adadelta(schedule, rho=0.95, epsilon=1e-7),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
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


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
