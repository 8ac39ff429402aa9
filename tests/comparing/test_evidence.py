"""What pairs say about a challenger; failures, equal bits, and pairs that are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from research.comparing.evidence import (
    Outcome,
    Pair,
    consider,
    processors,
    read_outcome,
    weights_sha256,
)
from research.comparing.page import mixture
from research.comparing.question import Metric
from research.comparing.rule import Rule, judge
from research.errors import InputError

import h5py
import numpy as np
import pytest

ERROR, LOSS = Metric.parse("error"), Metric.parse("loss")
RULE = Rule(least_sd=1e-4)
FAILED = Outcome(None, None)


def trained(error: float, loss: float = 0.1, weights: str = "") -> Outcome:
    return Outcome({"accuracy": 1 - error, "loss": loss}, weights or repr(error))


def pairs(*outcomes: tuple[Outcome | None, Outcome | None]) -> list[Pair]:
    return [Pair(seed, pair) for seed, pair in enumerate(outcomes)]


NOISE = np.random.default_rng(0).normal(0, 1e-3, (12, 2))
WORSE = pairs(*((trained(0.01 + a), trained(0.02 + b)) for a, b in NOISE))


def test_a_finding_is_the_judgement_of_the_paired_differences() -> None:
    found = consider(WORSE, 1, ERROR, RULE, 40)
    expected = judge([0.01 + b - a for a, b in NOISE], RULE)
    assert (found.verdict, found.pairs) == ("worse", expected.pairs)
    assert found.interval == pytest.approx(expected.interval)
    assert (found.won, found.tied, found.still) == (0, 0, None)


def test_the_highest_accuracy_and_the_lowest_error_agree() -> None:
    error = consider(WORSE, 1, ERROR, RULE, 40)
    accuracy = consider(WORSE, 1, Metric.parse("accuracy"), RULE, 40)
    assert accuracy.verdict == error.verdict
    assert accuracy.difference == pytest.approx(-error.difference)
    assert accuracy.interval is not None and error.interval is not None
    assert accuracy.interval == pytest.approx((-error.interval[1], -error.interval[0]))


def test_the_same_bits_are_identical_and_the_same_errors_are_not() -> None:
    one = trained(0.01)
    assert consider(pairs((one, one)), 1, ERROR, RULE, 40).verdict == "undecided"
    assert consider(pairs((one, one), (one, one)), 1, ERROR, RULE, 40).verdict == "identical"
    other = pairs(*[(one, trained(0.01, weights="other"))] * 8)
    assert consider(other, 1, ERROR, RULE, 40).verdict == "undecided"
    assert consider(pairs((FAILED, FAILED), (FAILED, FAILED)), 1, ERROR, RULE, 40).verdict == (
        "undecided"
    )


def test_pairs_count_without_a_gap_from_the_first_seed_on() -> None:
    late = [*WORSE[:3], Pair(3, (None, trained(0.02))), *WORSE[4:]]
    assert consider(late, 1, ERROR, RULE, 40).pairs == 3
    assert consider([], 1, ERROR, RULE, 40).pairs == 0


def test_a_training_that_became_non_finite_counts_with_the_worst_error() -> None:
    found = consider(pairs((trained(0.1), FAILED)), 1, ERROR, RULE, 40)
    assert found.difference == pytest.approx(0.9)
    assert found.failed == (0, 1)
    accuracy = consider(pairs((trained(0.1), FAILED)), 1, Metric.parse("accuracy"), RULE, 40)
    assert accuracy.difference == pytest.approx(-0.9)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_arm_that_failed_is_not_better_by_a_figure_without_bound(failing: int) -> None:
    losses = [(0.5 + a, 0.1 + b) if failing else (0.1 + a, 0.5 + b) for a, b in NOISE]
    good = pairs(*((trained(0.1, a), trained(0.1, b)) for a, b in losses))
    expected = "better" if failing else "worse"
    assert consider(good, 1, LOSS, RULE, 40).verdict == expected
    one = list(good[0].outcomes)
    one[failing] = FAILED
    spoiled = [Pair(0, tuple(one)), *good[1:]]
    found = consider(spoiled, 1, LOSS, RULE, 40)
    assert (found.verdict, found.pairs) == ("undecided", len(good))
    assert found.failed[failing] == 1


def test_a_figure_that_one_training_lacks_is_named() -> None:
    with pytest.raises(InputError, match="lowest f1: the figures are accuracy, loss and error"):
        consider(WORSE, 1, Metric.parse("lowest f1"), RULE, 40)


def test_a_run_is_read_as_it_ended(finished_run: Path, tmp_path: Path) -> None:
    outcome = read_outcome(finished_run)
    evaluation = json.loads((finished_run / "evaluation.json").read_text())["holdout"]
    assert outcome is not None and outcome.figures is not None
    assert outcome.figures["accuracy"] == evaluation["accuracy"]
    assert read_outcome(tmp_path / "nothing") is None

    copy = Path(shutil.copytree(finished_run, tmp_path / "copy"))
    (copy / "evaluation.json").write_text("{}")
    with pytest.raises(InputError, match=r"evaluation\.json has been changed"):
        read_outcome(copy)
    (copy / "finished.json").unlink()
    assert read_outcome(copy) is None


def test_trainings_on_several_kinds_of_processors_are_told(tmp_path: Path) -> None:
    kinds = [
        {"cpu": "A", "extensions": ["avx2"], "flags": {"OMP_NUM_THREADS": "1"}},
        {"cpu": "B", "extensions": ["avx2", "avx512f"], "flags": {"OMP_NUM_THREADS": "1"}},
        {"cpu": "B", "extensions": ["avx2", "avx512f"], "flags": {"ONEDNN_MAX_CPU_ISA": "AVX2"}},
    ]
    runs = [tmp_path / str(number) for number in range(6)]
    for run, kind in zip(runs, [0, 1, 1, 1, 2, 2], strict=True):
        run.mkdir()
        (run / "environment.json").write_text(json.dumps(kinds[kind]))
    assert processors(runs[1:4]) == {"B": 3}
    assert mixture(processors(runs[1:4])) == ""
    assert processors(runs) == {
        "B OMP_NUM_THREADS=1 avx512f": 3,
        "B ONEDNN_MAX_CPU_ISA=AVX2 avx512f": 2,
        "A OMP_NUM_THREADS=1": 1,
    }
    assert mixture(processors(runs[2:5])) == (
        "The trainings ran on 2 kinds of processors, so that equal ones may differ in their last "
        "bits: B OMP_NUM_THREADS=1 (2), B ONEDNN_MAX_CPU_ISA=AVX2 (1)."
    )


def test_the_digest_of_weights_is_of_the_weights_alone(finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copyfile(finished_run / "mnist.h5", tmp_path / "copy.h5"))
    with h5py.File(copy, "r+") as file:
        file.attrs["training_config"] = "{}"
    assert weights_sha256(copy) == weights_sha256(finished_run / "mnist.h5")
    with h5py.File(copy, "r+") as file:
        kernels: list[h5py.Dataset] = []
        file["model_weights"].visititems(
            lambda _, item: kernels.append(item) if isinstance(item, h5py.Dataset) else None
        )
        kernels[0][...] = kernels[0][...] + 1e-3
    assert weights_sha256(copy) != weights_sha256(finished_run / "mnist.h5")


def test_a_bar_by_failures_shows_what_all_pairs_say() -> None:
    losses = [(0.5 + a, 0.1 + b) for a, b in NOISE]
    spoiled = pairs(*((trained(0.1, a), trained(0.1, b)) for a, b in losses))
    spoiled[0] = Pair(0, (spoiled[0].outcomes[0], FAILED))
    found = consider(spoiled, 1, LOSS, RULE, 40)
    assert found.interval is not None
    assert found.interval[0] < found.difference < found.interval[1]
