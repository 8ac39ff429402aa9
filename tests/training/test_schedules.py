from __future__ import annotations

import math

from research.training.schedules import Decay, LearningRate

import pytest


@pytest.mark.parametrize(
    ("decay", "halfway"), [("constant", 2.0), ("linear", 1.0), ("cosine", 1.0)]
)
@pytest.mark.parametrize("warmup", [0, 10])
def test_shape(decay: Decay, halfway: float, warmup: int) -> None:
    rate = LearningRate(2.0, total_steps=110, decay=decay, warmup_steps=warmup)
    values = [float(rate(step)) for step in range(111)]
    for step in range(warmup):
        assert values[step] == pytest.approx(2.0 * (step + 1) / warmup)
    assert values[warmup] == pytest.approx(2.0)
    assert values[warmup + (110 - warmup) // 2] == pytest.approx(halfway)
    assert values[110] == pytest.approx(2.0 if decay == "constant" else 0.0, abs=1e-6)
    assert all(a >= b for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))


def test_cosine_is_slow_at_both_ends() -> None:
    rate = LearningRate(1.0, total_steps=100, decay="cosine")
    assert float(rate(25)) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert float(rate(200)) == pytest.approx(0, abs=1e-6)


def test_a_warmup_beyond_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps=11"):
        LearningRate(1.0, total_steps=10, warmup_steps=11)
