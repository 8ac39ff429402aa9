"""The statistics of `compare`: when a paired comparison is decided, and how long that may take.

A difference is challenger minus baseline for one seed, of a figure of which less is better: a
positive difference is worse. Differences come in the order of the seeds.

The interval is an anytime-valid t confidence sequence for the mean difference: with probability
1 - alpha or more, the intervals after every number of pairs all contain the true mean, so that a
comparison may stop as soon as one of them decides. (Wang and Ramdas, "Anytime-valid t-tests and
confidence sequences for Gaussian means with unknown variance", arXiv 2310.03722.) The evidence
against "the mean is mu" is a ratio of likelihoods: of means that are normal around mu with the
differences' standard deviation, over mu itself. With n pairs and t = (mean - mu) / (sd / sqrt(n)),

    E = (1 + n)^(-1/2) * [(1 + t^2 / (n-1)) / (1 + t^2 / ((n-1) (1+n)))]^(n/2)

and the interval holds every mu whose E is below challengers / alpha. The probability is guaranteed
for normal differences, and simulations show it for other symmetric ones; skewed ones are decided
wrongly more often, which `Rule.fewest_pairs` and `Rule.least_sd` limit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from research.errors import InputError

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Differences: TypeAlias = Sequence[float] | Floats
Verdict = Literal["better", "worse", "equivalent", "undecided"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What is declared before the first pair.

    Attributes:
        least_sd: the standard deviation of the differences is taken to be at least this. For an
            error on N held-out examples it is 1 / N, one example.
        alpha: the probability of a false verdict, over all challengers and all looks.
        challengers: how many arms are compared with the baseline; each gets alpha / challengers.
        margin: differences from -margin to margin are too small to matter; None if any matters.

    Raises:
        InputError: for a value out of range.
    """

    least_sd: float
    alpha: float = 0.05
    challengers: int = 1
    margin: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.least_sd < math.inf:
            raise InputError(f"least_sd {self.least_sd}: give a positive number, such as 1/N")
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha {self.alpha}: give a probability between 0 and 1")
        if self.challengers < 1:
            raise InputError(f"challengers {self.challengers}: give at least one challenger")
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise InputError(f"margin {self.margin}: give a positive number, or no margin")

    @property
    def threshold(self) -> float:
        """The evidence that decides."""
        return self.challengers / self.alpha

    @property
    def fewest_pairs(self) -> int:
        """No verdict before so many pairs: at least 6, and 2^(1-n) <= alpha / challengers.

        Without an effect, n symmetric differences all have one sign with probability 2^(1-n).
        """
        return max(6, 1 + math.ceil(math.log2(self.threshold)))


def rule_of(question: Mapping[str, Any]) -> Rule:
    """The rule that comparison.json, or the question in verdict.json, declares."""
    return Rule(
        least_sd=1 / question["held_out"],
        alpha=question["alpha"],
        challengers=len(question["arms"]) - 1,
        margin=question["margin"],
    )


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The verdict, and the differences that it rests on.

    Attributes:
        verdict: of the challenger. "equivalent" says that the interval lies within the margin, even
            if it also lies above or below 0.
        pairs: how many pairs were judged: those until the verdict, or all if there is none.
        mean: of those pairs' differences; nan without pairs.
        sd: their standard deviation (n - 1 in the denominator), which may be smaller than
            ``Rule.least_sd``; nan below two pairs.
        interval: of the mean difference, after those pairs; None below ``Rule.fewest_pairs``.
    """

    verdict: Verdict
    pairs: int
    mean: float
    sd: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Forecast:
    """An 80% range of the number of pairs until the verdict, those that are there included.

    None stands for "more than ``most_pairs``". Where ``low`` is None, ``high`` is None, too.
    """

    low: int | None
    high: int | None


def interval(differences: Differences, rule: Rule) -> tuple[float, float] | None:
    """The interval of the mean difference after all pairs; None below ``rule.fewest_pairs``."""
    _, _, low, high = _running(_checked(differences), rule)
    return (float(low[-1]), float(high[-1])) if len(low) >= rule.fewest_pairs else None


def intervals(differences: Differences, rule: Rule) -> Floats:
    """The interval after each pair: float64 [n, 2], nan below ``rule.fewest_pairs``."""
    _, _, low, high = _running(_checked(differences), rule)
    return np.where(np.isinf(low), np.nan, [low, high]).T


def judge(differences: Differences, rule: Rule) -> Judgement:
    """Looks after every pair, in order, and stops at the first verdict.

    Pairs behind the verdict change nothing.

    Args:
        differences: [n], challenger minus baseline, finite; positive is worse. It may be empty.
        rule: what was declared before the first pair.

    Raises:
        ValueError: a difference is not finite.
    """
    mean, sd, low, high = _running(_checked(differences), rule)
    pairs = min(len(mean), int(_first_decided(low, high, rule)))
    if pairs == 0:
        return Judgement("undecided", 0, math.nan, math.nan, None)
    last = pairs - 1
    found = float(low[last]), float(high[last])
    verdict: Verdict = "undecided"
    if _within_margin(*found, rule):
        verdict = "equivalent"
    elif found[0] > 0:
        verdict = "worse"
    elif found[1] < 0:
        verdict = "better"
    return Judgement(
        verdict,
        pairs,
        float(mean[last]),
        float(sd[last]) if pairs > 1 else math.nan,
        found if pairs >= rule.fewest_pairs else None,
    )


def forecast(differences: Differences, rule: Rule, most_pairs: int, paths: int = 2000) -> Forecast:
    """How many pairs the verdict will take, given the pairs so far.

    Simulates further pairs and judges them by the same rule. The prior: differences are normal,
    their mean in units of their standard deviation is normal with mean 0 and standard deviation 1,
    and every order of magnitude of the standard deviation is as likely (density 1 / sd). Without a
    pair the scale of the differences is unknown, so that the margin is ignored. If there is a
    verdict already, both ends of the range are its number of pairs.

    The random numbers have a fixed seed: the same arguments give the same forecast.

    Args:
        differences: [n], as in `judge`.
        rule: what was declared before the first pair.
        most_pairs: totals above it are not told apart.
        paths: how many continuations to simulate.

    Raises:
        ValueError: a difference is not finite.
    """
    seen = _checked(differences)
    n = len(seen)
    random = np.random.default_rng(0)
    if n:
        # The posterior is normal-inverse-gamma: the sum of squares over sd^2 is chi-squared with n
        # degrees of freedom, and the mean is normal around the differences' mean, drawn towards 0.
        # Equal differences leave no squares: as in the rule, the sd is at least least_sd.
        squares = ((seen - seen.mean()) ** 2).sum() + n * seen.mean() ** 2 / (1 + n)
        squares = max(squares, n * rule.least_sd**2)
        sd = np.sqrt(squares / random.chisquare(n, paths))
        mean = seen.sum() / (1 + n) + sd * random.standard_normal(paths) / math.sqrt(1 + n)
    else:
        rule = dataclasses.replace(rule, least_sd=1e-9, margin=None)
        sd = np.ones(paths)
        mean = random.standard_normal(paths)
    further = random.standard_normal((paths, max(0, most_pairs - n)))
    further = mean[:, None] + sd[:, None] * further
    all_pairs = np.concatenate([np.broadcast_to(seen, (paths, n)), further], axis=-1)
    _, _, low, high = _running(all_pairs, rule)
    totals = _first_decided(low, high, rule)
    # The shortest range with 80% of the totals. Many totals equal the fewest pairs, or are "more
    # than most_pairs", so that between the 10% and 90% quantiles there would be over 90%.
    totals.sort()
    inside = math.ceil(0.8 * paths)
    first = int(np.argmin(totals[inside - 1 :] - totals[: paths - inside + 1]))
    ends = int(totals[first]), int(totals[first + inside - 1])
    return Forecast(*(total if total <= all_pairs.shape[-1] else None for total in ends))


def smallest_difference(pairs: int, rule: Rule) -> float:
    """The mean difference that so many pairs just decide, in standard deviations.

    It is half the width of the interval in standard deviations; infinity below
    ``rule.fewest_pairs``.
    """
    return float(_half_widths(pairs, rule)[-1]) if pairs > 0 else math.inf


def _checked(differences: Differences) -> Floats:
    array = np.asarray(differences, np.float64)
    if not np.isfinite(array).all():
        bad = int(np.argmin(np.isfinite(array)))
        raise ValueError(
            f"difference {bad} is {array[bad]}: give finite ones; a training that became "
            "non-finite counts with the worst error"
        )
    return array


def _half_widths(pairs: int, rule: Rule) -> Floats:
    """Half the width of the interval after each of 1, ..., pairs pairs, in standard deviations.

    The solution of E = threshold. It exists from ``fewest_pairs`` on, as there c < 1 + n follows
    from threshold <= 2^(n-1); before it is infinite.
    """
    widths = np.full(pairs, math.inf)
    n = np.arange(rule.fewest_pairs, pairs + 1)
    c = (rule.threshold**2 * (1 + n)) ** (1 / n)
    ratio = (c - 1) / (1 - c / (1 + n))  # t^2 / (n - 1)
    widths[rule.fewest_pairs - 1 :] = np.sqrt(ratio * (n - 1) / n)
    return widths


def _running(differences: Floats, rule: Rule) -> tuple[Floats, Floats, Floats, Floats]:
    """Mean, sd, and both ends of the interval after each pair: float64 [..., n], as the argument.

    The sd after one pair is 0; below ``rule.fewest_pairs`` the interval is infinite.
    """
    n = np.arange(1, differences.shape[-1] + 1)
    mean = np.cumsum(differences, axis=-1) / n
    # Welford's recurrence: of two large sums of squares the difference would be rounding alone.
    squares = np.cumsum((differences - mean) ** 2 * (n / np.maximum(n - 1, 1)), axis=-1)
    sd = np.sqrt(squares / np.maximum(n - 1, 1))
    half = np.maximum(sd, rule.least_sd) * _half_widths(len(n), rule)
    return mean, sd, mean - half, mean + half


def _within_margin(low: npt.ArrayLike, high: npt.ArrayLike, rule: Rule) -> npt.NDArray[np.bool_]:
    margin = rule.margin or 0.0  # no interval lies between 0 and 0
    return np.greater_equal(low, -margin) & np.less_equal(high, margin)


def _first_decided(low: Floats, high: Floats, rule: Rule) -> npt.NDArray[np.int64]:
    """The number of pairs at the first verdict, n + 1 if there is none: [...] from [..., n]."""
    decided = (low > 0) | (high < 0) | _within_margin(low, high, rule)
    never = np.ones((*decided.shape[:-1], 1), bool)
    return np.argmax(np.concatenate([decided, never], axis=-1), axis=-1) + 1
