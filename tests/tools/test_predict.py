"""The output of ``predict``, read as a person reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from research.network.mnist_cnn import MnistCNN
from research.results.images import read_digit
from research.tools.in_characters import drawn
from research.tools.predict import is_unsure

import numpy as np
import pytest
from conftest import RunHere, make_split
from PIL import Image
from printed import printed_tables

# The name of a file, and its name as printed.
NAMES = {
    "digit.png": "digit.png",
    "a folder/digit.png": "a folder/digit.png",
    "[bold]x[/].png": "[bold]x[/].png",
    ":bomb:.png": ":bomb:.png",
    "two\nlines\x1b[31m.png": "two\\nlines\\x1b[31m.png",
    "漢字.png": "漢字.png",
    os.fsdecode(b"\xff.png"): "\\udcff.png",
    "long" * 50 + ".png": "long" * 50 + ".png",
}

MakeImage = Callable[[str], Path]


@pytest.fixture
def h5(tmp_path: Path) -> Path:
    MnistCNN(8).stock_twin().save(tmp_path / "mnist.h5")
    return tmp_path / "mnist.h5"


@pytest.fixture
def image(tmp_path: Path) -> MakeImage:
    """Makes an image file with a name; returns its path relative to ``tmp_path``."""

    def make(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = make_split(len(NAMES)).images[len(name) % len(NAMES), ..., 0]
        Image.fromarray(pixels).save(path, "PNG")
        return Path(name)

    return make


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_shows_digit_confidence_and_runner_up_of_every_name(
    columns: int, h5: Path, image: MakeImage, run_here: RunHere
) -> None:
    command = ("research", "predict", h5, *map(image, NAMES))
    result = run_here(*command, columns=columns)
    assert (result.status, result.stderr) == (0, "")
    found = json.loads(run_here(*command, "--json").stdout)
    assert [row["image"] for row in found] == list(NAMES)
    (table,) = printed_tables(result.stdout, columns, key=1)
    assert table[0] == ["image", "digit", "confidence", "runner-up", "sure?"]
    for cells, row, name in zip(table[1:], found, NAMES.values(), strict=True):
        ranked = sorted(enumerate(row["probabilities"]), key=lambda pair: -pair[1])
        (first, confidence), (second, chance), *_ = ranked
        assert first == row["digit"]
        # A line break in a cell is a space, or the place where a long word was folded.
        assert cells[0].replace("\n", "").replace(" ", "") == name.replace(" ", "")
        sure = "unsure" if row["unsure"] else "sure"
        assert cells[1:] == [str(first), f"{confidence:.4f}", f"{second} ({chance:.4f})", sure]


def test_predict_takes_a_run_directory(
    finished_run: Path, image: MakeImage, run_here: RunHere
) -> None:
    name = image("digit.png")
    by_run, by_h5 = (
        run_here("research", "predict", model, name, "--json")
        for model in (finished_run, finished_run / "mnist.h5")
    )
    assert by_run == by_h5
    assert by_run.status == 0


@pytest.mark.parametrize("json_wanted", [False, True])
def test_bad_images_are_named_and_the_good_ones_predicted(
    json_wanted: bool, h5: Path, image: MakeImage, tmp_path: Path, run_here: RunHere
) -> None:
    (tmp_path / "bad\n[red].png").write_bytes(b"no image")
    names = [image("1.png"), Path("bad\n[red].png"), image("2.png"), Path("missing.png")]
    result = run_here("research", "predict", h5, *names, *["--json"] * json_wanted, columns=80)
    assert result.status == 1
    bad, missing = result.stderr.splitlines()
    assert bad.startswith("error: bad\\n[red].png: not an image")
    assert missing.startswith("error: missing.png: no such file")
    if json_wanted:
        shown = [row["image"] for row in json.loads(result.stdout)]
    else:
        ((_, *rows),) = printed_tables(result.stdout, 80)
        shown = [cells[0] for cells in rows]
    assert shown == ["1.png", "2.png"]


@pytest.mark.parametrize("names", [["missing.png"], ["missing.png", "missing too.png"]])
def test_without_a_good_image_it_is_refused(names: list[str], h5: Path, run_here: RunHere) -> None:
    result = run_here("research", "predict", h5, *names)
    assert (result.status, result.stdout) == (2, "")
    *each, last = result.stderr.splitlines()
    if len(names) == 1:
        assert (each, last.partition(": no such")[0]) == ([], "error: missing.png")
    else:
        assert [line.partition(": no such")[0] for line in each] == [f"error: {n}" for n in names]
        assert last == "error: none of the 2 images can be read; give one that can"


@pytest.mark.parametrize(("columns", "beside"), [(60, 1), (80, 2), (120, 3)])
def test_the_images_are_drawn_as_the_network_saw_them(
    columns: int, beside: int, h5: Path, image: MakeImage, run_here: RunHere
) -> None:
    names = [image(name) for name in ("1.png", "2.png", "long" * 20 + ".png")]
    shown = run_here("research", "predict", h5, *names, columns=columns).stdout
    lines = shown.partition("What the network saw")[2].splitlines()[1:]
    assert max(map(len, lines)) <= columns
    assert max(line.count("╭") for line in lines) == beside
    pixels = read_digit(names[0]).pixels[..., 0]
    assert drawn(pixels).splitlines() == [line[1:29] for line in lines[1:15]]
    # The long name is folded within its frame: 20 times "long", and three times ".png".
    assert sum(line.count("g") for line in lines) == 23


def test_noise_and_what_is_no_digit_is_unsure_and_a_digit_is_not() -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((28, 28, 1), np.uint8)
    pixels[4:24, 12:16] = 255  # a 1
    assert not is_unsure(pixels, 0.9)
    assert is_unsure(pixels, 0.4)
    for no_digit in (
        rng.integers(0, 256, (28, 28, 1), np.uint8),
        np.where(rng.random((28, 28, 1)) < 0.05, 255, 0).astype(np.uint8),
        np.zeros((28, 28, 1), np.uint8),
        np.full((28, 28, 1), 255, np.uint8),
        pixels // 2,  # all grey
    ):
        assert is_unsure(no_digit, 0.9)


def test_noise_is_called_unsure(h5: Path, tmp_path: Path, run_here: RunHere) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    result = run_here("research", "predict", h5, "noise.png", columns=80)
    ((_, cells),) = printed_tables(result.stdout, 80)
    assert cells[-1] == "unsure"
    assert "\nunsure: confidence below 0.5, or ink unlike MNIST's: " in result.stdout


def test_of_many_images_the_first_are_drawn(h5: Path, image: MakeImage, run_here: RunHere) -> None:
    names = [image(f"{n}.png") for n in range(14)]
    shown = run_here("research", "predict", h5, *names).stdout
    assert shown.count("╭") == 12
    assert "Shown are the first 12 of 14 images." in shown
