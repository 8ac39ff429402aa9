from __future__ import annotations

from typing import Any

from research.errors import InputError
from research.results.selection import best, own, rank_by, waited

import pytest


def validations(*figures: tuple[float, float]) -> list[dict[str, Any]]:
    """Of each the accuracy and the loss."""
    return [
        {"split": "validation", "step": 10 * n, "seconds": 1.0, "accuracy": a, "loss": b}
        for n, (a, b) in enumerate(figures, 1)
    ]


@pytest.mark.parametrize(
    ("selection", "figures", "position", "since"),
    [
        (("accuracy", 1), [], None, 0),
        (("accuracy", 1), [(0.5, 1.0)], 0, 0),
        (("accuracy", 1), [(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 1, 1),
        (("accuracy", 1), [(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], 0, 2),  # the first of equals
        (("accuracy", 1), [(0.5, 1.0), (0.5, 0.9), (0.5, 0.95)], 1, 1),  # the loss decides
        (("loss", -1), [(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 2, 0),
        (("accuracy", -1), [(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 0, 2),
    ],
)
def test_the_best_validation_and_how_many_came_after(
    selection: tuple[str, int],
    figures: list[tuple[float, float]],
    position: int | None,
    since: int,
) -> None:
    recorded, rank = validations(*figures), rank_by(*selection)
    assert best(recorded, rank) == position
    assert waited(recorded, rank) == since


def test_a_figure_that_nobody_evaluates_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="no such figure is evaluated; there are accuracy, loss"):
        best(validations((0.5, 1.0)), rank_by("f1", 1))


def test_a_fork_selects_on_its_own_validations_only() -> None:
    validations = [{"step": step, "loss": 1.0} for step in (8, 16, 24)]
    assert own(validations, None) == validations
    assert own(validations, 16) == validations[2:]
