"""sweep.png: every setting as a line through its options, and the figure by each option."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.comparing.question import Metric
from research.recording.figures import GRID, INK
from research.sweeping.space import Dimension, Value

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

WIDTH, DPI = 1400, 200
_PANELS_IN_A_ROW = 3
_ROW, _LINES = 520, 560
_BEST = "#b3261e"


def draw(found: Mapping[str, Any], space: Sequence[Dimension]) -> bytes:
    """Draws the settings with finite figures, as a PNG.

    Above, each setting is a line through its options to its figure: the better, the darker. Below,
    the figure by each option, a dot for the mean of a setting and a bar of one standard deviation.

    Args:
        found: from ``research.sweeping.report.results``; one setting or more with a mean.
        space: the options that were tried.
    """
    from matplotlib.figure import Figure

    metric = Metric.parse(found["metric"])
    rows = [row for row in found["settings"] if row["mean"] is not None]
    scale = 100.0 if metric.is_share else 1.0
    means = scale * np.array([row["mean"] for row in rows])
    sds = scale * np.array([row["sd"] or 0.0 for row in rows])
    label = f"{metric.name} in %" if metric.is_share else metric.name
    slices = -(-len(space) // _PANELS_IN_A_ROW)
    height = _LINES + _ROW * slices
    figure = Figure(
        figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white", layout="constrained"
    )
    above, *below = figure.subfigures(
        1 + slices, 1, height_ratios=[_LINES, *[_ROW] * slices], squeeze=False
    )[:, 0]
    _coordinates(above.subplots(), rows, means, space, label, metric)
    for number, part in enumerate(below):
        panels = part.subplots(1, _PANELS_IN_A_ROW, sharey=True, squeeze=False)[0]
        shown = space[number * _PANELS_IN_A_ROW : (number + 1) * _PANELS_IN_A_ROW]
        for axes, dimension in zip(panels, shown, strict=False):
            _slice(axes, rows, means, sds, dimension)
        panels[0].set_ylabel(label, fontsize=8, color=INK)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _coordinates(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    means: Floats,
    space: Sequence[Dimension],
    label: str,
    metric: Metric,
) -> None:
    """Parallel coordinates: an upright axis for each option, and one for the figure."""
    from matplotlib import colormaps

    places = np.array([[_share(d, row["values"][d.name]) for d in space] for row in rows])
    low, high = float(means.min()), float(means.max())
    span = (high - low) or 1.0
    heights = np.column_stack([places, (means - low) / span])
    worse = (means - low) / span if metric.worse > 0 else (high - means) / span
    # The best is drawn last, over the others. The square root tells the good ones apart.
    for number in np.argsort(-worse, kind="stable"):
        best = number == 0
        colour = _BEST if best else colormaps["Blues"](0.9 - 0.75 * float(worse[number]) ** 0.5)
        axes.plot(heights[number], color=colour, linewidth=2.2 if best else 1.2, zorder=3)
    for x, dimension in enumerate(space):
        axes.axvline(x, color=INK, linewidth=0.8, zorder=2)
        for tick in _ticks(dimension):
            axes.text(
                *(x - 0.02, _share(dimension, tick), dimension.shown(_short(tick))), fontsize=7,
                ha="right", va="center", color=INK, parse_math=False, zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )  # fmt: skip
    last = len(space)
    axes.axvline(last, color=INK, linewidth=0.8)
    for y in (0.0, 0.5, 1.0):
        axes.text(
            *(last + 0.02, y, f"{low + y * span:.4g}"), fontsize=7, ha="left", va="center",
            color=INK,
        )  # fmt: skip
    names = [dimension.name.replace("_", " ") for dimension in space]
    axes.set_xticks(range(last + 1), [*names, label], fontsize=8, color=INK)
    axes.set(xlim=(-0.35, last + 0.25), ylim=(-0.06, 1.06))
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_title(
        "Settings: the better, the darker; the best in red. Below, ± one standard deviation",
        fontsize=9,
        color=INK,
    )
    for spine in axes.spines.values():
        spine.set_visible(False)


def _slice(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    means: Floats,
    sds: Floats,
    dimension: Dimension,
) -> None:
    """The figure by one option."""
    values = [row["values"][dimension.name] for row in rows]
    if dimension.values:
        x = np.array([float(dimension.values.index(str(value))) for value in values])
        # Dots of one value stand side by side.
        x += 0.12 * np.array([(n * 7 % 5 - 2) / 2 for n in range(len(x))])
        axes.set_xticks(range(len(dimension.values)), dimension.values, parse_math=False)
        axes.set_xlim(-0.5, len(dimension.values) - 0.5)
    else:
        x = np.array([float(value) for value in values])
        if dimension.log:
            axes.set_xscale("log")
            ticks = [float(tick) for tick in _ticks(dimension)]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        aside = 0.04 * (dimension.high - dimension.low)
        factor = (dimension.high / dimension.low) ** 0.04 if dimension.log else 1.0
        ends = (dimension.low / factor, dimension.high * factor)
        if not dimension.log:
            ends = (dimension.low - aside, dimension.high + aside)
        axes.set_xlim(*ends)
    axes.errorbar(
        *(x, means, sds), fmt="o", color="#1a56a8", ecolor=GRID, markersize=4, elinewidth=1,
        markeredgecolor="white", markeredgewidth=0.4,
    )  # fmt: skip
    axes.plot(x[:1], means[:1], "o", color=_BEST, markersize=6, zorder=4)
    axes.set_xlabel(dimension.name.replace("_", " "), fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=INK, length=0)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _share(dimension: Dimension, value: Value) -> float:
    """Where a value stands on its axis, 0 at the bottom to 1."""
    if dimension.values:
        return dimension.values.index(str(value)) / (len(dimension.values) - 1)
    scaled = np.log if dimension.log else float
    low, high, there = (float(scaled(v)) for v in (dimension.low, dimension.high, value))
    return (there - low) / (high - low)


def _ticks(dimension: Dimension) -> list[Value]:
    """The values that an axis names: all that are listed, or a few of a range."""
    if dimension.values:
        return list(dimension.values)
    low, high = dimension.low, dimension.high
    if dimension.log:
        powers = [10.0**n for n in range(-20, 31) if low * 1.2 < 10.0**n < high / 1.2]
        step = -(-len(powers) // 4)
        return [low, *powers[:: step or 1], high]
    if dimension.whole and high - low <= 8:
        return list(range(int(low), int(high) + 1))
    return [float(v) for v in np.linspace(low, high, 5)]


def _short(value: Value) -> Value:
    return float(f"{value:.3g}") if isinstance(value, float) else value
