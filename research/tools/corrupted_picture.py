"""The picture of ``evaluate --corrupted``: a digit under each corruption, and the accuracies."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from research.data.corruptions import corrupt
from research.recording.figures import GRID, INK

import numpy as np
import numpy.typing as npt

# In pixels. A digit is shown at twice its size.
_WIDTH, _NAMES, _TOP, _BOTTOM, _TILE, _DPI = 1000, 125, 40, 50, 60, 100
_BAR, _DOTS, _CLEAN = "#dcebf7", "#1a56a8", "#b3261e"


def draw(found: Mapping[str, Any], image: npt.NDArray[np.uint8], seed: int) -> bytes:
    """Draws a row for each corruption, as a PNG.

    Args:
        found: what ``research.tools.evaluate_corrupted.summary`` returns.
        image: the digit, uint8 [1, 28, 28, 1].
        seed: decides the random numbers of the corruptions.
    """
    from matplotlib.figure import Figure

    severities, corruptions = found["severities"], found["corruptions"]
    tiles = _TILE * (len(severities) + 1)
    height = _TOP + _TILE * len(corruptions) + _BOTTOM
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    across, down = _BOTTOM / height, _TILE * len(corruptions) / height
    digits = figure.add_axes((_NAMES / _WIDTH, across, tiles / _WIDTH, down))
    left = _NAMES + tiles + 30
    bars = figure.add_axes((left / _WIDTH, across, (_WIDTH - left - 25) / _WIDTH, down))

    rows = [
        np.concatenate([image, *(corrupt(image, name, k, seed) for k in severities)])
        for name in corruptions
    ]
    enlarged = np.stack(rows)[..., 0].repeat(2, 2).repeat(2, 3)
    framed = np.pad(enlarged, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=255)
    mosaic = framed.swapaxes(1, 2).reshape(_TILE * len(rows), tiles)
    digits.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    middles = _TILE / 2 + _TILE * np.arange(len(rows) + len(severities))
    digits.set_yticks(
        middles[: len(rows)], [name.replace("_", " ") for name in corruptions], fontsize=10
    )
    heads = ["clean", *(f"{severity}" for severity in severities)]
    digits.set_xticks(middles[: len(heads)], heads, fontsize=10)
    digits.xaxis.tick_top()

    places = np.arange(len(rows))
    bars.barh(places, [of["mean"] for of in corruptions.values()], 0.6, color=_BAR, label="mean")
    for number, severity in enumerate(severities):
        values = [of["accuracy"][number] for of in corruptions.values()]
        strength = 0.25 + 0.75 * (number + 1) / len(severities)
        bars.plot(
            *(values, places, "o"), color=_DOTS, alpha=strength, markersize=6, markeredgewidth=0,
            label=f"severity {severity}",
        )  # fmt: skip
    bars.axvline(found["clean"], color=_CLEAN, linewidth=1.2, label="clean")
    bars.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), yticks=[])
    bars.set_xlabel(f"accuracy on {found['examples']:,} test examples", fontsize=10, color=INK)
    bars.grid(axis="x", color=GRID, linewidth=0.5)
    bars.set_axisbelow(True)
    bars.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.995), ncols=4, frameon=False, fontsize=8.5,
        handlelength=1, columnspacing=1, handletextpad=0.4, labelcolor=INK,
    )  # fmt: skip
    for axes in (digits, bars):
        axes.tick_params(length=0, colors=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
