"""Bands of a comparison in TensorBoard: their numbers, and what a real browser draws."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.comparing.bands import write_bands
from research.comparing.comparison import QUESTION, Comparison

import make_pictures
import numpy as np
import pytest
from conftest import contents
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray

ARMS = ("0-mnist_cnn", "1-harder_half")
Line = dict[str, Any]


def line(split: str, step: int, **figures: float) -> Line:
    return {"split": split, "step": step, "seconds": step / 10, **figures}


def write_run(comparison: Path, arm: str, seed: int, lines: Sequence[Line]) -> None:
    run = comparison / arm / f"seed-{seed}"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))


def bands(path: Path, seeds: int, failed: int = 0) -> Path | None:
    """The bands of the first seeds; in so many of them, the challenger became non-finite."""
    names = [{"name": arm[2:], "folder": arm} for arm in ARMS]
    rule = {"held_out": 500, "alpha": 0.05, "arms": list(ARMS), "margin": None}
    fields = {"metric": "lowest error", "about_arms": names, "baseline": "", **rule}
    if not (path / QUESTION).exists():  # bands have times after that of this file
        (path / QUESTION).touch()
    pairs = [
        {"seed": seed, "outcomes": [{"figures": {}}, {"figures": None if seed < failed else {}}]}
        for seed in range(seeds)
    ]
    results = [{"n": seeds, "failed": 0}, {"n": seeds - failed, "failed": failed}]
    return write_bands(Comparison(path, fields), {"pairs": pairs, "results": results})


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def curve(folder: Path, tag: str) -> dict[int, float]:
    """A scalar by its step."""
    points = read(folder).Tensors(tag)
    return {point.step: float(make_ndarray(point.tensor_proto)) for point in points}


def charts(folder: Path) -> dict[str, tuple[str, str, str]]:
    """The tags of the mean and of the ends of each band, by the title of their chart."""
    (event,) = read(folder).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    found = {}
    for category in layout.category:
        for chart in category.chart:
            (band,) = chart.margin.series
            found[chart.title] = (band.value, band.lower, band.upper)
    return found


def test_a_band_is_mean_and_sd_over_the_seeds_at_the_steps_that_all_have(tmp_path: Path) -> None:
    for seed, losses in enumerate([[1, 4], [2, 5], [6]]):
        lines = [line("validation", 10 * n, loss=value) for n, value in enumerate(losses, 1)]
        lines += [line("train", 20, loss=seed, accuracy=0.5, speed=seed)]
        write_run(tmp_path, ARMS[0], seed, lines)
        write_run(tmp_path, ARMS[1], seed, [line("validation", 5, loss=3, own=seed)])
    folder = bands(tmp_path, 3)
    assert folder == tmp_path / "bands"
    first, second = (folder / f"{arm}-3-seeds" for arm in ARMS)

    assert charts(first) == charts(second)
    titles = [f"{what}, mean ± sd" for what in ("validation loss", "validation own", "train loss")]
    assert set(charts(first)) == {*titles, "train accuracy, mean ± sd"}
    loss, own, of_training = (charts(first)[title] for title in titles)
    # 1, 2, 6: mean 3, standard deviation sqrt(7). Step 20 has no third seed.
    expected = [3, 3 - math.sqrt(7), 3 + math.sqrt(7)]
    assert [curve(first, tag) for tag in loss] == [{10: pytest.approx(value)} for value in expected]
    assert [curve(first, tag) for tag in of_training] == [{20: 1}, {20: 0}, {20: 2}]
    assert [curve(second, tag) for tag in loss] == [{5: 3}] * 3
    assert [curve(second, tag) for tag in own] == [{5: 1}, {5: 0}, {5: 2}]

    metadata = read(first).SummaryMetadata(loss[1])
    text = "Mean minus one standard deviation over 3 seeds of mnist_cnn"
    assert metadata.summary_description == text


def test_a_training_that_became_non_finite_is_left_out(tmp_path: Path) -> None:
    for seed, value in enumerate([9, 1, 3]):
        for arm in ARMS:
            write_run(tmp_path, arm, seed, [line("validation", 10, loss=value)])
    folder = bands(tmp_path, 3, failed=1)
    assert folder is not None
    tag, *_ = charts(folder / f"{ARMS[1]}-2-seeds")["validation loss, mean ± sd"]
    assert curve(folder / f"{ARMS[1]}-2-seeds", tag) == {10: 2}
    assert curve(folder / f"{ARMS[0]}-3-seeds", tag) == {10: pytest.approx(13 / 3)}

    # One seed has no standard deviation.
    bands(tmp_path, 3, failed=2)
    assert [path.name for path in folder.iterdir()] == [f"{ARMS[0]}-3-seeds"]
    assert bands(tmp_path, 1) is None
    assert not list(folder.iterdir())


def test_bands_of_more_seeds_replace_the_others(tmp_path: Path) -> None:
    for seed in range(3):
        for arm in ARMS:
            write_run(tmp_path, arm, seed, [line("validation", 10, loss=seed)])
    folder = bands(tmp_path, 2)
    assert folder is not None
    (folder / "notes").mkdir()
    (folder / f"{ARMS[0]}-2-seeds" / "notes.txt").touch()
    before = contents(folder)
    bands(tmp_path, 2)
    assert contents(folder) == before
    bands(tmp_path, 3)
    events = {path.parent.name for path in folder.rglob("*tfevents*")}
    assert events == {f"{arm}-3-seeds" for arm in ARMS}
    # What somebody else has put there stays.
    assert (folder / "notes").is_dir()
    assert (folder / f"{ARMS[0]}-2-seeds" / "notes.txt").is_file()


def made_up(seed: int, arm: int) -> list[Line]:
    """A training of 60 steps and 5 epochs."""
    rng = np.random.default_rng([seed, arm])
    lines, level = [], 0.1 + 0.1 * rng.random()
    for step in range(4, 61, 4):
        loss = 2.3 * math.exp(-step / (15 + 5 * arm)) + level + 0.1 * rng.random()
        figures = {"loss": loss, "accuracy": 1 - loss / 3}
        lines.append(line("train", step, **figures))
        if step % 12 == 0:
            lines.append(line("validation", step, **figures))
    return lines


@pytest.mark.slow
@pytest.mark.skipif(make_pictures.why_not() is not None, reason=str(make_pictures.why_not()))
@pytest.mark.parametrize("seeds", [6, 40])
def test_a_browser_draws_a_band_for_each_arm(seeds: int, tmp_path: Path) -> None:
    for seed in range(seeds):
        for number, arm in enumerate(ARMS):
            write_run(tmp_path, arm, seed, made_up(seed, number))
    folder = bands(tmp_path, seeds)
    assert folder is not None
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with make_pictures.board(folder) as address:
        assert make_pictures.photograph(address, pictures, dashboards=[make_pictures.BANDS]) == []
    picture = np.asarray(Image.open(pictures / "custom_scalars.png").convert("L"))
    assert picture.std() > 10
