"""Measures on which activities a run spends its wall time."""

from __future__ import annotations

import time
from typing import Literal, get_args

Activity = Literal["training", "validation", "logging", "checkpointing"]


class StartUp:
    """Measures the parts of the time until the first step.

    Args:
        begun: the ``time.monotonic()`` at which the program began.
    """

    def __init__(self, begun: float) -> None:
        self._begun = self._since = begun
        self._parts: list[str] = []

    def done(self, part: str) -> None:
        """Names the part that has just ended."""
        now = time.monotonic()
        self._parts.append(f"{part} {now - self._since:.1f}")
        self._since = now

    def __str__(self) -> str:
        return f"{self._since - self._begun:.1f} s ({', '.join(self._parts)})"


class WallTime:
    """Counts the seconds of each activity. Exactly one activity is going on at any time."""

    def __init__(self) -> None:
        self._activity: Activity = "training"
        self._since = time.monotonic()
        self._seconds: dict[Activity, float] = dict.fromkeys(get_args(Activity), 0.0)
        self._input_seconds = 0.0

    def switch(self, activity: Activity) -> None:
        """Begins an activity, which ends the one before."""
        now = time.monotonic()
        self._seconds[self._activity] += now - self._since
        self._activity, self._since = activity, now

    def total(self, activity: Activity) -> float:
        """The seconds spent on an activity so far."""
        self.switch(self._activity)
        return self._seconds[activity]

    def shares(self, input_seconds: float) -> dict[str, float]:
        """Each activity's share of the time so far; the shares sum to 1.

        Args:
            input_seconds: the part of the training time since the last call that input took.

        Returns:
            Fractions by tag, ``time/<activity>``; 0 for an activity without time.
        """
        self.switch(self._activity)
        self._input_seconds += input_seconds
        spent = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        spent["time/input"] = min(self._input_seconds, spent["time/training"])
        spent["time/training"] -= spent["time/input"]
        total = sum(spent.values())
        return {name: seconds / total for name, seconds in spent.items()}
