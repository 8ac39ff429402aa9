from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from research.data.augmentation import random_affine, random_shift

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from conftest import make_split

SEED = [3, 5]


def point(height: int, width: int, y: int, x: int, count: int) -> Any:
    """Images of a dot: 1 at (y, x), 0.5 at its neighbours, and 0 elsewhere."""
    images = np.zeros((count, height, width, 1), np.float32)
    images[:, y - 1 : y + 2, x - 1 : x + 2] = 0.5
    images[:, y, x] = 1
    return tf.constant(images)


def places(images: Any) -> npt.NDArray[Any]:
    """The place of each image's dot relative to the middle: [B, 2], down and right."""
    mass = np.asarray(images)[..., 0].astype(np.float64)
    total = mass.sum((1, 2))
    height, width = mass.shape[1:]
    down = (mass.sum(2) * (np.arange(height) - (height - 1) / 2)).sum(1) / total
    right = (mass.sum(1) * (np.arange(width) - (width - 1) / 2)).sum(1) / total
    return np.stack([down, right], 1)


@pytest.mark.parametrize("pixels", [1, 2])
def test_images_are_shifted_by_whole_pixels_all_equally_often(pixels: int) -> None:
    split = make_split(9)
    images = np.pad(split.images[:, 3:-3, 3:-3], ((0, 0), (3, 3), (3, 3), (0, 0))) / np.float32(255)
    count = 9000
    shifted = np.asarray(random_shift(tf.constant(images[np.arange(count) % 9]), SEED, pixels))
    one_way = range(-pixels, pixels + 1)
    seen = []
    for n, image in enumerate(shifted):
        matching = [
            (down, right)
            for down in one_way
            for right in one_way
            if np.array_equal(image, np.roll(images[n % 9], (down, right), (0, 1)))
        ]
        assert len(matching) == 1, n
        seen += matching
    shifts, counts = np.unique(seen, axis=0, return_counts=True)
    assert len(shifts) == len(one_way) ** 2
    expected = count / len(shifts)
    assert (np.abs(counts - expected) < 5 * math.sqrt(expected)).all(), counts


def test_what_comes_in_from_outside_is_black() -> None:
    shifted = np.asarray(random_shift(tf.ones([50, 6, 8, 3]), SEED, 2))
    assert set(np.unique(shifted)) == {0, 1}
    assert {image.sum() / 3 for image in shifted} <= {h * w for h in (4, 5, 6) for w in (6, 7, 8)}


def test_without_any_change_images_stay_as_they_are() -> None:
    images = make_split(5).images / np.float32(255)
    np.testing.assert_array_equal(random_shift(images, SEED, 0), images)
    np.testing.assert_array_equal(random_affine(images, SEED), images)


@pytest.mark.parametrize(
    "change", [random_shift, lambda images, seed: random_affine(images, seed, rotation=10)]
)
def test_the_change_is_a_function_of_the_seed(change: Callable[[Any, Any], Any]) -> None:
    images = make_split(64).images / np.float32(255)
    first = np.asarray(change(images, SEED))
    np.testing.assert_array_equal(change(images, SEED), first)
    np.testing.assert_array_equal(tf.function(change)(images, SEED), first)
    # A step may change what has been changed already.
    twice = tf.function(lambda: change(change(images, SEED), SEED))()
    np.testing.assert_array_equal(twice, change(first, SEED))
    assert not np.array_equal(change(images, [3, 6]), first)


def test_a_rotation_keeps_the_distance_from_the_middle() -> None:
    before = places(point(29, 41, 5, 12, 2000))[0]
    after = places(random_affine(point(29, 41, 5, 12, 2000), SEED, rotation=30))
    np.testing.assert_allclose(np.hypot(*after.T), np.hypot(*before), atol=0.15)
    turned = np.degrees(np.arctan2(*after.T) - np.arctan2(*before))
    turned = (turned + 180) % 360 - 180
    assert (turned.min(), turned.max()) == pytest.approx((-30, 30), abs=1)
    assert turned.mean() == pytest.approx(0, abs=2)


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [
        # The dot is 9 pixels above the middle and 8 to the left of it.
        ({"shift": 3.0}, (-12, -11), (-6, -5)),
        ({"scale": 0.2}, (-10.8, -9.6), (-7.2, -6.4)),
        ({"shear": 0.25}, (-9, -8 - 9 * 0.25), (-9, -8 + 9 * 0.25)),
    ],
)
def test_each_amount_is_uniform_within_its_limits(
    change: dict[str, float], low: tuple[float, float], high: tuple[float, float]
) -> None:
    after = places(random_affine(point(29, 41, 5, 12, 4000), SEED, **change))
    np.testing.assert_allclose(after.min(0), low, atol=0.2)
    np.testing.assert_allclose(after.max(0), high, atol=0.2)
    np.testing.assert_allclose(after.mean(0), (-9, -8), atol=0.1)
    uniform = (np.asarray(high) - np.asarray(low)) / math.sqrt(12)
    np.testing.assert_allclose(after.std(0), uniform, atol=0.1)
    if set(change) != {"shear"}:  # the shift has two amounts, down and right
        assert abs(np.corrcoef(after.T)[0, 1]) < 0.06
