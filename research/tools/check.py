"""What a verb that checks something reports."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that must hold; ``found`` says what was seen, and why the check may have failed."""

    name: str
    holds: bool
    found: str = ""


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 kill", "2 kills"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
