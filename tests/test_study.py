"""Studies: many trainings of one experiment, each counted once, and the tables made of them."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from research.comparing.comparison import lock_comparison
from research.comparing.evidence import Outcome
from research.comparing.trainings import Ended, Trainers
from research.files import read_sealed_json
from research.screen import Screen
from research.study import Study, train

import pytest
from conftest import EXPERIMENTS, REPOSITORY, RunHere
from PIL import Image

TABLES = EXPERIMENTS / "zeiler_2012_tables.py"
# Two trainings: the one cell with tanh, with two seeds.
SMALL = ("--only", "tanh", "--seeds", "2", "--epochs", "1")
NAMES = ["activation-tanh-epsilon-1e-6-seed-0", "activation-tanh-epsilon-1e-6-seed-1"]


class Killed(BaseException):
    """Ends a study as SIGKILL does."""


def finished(study: Path) -> list[str]:
    return sorted(path.parent.name for path in study.glob("*/finished.json"))


@pytest.mark.slow
def test_a_killed_study_goes_on_and_counts_every_training_once(
    tmp_path: Path, data_file: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    command = (TABLES, *SMALL, "--data", data_file, "--directory", "study")
    wait = Trainers.wait

    def kill(trainers: Trainers, seconds: float) -> list[Ended]:
        if wait(trainers, seconds):
            raise Killed
        return []

    with monkeypatch.context() as patch:
        patch.setattr(Trainers, "wait", kill)
        with pytest.raises(Killed):
            run_here(*command, "--workers", "1")
    assert finished(study) == NAMES[:1]
    before = (study / NAMES[0] / "metrics.jsonl").read_bytes()

    result = run_here(*command)
    assert (result.status, result.stderr) == (0, "")
    assert "1 of 2 trainings are done" in result.stdout
    assert finished(study) == NAMES
    assert (study / NAMES[0] / "metrics.jsonl").read_bytes() == before
    table = (study / "tables.md").read_text()
    assert table in result.stdout
    (cell,) = [line for line in table.splitlines() if line.startswith("| 1e-6 | ")]
    assert cell.startswith("| 1e-6 | 2.00 (") and cell.endswith(", 2) |")
    assert Image.open(study / "tables.png").size == (990, 440)

    # The same command trains nothing; other options are another study. A command that asks for less
    # leaves the tables whole.
    for words, count in (((), "2 of 2"), (("--seeds", "1"), "1 of 1")):
        result = run_here(*command, *words)
        assert result.status == 0 and f"{count} trainings are done" in result.stdout
        assert (study / "tables.md").read_text() == table
    result = run_here(*command, "--only", "sgd", "--epochs", "2")
    assert result.status == 2 and f"other options of {NAMES[0]}; put that back" in result.stderr
    result = run_here(*command, "--epochs", "2")
    assert result.status == 2
    assert result.stderr == (
        f"error: study: it was begun with other options of {NAMES[0]}; put that back, or name "
        "another --directory\n"
    )


def test_what_another_process_adds_while_a_study_waits_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(*names: str) -> Study:
        trainings = {name: ["--seed", name] for name in names}
        experiment = EXPERIMENTS / "mnist_cnn.py"
        return Study(
            directory=tmp_path / "study", experiment=experiment, trainings=trainings, data="0"
        )

    def wait(path: Path, say: Callable[[str], None]) -> int:
        with monkeypatch.context() as patch:
            patch.setattr("research.study.lock_comparison", lock_comparison)
            patch.setattr(Study, "outcomes", lambda study: {"1": Outcome(None, None)})
            assert train(study("1"), screen) == 0
        return lock_comparison(path, say)

    with Screen() as screen, monkeypatch.context() as patch:
        patch.setattr("research.study.lock_comparison", wait)
        assert train(study(), screen) == 0
    assert list(read_sealed_json(tmp_path / "study" / "study.json")["trainings"]) == ["1"]


def test_a_part_of_the_cells_is_named_by_whole_parts() -> None:
    tables = runpy.run_path(str(TABLES))
    asked = tables["Asked"](only="rho-0.9", seeds=1)
    assert list(tables["trainings"](asked)) == [
        f"rho-0.9-epsilon-{epsilon}-seed-0" for epsilon in ("1e-2", "1e-4", "1e-6", "1e-8")
    ]


def test_help_of_a_study_is_like_that_of_an_experiment(run_here: RunHere) -> None:
    result = run_here(TABLES, "--help", columns=80)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: python ")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "  --seeds INT" in result.stdout and " Default: 5." in result.stdout
    assert "╭" not in result.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "rho-0.8"), "--only rho-0.8: no part of a cell's name; the first is rho-0.9-"),
        (("--only", "rho-0"), "--only rho-0: no part of a cell's name"),
        (("--sedes", "2"), "--sedes: no such option; did you mean --seeds?"),
        (("--seeds", "0"), "--seeds 0: give a whole number of at least 1"),
        (("--epochs", "0"), "--epochs 0: give a number above 0"),
        (("--data", "nothing.npz"), "nothing.npz"),
        (("--directory", "taken"), "taken: it is no study; name another --directory"),
    ],
)
def test_an_impossible_study_is_refused_in_one_line(
    options: tuple[str, ...], words: str, tmp_path: Path, data_file: Path, run_here: RunHere
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    result = run_here(TABLES, "--data", data_file, *options)
    assert result.status == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_tables_have_the_published_errors_and_say_what_agrees() -> None:
    tables = runpy.run_path(str(TABLES))
    first = tables["TABLES"][0]
    found = {
        f"rho-{rho}-epsilon-{epsilon}-seed-{seed}": Outcome({"accuracy": 1 - error / 100}, "")
        for epsilon, errors in first.published.items()
        for rho, error in zip(first.columns, errors, strict=True)
        for seed in (0, 1)
    }
    found["rho-0.9-epsilon-1e-2-seed-0"] = Outcome(None, None)  # it became non-finite
    text = tables["as_markdown"](first, found)
    assert "| epsilon | rho 0.9 | rho 0.95 | rho 0.99 |" in text
    assert "| 1e-2 | 2.59 (46.40 ± 61.95, 2) | 2.58 (2.58 ± 0.00, 2) | 2.32 (2.32" in text
    assert "| 1e-6 | 1.90 (1.90 ± 0.00, 2) | 1.83 (1.83 ± 0.00, 2) | 2.05 (2.05" in text
    assert text.endswith(
        "11 of 12 cells are within 0.3 points. Best epsilon, published (measured): "
        "0.9: 1e-6 (1e-6), 0.95: 1e-6 (1e-6), 0.99: 1e-8 (1e-8)."
    )


@pytest.mark.slow
def test_a_study_survives_sigkill(tmp_path: Path, data_file: Path) -> None:
    command = (TABLES, *SMALL, "--data", data_file, "--directory", tmp_path / "study")
    words = [sys.executable, *map(str, command)]
    kills = 0
    while kills < 3:
        process = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(tmp_path.glob("study/*-seed-*"))) < 2 * kills:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert subprocess.run(words, cwd=REPOSITORY, check=False).returncode == 0
    assert finished(tmp_path / "study") == NAMES
