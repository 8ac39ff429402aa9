"""Averaged weights: an exponential moving average of the weights is what is judged.

- Command: python tests/experiments/averaged.py
"""

from __future__ import annotations

from research.data.batches import Plan
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config, MnistCNN
from research.training.optimizer import adadelta
from research.training.state import State

import tensorflow as tf


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    network = (config.dense_width, config.dropout, config.seed, config.precision)
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(*network),
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
        extra={"average": MnistCNN(*network)},
    )


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
    gradients = state.gradients(tape, loss)
    measured = state.update(gradients)
    for average, weight in zip(state.extra["average"].weights, state.model.weights, strict=True):
        average.assign(0.98 * average + 0.02 * weight)
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, **measured}


experiment = Experiment(
    config=Config, build=build, step=step, judged=lambda state: state.extra["average"]
)

if __name__ == "__main__":
    main(experiment)
