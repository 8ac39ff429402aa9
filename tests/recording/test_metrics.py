"""Where the metrics of two runs first differ."""

from __future__ import annotations

from typing import Any

from research.recording.metrics import Difference, common_lines, first_difference


def line(step: int, split: str = "train", **values: float) -> dict[str, Any]:
    return {"split": split, "step": step, "seconds": 0.5, **values}


ONE = [line(4, loss=2.0), line(8, loss=1.5), line(8, "validation", loss=1.4, accuracy=0.5)]


def test_times_are_no_difference() -> None:
    slower = [{**each, "seconds": 9.0, "speed/examples_per_second": 1.0} for each in ONE]
    assert first_difference(ONE, slower) is None
    assert len(common_lines(ONE, slower)) == 3


def test_the_first_value_that_differs_is_named() -> None:
    other = [ONE[0], line(8, loss=1.5), line(8, "validation", loss=1.4, accuracy=0.25)]
    assert first_difference(ONE, other) == Difference("validation", 8, "accuracy", (0.5, 0.25))
    other[0] = line(4, loss=2.0000001)
    assert first_difference(ONE, other) == Difference("train", 4, "loss", (2.0, 2.0000001))


def test_a_run_that_is_not_as_far_and_measures_more_is_the_same_so_far() -> None:
    other = [line(4, loss=2.0, objective=2.5)]
    assert first_difference(ONE, other) is None
    assert len(common_lines(ONE, other)) == 1


def test_means_over_other_steps_are_not_compared() -> None:
    seldom = [line(8, loss=1.75), ONE[2]]
    assert first_difference(ONE, seldom) is None
    assert common_lines(ONE, seldom) == [(ONE[2], ONE[2])]
