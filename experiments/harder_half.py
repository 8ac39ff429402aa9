"""Training on the harder half of each batch only: the examples with the higher loss.

- Command: python experiments/harder_half.py
- Duration: about 10 minutes on 2 CPU cores
- Expect: loss_harder above loss; with --epochs 1 and seed 0, test accuracy 98.3%, test loss 0.053
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
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=MnistCNN(config.dense_width, config.dropout, config.seed, config.precision),
        optimizer=adadelta(plan, *schedule),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=config.seed,
        clip_norm=config.clip_norm,
    )


def step(state: State, images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """One step of training on the half of the batch with the higher loss."""
    with tf.GradientTape() as tape:
        logits = state.model.logits(images, training=True, seed=state.random_seed("dropout"))
        losses = state.loss(labels, logits)
        harder = tf.math.top_k(losses, (tf.size(losses) + 1) // 2).values
        loss = tf.reduce_mean(harder)
    gradients = state.gradients(tape, loss)
    measured = state.update(gradients)
    accuracy = tf.reduce_mean(tf.keras.metrics.categorical_accuracy(labels, logits))
    return {"loss": tf.reduce_mean(losses), "loss_harder": loss, "accuracy": accuracy, **measured}


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
