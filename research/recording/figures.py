"""Draws figures for TensorBoard with Matplotlib: each function takes arrays and returns a PNG.

Drawing takes tenths of a second, so call these functions outside of the training thread. The first
figure imports Matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from research.printable import below_one
from research.results.evaluation import CalibrationBins, Mistake

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

DPI = 80
# The width at which TensorBoard shows a picture. It shrinks wider ones by leaving out pixels.
WIDTH = 350
# Images with a longer side are drawn with every second pixel, or fewer.
LARGEST = 256
INK, GRID = "#202124", "#c7cad1"


def gallery(images: Array, captions: Sequence[str] = (), columns: int = 6) -> bytes:
    """Draws images in rows, each with a caption below it.

    Args:
        images: [N, height, width, channels] with 1, 3 or 4 channels; 0..1 if float, 0..255 if
            uint8. Values outside are clipped.
        captions: one for each image, of one or more lines, or empty.
        columns: number of images in a row.
    """
    if not images.size:
        images = np.zeros([1, 1, 1, 1])
    stride = -(-max(images.shape[1:3]) // LARGEST)
    images = images[:, ::stride, ::stride]
    if images.dtype == np.uint8:
        images = images / 255
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    gap_x, gap_y = 1, 1 + 6 * lines
    tiles = np.ones([rows * (height + gap_y), columns * (width + gap_x), max(3, channels)])
    for number, image in enumerate(np.clip(np.nan_to_num(images), 0, 1)):
        top, left = number // columns * (height + gap_y), number % columns * (width + gap_x)
        tiles[top : top + height, left : left + width] = image
    scale = max(1, WIDTH // max(tiles.shape[1], tiles.shape[0] // 4))
    figure, axes = _figure(tiles.shape[1] * scale, tiles.shape[0] * scale, (0, 0, 1, 1))
    axes.imshow(tiles, interpolation="nearest", aspect="auto")
    axes.axis("off")
    for number, caption in enumerate(captions):
        x = number % columns * (width + gap_x) + width / 2
        y = number // columns * (height + gap_y) + height + gap_y / 2 - 1
        axes.text(x, y, caption, ha="center", va="center", fontsize=8, color=INK)
    return _png(figure)


def mistakes(mistakes: Sequence[Mistake], images: Array) -> bytes:
    """Draws the most confident mistakes, with the true class, the predicted one, and confidence.

    Args:
        mistakes: mistakes on the split of ``images``; may be empty.
        images: uint8 [N, 28, 28, 1].
    """
    shown = images[[mistake.index for mistake in mistakes]]
    captions = [f"{m.label} → {m.predicted}\n{below_one(m.confidence)}" for m in mistakes]
    return gallery(shown, captions, columns=5)


def filters(kernel: Array) -> bytes:
    """Draws the filters of a convolution, each as the mean over its input channels.

    Red is positive, blue is negative, white is 0; all filters share one scale.

    Args:
        kernel: [height, width, channels in, channels out].
    """
    from matplotlib import colormaps

    weights = np.moveaxis(kernel.mean(2), -1, 0)
    largest = np.abs(weights).max() or 1.0
    coloured = colormaps["RdBu_r"](weights / largest / 2 + 0.5)[..., :3]
    enlarged = coloured.repeat(12, axis=1).repeat(12, axis=2)
    framed = np.pad(enlarged, [(0, 0), (3, 3), (3, 3), (0, 0)], constant_values=1.0)
    return gallery(framed, columns=8)


def confusion(confusion: Sequence[Sequence[int]]) -> bytes:
    """Draws a confusion matrix: numbers of examples, coloured by their share of the true class.

    Args:
        confusion: [classes][classes], true class by predicted class.
    """
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _figure(WIDTH, WIDTH, (0.11, 0.11, 0.87, 0.83))
    # The square root makes a share of 1% visible.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    for (truth, predicted), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[truth, predicted] > 0.4 else INK
            axes.text(predicted, truth, count, ha="center", va="center", fontsize=7, color=colour)
    classes = np.arange(len(counts))
    axes.set(xticks=classes, yticks=classes, xlabel="predicted", ylabel="truth")
    wrong = counts.sum() - counts.trace()
    axes.set_title(f"{wrong:,} of {counts.sum():,} wrong", fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    return _png(figure)


def reliability(bins: CalibrationBins, calibration_error: float) -> bytes:
    """Draws a reliability diagram: accuracy by confidence, and the number of examples below it.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    figure, upper = _figure(WIDTH, WIDTH, (0.18, 0.36, 0.79, 0.58))
    lower = figure.add_axes((0.18, 0.12, 0.79, 0.18))
    edges = np.linspace(0, 1, len(bins.count) + 1)
    filled, width = bins.count > 0, edges[1]
    centers = edges[:-1][filled] + width / 2
    upper.bar(centers, bins.accuracy[filled], width, color="#4f86c6", edgecolor="white")
    upper.plot(bins.confidence[filled], bins.accuracy[filled], "o", color=INK, markersize=3)
    upper.plot([0, 1], [0, 1], "--", color="#c0392b", linewidth=1)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", xticklabels=[])
    upper.set_title(f"expected calibration error {calibration_error:.4f}", fontsize=9)
    lower.bar(centers, bins.count[filled], width, color="#9aa5b1", edgecolor="white")
    lower.set(xlim=(0, 1), xlabel="confidence", ylabel="examples", yscale="log")
    lower.set_ylim(bottom=0.8)
    lower.set_yticks([1, 100, 10_000], ["1", "100", "10,000"], minor=False)
    lower.minorticks_off()
    for axes in (upper, lower):
        axes.tick_params(labelsize=8)
        axes.grid(color=GRID, linewidth=0.5)
        axes.set_axisbelow(True)
    return _png(figure)


def _figure(width: int, height: int, box: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """A figure of this size in pixels, with axes at ``box``, without Matplotlib's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    return figure, figure.add_axes(box)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
