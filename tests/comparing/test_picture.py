"""differences.png is whole and always the same; its sides are where the direction says."""

from __future__ import annotations

import io
import warnings
from typing import Any

from research.comparing.picture import MOST_PANELS, PANEL, WIDTH, draw

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from verdicts import BASELINE, WORSE, made_up, plus

Pixels = npt.NDArray[np.int16]
PAIRED = {"a": BASELINE, "b": plus(BASELINE, WORSE)}
NOISE = [0.0004, -0.0005, 0.0002, -0.0003, 0.0005, -0.0002, 0.0003, -0.0004]
ODD = "größe $\\frac{ 漢字 |\n\x1b[31m" + "long" * 40


def pixels(found: dict[str, Any]) -> Pixels:
    """The picture, int16 [height, width, 3]."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one on a character that the font doesn't have
        png = draw(found)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int16)


def is_red(image: Pixels) -> npt.NDArray[np.bool_]:
    """Where the picture has the colour of a failure."""
    return (image[..., 0] > 150) & (image[..., 1:].max(-1) < 90)


def corner(image: Pixels, row: int) -> str:
    """Which side a row of pixels lies in, by its colour at the right edge of the axes."""
    red, _, blue = image[row, WIDTH - 34]
    return "worse" if red > blue else "better"


@pytest.mark.parametrize(
    "found",
    [
        made_up(PAIRED),
        made_up({"a": BASELINE, "b": plus(BASELINE, NOISE)}, margin=0.0005),
        made_up({"a": [], "b": []}),
        made_up({"a": BASELINE[:1], "b": BASELINE[1:2]}),
        made_up({"a": BASELINE, "b": BASELINE}, same_bits=True),
        made_up(PAIRED, "highest quality/x", [("b", 2)], margin=0.001),
        made_up(PAIRED, failed=[("a", 0), ("b", 0), *(("b", seed) for seed in range(8))]),
        made_up({ODD: BASELINE, f"{ODD}2": plus(BASELINE, WORSE)}, margin=1.0),
        made_up({"a": BASELINE * 50, "b": plus(BASELINE * 50, NOISE * 50)}, "loss"),
        made_up({"a": [1e-7, 2e-7], "b": [3e-7, -1e-7]}, "loss", held_out=10**9),
        made_up({"a": [1e7, 2e7], "b": [3e7, -1e7]}, "loss"),
    ],
    ids=[
        *("worse", "undecided, margin", "no pair", "one pair", "identical", "failed, unbounded"),
        *("all failed", "odd names", "400 pairs", "tiny", "huge"),
    ],
)
def test_the_picture_is_whole(found: dict[str, Any]) -> None:
    image = pixels(found)
    assert image.shape == (PANEL, WIDTH, 3)
    edges = [image[:6], image[-6:], image[:, :6], image[:, -6:]]
    assert all((edge == 255).all() for edge in edges), "something is cut off"
    dark = (image.max(-1) < 100).sum(0)
    assert np.flatnonzero(dark[: WIDTH // 2]).size > 200


@pytest.mark.parametrize(
    ("metric", "above"), [("lowest error", "worse"), ("highest accuracy", "better")]
)
def test_the_sides_are_where_the_direction_says(metric: str, above: str) -> None:
    image = pixels(made_up(PAIRED, metric))
    below = {"worse": "better", "better": "worse"}[above]
    assert (corner(image, 240), corner(image, PANEL - 110)) == (above, below)


@pytest.mark.parametrize("challengers", [1, 2, MOST_PANELS, MOST_PANELS + 2])
def test_each_challenger_has_a_panel_up_to_four(challengers: int) -> None:
    arms = {"a": BASELINE} | {f"b{n}": plus(BASELINE, WORSE) for n in range(challengers)}
    image = pixels(made_up(arms))
    panels = min(challengers, MOST_PANELS)
    assert image.shape == (panels * PANEL, WIDTH, 3)
    note = image[-24:, WIDTH // 2 :].min() < 100
    assert note == (challengers > MOST_PANELS)


def test_a_failure_is_marked_at_the_edge_and_leaves_the_scale_as_it_is() -> None:
    whole, failed = (
        pixels(made_up(PAIRED, failed=which, most_pairs=8)) for which in ([], [("b", 3)])
    )
    assert not is_red(whole[170:-110]).any()
    rows = np.flatnonzero(is_red(failed[150:-60]).any(1)) + 150
    assert 0 < rows.max() - rows.min() < 60
    assert abs(rows.mean() - 170) < 8
    zero = [np.flatnonzero((image[170:-110, 180] < 60).all(-1)) for image in (whole, failed)]
    assert zero[0].size
    assert abs(zero[0].mean() - zero[1].mean()) < 60


def test_the_same_verdict_has_the_same_picture() -> None:
    assert draw(made_up(PAIRED)) == draw(made_up(PAIRED))
