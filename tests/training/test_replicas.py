"""One training, whatever the number of replicas, and however a batch is divided."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.data.augmentation import random_affine, random_shift
from research.data.batches import share_of_batch
from research.network.layers import dropout
from research.seeds import PartSeed, random_uniform

import numpy as np
import pytest
import tensorflow as tf
from conftest import run_python

SEED, OWN = tf.constant([3, 7], tf.int64), tf.constant([4, 8], tf.int64)

DRAWN: dict[str, Callable[[Any, Any], Any]] = {
    "dropout, a byte each": lambda images, seed: dropout(images, 0.25, seed),
    "dropout, a word each": lambda images, seed: dropout(images, 0.3, seed),
    "dropout of 3 units": lambda images, seed: dropout(images[:, 0, :3, 0] + 1, 0.5, seed),
    "shift": lambda images, seed: random_shift(images, seed, pixels=2),
    "affine": lambda images, seed: random_affine(images, seed, shift=2, rotation=30, scale=0.2),
    "uniform": lambda images, seed: random_uniform(seed, tf.shape(images), -1, 1),
    "integers": lambda images, seed: random_uniform(seed, [len(images), 5], 0, 9, tf.int32),
}


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_of_a_batch_draw_the_numbers_of_the_whole(drawn: str, parts: int) -> None:
    images = tf.random.stateless_uniform([7, 5, 5, 1], [0, 0])
    batch, found = tf.range(7, dtype=tf.int64), []
    for number in range(parts):
        first, rows = share_of_batch(batch, number, parts)
        numbers = (tf.cast(n, tf.int64) for n in (first, tf.size(rows), 7))
        found.append(DRAWN[drawn](tf.gather(images, rows), PartSeed(OWN, SEED, *numbers)))
    np.testing.assert_array_equal(np.concatenate(found), DRAWN[drawn](images, SEED))


def test_tensorflow_draws_other_numbers_in_each_part() -> None:
    seed = PartSeed(OWN, SEED, *(tf.constant(n, tf.int64) for n in (0, 4, 7)))
    drawn, expected = (tf.random.stateless_uniform([5], s) for s in (seed, OWN))
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    "ways", [("two", "accumulated", "both"), pytest.param(("four",), marks=pytest.mark.slow)]
)
def test_the_training_is_the_same_on_replicas_and_accumulated(
    ways: tuple[str, ...], tmp_path: Path
) -> None:
    program = Path(__file__).parent / "on_replicas.py"
    result = run_python(program, "found.npz", "one", *ways, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = dict(np.load(tmp_path / "found.npz"))
    names = [name.removeprefix("one ") for name in found if name.startswith("one ")]
    for way, name in itertools.product(ways, names):
        one, other = found[f"one {name}"], found[f"{way} {name}"]
        if name.startswith(("images", "mask")):
            np.testing.assert_array_equal(other, one[len(one) - len(other) :], f"{way} {name}")
            assert len(other) == len(one) or way in ("accumulated", "both")  # their last parts
        elif name.startswith("weight"):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)
        else:
            np.testing.assert_allclose(other, one, rtol=1e-5)
