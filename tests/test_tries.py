"""The tries for the records: each can be off, and each does what its option says."""

from __future__ import annotations

import runpy
from itertools import chain
from typing import Any

from research.data.batches import Plan, epoch_order
from research.data.dataset import Dataset

import numpy as np
import pytest
import tensorflow as tf
from conftest import EXPERIMENTS, RunHere
from test_ideas import BATCH, EXAMPLES, batch_of, built, trained


@pytest.mark.parametrize(
    ("name", "options", "base"),
    [("speedrun_tries", ("--hardest",), "speedrun"), ("best_tries", (), "best")],
)
def test_it_gives_the_bits_of_its_base(
    name: str, options: tuple[str, ...], base: str, dataset: Dataset
) -> None:
    found, expected_weights = trained(name, dataset, *options), trained(base, dataset)
    for weight, expected in zip(found, expected_weights, strict=True):
        np.testing.assert_array_equal(weight, expected)


@pytest.mark.parametrize("crop", [16, 20, 24])
def test_where_no_feature_outside_of_the_middle_sees_ink_the_logits_are_the_usual_ones(
    crop: int, dataset: Dataset
) -> None:
    tries = runpy.run_path(str(EXPERIMENTS / "speedrun_tries.py"))
    _, state = built("speedrun_tries")
    margin = (28 - crop) // 2 + 4  # a feature sees six by six pixels, every second one
    images = np.zeros([BATCH, 28, 28, 1], np.float32)
    inside = np.s_[:, margin : 28 - margin, margin : 28 - margin]
    images[inside] = batch_of(dataset)[0].numpy()[inside]
    found = tries["logits_of_the_middle"](state.model, tf.constant(images), crop)
    np.testing.assert_allclose(found, state.model.logits(images), rtol=1e-4, atol=1e-4)


def positions(state: Any, indices: Any, plan: Any, steps: int) -> list[list[int]]:
    batches = []
    for _ in range(steps):
        batches.append(indices(state, plan).numpy().tolist())
        state.step.assign_add(1)
    return batches


def test_the_second_pass_visits_the_examples_of_the_highest_loss() -> None:
    experiment, state = built("speedrun", "--epochs", "1.5")
    plan = Plan(EXAMPLES, BATCH, 1.5)
    losses = np.random.default_rng(0).random(EXAMPLES).astype(np.float32)
    first = list(chain(*positions(state, experiment.indices, plan, 10)))
    state.extra["losses"].assign(losses)
    second = list(chain(*positions(state, experiment.indices, plan, plan.steps - 10)))
    assert first == epoch_order(0, 0, EXAMPLES).numpy().tolist()
    assert sorted(second) == sorted(np.argsort(-losses)[: len(second)])


def test_batches_are_small_at_first_and_no_example_is_left_out_or_repeated() -> None:
    options = ("--small-batch", "8", "--small-until", "0.4", "--epochs", "1")
    experiment, state = built("speedrun_tries", *options)
    batches = positions(state, experiment.indices, state.options[1], 10)
    assert [len(batch) for batch in batches] == [8] * 4 + [32] * 6
    assert list(chain(*batches)) == epoch_order(0, 0, EXAMPLES).numpy().tolist()[: 4 * 8 + 6 * 32]


def test_shifts_move_images_by_whole_pixels(dataset: Dataset) -> None:
    shifted = runpy.run_path(str(EXPERIMENTS / "speedrun_tries.py"))["shifted"]
    images = batch_of(dataset, 3)[0]
    found = shifted(images, tf.constant([[0, 0], [1, 0], [-1, 1]]))
    np.testing.assert_array_equal(found[0], images[0])
    np.testing.assert_array_equal(found[1][:-1], images[1][1:])
    np.testing.assert_array_equal(found[2][1:, :-1], images[2][:-1, 1:])


def test_a_distortion_of_no_size_changes_nothing_and_one_of_some_size_keeps_the_ink(
    dataset: Dataset,
) -> None:
    distort = runpy.run_path(str(EXPERIMENTS / "best_tries.py"))["distort"]
    images, seed = batch_of(dataset, 100)[0], tf.constant([1, 2])
    images = tf.pad(images[:, 4:-4, 4:-4], [[0, 0], [4, 4], [4, 4], [0, 0]])
    np.testing.assert_allclose(distort(images, seed, 0.0), images, atol=1e-6)
    found = distort(images, seed, 1.0)
    assert np.abs(found - images).max() > 0.1
    ratio = tf.reduce_mean(found) / tf.reduce_mean(images)
    assert float(ratio) == pytest.approx(1, abs=0.1)


def test_a_width_without_even_margins_is_refused(run_here: RunHere, data_file: Any) -> None:
    result = run_here(EXPERIMENTS / "speedrun_tries.py", "--data", data_file, "--crop", "25")
    assert (result.status, result.stdout.count("error")) == (2, 0)
    assert "--crop 25: give 28, 24, 20 or 16" in result.stderr
