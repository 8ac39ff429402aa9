"""How the benchmarks write several measurements of the same quantity."""

from __future__ import annotations

import statistics


def mean_and_spread(values: list[float], digits: int = 2) -> str:
    """``mean ± standard deviation`` of two values or more, with so many digits after the point."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
