"""The statistics of `compare`: properties, known answers, and simulated error rates.

`pytest -m slow -n 0 -s tests/comparing/test_rule.py` prints the simulations.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

from research.comparing.rule import (
    Floats,
    Forecast,
    Rule,
    Verdict,
    forecast,
    interval,
    intervals,
    judge,
    smallest_difference,
)
from research.errors import InputError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLE = 1e-4  # one of 10,000 held-out examples
RULE = Rule(least_sd=EXAMPLE)
WITH_MARGIN = Rule(least_sd=EXAMPLE, margin=5 * EXAMPLE)
MIRRORED: dict[Verdict, Verdict] = {
    "better": "worse",
    "worse": "better",
    "equivalent": "equivalent",
    "undecided": "undecided",
}

each_property = settings(max_examples=50, deadline=None, derandomize=True)
rules = st.builds(
    Rule,
    least_sd=st.just(EXAMPLE),
    alpha=st.sampled_from([0.01, 0.05, 0.2]),
    challengers=st.integers(1, 8),
    margin=st.sampled_from([None, 1e-3, 0.1]),
)
# Errors in whole examples, around zero or around some difference; and numbers of any size.
differences = st.one_of(
    st.builds(
        lambda mean, around: [(mean + x) * EXAMPLE for x in around],
        st.integers(-20, 20),
        st.lists(st.integers(-9, 9), max_size=40),
    ),
    st.lists(st.floats(-1, 1, width=32, allow_subnormal=False), max_size=40),
)


# --- Properties -----------------------------------------------------------------------------------


@each_property
@given(differences, rules, st.integers(-20, 20))
def test_units_do_not_matter(values: list[float], rule: Rule, power: int) -> None:
    scale = 2.0**power  # a power of two rounds nothing
    scaled = dataclasses.replace(
        rule,
        least_sd=rule.least_sd * scale,
        margin=None if rule.margin is None else rule.margin * scale,
    )
    here, there = judge(values, rule), judge(np.multiply(values, scale), scaled)
    assert (there.verdict, there.pairs) == (here.verdict, here.pairs)
    np.testing.assert_array_equal([there.mean, there.sd], np.multiply([here.mean, here.sd], scale))
    assert there.interval == (here.interval and tuple(scale * end for end in here.interval))


@each_property
@given(differences, rules)
def test_swapping_the_arms_mirrors_the_judgement(values: list[float], rule: Rule) -> None:
    here, there = judge(values, rule), judge([-x for x in values], rule)
    assert there.verdict == MIRRORED[here.verdict]
    assert there.pairs == here.pairs
    np.testing.assert_array_equal([there.mean, there.sd], [-here.mean, here.sd])
    assert there.interval == (here.interval and (-here.interval[1], -here.interval[0]))


@each_property
@given(differences, rules, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_change_the_interval_after_all_of_them(
    values: list[float], rule: Rule, random: Random
) -> None:
    shuffled = random.sample(values, len(values))
    if len(values) < rule.fewest_pairs:
        assert interval(shuffled, rule) is None
    else:
        expected = pytest.approx(interval(values, rule), rel=1e-9, abs=1e-12)
        assert interval(shuffled, rule) == expected


@each_property
@given(differences, rules)
def test_the_interval_is_around_the_mean_and_no_wider_with_fewer_challengers(
    values: list[float], rule: Rule
) -> None:
    more = dataclasses.replace(rule, challengers=rule.challengers + 1)
    assert more.fewest_pairs >= rule.fewest_pairs
    inner, outer = interval(values, rule), interval(values, more)
    assert (inner is None) == (len(values) < rule.fewest_pairs)
    if inner is not None:
        assert inner[0] < np.mean(values) < inner[1]
    if inner is not None and outer is not None:
        assert outer[0] < inner[0] < inner[1] < outer[1]


@each_property
@given(differences, rules)
def test_all_functions_look_at_the_same_intervals(values: list[float], rule: Rule) -> None:
    after_each = intervals(values, rule)
    assert after_each.shape == (len(values), 2)
    for n in range(len(values) + 1):
        found = interval(values[:n], rule)
        assert (found is None) == (n < rule.fewest_pairs)
        if n:
            expected = (math.nan, math.nan) if found is None else found
            np.testing.assert_array_equal(after_each[n - 1], expected)
    judgement = judge(values, rule)
    assert judgement.interval == interval(values[: judgement.pairs], rule)


@each_property
@given(differences, differences, rules)
def test_the_first_verdict_stays(values: list[float], later: list[float], rule: Rule) -> None:
    judgement = judge(values, rule)
    if judgement.verdict != "undecided":
        assert rule.fewest_pairs <= judgement.pairs <= len(values)
        assert judge(values[: judgement.pairs - 1], rule).verdict == "undecided"
        assert judge(values + later, rule) == judgement
    else:
        assert judgement.pairs == len(values)


@pytest.mark.parametrize(("pairs", "challengers"), [(6, 1), (12, 1), (40, 3)])
def test_at_an_end_of_the_interval_the_evidence_is_what_decides(
    pairs: int, challengers: int
) -> None:
    """The evidence by integrating likelihoods, where the code has a formula."""
    rule = Rule(least_sd=1e-9, challengers=challengers)
    values = np.random.default_rng(pairs).normal(0.3, 1, pairs)
    sd = np.exp(np.linspace(-5, 8, 1301))[:, None]
    effect = np.linspace(-12, 12, 481)
    weight = np.exp(-(effect**2) / 2) / np.exp(-(effect**2) / 2).sum()

    def likelihood(x: Floats, effect: Floats) -> Floats:  # without constants; flat in log(sd)
        squares = (x**2).sum() - 2 * effect * sd * x.sum() + pairs * (effect * sd) ** 2
        return np.exp(-pairs * np.log(sd) - squares / (2 * sd**2)).sum(axis=0)

    for end in interval(values, rule) or ():
        x = values - end
        evidence = (weight * likelihood(x, effect)).sum() / likelihood(x, np.zeros(1))[0]
        assert evidence == pytest.approx(challengers / 0.05, rel=1e-6)


# --- Known answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("challengers", "alpha", "fewest"),
    [(1, 0.05, 6), (2, 0.05, 7), (3, 0.05, 7), (4, 0.05, 8), (1, 0.5, 6), (1, 2.0**-9, 10)],
)
def test_fewest_pairs(challengers: int, alpha: float, fewest: int) -> None:
    rule = Rule(least_sd=1, alpha=alpha, challengers=challengers)
    assert rule.fewest_pairs == fewest
    assert smallest_difference(fewest - 1, rule) == math.inf
    assert smallest_difference(fewest, rule) < math.inf


@pytest.mark.parametrize("challengers", [1, 10, 1000])
@pytest.mark.parametrize("alpha", [1e-6, 0.05, 0.9])
def test_the_interval_is_bounded_from_the_fewest_pairs_on(alpha: float, challengers: int) -> None:
    rule = Rule(least_sd=1, alpha=alpha, challengers=challengers)
    widths = [smallest_difference(n, rule) for n in range(rule.fewest_pairs, 500)]
    assert all(a > b > 0 for a, b in itertools.pairwise(widths))
    assert widths[0] < math.inf


def test_the_smallest_difference_just_decides() -> None:
    values = np.random.default_rng(0).normal(size=20)
    values = (values - values.mean()) / values.std(ddof=1)
    least = smallest_difference(20, Rule(least_sd=1e-9))
    assert least == pytest.approx(0.766, abs=0.001)
    low, _ = interval(values + 1.001 * least, RULE) or (-1, 1)
    assert low > 0
    low, _ = interval(values + 0.999 * least, RULE) or (-1, 1)
    assert low < 0


@pytest.mark.parametrize(
    ("values", "rule", "verdict", "pairs"),
    [
        ([], RULE, "undecided", 0),
        ([0.5], RULE, "undecided", 1),
        # Without an effect, five equal signs are no rarity, however equal the differences.
        ([-EXAMPLE] * 5, Rule(least_sd=1e-12), "undecided", 5),
        ([-EXAMPLE] * 9 + [9 * EXAMPLE], Rule(least_sd=1e-12), "better", 6),
        ([-EXAMPLE] * 9 + [9 * EXAMPLE], RULE, "undecided", 10),
        ([-EXAMPLE] * 20, RULE, "better", 14),
        ([EXAMPLE * x for x in (9, 12, 11, 8, 10, 9, 10)], RULE, "worse", 6),
        ([EXAMPLE * x for x in (9, 12, 11, 8, 10, 9, 10)], Rule(least_sd=1), "undecided", 7),
        ([0.0] * 100, RULE, "undecided", 100),
        ([0.0] * 100, WITH_MARGIN, "equivalent", 6),
        # Worse, and too little to matter: equivalent.
        ([2 * EXAMPLE, 3 * EXAMPLE] * 10, RULE, "worse", 6),
        ([2 * EXAMPLE, 3 * EXAMPLE] * 10, WITH_MARGIN, "equivalent", 6),
        ([9 * EXAMPLE] * 10, WITH_MARGIN, "worse", 6),
    ],
)
def test_verdicts(values: list[float], rule: Rule, verdict: Verdict, pairs: int) -> None:
    judgement = judge(values, rule)
    assert (judgement.verdict, judgement.pairs) == (verdict, pairs)
    assert judgement.mean == pytest.approx(
        np.mean(values[:pairs]) if pairs else math.nan, nan_ok=True
    )
    sd = np.std(values[:pairs], ddof=1) if pairs > 1 else math.nan
    assert judgement.sd == pytest.approx(sd, rel=1e-9, abs=1e-12, nan_ok=True)


def test_digits_that_the_differences_share_cost_no_precision() -> None:
    values = np.random.default_rng(0).integers(-9, 9, 50).astype(float)
    np.testing.assert_allclose(
        intervals(values + 2.0**40, Rule(least_sd=1)) - 2.0**40,
        intervals(values, Rule(least_sd=1)),
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_sd": 0}, "least_sd 0: "),
        ({"alpha": 5}, "alpha 5: "),
        ({"alpha": math.nan}, "alpha nan: "),
        ({"challengers": 0}, "challengers 0: "),
        ({"margin": 0}, "margin 0: "),
        ({"margin": -0.1}, "margin -0.1: "),
        ({"margin": math.inf}, "margin inf: "),
    ],
)
def test_a_rule_out_of_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Rule(**{"least_sd": EXAMPLE, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_difference_that_is_not_finite_is_refused(bad: float) -> None:
    for function in (judge, interval, intervals):
        with pytest.raises(ValueError, match=f"difference 2 is {bad}"):
            function([0.0, 1.0, bad, bad], RULE)
    with pytest.raises(ValueError, match="difference 0"):
        forecast([bad], RULE, most_pairs=10)


# --- The forecast ---------------------------------------------------------------------------------


def test_the_forecast_is_a_function_of_its_arguments() -> None:
    values = [3 * EXAMPLE, -EXAMPLE, 4 * EXAMPLE]
    np.random.seed(1)
    first = forecast(values, RULE, most_pairs=100)
    np.random.seed(2)
    assert forecast(np.array(values), RULE, most_pairs=100) == first
    scaled = forecast([x * 1024 for x in values], Rule(least_sd=1024 * EXAMPLE), most_pairs=100)
    assert scaled == first


@pytest.mark.parametrize(
    ("values", "rule", "most_pairs", "expected"),
    [
        ([0.01, 0.011] * 10, RULE, 100, Forecast(6, 6)),  # decided already
        ([0.0] * 5, RULE, 5, Forecast(None, None)),
        ([0.0] * 9, RULE, 5, Forecast(None, None)),
        ([], RULE, 5, Forecast(None, None)),
        ([], RULE, 0, Forecast(None, None)),
        ([0.0] * 5, Rule(least_sd=EXAMPLE, margin=0.1), 100, Forecast(6, 6)),
    ],
)
def test_forecasts(values: list[float], rule: Rule, most_pairs: int, expected: Forecast) -> None:
    assert forecast(values, rule, most_pairs) == expected


def test_without_a_pair_the_forecast_knows_no_scale() -> None:
    expected = forecast([], RULE, most_pairs=100)
    assert expected.low in range(6, 10)
    assert expected.high is None
    assert forecast([], Rule(least_sd=1e6, margin=1e6), most_pairs=100) == expected


def test_equal_differences_are_forecast_to_vary_by_the_least_sd() -> None:
    found = forecast([0.0] * 8, RULE, most_pairs=400)
    assert found.low is not None
    assert found == forecast([0.0] * 8, Rule(least_sd=EXAMPLE * 1024), most_pairs=400)


@pytest.mark.parametrize("seen", [[1.0], [0.9, 1.2], [0.5, 1.4, 1.0], [0.3, -0.2, 0.9, 0.1]])
def test_the_forecast_weighs_the_effects_of_the_prior_by_the_pairs_so_far(
    seen: list[float],
) -> None:
    """Effects drawn from the prior and weighted by their likelihood, without a formula."""
    rule, random, most_pairs = Rule(least_sd=1e-9), np.random.default_rng(0), 40
    sd = np.exp(random.uniform(-4, 6, 50_000))
    mean = sd * random.standard_normal(sd.size)
    distance = (np.array(seen) - mean[:, None]) / sd[:, None]
    likelihood = np.exp(-(distance**2).sum(axis=1) / 2) / sd ** len(seen)
    chosen = random.choice(sd.size, 4000, p=likelihood / likelihood.sum())
    found = forecast(seen, rule, most_pairs)
    totals = []
    for k in chosen:
        further = random.normal(mean[k], sd[k], most_pairs - len(seen))
        judgement = judge([*seen, *further], rule)
        totals.append(math.inf if judgement.verdict == "undecided" else judgement.pairs)
    low, high = found.low or math.inf, found.high or math.inf
    inside = np.mean([low <= total <= high for total in totals])
    at_the_ends = np.mean([total == high for total in totals])
    assert 0.77 < inside < 0.83 + at_the_ends


# --- Simulations ----------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, int], Floats]


def nine_and_one(random: np.random.Generator, n: int) -> Floats:
    return EXAMPLE * np.where(random.random(n) < 0.9, -1.0, 9.0)


def poisson(random: np.random.Generator, n: int) -> Floats:
    return EXAMPLE * np.subtract(*random.poisson(80.0, (2, n))).astype(np.float64)


# All have mean 0, and standard deviations of 3 to 13 examples.
SYMMETRIC: dict[str, Draw] = {
    "Gaussian": lambda random, n: 5 * EXAMPLE * random.standard_normal(n),
    "t with 3 degrees of freedom": lambda random, n: 3 * EXAMPLE * random.standard_t(3, n),
    "Poisson counts, mean 80": poisson,
}
SKEWED: dict[str, Draw] = {
    "exponential": lambda random, n: 5 * EXAMPLE * (random.exponential(size=n) - 1),
    "lognormal": lambda random, n: 2.3 * EXAMPLE * (random.lognormal(size=n) - math.exp(0.5)),
    "-1 nine times of ten, +9 once": nine_and_one,
}

# Differences of the held-out error, in examples of 10,000, between trainings that differ in the
# seed alone: k against 1000 + k, for k = 0 to 39, of `experiments/mnist_cnn.py --examples 20000
# --holdout 10000 --holdout-seed 0 --epochs 1`, with one thread.
REAL = [
    *(1005, -726, -549, -7, -179, -66, -217, -886, 503, -392, 101, 256, 94, 132),
    *(-672, 361, 147, 494, -163, -100, 1009, -189, -84, 592, -100, -461, -392, 89),
    *(-76, -164, -74, -76, 301, 976, 74, 77, -185, 39, -5, -110),
]


def draws(draw: Draw, comparisons: int, pairs: int) -> Iterator[Floats]:
    random = np.random.default_rng(0)
    for _ in range(comparisons):
        yield draw(random, pairs)


def share_decided(draw: Draw, rule: Rule, comparisons: int) -> float:
    judged = (judge(values, rule).verdict for values in draws(draw, comparisons, 100))
    return 1 - Counter(judged)["undecided"] / comparisons


def share_covered(effect: float, comparisons: int) -> float:
    """How often the intervals after every pair up to 100 all contain the mean, ``effect`` sd."""
    rule, covered = Rule(least_sd=1e-9), 0
    for values in draws(lambda random, n: random.normal(effect, 1, n), comparisons, 100):
        low, high = intervals(values, rule)[rule.fewest_pairs - 1 :].T
        covered += bool(((low <= effect) & (effect <= high)).all())
    return covered / comparisons


def share_forecast(pairs: int, comparisons: int, paths: int) -> float:
    """How often the range holds the total, of comparisons undecided after so many pairs."""
    rule = Rule(least_sd=1e-9)
    random = np.random.default_rng(0)
    inside = undecided = 0
    while undecided < comparisons:
        values = random.standard_normal() + random.standard_normal(100)
        if judge(values[:pairs], rule).verdict != "undecided":
            continue
        undecided += 1
        found = forecast(values[:pairs], rule, 100, paths)
        judgement = judge(values, rule)
        total = math.inf if judgement.verdict == "undecided" else judgement.pairs
        inside += (found.low or math.inf) <= total <= (found.high or math.inf)
    return inside / comparisons


@pytest.mark.parametrize("name", SYMMETRIC)
def test_false_verdicts_are_rare_however_often_one_looks(name: str) -> None:
    assert share_decided(SYMMETRIC[name], RULE, 2000) <= 0.05


def test_all_intervals_together_contain_the_mean() -> None:
    assert share_covered(0.7, 1000) >= 0.95


@pytest.mark.parametrize("pairs", [0, 3, 8])
def test_four_of_five_totals_are_in_the_range_that_was_forecast(pairs: int) -> None:
    assert 0.73 <= share_forecast(pairs, 300, paths=200) <= 0.93


# --- The same, for the record: each prints its row of the README ----------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SYMMETRIC)
def test_false_verdicts_of_ten_thousand(name: str) -> None:
    share = share_decided(SYMMETRIC[name], RULE, 10_000)
    print(f"\nfalse verdicts, {name}: {share:.2%}")
    assert share <= 0.05


@pytest.mark.slow
def test_false_verdicts_of_ten_thousand_resampled_from_real_pairs() -> None:
    pairs = EXAMPLE * (np.array(REAL) - np.mean(REAL))
    n = 10_000
    share = share_decided(lambda random, n: random.choice(pairs, n), RULE, n)
    # Wilson's 95% bounds.
    middle = (share + 1.92 / n) / (1 + 3.84 / n)
    half = 1.96 * math.sqrt(share * (1 - share) / n + 0.96 / n**2) / (1 + 3.84 / n)
    low, high = middle - half, middle + half
    print(f"\nfalse verdicts, 40 real pairs: {share:.2%} (95% bounds {low:.2%} and {high:.2%})")
    assert high <= 0.055


@pytest.mark.slow
@pytest.mark.parametrize("name", SKEWED)
def test_false_verdicts_of_skewed_differences(name: str) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Hasty(Rule):
        fewest_pairs: int = 5  # below five the interval is unbounded

    shares = {
        "both rules": share_decided(SKEWED[name], RULE, 10_000),
        "without six pairs": share_decided(SKEWED[name], Hasty(least_sd=EXAMPLE), 10_000),
        "without one example": share_decided(SKEWED[name], Rule(least_sd=1e-12), 10_000),
        "without either": share_decided(SKEWED[name], Hasty(least_sd=1e-12), 10_000),
    }
    print(f"\nfalse verdicts, {name}: " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))
    assert shares["both rules"] == min(shares.values())


@pytest.mark.slow
def test_coverage_of_ten_thousand() -> None:
    share = share_covered(0.7, 10_000)
    print(f"\nthe intervals after every pair up to 100 all contain the mean: {share:.2%}")
    assert share >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("effect", "most_mean"), [(2.0, math.inf), (1.5, 9), (1.0, 14), (0.5, math.inf)]
)
def test_power(effect: float, most_mean: float) -> None:
    found = [
        judge(values, Rule(least_sd=1e-9))
        for values in draws(lambda random, n: random.normal(effect, 1, n), 10_000, 400)
    ]
    mean = np.mean([judgement.pairs for judgement in found])
    soon = np.mean([j.pairs <= 30 and j.verdict == "worse" for j in found])
    wrong = np.mean([judgement.verdict == "better" for judgement in found])
    print(f"\n{effect} sd: {mean:.1f} pairs, {soon:.1%} within 30, wrong way {wrong:.2%}")
    assert mean <= most_mean
    assert effect < 1 or soon >= 0.95
    assert wrong <= 0.025


@pytest.mark.slow
@pytest.mark.parametrize("margin", [1.0, 0.5, 0.25])
def test_equivalence(margin: float) -> None:
    rule = Rule(least_sd=1e-9, margin=margin)
    found = [judge(values, rule) for values in draws(lambda r, n: r.normal(0, 1, n), 10_000, 1000)]
    at_margin = draws(lambda random, n: random.normal(margin, 1, n), 10_000, 1000)
    wrong = np.mean([judge(values, rule).verdict == "equivalent" for values in at_margin])
    verdicts = Counter(judgement.verdict for judgement in found)
    pairs = np.mean([judgement.pairs for judgement in found])
    print(f"\nmargin {margin} sd: no difference: {pairs:.1f} pairs, {dict(verdicts)}")
    print(f"margin {margin} sd: a difference of the margin: equivalent {wrong:.2%}")
    assert wrong <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [0, 3, 6, 10])
def test_forecasts_of_a_thousand(pairs: int) -> None:
    share = share_forecast(pairs, 1000, paths=2000)
    print(f"\nforecast after {pairs} pairs: {share:.1%} of the totals in the 80% range")
    assert 0.77 <= share <= 0.9
