from __future__ import annotations

from research.network.mnist_cnn import MnistCNN
from research.results.evaluation import (
    calibration_bins,
    calibration_error,
    evaluate,
    evaluate_probabilities,
    predict_probabilities,
    wilson_interval,
)

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_split


def test_every_example_counts_whatever_the_batch_size() -> None:
    model, split = MnistCNN(8), make_split(123)
    whole = predict_probabilities(model, split.images, batch_size=123)
    parts = predict_probabilities(model, split.images, batch_size=50)
    assert whole.shape == (123, 10)
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert evaluate(model, split).examples == 123


def test_loss_and_accuracy_agree_with_keras() -> None:
    model, split = MnistCNN(8).stock_twin(), make_split(123)
    model.compile(loss="categorical_crossentropy", metrics=["accuracy"])
    images = split.images.astype(np.float32) / 255
    labels = tf.keras.utils.to_categorical(split.labels, 10)
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    ours = evaluate(model, split)
    assert (ours.loss, ours.accuracy) == pytest.approx((loss, accuracy), rel=1e-5)


def test_figures_of_a_case_worked_by_hand() -> None:
    # Four examples of class 0 and one of class 1; one 0 is taken for a 1, with confidence 0.9.
    p = np.zeros((5, 10))
    p[:3, 0], p[:3, 1] = 0.8, 0.2
    p[3, 0], p[3, 1] = 0.1, 0.9
    p[4, 0], p[4, 1] = 0.4, 0.6
    found = evaluate_probabilities(p, np.array([0, 0, 0, 0, 1]))
    assert found.accuracy == 0.8
    assert found.loss == pytest.approx(-(3 * np.log(0.8) + np.log(0.1) + np.log(0.6)) / 5)
    assert found.precision[:2] == [1.0, 0.5]
    assert found.recall[:2] == [0.75, 1.0]
    assert found.support[:3] == [4, 1, 0]
    assert found.confusion[0][:2] == [3, 1]
    assert found.confusion[1][:2] == [0, 1]
    assert [(m.index, m.label, m.predicted, m.confidence) for m in found.most_wrong] == [
        (3, 0, 1, 0.9)
    ]
    assert found.calibration_error == pytest.approx((3 * 0.2 + 0.9 + 0.4) / 5)


def test_a_probability_of_zero_gives_a_finite_loss() -> None:
    p = np.eye(10, dtype=np.float32)[[0, 1]]
    assert np.isfinite(evaluate_probabilities(p, np.array([0, 5])).loss)


def test_the_interval_is_wilsons() -> None:
    # Computed by hand from the formula of Wilson (1927), for 95% and 8 of 10.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)
    assert wilson_interval(0, 10)[0] == pytest.approx(0)
    low, high = wilson_interval(9917, 10000)
    assert low < 0.9917 < high
    assert high - low < 0.004


@pytest.mark.parametrize(("right", "learned"), [(1198, False), (1199, True)])
def test_chance_level_is_that_of_the_most_frequent_answer_with_a_margin(
    right: int, learned: bool
) -> None:
    # MNIST's test set: 1135 of 10,000 are ones. Worked by hand, Wilson's interval ends at 0.11987.
    labels = np.repeat(np.arange(10), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    answers = np.where(np.arange(10_000) < right, labels, (labels + 1) % 10)
    found = evaluate_probabilities(np.eye(10)[answers], labels)
    assert found.always == (1, 0.1135)
    assert found.has_learned == learned


def test_calibration_error_is_zero_for_a_calibrated_model() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, 200_000)
    correct = rng.uniform(size=200_000) < confidence
    assert calibration_error(calibration_bins(confidence, correct)) < 0.01
    always = calibration_bins(confidence, np.ones_like(correct))
    assert calibration_error(always) == pytest.approx(0.45, abs=0.01)
