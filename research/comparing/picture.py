"""differences.png: the difference of each pair, and the interval of their mean after each pair."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from research.comparing.evidence import values_of
from research.comparing.page import level, shown_difference, shown_interval
from research.comparing.question import Metric
from research.comparing.report import pairs_of
from research.comparing.rule import Rule, intervals, rule_of
from research.printable import counted, printable
from research.recording.figures import GRID, INK

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

# Twice the size in pixels at which a page shows the picture, so that it is sharp on every screen.
WIDTH, PANEL, DPI = 1400, 720, 200
MOST_PANELS = 4
_BETTER, _WORSE = "#dcebf7", "#fdeadb"
_DOTS, _LINE, _FAILED = "#5f6368", "#1a56a8", "#b3261e"
_LONGEST_NAME = 28


def draw(found: Mapping[str, Any]) -> bytes:
    """Draws the pairs of each challenger in a panel of its own, as a PNG.

    Args:
        found: what verdict.json holds (``research.comparing.report.verdict``).

    Returns:
        A picture of ``WIDTH`` by ``PANEL`` pixels for each challenger, at most ``MOST_PANELS``.
    """
    from matplotlib.figure import Figure

    challengers = len(found["findings"])
    panels = min(challengers, MOST_PANELS)
    height = panels * PANEL
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
    for number in range(panels):
        bottom = (panels - 1 - number) * PANEL + 105
        box = (165 / WIDTH, bottom / height, (WIDTH - 195) / WIDTH, (PANEL - 275) / height)
        _panel(figure.add_axes(box), found, number)
    if challengers > panels:
        text = f"The first {panels} of {challengers} challengers."
        figure.text(0.99, 8 / height, text, ha="right", va="bottom", fontsize=8, color=INK)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _panel(axes: Axes, found: Mapping[str, Any], number: int) -> None:
    """Draws one challenger."""
    question, finding = found["question"], found["findings"][number]
    metric, rule = Metric.parse(question["metric"]), rule_of(question)
    unit = 100.0 if metric.is_share else 1.0
    n = finding["pairs"]
    differences, failed = _differences(found, number, metric)
    band = unit * intervals(differences, rule)
    differences = unit * differences
    there, pairs = ~failed, np.arange(1, n + 1)
    low, high = _limits(differences[there], band, unit, rule, bool(failed.any()))
    last = max(n, rule.fewest_pairs)
    axes.set(xlim=(0.4, last + 0.4 + 0.11 * last), ylim=(low, high))

    for end, side in ((high, metric.worse), (low, -metric.worse)):
        name, colour = ("worse", _WORSE) if side > 0 else ("better", _BETTER)
        y, va = (0.97, "top") if end > 0 else (0.03, "bottom")
        axes.axhspan(0, end, color=colour, linewidth=0, zorder=0)
        axes.text(
            *(0.99, y, name), transform=axes.transAxes, ha="right", va=va, fontsize=10, color=INK,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.axhline(0, color=INK, linewidth=1)
    if rule.margin is not None and unit * rule.margin < max(high, -low):
        for end, label in ((unit * rule.margin, "margin"), (-unit * rule.margin, None)):
            axes.axhline(end, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=label)
    interval = f"{level(question)} interval"
    axes.fill_between(pairs, *band.T, color=_LINE, alpha=0.22, linewidth=0, label=interval)
    if n:
        mean = np.cumsum(differences) / pairs
        axes.plot(pairs, mean, color=_LINE, linewidth=1.8, label="mean")
        # Where the comparison stands: the interval after the last pair, if there is one.
        axes.plot([n, n], band[-1], color=_LINE, linewidth=3, solid_capstyle="butt")
        axes.plot(
            *(n, mean[-1], "D"), color=_LINE, markersize=10, markeredgecolor="white", zorder=3,
            label=f"{finding['verdict']} after {counted(n, 'pair')}",
        )  # fmt: skip
        axes.plot(
            *(pairs[there], differences[there], "o"), color=_DOTS, markersize=5.5, zorder=4,
            markeredgecolor="white", markeredgewidth=0.5, label="one pair",
        )  # fmt: skip
    if failed.any():
        edge = np.clip(differences[failed], low, high)
        axes.plot(
            *(pairs[failed], edge, "X"), color=_FAILED, markersize=9, clip_on=False, zorder=5,
            label="non-finite training",
        )  # fmt: skip
    _label(axes, found, number, metric)


def _label(axes: Axes, found: Mapping[str, Any], number: int, metric: Metric) -> None:
    """Writes the panel's title, its legend and the names of its axes."""
    from matplotlib.ticker import MaxNLocator

    question, finding = found["question"], found["findings"][number]
    n, fewest = finding["pairs"], rule_of(question).fewest_pairs
    baseline, challenger = question["arms"][0]["name"], finding["challenger"]
    title = f"{_short(challenger)} against {_short(baseline)}: {finding['verdict']}"
    values = "no pair yet"
    if n:
        values = f"mean {shown_difference(finding['difference'], metric)}"
    if finding["interval"] is not None:
        values += f", {level(question)} interval {shown_interval(finding, metric)}"
    elif n < fewest:
        values += f"; there is an interval from {counted(fewest, 'pair')} on"
    for y, text, weight in ((1.27, title, "bold"), (1.16, values, "normal")):
        axes.text(
            *(-0.1, y, text), transform=axes.transAxes, fontsize=10, weight=weight, color=INK,
            parse_math=False,
        )  # fmt: skip
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.115, 0.99), ncols=6, frameon=False, fontsize=8.2,
        handlelength=1.4, columnspacing=1.1, handletextpad=0.6, labelcolor=INK,
    )  # fmt: skip
    axes.set_xlabel("pairs, in the order of their seeds", fontsize=9.5, color=INK)
    name = f"difference in {_short(metric.name)}{' (points)' if metric.is_share else ''}"
    axes.set_ylabel(name, fontsize=9.5, color=INK, parse_math=False)
    last = max(n, fewest)
    ticks = MaxNLocator(12, integer=True).tick_values(1, last)
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= last])
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(value, 12) + 0.0:.4g}")
    axes.yaxis.set_label_coords(-0.1, 0.5)
    axes.tick_params(labelsize=9, colors=INK, length=0)
    axes.grid(color=GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _differences(
    found: Mapping[str, Any], number: int, metric: Metric
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Challenger minus baseline for each pair that counts [n], and which have a failure [n]."""
    counted = []
    for pair in pairs_of(found)[: found["findings"][number]["pairs"]]:
        ours, theirs = pair.outcomes[0], pair.outcomes[number + 1]
        assert ours is not None
        assert theirs is not None
        counted.append((ours, theirs))
    values, failed = values_of(counted, metric)
    return values[:, 1] - values[:, 0], failed[:, 0] | failed[:, 1]


def _limits(
    differences: Floats, band: Floats, unit: float, rule: Rule, any_failed: bool
) -> tuple[float, float]:
    """The range of the vertical axis: all finite pairs, 0, and the interval as it stands.

    Wider intervals before it, and what failed trainings make of the mean, leave the picture.
    """
    shown = [0.0, -3 * unit * rule.least_sd, 3 * unit * rule.least_sd, *differences]
    if rule.margin is not None:
        widest = 3 * max(map(abs, shown))
        shown += [end for end in (-unit * rule.margin, unit * rule.margin) if abs(end) <= widest]
    low, high = min(shown), max(shown)
    if len(band) and not any_failed and np.isfinite(band[-1]).all():
        width = high - low
        low = min(low, max(float(band[-1, 0]), low - width))
        high = max(high, min(float(band[-1, 1]), high + width))
    space = 0.12 * (high - low)
    return low - space, high + space


def _short(name: str) -> str:
    """A name that fits, in characters that Matplotlib's own font has."""
    text = "".join(c if ord(c) < 0x530 else "?" for c in printable(name))
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"
