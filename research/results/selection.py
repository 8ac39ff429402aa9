"""Which validation is best: pure functions of what was recorded of validations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.errors import InputError

# A validation as it was recorded: ``step``, and every figure by name.
Validation = Mapping[str, Any]
Rank = Callable[[Validation], tuple[float, float]]


def rank_by(figure: str, sign: int) -> Rank:
    """What validations are ranked by: the higher the better; ties go by the loss.

    Args:
        figure: its name.
        sign: 1 if the highest is best, -1 if the lowest is.

    Raises:
        InputError: by what it returns, if no such figure has been evaluated.
    """

    def rank(validation: Validation) -> tuple[float, float]:
        if figure not in validation:
            figures = validation.keys() - {"split", "step", "seconds"}
            raise InputError(
                f"--select-by {figure}: no such figure is evaluated; there are "
                f"{', '.join(sorted(figures))}"
            )
        return sign * validation[figure], -validation["loss"]

    return rank


def best(validations: Sequence[Validation], rank: Rank) -> int | None:
    """The position of the best validation, the first where several are; None if there is none."""
    return max(range(len(validations)), key=lambda k: rank(validations[k]), default=None)


def waited(validations: Sequence[Validation], rank: Rank) -> int:
    """How many validations there have been since the best."""
    found = best(validations, rank)
    return 0 if found is None else len(validations) - 1 - found
