"""Random seeds as a pure function of (seed, name, step), and the numbers drawn with them.

Every random number in training comes from one of TensorFlow's stateless generators, with a seed
derived here. So a batch, a dropout mask or a mixing coefficient can be computed again from the
run's seed and the step: resuming, replaying and several replicas need no saved random state.

The functions that draw give each example its numbers by the example's position in the whole batch.
Philox, the generator, is counter-based: a replica starts in the middle of the stream of numbers,
and draws what one replica would have drawn there (Salmon et al., "Parallel Random Numbers: As Easy
as 1, 2, 3", 2011).
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, TypeAlias

import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class PartSeed:
    """The seed of a replica, or of another part of the batch. ``State.random_seed`` makes it.

    As a tensor it is the part's own seed, int64 [2]: TensorFlow's functions draw other numbers in
    each part. The functions of this module draw the part's rows of the whole batch's numbers.

    Attributes:
        own: int64 [2], different in each part.
        whole: int64 [2], the same in all parts, and the only seed where there is one part.
        first: int64 scalar, the position of the part's first example in the batch.
        examples: int64 scalar, the number of examples in the part, at least 1.
        batch: int64 scalar, the number of examples in the batch.
    """

    own: tf.Tensor
    whole: tf.Tensor
    first: tf.Tensor
    examples: tf.Tensor
    batch: tf.Tensor

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        """The part's own seed. TensorFlow calls this wherever it takes a tensor."""
        return tf.convert_to_tensor(self.own, dtype, name=name)


Seed: TypeAlias = tf.Tensor | PartSeed


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


def fold_in(seed: Seed, number: int) -> Seed:
    """A seed derived from another one and a number; a part's seed stays one."""
    fold = tf.random.experimental.stateless_fold_in
    if isinstance(seed, PartSeed):
        folded = {"own": fold(seed.own, number), "whole": fold(seed.whole, number)}
        return dataclasses.replace(seed, **folded)
    return fold(seed, number)


def random_words(seed: Seed, count: tf.Tensor) -> tf.Tensor:
    """Random uint32 numbers, all values equally likely.

    Args:
        seed: integer [2], or a ``PartSeed``.
        count: int32 scalar, how many; each example has as many as any other.
    """
    if isinstance(seed, PartSeed):
        return _numbers(seed, _first_number(seed, count), count)
    return tf.random.stateless_uniform(
        [count], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )


def random_bytes(seed: Seed, count: tf.Tensor) -> tf.Tensor:
    """Random uint8 numbers, for a quarter of the work of ``random_words``; arguments as there."""
    if isinstance(seed, PartSeed):
        first = _first_number(seed, count)
        skipped = tf.cast(first % 4, tf.int32)
        words = _numbers(seed, first // 4, (skipped + count + 3) // 4)
        return tf.reshape(tf.bitcast(words, tf.uint8), [-1])[skipped : skipped + count]
    words = random_words(seed, (count + 3) // 4)
    return tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:count]


def random_uniform(
    seed: Seed, shape: Any, low: float, high: float, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Random numbers, all from ``low`` to below ``high`` equally likely.

    Args:
        seed: integer [2], or a ``PartSeed``.
        shape: int32 [D], or a list; the first axis has the examples.
        low, high: the limits.
        dtype: ``tf.float32`` or ``tf.int32``.
    """
    if isinstance(seed, PartSeed):
        count = tf.reduce_prod(shape)
        first = _first_number(seed, count)
        return tf.reshape(_numbers(seed, first, count, low, high, dtype), shape)
    return tf.random.stateless_uniform(shape, seed, low, high, dtype)


def random_amounts(
    seed: Seed, kinds: int, count: tf.Tensor, low: float, high: float, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """A few random numbers for each example of the whole batch: [kinds, B].

    These few cost nothing. ``own_examples`` takes a part's own, after what is computed from them: a
    sine, for instance, is rounded otherwise in a vector of another length.

    Args:
        seed, low, high, dtype: as for ``random_uniform``.
        kinds: how many numbers for each example.
        count: int32 scalar, the number of examples at hand.
    """
    if isinstance(seed, PartSeed):
        seed, count = seed.whole, tf.cast(seed.batch, tf.int32)
    return tf.random.stateless_uniform([kinds, count], seed, low, high, dtype)


def own_examples(seed: Seed, of_batch: tf.Tensor) -> tf.Tensor:
    """What belongs to the examples of a part, of a vector [B] for the whole batch."""
    if isinstance(seed, PartSeed):
        return of_batch[seed.first : seed.first + seed.examples]
    return of_batch


def _first_number(seed: PartSeed, count: tf.Tensor) -> tf.Tensor:
    """The position of a part's first number in the whole batch's: int64 scalar."""
    return seed.first * (tf.cast(count, tf.int64) // seed.examples)


def _numbers(
    seed: PartSeed,
    first: tf.Tensor,
    count: tf.Tensor,
    low: float | None = None,
    high: float | None = None,
    dtype: tf.DType = tf.uint32,
) -> tf.Tensor:
    """Some of the numbers that ``tf.random.stateless_uniform`` draws with ``seed.whole``: [count].

    Each value of Philox's counter gives four 32-bit numbers.
    """
    skipped = tf.cast(first % 4, tf.int32)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed.whole)
    counter += tf.cast(tf.stack([first // 4, 0]), tf.uint64)
    stream = {"shape": [skipped + count], "key": key, "counter": counter, "alg": 1}
    if low is None or high is None:
        numbers = tf.raw_ops.StatelessRandomUniformFullIntV2(**stream, dtype=dtype)
    elif dtype.is_integer:
        limits = {"minval": tf.constant(low, dtype), "maxval": tf.constant(high, dtype)}
        numbers = tf.raw_ops.StatelessRandomUniformIntV2(**stream, **limits)
    else:
        numbers = tf.raw_ops.StatelessRandomUniformV2(**stream, dtype=dtype) * (high - low) + low
    return numbers[skipped:]
