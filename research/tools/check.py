"""The result of one check of ``verify``."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Check:
    """A check and its result; ``found`` is the observation, with the likely cause of a failure."""

    name: str
    holds: bool
    found: str = ""


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 kill", "2 kills"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
