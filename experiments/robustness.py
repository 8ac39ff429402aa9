"""The reference experiment's accuracy under PGD attack and under corruptions.

- Command: python experiments/robustness.py
- Duration: about 12 minutes on 2 CPU cores
- Expect: the reference's weights, bit for bit; robust_accuracy 0.000
"""

from __future__ import annotations

import dataclasses

from research.config import require
from research.data.batches import Plan, take_batch
from research.data.dataset import Split
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.results.corrupted import corrupted_accuracy
from research.training.optimizer import adadelta
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The reference experiment's options, and those of the attack."""

    epsilon: float = 0.3
    """The attack changes each pixel (0 to 1) by at most so much."""
    robust_steps: int = 40
    """Steps of the attack behind the figure robust_accuracy."""
    robust_examples: int = 1000
    """Number of first held-out (or test) examples that both figures are about."""


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    require("epsilon", config.epsilon, 0 <= config.epsilon <= 1, "give 0 to 1")
    for name in ("robust_steps", "robust_examples"):
        value = getattr(config, name)
        require(name, value, value >= 1, "give a whole number of at least 1")
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(config.dense_width, config.dropout, config.seed, config.precision),
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
        options=config,
    )


def attack(
    state: State, images: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor, steps: int
) -> tf.Tensor:
    """Changes images, from a random start, step by step so that each one's loss rises."""
    lowest, highest = tf.maximum(images - epsilon, 0), tf.minimum(images + epsilon, 1)
    noise = state.random_uniform("attack", tf.shape(images), -1, 1)
    attacked = tf.clip_by_value(images + epsilon * noise, lowest, highest)
    for _ in tf.range(steps):
        with tf.GradientTape() as tape:
            tape.watch(attacked)
            losses = state.loss(labels, state.model.logits(attacked))
        uphill = tf.sign(tape.gradient(losses, attacked))
        attacked = tf.clip_by_value(attacked + 2.5 * epsilon / steps * uphill, lowest, highest)
    return attacked


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
    gradients = state.gradients(tape, loss)
    measured = state.update(gradients)
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, **measured}


def figures(state: State, split: Split, probabilities: object) -> dict[str, object]:
    """The accuracy on attacked images, and on images under fifteen corruptions."""
    config, some = state.options, split.first(state.options.robust_examples)
    correct = []
    for first in range(0, len(some), 250):  # few at a time need less memory
        places = tf.range(first, min(first + 250, len(some)))
        images, labels = take_batch(some.images, some.labels, places)
        images = attack(state, images, labels, config.epsilon, config.robust_steps)
        correct.append(tf.keras.metrics.categorical_accuracy(labels, state.model.logits(images)))
    return {
        "robust_accuracy": tf.reduce_mean(tf.concat(correct, 0)),
        "corrupted_accuracy": corrupted_accuracy(state.model, some),
    }


experiment = Experiment(config=Config, build=build, step=step, figures=figures)

if __name__ == "__main__":
    main(experiment)
