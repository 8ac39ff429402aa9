"""Batches: each is a pure function of (seed, step), computed inside the graph."""

from __future__ import annotations

import dataclasses

from research.data.dataset import NUM_CLASSES
from research.seeds import derive_seed

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Plan:
    """How training goes over its examples.

    Attributes:
        examples: number of training examples, at least 1.
        batch_size: examples per step, over all replicas.
        epochs: passes over the examples, fractions allowed.
    """

    examples: int
    batch_size: int
    epochs: float

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the examples; the last batch of a pass may be smaller."""
        return -(-self.examples // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training, at least 1."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def epochs_done(self, step: int) -> float:
        """Passes over the examples after ``step`` steps, to two decimal places."""
        return self.epochs if step == self.steps else round(step / self.steps_per_epoch, 2)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the whole training, ends after ``step`` steps (1 or more)."""
        return step % self.steps_per_epoch == 0 or step == self.steps


def epoch_order(seed: int, epoch: int | tf.Tensor, num_examples: int) -> tf.Tensor:
    """The order in which an epoch visits the examples: a random permutation, int64 [N].

    The order is a pure function of the arguments: no iterator state needs to be saved, and the
    order of any epoch can be computed directly. (``tf.random.experimental.index_shuffle`` computes
    single positions for less work, but TensorFlow 2.21 repeats positions where N is 2**16 + 1.)

    Args:
        seed: the run's seed, 0 to 2**31 - 1.
        epoch: integer scalar, counted from 0.
        num_examples: N, at least 1.
    """
    positions = tf.range(num_examples, dtype=tf.int64)
    return tf.random.experimental.stateless_shuffle(positions, derive_seed(seed, "order", epoch))


def batch_indices(order: tf.Tensor, step_in_epoch: int | tf.Tensor, batch_size: int) -> tf.Tensor:
    """The positions of a batch's examples: int64 [B], B at most ``batch_size``.

    Args:
        order: the order of the epoch, see ``epoch_order``.
        step_in_epoch: int64 scalar, counted from 0.
        batch_size: size of every batch but the epoch's last, which takes the remaining examples.
    """
    start = step_in_epoch * batch_size
    return order[start : start + batch_size]


def indices_of_step(seed: int, step: int | tf.Tensor, plan: Plan) -> tf.Tensor:
    """The positions of a step's examples when each is used once per epoch: int64 [B].

    Args:
        seed: the run's seed, 0 to 2**31 - 1.
        step: number of steps done before this one, an integer or an int64 scalar.
        plan: how training goes over its examples.
    """
    order = epoch_order(seed, step // plan.steps_per_epoch, plan.examples)
    return batch_indices(order, step % plan.steps_per_epoch, plan.batch_size)


def share_of_batch(
    batch: tf.Tensor, number: int | tf.Tensor, shares: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """A share of a batch: contiguous, so that several shares in a row are the batch.

    Args:
        batch: int64 [B], the positions of the batch's examples.
        number: int32 scalar, which share, counted from 0.
        shares: how many there are; their sizes differ by at most one.

    Returns:
        The share's place in the batch, and the positions of its examples: int64 [b], b may be 0.
    """
    size = tf.size(batch)
    first, end = ((k * size + shares - 1) // shares for k in (number, number + 1))
    return first, batch[first:end]


def take_batch(
    images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gathers the examples at ``indices`` and converts them for the network and the loss.

    Args:
        images: uint8 [N, 28, 28, 1].
        labels: uint8 [N], 0 to 9.
        indices: int64 [B].

    Returns:
        float32 images [B, 28, 28, 1] in 0..1 (the bytes divided by 255), and one-hot float32
        labels [B, 10].
    """
    batch = tf.cast(tf.gather(images, indices), tf.float32) / 255.0
    return batch, tf.one_hot(tf.cast(tf.gather(labels, indices), tf.int32), NUM_CLASSES)
