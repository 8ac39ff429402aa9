"""Distillation: learn the probabilities of a trained network, too (Hinton et al., 2015).

- Command: python experiments/distillation.py --teacher runs/mnist_cnn/RUN/mnist.h5
- Duration: about 13 minutes on 2 CPU cores
- Expect: with --epochs 1, seed 0 and a teacher of 12 epochs, 98.5%, test loss 0.062
- Verdict: better, 7 pairs, one epoch: error -0.399 points (-0.793 to -0.004)
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from research.config import require
from research.data.batches import Plan
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config as BaseConfig
from research.network.mnist_cnn import MnistCNN
from research.results.read_h5 import load_h5
from research.training.optimizer import adadelta
from research.training.state import State

import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The reference experiment's options, and those of this experiment."""

    teacher: Path = Path("teacher.h5")
    """The mnist.h5 of a run, whose network teaches; not needed with the weight 0."""
    temperature: float = 4.0
    """Teacher's and student's logits are divided by the temperature before they are compared."""
    weight: float = 0.5
    """Weight of the teacher's probabilities in the objective; 1 minus it is that of the labels."""


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    require("weight", config.weight, 0 <= config.weight <= 1, "give 0 to 1")
    require("temperature", config.temperature, 1 <= config.temperature <= 1e6, "give 1 to 1000000")
    teacher = load_h5(config.teacher) if config.weight else None
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(config.dense_width, config.dropout, config.seed, config.precision),
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
        options=(config, teacher),
    )


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on images [B, 28, 28, 1] in 0..1 and one-hot labels [B, 10]."""
    config, teacher = state.options
    soft = tf.nn.softmax(tf.math.log(teacher(images)) / config.temperature) if teacher else labels
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        loss = tf.reduce_mean(state.loss(labels, logits))
        distance = tf.reduce_mean(state.loss(soft, logits / config.temperature))
        objective = (1 - config.weight) * loss + config.weight * config.temperature**2 * distance
    gradients = state.gradients(tape, objective)
    measured = state.update(gradients)
    measured["objective"] = objective
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": loss, "accuracy": accuracy, **measured}


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
