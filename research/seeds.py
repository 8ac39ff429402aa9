"""Random seeds as a pure function of (seed, name, step).

Every random number in training comes from one of TensorFlow's stateless generators, with a seed
derived here. So a batch, a dropout mask or a mixing coefficient can be computed again from the
run's seed and the step: resuming, replaying and several replicas need no saved random state.
"""

from __future__ import annotations

import zlib

import tensorflow as tf


def derive_seed(seed: int, name: str, *numbers: int | tf.Tensor) -> tf.Tensor:
    """A seed for TensorFlow's stateless random functions.

    Different names or numbers give statistically independent seeds.

    Args:
        seed: the run's seed, 0 to 2**31 - 1.
        name: the use of the random numbers, such as ``"dropout"``.
        numbers: integers or integer scalar tensors, such as the step and the replica.

    Returns:
        int64 [2], a tensor. See ``tf.random.experimental.stateless_fold_in``.
    """
    with tf.name_scope("seed"):
        derived = tf.constant([seed, zlib.crc32(name.encode())], tf.int64)
        for number in numbers:
            derived = tf.random.experimental.stateless_fold_in(derived, tf.cast(number, tf.int64))
        return derived
