"""One training, whatever the number of replicas, and however a batch is divided."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.data.augmentation import random_affine, random_shift
from research.data.batches import share_of_batch
from research.network.layers import dropout
from research.seeds import PartSeed, random_uniform
from research.training.state import State
from research.training.strategy import make_strategy
from research.training.train import train

import numpy as np
import pytest
import tensorflow as tf
from conftest import EXPERIMENTS, RunHere, make_split, make_state, run_python

Step = Callable[[State, Any, Any], dict[str, Any]]
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


@pytest.mark.parametrize("ways", [("two", "accumulated", "both"), ("four",)])
@pytest.mark.slow
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
        if name.startswith(("images", "noise", "mask")):
            # With accumulation the rows are those of the last part, on each replica.
            rows = {"accumulated": slice(len(one) - len(other), None), "both": slice(0, 0)}
            shown = rows.get(way, slice(None))
            np.testing.assert_array_equal(other[: len(one[shown])], one[shown], f"{way} {name}")
        elif name.startswith("weight"):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-12)
        else:
            np.testing.assert_allclose(other, one, rtol=1e-5)


def test_batches_accumulate_to_a_step_of_one_batch_so_many_times_as_large(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    options = ("--data", data_file, "--epochs", "1", "--dense-width", "8", "--log-every", "1")
    ways = {"whole": ("--batch-size", "64"), "parts": ("--batch-size", "16", "--accumulate", "4")}
    rows = {}
    for name, sizes in ways.items():
        result = run_here(EXPERIMENTS / "best.py", *options, *sizes, "--run-dir", name)
        assert (result.status, result.stderr) == (0, "")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows[name] = [row for row in map(json.loads, lines) if row["split"] == "train"]
    assert len(rows["whole"]) == len(rows["parts"]) == 5  # 300 examples, 64 in a step
    for whole, parts in list(zip(rows["whole"], rows["parts"], strict=True))[:2]:
        for name in ("loss", "objective", "accuracy", "optimizer/gradient_norm"):
            assert parts[name] == pytest.approx(whole[name], rel=1e-4), name


def test_a_variable_of_the_state_needs_an_aggregation_on_several_replicas() -> None:
    with make_strategy("mirrored", batch_size=16).scope():
        with pytest.raises(ValueError, match=r"extra\['seen'\] has no aggregation"):
            make_state(extra={"seen": tf.Variable(0.0)})
        same = tf.VariableAggregation.ONLY_FIRST_REPLICA
        make_state(extra={"seen": tf.Variable(0.0, aggregation=same)})


def test_copies_that_drift_apart_end_the_training(step: Step) -> None:
    def drifting(state: State, images: Any, labels: Any) -> dict[str, Any]:
        found = step(state, images, labels)
        state.model.dense2.bias.assign(state.model.dense2.bias + 0.01 * tf.reduce_mean(images))
        return found

    with make_strategy("mirrored", batch_size=16).scope():
        state = make_state()
    with pytest.raises(RuntimeError, match=r"dense2/bias has drifted apart on the replicas"):
        list(train(state, drifting, make_split(64), epochs=1, batch_size=16))
