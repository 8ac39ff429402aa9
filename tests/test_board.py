"""The verb ``board``, and TensorBoard's dashboards in a real browser."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import make_pictures
import numpy as np
import pytest
from conftest import EXPERIMENTS, RunHere, run_python
from PIL import Image


@pytest.fixture(scope="session")
def profiled_run(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run with a profile in it."""
    folder = tmp_path_factory.mktemp("profiled")
    options = ("--epochs", "3", "--batch-size", "32", "--log-every", "4", "--profile", "5", "8")
    result = run_python(EXPERIMENTS / "mnist_cnn.py", "--data", data_file, *options, cwd=folder)
    assert result.returncode == 0, result.stderr
    (run,) = (folder / "runs" / "mnist_cnn").iterdir()
    return run


@pytest.mark.slow
@pytest.mark.skipif(make_pictures.why_not() is not None, reason=str(make_pictures.why_not()))
@pytest.mark.parametrize("dashboard", [one.name for one in make_pictures.DASHBOARDS])
def test_a_browser_shows_every_dashboard(
    dashboard: str, profiled_run: Path, address: str, tmp_path: Path
) -> None:
    if dashboard == "profile" and importlib.util.find_spec("xprof") is None:
        pytest.skip('the viewer of profiles is not installed: pip install -e ".[profile]"')
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    assert make_pictures.photograph(address, folder, [dashboard]) == []
    picture = np.asarray(Image.open(folder / f"{dashboard}.png").convert("L"))
    assert picture.std() > 10


@pytest.fixture(scope="session")
def address(profiled_run: Path) -> Any:
    with make_pictures.board(profiled_run) as address:
        yield address


@pytest.mark.slow
def test_the_board_shows_the_runs_that_are_named(finished_run: Path) -> None:
    with (
        make_pictures.board(finished_run, finished_run) as address,
        urllib.request.urlopen(f"{address}/data/runs") as answer,
    ):
        names = json.load(answer)
    place = f"{finished_run.parent.name}/{finished_run.name}"
    folders = ("", "/train", "/validation", "/test")
    assert {f"{place}{one}" for one in folders} <= set(names)
    assert {f"{place}-2{one}" for one in folders} <= set(names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"error: runs: holds no run; .*train one first: python experiments/mnist_cnn\.py"),
        (("nowhere",), "error: nowhere: holds no run"),
        (("empty",), "error: empty: holds no run"),
        (("--port", "70000"), "error: --port 70000: give 0 to 65535"),
        (("full", "--host", "nowhere.invalid"), "error: --host nowhere.invalid: .*; give another"),
    ],
)
def test_a_board_of_nothing_is_refused_in_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, run_here: RunHere
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "events.out.tfevents.1").touch()
    result = run_here("research", "board", *words)
    assert result.status == 2
    assert result.stderr.count("\n") == 1
    assert re.match(message, result.stderr)
