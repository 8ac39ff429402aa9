"""From trainings to a verdict: everything that verdict.json says."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from research.comparing.question import Metric, is_number
from research.comparing.rule import Forecast, Judgement, Rule, forecast, interval, judge
from research.data.dataset import HOLDOUT
from research.errors import InputError, one_line
from research.files import (
    as_object,
    is_regular,
    open_regular,
    read_json,
    read_object,
    read_sealed_json,
    sha256,
)
from research.recording.run_directory import FINISHED, NON_FINITE

import h5py
import numpy as np
import numpy.typing as npt

Verdict = Literal["better", "worse", "equivalent", "identical", "undecided"]
# So many pairs with the same bits are called identical.
PAIRS_OF_SAME_BITS = 2


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a training has come to.

    Attributes:
        figures: all numbers evaluated on the held-out examples, or on the test set; None if a value
            became NaN or infinite during training.
        weights: SHA-256 of the exported weights; None without figures.
    """

    figures: dict[str, float] | None
    weights: str | None


@dataclasses.dataclass(frozen=True)
class Pair:
    """The trainings of all arms with one seed; None for a training that an arm has no need of."""

    seed: int
    outcomes: tuple[Outcome | None, ...]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the pairs say about one challenger.

    Attributes:
        verdict: see ``research.comparing.rule``; ``identical`` if all weights have the same bits.
        pairs: number of pairs that the verdict counts.
        difference, sd, interval: challenger minus baseline, in units of the figure: mean, standard
            deviation, and confidence interval, None as long as there is none.
        won, tied: number of pairs in which the challenger is better, and equal.
        correlation: of the two arms' values within pairs, None where it is not defined.
        failed: trainings that became non-finite, of the baseline and of the challenger.
        still: an 80% range of the total number of pairs; None once there is a verdict.
    """

    verdict: Verdict
    pairs: int
    difference: float
    sd: float
    interval: tuple[float, float] | None
    won: int
    tied: int
    correlation: float | None
    failed: tuple[int, int]
    still: Forecast | None


def read_outcome(run: Path, split: str = HOLDOUT) -> Outcome | None:
    """What a run directory has come to; None as long as it can be resumed.

    Args:
        run: the run directory, which may be missing.
        split: the figures are those on ``holdout``, or on ``test``.

    Raises:
        InputError: if the files of a finished run have been changed.
    """
    try:
        if is_regular(run / NON_FINITE):
            return Outcome(None, None)
        if not is_regular(run / FINISHED):
            return None
        for name, digest in read_sealed_json(run / FINISHED)["files"].items():
            if sha256(run / name) != digest:
                raise ValueError(f"{name} has been changed since it was written")
        figures = numbers(read_json(run / "evaluation.json")[split])
        return Outcome(figures, weights_sha256(run / "mnist.h5"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{run}: can't be judged ({one_line(error)}); delete the directory, and the training "
            "is repeated"
        ) from error


def weights_sha256(h5: Path) -> str:
    """The SHA-256 of all arrays of an exported network, whatever their names and its optimizer."""
    arrays: list[tuple[str, bytes]] = []

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays.append((name, f"{item.shape}".encode() + item[()].tobytes()))

    with open_regular(h5) as file, h5py.File(file, "r") as network:
        network["model_weights"].visititems(collect)
    digest = hashlib.sha256()
    for _, content in sorted(arrays):
        digest.update(content)
    return digest.hexdigest()


def processors(runs: Iterable[Path]) -> dict[str, int]:
    """The number of trainings on each kind of processor, the most frequent kind first.

    A kind is named by the processor, and by those of its extensions and of the environment
    variables for TensorFlow that not all kinds have.
    """
    found: Counter[tuple[str, frozenset[str]]] = Counter()
    for run in runs:
        about = read_object(run / "environment.json")
        flags = [f"{name}={value}" for name, value in as_object(about.get("flags")).items()]
        own = frozenset([*map(str, about.get("extensions") or []), *flags])
        found[str(about.get("cpu") or "unknown"), own] += 1
    common = frozenset.intersection(*(own for _, own in found)) if found else frozenset()
    return {
        " ".join([name, *sorted(own - common)]): count for (name, own), count in found.most_common()
    }


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among a split's facts in evaluation.json."""
    return {k: float(v) for k, v in found.items() if is_number(v)}


def consider(
    pairs: Sequence[Pair], challenger: int, metric: Metric, rule: Rule, most_pairs: int
) -> Finding:
    """What the pairs say about one challenger. Only pairs without a gap from the first one count.

    Args:
        pairs: in the order of their seeds.
        challenger: the arm's number, 1 or more; the baseline's is 0.
        metric: the figure.
        rule: what was declared before the first pair.
        most_pairs: the forecast looks as far, or four times as far as there are pairs.

    Raises:
        InputError: if a training has not evaluated the figure.
    """
    counted = []
    for pair in pairs:
        ours, theirs = pair.outcomes[0], pair.outcomes[challenger]
        if ours is None or theirs is None:
            break
        counted.append((ours, theirs))
    if not counted:
        still = forecast(np.array([]), rule, most_pairs)
        return Finding("undecided", 0, math.nan, math.nan, None, 0, 0, None, (0, 0), still)
    values, failed = values_of(counted, metric)
    differences = values[:, 1] - values[:, 0]
    judgement = _judged(metric.worse * differences, failed, metric, rule)
    verdict: Verdict = judgement.verdict
    n = judgement.pairs
    same = [ours == theirs and ours.weights is not None for ours, theirs in counted]
    if all(same) and len(same) >= PAIRS_OF_SAME_BITS:
        verdict = "identical"
    within = judgement.interval
    if within is not None and metric.worse < 0:
        within = (-within[1], -within[0])
    return Finding(
        verdict,
        n,
        float(differences[:n].mean()),
        judgement.sd,
        within,
        int((metric.worse * differences[:n] < 0).sum()),
        int((differences[:n] == 0).sum()),
        _correlation(values[:n]),
        (int(failed[:n, 0].sum()), int(failed[:n, 1].sum())),
        forecast(metric.worse * differences, rule, max(most_pairs, 4 * n))
        if verdict == "undecided"
        else None,
    )


def values_of(
    counted: Sequence[tuple[Outcome, Outcome]], metric: Metric
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The figure [pairs, 2], with the worst value for a failure; and which trainings failed.

    A figure without a worst possible value gets the worst one of the pairs so far.
    """
    values = np.full([len(counted), 2], np.nan)
    for row, pair in enumerate(counted):
        for column, outcome in enumerate(pair):
            if outcome.figures is not None:
                value = metric.of(outcome.figures)
                if value is None:
                    there = ", ".join(sorted(outcome.figures))
                    raise InputError(f"--metric {metric}: the figures are {there} and error")
                values[row, column] = value
    failed = np.isnan(values)
    for row in range(len(values)):
        worst = metric.worst
        if worst is None:
            so_far = values[: row + 1][~failed[: row + 1]]
            worst = float(metric.worse * max(metric.worse * so_far, default=0.0))
        values[row, failed[row]] = worst
    return values, failed


def _judged(
    differences: npt.NDArray[np.float64],
    failed: npt.NDArray[np.bool_],
    metric: Metric,
    rule: Rule,
) -> Judgement:
    """Judges; an arm that failed is not called better or equivalent by a figure without bound."""
    found = judge(differences, rule)
    if metric.worst is not None or not failed.any():
        return found
    for n in range(1, len(differences) + 1):
        found = judge(differences[:n], rule)
        barred = {"better", "equivalent"} if failed[:n, 1].any() else set()
        barred |= {"worse", "equivalent"} if failed[:n, 0].any() else set()
        if found.verdict not in {"undecided", *barred}:
            return found
    sd = float(differences.std(ddof=1)) if len(differences) > 1 else math.nan
    mean, all_of_them = float(differences.mean()), len(differences)
    return Judgement("undecided", all_of_them, mean, sd, interval(differences, rule))


def _correlation(values: npt.NDArray[np.float64]) -> float | None:
    if len(values) < 3 or (values.std(0) == 0).any():
        return None
    return float(np.corrcoef(values.T)[0, 1])


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation; None where there are too few values."""
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
