"""Two more figures: macro F1, and the accuracy under attack (FGSM, Goodfellow et al., 2015).

- Command: python tests/experiments/more_figures.py
"""

from __future__ import annotations

from research.data.batches import Plan, take_batch
from research.data.dataset import Split
from research.experiment import Experiment, main
from research.network.mnist_cnn import Config, MnistCNN
from research.training.optimizer import adadelta
from research.training.state import State

import numpy as np
import numpy.typing as npt
import tensorflow as tf


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(config.dense_width, config.dropout, config.seed, config.precision),
        optimizer=adadelta(plan, *schedule),
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


def figures(
    state: State, split: Split, probabilities: npt.NDArray[np.float32]
) -> dict[str, tf.Tensor]:
    """Macro F1, and the accuracy where each pixel is moved by 0.1 so that the loss rises."""
    labels, predicted = tf.one_hot(split.labels, 10), tf.one_hot(probabilities.argmax(1), 10)
    found, sizes = tf.reduce_sum(labels * predicted, 0), tf.reduce_sum(labels + predicted, 0)
    correct = []
    for start in range(0, len(split), 500):
        some = tf.range(start, min(start + 500, len(split)))
        images, labels = take_batch(split.images, split.labels, some)
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = state.loss(labels, state.model.logits(images))
        attacked = tf.clip_by_value(images + 0.1 * tf.sign(tape.gradient(loss, images)), 0, 1)
        logits = state.model.logits(attacked)
        correct.append(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {
        "macro_f1": tf.reduce_mean(tf.math.divide_no_nan(2 * found, sizes)),
        "robust_accuracy": tf.reduce_mean(tf.concat(correct, 0)),
    }


experiment = Experiment(config=Config, build=build, step=step, figures=figures)

if __name__ == "__main__":
    main(experiment)
