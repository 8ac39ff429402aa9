"""The output of ``predict``, read as a person reads it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from research.network.mnist_cnn import MnistCNN

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
    assert table[0] == ["image", "digit", "confidence", "runner-up"]
    for cells, row, name in zip(table[1:], found, NAMES.values(), strict=True):
        ranked = sorted(enumerate(row["probabilities"]), key=lambda pair: -pair[1])
        (first, confidence), (second, chance), *_ = ranked
        assert first == row["digit"]
        # A line break in a cell is a space, or the place where a long word was folded.
        assert cells[0].replace("\n", "").replace(" ", "") == name.replace(" ", "")
        assert cells[1:] == [str(first), f"{confidence:.4f}", f"{second} ({chance:.4f})"]


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
