"""What TensorBoard's Text and HParams dashboards say of a run, and which runs are one row there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from research.data.batches import Plan
from research.network.mnist_cnn import Config
from research.recording.about import describe_run
from research.recording.checkpoints import Checkpoint
from research.recording.logs import Logs
from research.recording.start import Start
from research.recording.tensorboard import Description
from research.tools.load_experiment import load_experiment
from research.training.state import State

import numpy as np
import pytest
from conftest import EXPERIMENTS


@pytest.fixture(scope="module")
def state() -> State:
    return load_experiment(EXPERIMENTS / "mnist_cnn.py").build(
        Config(dense_width=8), Plan(300, 32, 1)
    )


def described(
    run: Path, state: State, code: str = '"""Trains."""', data: str = "a", **options: Any
) -> Description:
    """The description of a run with this code."""
    (run / "code").mkdir(parents=True, exist_ok=True)
    (run / "code" / "x.py").write_text(code)
    start = Start(
        config=Config(**options),
        identity={"experiment": "x", "run": "name", "data_sha256": data},
        experiment=Path("x.py"),
        environment={"git": {"commit": None}, "extensions": ["avx2", "fma"]},
        uncommitted=b"",
        at=Checkpoint("name", {"step": np.zeros((), np.int64)}),
        logs=Logs(),
    )
    return describe_run(run, start, state)


def test_runs_are_one_row_if_they_differ_in_nothing_but_the_seed(
    tmp_path: Path, state: State
) -> None:
    group = described(tmp_path, state, learning_rate=0.5).group
    assert group.startswith("learning_rate=0.5 x ")
    assert described(tmp_path, state, learning_rate=0.5, seed=3, holdout_seed=2).group == group
    others: list[dict[str, Any]] = [
        {"learning_rate": 0.5 + 1e-9},
        {"code": '"""Trains otherwise."""'},
        {"data": "b"},
        {"epochs": 3},
        {"fork": Path("here/run"), "at_step": 5},
        {"fork": Path("there/run"), "at_step": 5},
    ]
    found = [described(tmp_path, state, **{"learning_rate": 0.5} | other).group for other in others]
    assert len({group, *found}) == 1 + len(others)


def test_the_page_shows_the_code_of_the_run_and_survives_any(tmp_path: Path, state: State) -> None:
    text = described(tmp_path, state).text
    assert "## x\n\nTrains.\n\n" in text
    assert "no git commit; the run has it in `code/`" in text and "`None`" not in text
    assert "| extensions | `avx2 fma` |" in text
    # A user may save an error while TensorFlow loads.
    for code in ("def step(:", "\0"):
        assert "## Network" in described(tmp_path, state, code).text
