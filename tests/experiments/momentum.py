"""An optimizer in the step: gradient descent with momentum (Polyak, 1964).

- Command: python tests/experiments/momentum.py
"""

from __future__ import annotations

import dataclasses

from research.data.batches import Plan
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The options of every experiment, with other defaults."""

    learning_rate: float = 0.03


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    model = MnistCNN(config.dense_width, config.dropout, config.seed, config.precision)
    return State(
        model=model,
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
        options=config,
        extra={
            f"velocity/{v.path}": tf.Variable(
                tf.zeros(v.shape), aggregation=tf.VariableAggregation.MEAN
            )
            for v in model.weights
        },
    )


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
    gradients, measured = state.reduce(state.gradients(tape, loss))
    for weight, gradient in zip(state.model.trainable_weights, gradients, strict=True):
        velocity = state.extra[f"velocity/{weight.path}"]
        velocity.assign(0.9 * velocity + gradient)
        weight.assign_sub(state.options.learning_rate * velocity)
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, **measured}


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
