from __future__ import annotations

from research.data.batches import Plan, batch_indices, epoch_order, take_batch

import numpy as np
from conftest import make_split
from hypothesis import example, given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(
    num_examples=st.integers(1, 2000),
    batch_size=st.integers(1, 2100),
    seed=st.integers(0, 2**31 - 1),
    epoch=st.integers(0, 10**6),
)
@example(num_examples=2**16 + 1, batch_size=1000, seed=7, epoch=0)
@example(num_examples=60000, batch_size=128, seed=0, epoch=11)
def test_each_example_is_used_exactly_once_per_epoch(
    num_examples: int, batch_size: int, seed: int, epoch: int
) -> None:
    order = epoch_order(seed, epoch, num_examples)
    steps = range(Plan(num_examples, batch_size, 1).steps_per_epoch)
    batches = [batch_indices(order, step, batch_size).numpy() for step in steps]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(num_examples))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return list(epoch_order(seed, epoch, 1000).numpy())

    assert order(3, 5) == order(3, 5)
    assert order(3, 5) != order(3, 6)
    assert order(3, 5) != order(4, 5)
    assert order(3, 5) != order(5, 3)


def test_a_batch_is_the_bytes_divided_by_255_and_one_hot_labels() -> None:
    split = make_split(20)
    images, labels = take_batch(split.images, split.labels, [7, 3, 3])
    np.testing.assert_array_equal(
        images, split.images[[7, 3, 3]].astype(np.float32) / np.float32(255)
    )
    np.testing.assert_array_equal(labels, np.eye(10, dtype=np.float32)[split.labels[[7, 3, 3]]])
