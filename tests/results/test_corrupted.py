"""Accuracies under corruption: those of the corrupted images, with honest intervals."""

from __future__ import annotations

from pathlib import Path

from research.data.corruptions import CORRUPTIONS, corrupt
from research.data.dataset import Dataset, Split
from research.results.corrupted import correct_under, corrupted_accuracy, mean_interval
from research.results.evaluation import evaluate
from research.results.export import load_h5

import numpy as np
import pytest


def test_the_figure_is_the_mean_accuracy_on_the_corrupted_images(
    finished_run: Path, dataset: Dataset
) -> None:
    model, test = load_h5(finished_run / "mnist.h5"), dataset.test
    expected = {}
    for name in CORRUPTIONS:
        images = corrupt(test.images, name, 4, seed=3)
        expected[name] = evaluate(model, Split(images, test.labels, "test")).accuracy
        found = correct_under(model, test, name, 4, seed=3)
        assert found.mean() == pytest.approx(expected[name])
    mean = sum(expected.values()) / len(expected)
    assert corrupted_accuracy(model, test, 4, seed=3) == pytest.approx(mean)


def test_the_interval_of_a_mean_counts_each_example_once() -> None:
    rng = np.random.default_rng(0)
    row = np.arange(1000) < 700
    low, high = mean_interval(row[np.newaxis])
    assert (low, high) == pytest.approx((0.7 - 0.0284, 0.7 + 0.0284), abs=1e-4)
    # The same predictions under fifteen corruptions say no more than under one.
    assert mean_interval(np.tile(row, (15, 5, 1))) == pytest.approx((low, high))
    # Independent ones do.
    low_15, high_15 = mean_interval(rng.random((15, 5, 1000)) < 0.7)
    assert high_15 - low_15 == pytest.approx((high - low) / 75**0.5, rel=0.1)
    # Five examples that are always right do not show that all are.
    assert mean_interval(np.ones([2, 5], bool)) == pytest.approx((0.5655, 1), abs=1e-4)
