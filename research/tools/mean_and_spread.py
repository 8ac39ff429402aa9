"""Formats repeated measurements of one quantity."""

from __future__ import annotations

import statistics


def mean_and_spread(values: list[float], digits: int = 2) -> str:
    """``mean ± standard deviation`` of at least two values, each with ``digits`` decimals."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
