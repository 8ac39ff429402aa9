"""The verb ``board``, and TensorBoard's dashboards in a real browser."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from research.tools.board import Links, start_pages

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
@pytest.mark.parametrize("of_profile", [False, True], ids=["all others", "profile"])
def test_a_browser_shows_every_dashboard(
    of_profile: bool, profiled_run: Path, address: str, tmp_path: Path
) -> None:
    if of_profile and importlib.util.find_spec("xprof") is None:
        pytest.skip('the viewer of profiles is not installed: pip install -e ".[profile]"')
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    names = [one.name for one in make_pictures.DASHBOARDS]
    names = [name for name in names if (name == "profile") == of_profile]
    assert make_pictures.photograph(address, folder, names) == []
    for name in names:
        assert np.asarray(Image.open(folder / f"{name}.png").convert("L")).std() > 10, name


@pytest.fixture(scope="session")
def address(profiled_run: Path) -> Any:
    with make_pictures.board(profiled_run) as address:
        yield address


@pytest.mark.slow
def test_the_board_names_the_runs_and_their_columns(finished_run: Path) -> None:
    with make_pictures.board(finished_run, finished_run) as address:
        with urllib.request.urlopen(f"{address}/data/runs") as answer:
            names = set(json.load(answer))
        request = urllib.request.Request(
            f"{address}/data/plugin/hparams/experiment",
            data=b"{}",
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            columns = json.load(answer)
    folders = ("", "/train", "/validation", "/test")
    assert names >= {f"seed=0 mnist_cnn{one}" for one in folders}
    shown = {metric["displayName"]: metric["description"] for metric in columns["metricInfos"]}
    assert {"validation accuracy", "validation loss", "finished", "failed"} <= shown.keys()
    assert "classified correctly" in shown["validation accuracy"]
    assert {"experiment", "dropout"} <= {option["name"] for option in columns["hparamInfos"]}


def make_run(folder: Path, experiment: str, **options: Any) -> Path:
    """A directory that looks like a run to the board."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": experiment, "seed": 0} | options))
    return folder


def linked(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path.resolve()
        for path in folder.rglob("*")
        if path.is_symlink()
    }


def test_runs_are_named_by_what_differs(tmp_path: Path) -> None:
    runs, board = tmp_path / "runs", tmp_path / "board"
    board.mkdir()
    made = {
        "seed=0 mnist_cnn": make_run(runs / "mnist_cnn" / "a-0", "mnist_cnn", learning_rate=1.0),
        "seed=1 mnist_cnn": make_run(
            runs / "mnist_cnn" / "b-1", "mnist_cnn", learning_rate=1.0, seed=1
        ),
        "learning_rate=0.5 seed=0 mnist_cnn": make_run(
            runs / "mnist_cnn" / "c-0", "mnist_cnn", learning_rate=0.5
        ),
        "seed=0 mixup": make_run(runs / "mixup" / "a-0", "mixup", alpha=0.2),
        "seed=0 1-mixup": make_run(runs / "compare" / "x" / "1-mixup" / "seed-0", "mixup"),
        # A folder that merely contains the experiment's name is no arm.
        "seed=0 best": make_run(runs / "best_runs" / "a-0", "best"),
    }
    (runs / "compare" / "x" / "comparison.json").touch()
    bands = runs / "compare" / "x" / "bands" / "mixup"
    bands.mkdir(parents=True)
    (bands / "events.out.tfevents.0.bands").touch()
    made["runs/compare/x/bands/mixup"] = bands
    links = Links(board)
    links.update([runs])
    assert linked(board) == made
    # A run that begins while TensorBoard runs appears, the others keep their names.
    twin = make_run(runs / "mnist_cnn" / "d-0", "mnist_cnn", learning_rate=1.0)
    shutil.rmtree(bands)
    links.update([runs])
    del made["runs/compare/x/bands/mixup"]
    assert linked(board) == made | {"seed=0 d-0 mnist_cnn": twin}


def test_odd_runs_are_named_too(tmp_path: Path) -> None:
    runs, board = tmp_path / "runs", tmp_path / "board"
    board.mkdir()
    make_run(runs / "usual" / "a-0", "mnist_cnn", select_by="highest accuracy")
    make_run(runs / "usual" / "b-0", "mnist_cnn", select_by="highest accuracy")
    long = {f"option_{n}": "x" * 50 for n in range(20)}
    make_run(runs / "long" / ("d" * 250), "mnist_cnn", seed=7, **long)
    make_run(runs / "foreign" / "a", "e" * 300, data=5, x={"a": [None]}, y="\udcff\0/")
    deep = runs / "foreign" / "b"
    deep.mkdir()
    (deep / "config.json").write_text('{"experiment": ' + "[" * 100_000)
    links = Links(board)
    links.update([runs])
    names = {str(target.relative_to(runs)): name for name, target in linked(board).items()}
    assert re.fullmatch(r"option_0=x+ .*\.\.\. seed=7 mnist_cnn", names["long/" + "d" * 250])
    assert set(names) == {"usual/a-0", "usual/b-0", "long/" + "d" * 250, "foreign/a"}


@pytest.mark.slow
def test_the_board_follows_experiments_that_begin_later_and_leaves_nothing(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shutil.copytree(finished_run, runs / "one", symlinks=True)

    def columns(address: str) -> set[str]:
        request = urllib.request.Request(
            f"{address}/data/plugin/hparams/experiment",
            data=b"{}",
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return {option["name"] for option in json.load(answer)["hparamInfos"]}

    with make_pictures.board(runs) as address:
        assert "alpha" not in columns(address)
        make_run(runs / "two", "mixup", alpha=0.2)
        until = time.monotonic() + 30
        while "alpha" not in (found := columns(address)) and time.monotonic() < until:
            time.sleep(0.5)
        assert len(list(tmp_path.glob("research-board-*"))) == 1
    assert {"alpha", "experiment", "dropout"} <= found
    assert list(tmp_path.glob("research-board-*")) == []  # it was ended by SIGTERM


def test_a_board_without_room_for_its_temporary_directory_says_so_in_one_line(
    tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "run", "mnist_cnn")

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("TMPDIR", "here")
    result = run_here("research", "board", "run")
    assert result.status == 1
    assert result.stderr.startswith("error: here: can't be written (No space left on device); ")
    assert result.stderr.count("\n") == 1


def test_the_links_open_on_what_matters() -> None:
    pages = start_pages("http://localhost:6006/", profiled=True)
    assert pages["At a glance"].startswith("http://localhost:6006/#custom_scalars&")
    assert pages["Profile"] == "http://localhost:6006/?tool=trace_viewer%40#profile"
    address = urllib.parse.urlsplit(pages["Loss and accuracy"])
    assert address.fragment == "timeseries"
    assert re.fullmatch(r"[\w.%=&-]+", address.query)
    keys = dict(urllib.parse.parse_qsl(address.query))
    assert keys["smoothing"] == "0"
    assert {"plugin": "scalars", "tag": "loss"} in json.loads(keys["pinnedCards"])
    colours = keys["runColorGroup"].removeprefix("regex:")
    for name, visible, group in (
        ("learning_rate=0.5 seed=1 mixup/train", True, ("mixup", "train", None)),
        ("seed=0 mnist_cnn/validation", True, ("mnist_cnn", "validation", None)),
        ("seed=0 mnist_cnn/test", False, ("mnist_cnn", "test", None)),
        ("seed=0 mnist_cnn", False, None),
        ("runs/compare/x/bands/mixup", True, (None, None, "mixup")),
    ):
        assert bool(re.search(keys["runFilter"], name)) == visible
        found = re.search(colours, name)
        assert (found and found.groups()) == group


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
