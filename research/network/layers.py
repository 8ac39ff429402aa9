"""What the network is made of beyond Keras's own layers."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def dropout(inputs: Any, rate: float, seed: Any, name: str = "dropout") -> Any:
    """Sets a random fraction of the elements to zero and scales up the others.

    Unlike ``keras.layers.Dropout`` it has no random state of its own: the mask is a function of
    the seed, so that it differs between steps and replicas, and a resumed run draws the same.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting" (2014), in the inverted form, which leaves inference as it is.

    Args:
        inputs: float tensor of any shape.
        rate: probability of an element to become zero, 0 to below 1.
        seed: integer [2], see ``research.seeds.derive_seed``.
        name: of the layer, for the graph.

    Returns:
        A tensor like ``inputs``, what is kept multiplied by 1 / (1 - rate).
    """
    with tf.name_scope(name):
        return tf.nn.experimental.stateless_dropout(inputs, rate, seed, rng_alg="philox")
