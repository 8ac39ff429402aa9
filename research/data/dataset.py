"""The data set as training and evaluation see it: two splits of images and labels."""

from __future__ import annotations

import dataclasses
import hashlib

from research.errors import InputError

import numpy as np
import numpy.typing as npt

NUM_CLASSES = 10
# What splits are called.
TRAIN, HOLDOUT, TEST = "train", "holdout", "test"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Some images and what they show.

    Attributes:
        images: uint8 [N, 28, 28, 1], 0 is background and 255 is ink.
        labels: uint8 [N], each 0 to 9.
        name: what the split is called in messages and logs, such as ``"train"``.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> Split:
        """The first ``count`` examples, or all where there are fewer."""
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split, and a line that says where they came from."""

    train: Split
    test: Split
    source: str

    def sha256(self) -> str:
        """A digest of all images and labels, in hexadecimal; it tells data sets apart."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()

    def first(self, count: int | None) -> Dataset:
        """Both splits cut down to their first ``count`` examples; None keeps all."""
        if count is None:
            return self
        return dataclasses.replace(self, train=self.train.first(count), test=self.test.first(count))


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Divides a split into a part to train on and a part to select on.

    Which examples are held out is a function of (seed, count, number of examples) alone; the
    order within both parts is that of the original.

    Args:
        split: what to divide.
        count: number of examples to hold out, 1 to ``len(split) - 1``.
        seed: any non-negative integer.

    Returns:
        The remaining training examples, and those held out, named ``"holdout"``.

    Raises:
        InputError: if nothing would be held out, or nothing be left to train on.
    """
    if not 0 < count < len(split):
        raise InputError(
            f"--holdout {count}: the training set has {len(split)} examples; "
            f"hold out 1 to {len(split) - 1} of them"
        )
    held_out = np.zeros(len(split), bool)
    held_out[np.random.default_rng([seed, 0x401D]).permutation(len(split))[:count]] = True
    return (
        Split(split.images[~held_out], split.labels[~held_out], split.name),
        Split(split.images[held_out], split.labels[held_out], HOLDOUT),
    )
