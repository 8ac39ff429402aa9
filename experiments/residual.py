"""A residual network with batch normalization (He et al., 2016; Ioffe and Szegedy, 2015).

- Command: python experiments/residual.py
- Duration: about 4 minutes on 2 CPU cores
- Expect: 73 thousand weights; with --epochs 1 and seed 0, test accuracy 98.1%, test loss 0.060
- Verdict: undecided, 12 pairs, one epoch: error +2.080 points (-0.957 to +5.117)
"""

from __future__ import annotations

from research.config import Config
from research.data.batches import Plan
from research.experiment import Experiment, main
from research.training.optimizer import adadelta
from research.training.state import State

import tensorflow as tf


class Residual(tf.keras.Model):
    def __init__(self, seed: int, precision: str, activation: str | None = None) -> None:
        super().__init__(name="residual", dtype=precision)
        tf.keras.utils.set_random_seed(seed)
        layers, own = tf.keras.layers, {"dtype": precision}
        inputs = tf.keras.Input((28, 28, 1), name="images")
        x = layers.Conv2D(32, 3, strides=2, activation="relu", name="conv0", **own)(inputs)
        for n in (1, 2):
            y = layers.Conv2D(32, 3, padding="same", use_bias=False, name=f"conv{n}", **own)(x)
            y = layers.BatchNormalization(momentum=0.9, synchronized=True, name=f"bn{n}", **own)(y)
            x = layers.ReLU(name=f"relu{n}", **own)(layers.Add(name=f"add{n}", **own)([x, y]))
        x = layers.Flatten(name="flatten", **own)(x)
        self.network = tf.keras.Model(inputs, layers.Dense(10, activation, name="dense", **own)(x))
        self(tf.zeros([1, 28, 28, 1]))

    def logits(self, images: tf.Tensor, training: bool = False, seed: object = None) -> tf.Tensor:
        return tf.cast(self.network(images, training=training), tf.float32)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.nn.softmax(self.logits(images, training))

    def stock_twin(self) -> tf.keras.Model:
        twin = Residual(0, "float32", "softmax").network
        twin.set_weights(self.get_weights())
        return tf.keras.Model(twin.input, twin.output, name="residual")


def build(config: Config, plan: Plan) -> State:
    """The model, the optimizer and the loss."""
    schedule = (config.learning_rate, config.decay, config.warmup_epochs)
    return State(
        model=Residual(config.seed, config.precision),
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


experiment = Experiment(config=Config, build=build, step=step)

if __name__ == "__main__":
    main(experiment)
