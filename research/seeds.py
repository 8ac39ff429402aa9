"""Randomness as a function of (seed, name, step), never as hidden state.

Every random number in training comes from one of TensorFlow's stateless generators, given a
seed derived here. So a batch, a dropout mask or a mixing coefficient can be had again from the
run's seed and a step number alone: resuming, replaying and several replicas follow from that.
"""

from __future__ import annotations

import zlib
from typing import Any

import tensorflow as tf


def derive_seed(seed: int, name: str, *numbers: Any) -> Any:
    """A seed for TensorFlow's stateless random functions.

    Different names or numbers give statistically independent seeds.

    Args:
        seed: the run's seed, 0 to 2**31 - 1.
        name: what the random numbers are for, such as ``"dropout"``.
        numbers: integers or integer scalar tensors, such as the step and the replica.

    Returns:
        int64 [2], a tensor. See ``tf.random.experimental.stateless_fold_in``.
    """
    with tf.name_scope("seed"):
        derived = tf.constant([seed, zlib.crc32(name.encode())], tf.int64)
        for number in numbers:
            derived = tf.random.experimental.stateless_fold_in(derived, tf.cast(number, tf.int64))
        return derived
