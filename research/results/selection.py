"""Which validation is best: pure functions of the recorded validations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.errors import InputError

# The line of metrics.jsonl about a validation: ``step``, and every figure by name.
RecordedValidation = Mapping[str, Any]
Rank = Callable[[RecordedValidation], tuple[float, float]]


def rank_by(figure: str, sign: int) -> Rank:
    """The order of validations: the higher the rank, the better. A lower loss breaks ties.

    Args:
        figure: the name of the figure that decides.
        sign: 1 if the highest figure is best, -1 if the lowest is.

    Raises:
        InputError: by the returned function, if a validation has no such figure.
    """

    def rank(validation: RecordedValidation) -> tuple[float, float]:
        if figure not in validation:
            figures = validation.keys() - {"split", "step", "seconds"}
            raise InputError(
                f"--select-by {figure}: no such figure is evaluated; there are "
                f"{', '.join(sorted(figures))}"
            )
        return sign * validation[figure], -validation["loss"]

    return rank


def own(validations: Sequence[RecordedValidation], at_step: int | None) -> list[RecordedValidation]:
    """The validations that a run may select on.

    In a fork these are the ones after its first step, ``at_step``. The source run made the others,
    perhaps on other examples and of other figures.
    """
    return [v for v in validations if at_step is None or v["step"] > at_step]


def best(validations: Sequence[RecordedValidation], rank: Rank) -> int | None:
    """The position of the best validation, the first of equals; None without validations."""
    return max(range(len(validations)), key=lambda k: rank(validations[k]), default=None)


def waited(validations: Sequence[RecordedValidation], rank: Rank) -> int:
    """The number of validations after the best one."""
    found = best(validations, rank)
    return 0 if found is None else len(validations) - 1 - found
