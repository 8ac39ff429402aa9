"""The network of the reference experiment, as a subclassed Keras model."""

from __future__ import annotations

import dataclasses
import os

from research.config import Config as BaseConfig
from research.config import require
from research.errors import InputError
from research.network.layers import Conv2D, bias_relu, dropout
from research.network.limits import refuse_too_many_parameters
from research.processor import onednn_aborts
from research.seeds import Seed, fold_in

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The options of every experiment, and the options of this network."""

    dense_width: int = 256
    """Units of the network's hidden dense layer."""
    dropout: tuple[float, float] = (0.25, 0.5)
    """Fraction dropped after pooling, and after the hidden dense layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        width = self.dense_width
        require("dense_width", width, 1 <= width < 2**31, "give a whole number of at least 1")
        for rate in self.dropout:
            require("dropout", rate, 0 <= rate < 1, "give two rates of at least 0 and below 1")


class MnistCNN(tf.keras.Model):
    """Conv 32, Conv 64, MaxPool, Dropout, Dense, Dropout, Dense 10: 2,380,938 parameters.

    The architecture is that of the well-known Keras script. A call returns probabilities, as with
    any Keras model. Training uses ``logits``, from which the loss is computed without loss of
    precision.

    The constructor builds the model: all variables exist when it returns.

    Args:
        dense_width: units of the hidden dense layer, at least 1.
        dropout_rates: fraction dropped after pooling and after the hidden dense layer, each 0
            to below 1.
        seed: decides the initial weights.
        precision: a Keras dtype policy. Variables and logits are float32 with ``"float32"``,
            ``"mixed_bfloat16"`` and ``"mixed_float16"``. They are float64 with ``"float64"``, which
            is for comparing two orders of summation.

    Raises:
        InputError: if ``dense_width`` is above 4,543, since mnist.h5 could not hold the network; or
            if the environment keeps TensorFlow from computing in this precision.
    """

    def __init__(
        self,
        dense_width: int = 256,
        dropout_rates: tuple[float, float] = (0.25, 0.5),
        seed: int = 0,
        precision: str = "float32",
    ) -> None:
        refuse_too_many_parameters(f"dense_width {dense_width}", 18_826 + 9_227 * dense_width)
        super().__init__(name="mnist_cnn", dtype=precision)
        if onednn_aborts(self.compute_dtype):
            raise InputError(
                f"precision {precision}: TensorFlow would abort, since ONEDNN_MAX_CPU_ISA="
                f"{os.environ['ONEDNN_MAX_CPU_ISA']} keeps oneDNN from {self.compute_dtype}; unset "
                "it, set TF_ENABLE_ONEDNN_OPTS=0, or use float32"
            )
        self.dense_width = dense_width
        self.dropout_rates = dropout_rates
        # Glorot's initialization, the default of both kinds of layer, with seeds from ``seed``.
        seeds = np.random.SeedSequence(seed).generate_state(4) >> 1
        start = [tf.keras.initializers.GlorotUniform(seed=int(s)) for s in seeds]
        layers = tf.keras.layers
        self.conv1 = Conv2D(32, 3, kernel_initializer=start[0], name="conv1", dtype=precision)
        self.conv2 = Conv2D(
            64, 3, add_bias=False, kernel_initializer=start[1], name="conv2", dtype=precision
        )
        self.pool = layers.MaxPooling2D(2, name="pool", dtype=precision)
        self.flatten = layers.Flatten(name="flatten", dtype=precision)
        self.dense1 = layers.Dense(
            dense_width,
            activation="relu",
            kernel_initializer=start[2],
            name="dense1",
            dtype=precision,
        )
        self.dense2 = layers.Dense(10, kernel_initializer=start[3], name="dense2", dtype=precision)
        # Keras's own `build` would mark the model as built and create no variables.
        self(tf.zeros([1, 28, 28, 1]))

    def logits(
        self, images: tf.Tensor, training: bool = False, seed: Seed | None = None
    ) -> tf.Tensor:
        """Computes the network's output before the softmax.

        Args:
            images: float32 [B, 28, 28, 1] in 0..1.
            training: whether to apply dropout.
            seed: integer [2] or a ``PartSeed``, decides which elements are dropped; needed if
                ``training`` is true. A step gets one from ``state.random_seed("dropout")``.

        Returns:
            [B, 10] in the dtype of the variables.

        Raises:
            ValueError: if dropout applies and ``seed`` is None.
        """
        seeds = self._dropout_seeds(seed) if training else None
        x = self.pool(self.conv2(self.conv1(images)))
        x = bias_relu(x, self.conv2.bias)
        if seeds:
            x = dropout(x, self.dropout_rates[0], seeds[0], "dropout1")
        x = self.dense1(self.flatten(x))
        if seeds:
            x = dropout(x, self.dropout_rates[1], seeds[1], "dropout2")
        return tf.cast(self.dense2(x), self.variable_dtype)

    def call(
        self, images: tf.Tensor, training: bool = False, seed: Seed | None = None
    ) -> tf.Tensor:
        """Class probabilities [B, 10] in the dtype of the logits; arguments as for ``logits``."""
        return tf.nn.softmax(self.logits(images, training, seed))

    def stock_twin(self) -> tf.keras.Sequential:
        """The same network of Keras's own layers, in float32, with a copy of the weights.

        Keras can load a file of the twin without this project.
        """
        layers = tf.keras.layers
        first_rate, second_rate = self.dropout_rates
        twin = tf.keras.Sequential(
            [
                tf.keras.Input((28, 28, 1), name="images"),
                layers.Conv2D(32, 3, activation="relu", name="conv1", dtype="float32"),
                layers.Conv2D(64, 3, activation="relu", name="conv2", dtype="float32"),
                layers.MaxPooling2D(2, name="pool", dtype="float32"),
                layers.Dropout(first_rate, name="dropout1", dtype="float32"),
                layers.Flatten(name="flatten", dtype="float32"),
                layers.Dense(self.dense_width, activation="relu", name="dense1", dtype="float32"),
                layers.Dropout(second_rate, name="dropout2", dtype="float32"),
                layers.Dense(10, activation="softmax", name="dense2", dtype="float32"),
            ],
            name="mnist_cnn",
        )
        twin.set_weights(self.get_weights())
        return twin

    def _dropout_seeds(self, seed: Seed | None) -> list[Seed] | None:
        if not any(self.dropout_rates):
            return None
        if seed is None:
            raise ValueError(
                "MnistCNN was called with training=True and seed=None: dropout needs a seed; "
                'in a step, pass seed=state.random_seed("dropout")'
            )
        with tf.name_scope("seed"):
            return [fold_in(seed, n) for n in (0, 1)]
