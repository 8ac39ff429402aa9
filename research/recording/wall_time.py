"""Measures on which activities a run spends its wall time."""

from __future__ import annotations

import time
from typing import Literal

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
        self._seconds: dict[Activity, float] = {}
        self._before: dict[Activity, float] = {}

    def switch(self, activity: Activity) -> None:
        """Begins an activity, which ends the one before."""
        now = time.monotonic()
        before = self._seconds.get(self._activity, 0.0)
        self._seconds[self._activity] = before + now - self._since
        self._activity, self._since = activity, now

    def total(self, activity: Activity) -> float:
        """The seconds spent on an activity so far."""
        self.switch(self._activity)
        return self._before.get(activity, 0.0) + self._seconds.get(activity, 0.0)

    def take_shares(self, input_seconds: float) -> dict[str, float]:
        """Each activity's share of the time since the last call; the shares sum to 1.

        Args:
            input_seconds: the part of the training time spent on input.

        Returns:
            Fractions by tag, ``time/<activity>``; 0 for an activity without time.
        """
        self.switch(self._activity)
        for activity, seconds in self._seconds.items():
            self._before[activity] = self._before.get(activity, 0.0) + seconds
        activities: tuple[Activity, ...] = ("training", "validation", "logging", "checkpointing")
        spent = {f"time/{name}": self._seconds.pop(name, 0.0) for name in activities}
        spent["time/input"] = min(input_seconds, spent["time/training"])
        spent["time/training"] -= spent["time/input"]
        total = sum(spent.values())
        return {name: seconds / total for name, seconds in spent.items()}
