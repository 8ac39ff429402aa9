from __future__ import annotations

from research.data.dataset import Dataset, hold_out
from research.errors import InputError

import numpy as np
import pytest
from conftest import make_split


@pytest.mark.parametrize("count", [1, 50, 199])
def test_holding_out_divides_the_examples_by_seed(count: int) -> None:
    split = make_split(200)
    rest, held_out = hold_out(split, count, seed=1)
    again, _ = hold_out(split, count, seed=1)
    other, _ = hold_out(split, count, seed=2)
    assert (len(rest), len(held_out)) == (200 - count, count)
    together = np.concatenate([rest.images, held_out.images]).reshape(200, -1)
    assert len(np.unique(together, axis=0)) == len(np.unique(split.images.reshape(200, -1), axis=0))
    np.testing.assert_array_equal(rest.images, again.images)
    assert not np.array_equal(rest.images, other.images)


@pytest.mark.parametrize("count", [0, 200, 1000])
def test_holding_out_nothing_or_all_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"--holdout {count}: .* 1 to 199"):
        hold_out(make_split(200), count, seed=0)


def test_the_first_examples_of_both_splits(dataset: Dataset) -> None:
    small = dataset.first(70)
    assert (len(small.train), len(small.test)) == (70, 70)
    np.testing.assert_array_equal(small.train.images, dataset.train.images[:70])
    assert dataset.first(None) is dataset
