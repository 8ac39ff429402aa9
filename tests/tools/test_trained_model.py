"""The model of a run directory or a file, and the error if there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.errors import InputError
from research.tools.trained_model import TrainedModel, find_model

import pytest
from conftest import RunHere

CONFIG: dict[str, Any] = {"experiment": "mnist_cnn", "data": "/d.npz", "examples": 7}


def test_a_run_gives_its_model_and_its_data(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "mnist.h5").touch()
    model = TrainedModel(tmp_path / "mnist.h5", Path("/d.npz"), 7)
    assert find_model(tmp_path) == model
    assert find_model(model.h5) == TrainedModel(model.h5)


@pytest.mark.parametrize(
    ("verb", "experiment", "file"),
    [
        ("evaluate", "mnist_cnn", "experiments/mnist_cnn.py"),
        ("predict", "of my own", "'of my own.py'"),
    ],
)
def test_a_run_that_has_not_ended_is_refused_and_the_line_says_how_to_go_on(
    verb: str, experiment: str, file: str, tmp_path: Path, run_here: RunHere
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(CONFIG | {"experiment": experiment}))
    result = run_here("research", verb, "run", *["digit.png"] * (verb == "predict"))
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr == (
        "error: run: it has no mnist.h5, which a run saves when its training ends; go on with it: "
        f"python {file} --resume run\n"
    )


def content(text: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


def fields(**changes: Any) -> Callable[[Path], object]:
    return content(json.dumps(CONFIG | changes))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        os.mkfifo,
        Path.mkdir,
        content(b"\xff\xfe"),
        content("{"),
        content("[" * 100_000),
        content("[1, 2]"),
        content("null"),
        content("{}"),
        fields(experiment=None),
        fields(experiment=["mnist_cnn"]),
        fields(experiment="two\nlines"),
        fields(experiment="\ud800"),
        fields(data="a\0b"),
        fields(data="\ud800"),
        fields(data=["x"]),
        fields(data=7),
        fields(examples=True),
        fields(examples=-1),
        fields(examples="7"),
        fields(examples=[7]),
    ],
)
def test_a_directory_that_is_no_run_is_refused_in_one_line(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "mnist.h5").touch()
    make(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"not a run directory, its config\.json") as caught:
        find_model(tmp_path)
    assert str(caught.value).isprintable()
