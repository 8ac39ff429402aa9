"""The data set in memory: a training split and a test split of images and labels."""

from __future__ import annotations

import dataclasses
import hashlib

from research.errors import InputError

import numpy as np
import numpy.typing as npt

NUM_CLASSES = 10
# The names of splits.
HOLDOUT, TEST = "holdout", "test"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8 [N, 28, 28, 1], 0 is background and 255 is ink.
        labels: uint8 [N], each 0 to 9.
        name: the split's name in messages and logs, such as ``"train"``.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Split:
        """The first ``count`` examples, or all if there are fewer."""
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split; ``source`` names their origin in one line."""

    train: Split
    test: Split
    source: str

    def sha256(self) -> str:
        """The SHA-256 of all images and labels, in hexadecimal. It identifies the data set."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()

    def first(self, count: int | None) -> Dataset:
        """Both splits, each with its first ``count`` examples only; None keeps all."""
        if count is None:
            return self
        return dataclasses.replace(self, train=self.train.first(count), test=self.test.first(count))


def hold_out(split: Split, count: int, seed: int, option: str = "holdout") -> tuple[Split, Split]:
    """Divides a split into examples to train on and examples to select on.

    The choice of held-out examples is a function of (seed, count, number of examples) alone. Both
    parts keep the order of the original.

    Args:
        split: the split to divide.
        count: number of examples to hold out, 1 to ``len(split) - 1``.
        seed: any non-negative integer.
        option: the option that gives the count, for the error's message.

    Returns:
        The remaining training examples, and those held out, named ``"holdout"``.

    Raises:
        InputError: if no example would be held out, or none would remain to train on.
    """
    if not 0 < count < len(split):
        raise InputError(
            f"--{option} {count}: the training set has {len(split)} examples; "
            f"hold out 1 to {len(split) - 1} of them"
        )
    held_out = np.zeros(len(split), bool)
    held_out[np.random.default_rng([seed, 0x401D]).permutation(len(split))[:count]] = True
    return (
        Split(split.images[~held_out], split.labels[~held_out], split.name),
        Split(split.images[held_out], split.labels[held_out], HOLDOUT),
    )
