"""Whole sweeps, as a user runs them: killed and gone on with, judged, and refused."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

from research.comparing.evidence import weights_sha256
from research.comparing.trainings import Ended, Trainers
from research.config import Config
from research.data.dataset import hold_out
from research.experiment import load
from research.screen import Screen

import numpy as np
import pytest
from conftest import EXPERIMENTS, REPOSITORY, RunHere
from PIL import Image

MNIST_CNN = str(EXPERIMENTS / "mnist_cnn.py")
SMALL = ("--epochs", "1", "--batch-size", "32", "--dense-width", "8", "--holdout", "50")
# How many SIGKILLs a slow test survives.
KILLS = int(os.environ.get("KILLS", "8"))
GRID = ("--over", "learning_rate=0.3,1", "--sampler", "grid", "--reserve", "60")


class Killed(BaseException):
    """Ends a sweep as SIGKILL does."""


def bits(sweep: Path) -> dict[str, str]:
    """The weights of every training, by its place."""
    return {
        str(path.parent.relative_to(sweep)): weights_sha256(path.with_name("mnist.h5"))
        for path in sorted(sweep.glob("trial-*/*/finished.json"))
    }


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_ends_with_the_best_setting(
    tmp_path: Path, data_file: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("research", "sweep", MNIST_CNN, *GRID, "--seeds", "2", "--no-verdict")
    options = ("--", *SMALL, "--data", data_file)
    wait = Trainers.wait

    def kill(trainers: Trainers, seconds: float) -> list[Ended]:
        ended = wait(trainers, seconds)
        if (tmp_path / "sweep").exists() and ended:
            raise Killed
        return ended

    with monkeypatch.context() as patch:
        patch.setattr(Trainers, "wait", kill)
        with pytest.raises(Killed):
            run_here(*words, "--directory", "sweep", *options)
    there = tmp_path / "sweep"
    before = bits(there)
    assert 1 <= len(before) < 4

    result = run_here(*words, "--directory", "sweep", *options, columns=80)
    assert (result.status, result.stderr) == (0, "")
    after = bits(there)
    assert len(after) == 4 and before.items() <= after.items()
    found = json.loads((there / "results.json").read_text())
    assert sorted(row["trial"] for row in found["settings"]) == [0, 1]
    best, other = found["settings"]
    assert best["mean"] == np.mean(best["figures"]) <= other["mean"]
    assert len(best["figures"]) == found["seeds"] == 2

    # What the user reads: the table, what selection made of it, and the command that judges.
    assert "error in % on held-out examples, by setting" in result.stdout
    assert "on the 60 that no trial saw; optimism of the selection: " in result.stdout
    command = [line for line in result.stdout.splitlines() if "-m research compare" in line]
    if best["options"] == ["--learning-rate", "1"]:
        assert not command and "The best setting is the experiment as it is" in result.stdout
    else:
        assert "--holdout 60 --holdout-seed 0" in command[0] and "--first-seed 2" in command[0]
    assert Image.open(there / "sweep.png").size == (1400, 1080)
    page = (there / "sweep.md").read_text()
    assert "| 1 | " in page and f"| 2 | `{' '.join(best['options'])}` |" in page

    # The command on the page goes on with it, and trains nothing.
    command = shlex.split(page.splitlines()[0].strip("`"))
    command.insert(command.index("--"), "--no-verdict")
    command[command.index("--") : command.index("--")] = ["--directory", "sweep"]
    result = run_here(*command[2:], columns=80)
    assert result.status == 0 and "2 of 2 trials begun" in result.stdout
    # `runs` has one row for it, and its trainings when it is named.
    listed = json.loads(run_here("research", "runs", ".", "--json").stdout)
    assert listed["runs"] == []
    assert [row["status"] for row in listed["sweeps"]] == ["finished"]
    assert len(json.loads(run_here("research", "runs", "sweep", "--json").stdout)["runs"]) == 4

    # The same command trains nothing; another declaration is refused, and changes nothing.
    result = run_here(*words, "--directory", "sweep", *options)
    assert result.status == 0 and "2 of 2 trials begun" in result.stdout
    assert bits(there) == after
    result = run_here(*words, "--seeds", "3", "--directory", "sweep", *options)
    assert result.status == 2
    assert "it is another sweep (seeds 2 there, 3 now)" in result.stderr


def test_no_trial_sees_the_examples_that_are_kept_for_the_verdict(data_file: Path) -> None:
    with Screen() as screen:
        whole, _, _ = load(Config(data=data_file), screen)
        config = Config(data=data_file, reserve=(60, 0), holdout=50, seed=3)
        _, training, validation = load(config, screen)
        # The comparison holds out exactly these.
        _, remaining, unseen = load(Config(data=data_file, holdout=60, holdout_seed=0), screen)
    assert (len(training), len(validation), len(unseen)) == (190, 50, 60)
    rest, kept = hold_out(whole.train, 60, 0)
    np.testing.assert_array_equal(kept.images, unseen.images)
    np.testing.assert_array_equal(rest.images, remaining.images)
    seen = {image.tobytes() for split in (training, validation) for image in split.images}
    assert seen.isdisjoint(image.tobytes() for image in unseen.images)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--over", "learning_rate=0..1"), "--learning-rate 0: give a number above 0"),
        ((*GRID, "--trials", "3"), "--trials 3: a grid has all its settings"),
        ((*GRID, "--reserve", "290"), "--holdout 50: the training set has 10 examples"),
        ((*GRID, "--reserve", "300"), "--reserve 300: the training set has 300 examples"),
        ((*GRID, "--metric", "best"), "--metric best: say which value is best"),
        ((*GRID, "--metric", "lowest nothing"), "does not evaluate nothing"),
        ((*GRID, "--directory", "taken"), "--directory taken: no sweep"),
        ((*GRID, "--scheduler", "tcp://127.0.0.1:9"), "no scheduler answers"),
    ],
)
def test_an_impossible_sweep_is_refused_in_one_line(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    data_file: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("research.comparing.cluster._SECONDS_TO_CONNECT", 1)
    (tmp_path / "taken").mkdir()
    result = run_here("research", "sweep", MNIST_CNN, *words, "--", *SMALL, "--data", data_file)
    assert result.status == 2
    assert said in result.stderr.replace(" 0.0:", " 0:")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("option", "said"), [("--reserve", "sweep has --reserve"), ("--seed", "")])
def test_options_of_the_sweep_are_refused_behind_the_dashes(
    option: str, said: str, run_here: RunHere
) -> None:
    result = run_here("research", "sweep", MNIST_CNN, *GRID, "--", option, "5")
    assert result.status == 2
    assert f"-- {option} can't be given; {said}" in result.stderr


def test_what_is_not_installed_is_named_with_the_remedy(
    run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def without_optuna(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "optuna" else find(name, package)

    monkeypatch.setattr("importlib.util.find_spec", without_optuna)
    result = run_here("research", "sweep", MNIST_CNN, *GRID)
    assert result.stderr == 'error: sweep: Optuna is not installed; pip install -e ".[sweep]"\n'


@pytest.mark.slow
def test_a_sweep_survives_sigkill_of_itself_and_of_its_trainings(
    tmp_path: Path, data_file: Path
) -> None:
    """SIGKILLs at random of the sweep, its server and its trainings, 4 workers."""
    words = [
        *(sys.executable, "-m", "research", "sweep", MNIST_CNN),
        *("--over", "learning_rate=0.1..2:log", "decay=constant,linear", "--sampler", "random"),
        *("--trials", "6", "--seeds", "2", "--reserve", "60", "--no-verdict", "--workers", "4"),
    ]
    options = ["--", *SMALL, "--data", str(data_file)]

    def start(name: str) -> subprocess.Popen[bytes]:
        directory = ["--directory", str(tmp_path / name)]
        return subprocess.Popen(
            [*words, *directory, *options], cwd=REPOSITORY, stdout=subprocess.DEVNULL
        )

    assert start("undisturbed").wait() == 0
    randomly, kills, process = random.Random(0), 0, start("killed")
    while kills < KILLS:
        time.sleep(randomly.uniform(0.5, 12))
        if process.poll() is not None:
            assert process.returncode == 0, "a sweep of which processes were killed fails"
            shutil.rmtree(tmp_path / "killed")
            process = start("killed")
            continue
        servers = _children(process.pid)
        trainings = [child for server in servers for child in _children(server)]
        groups = [group for group in ([process.pid], servers, trainings) if group]
        victim = randomly.choice(randomly.choice(groups))
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            kills += 1
        if victim == process.pid:
            process.wait()
            process = start("killed")
    assert process.wait() == 0
    undisturbed, killed = (
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("undisturbed", "killed")
    )
    assert killed == undisturbed
    assert bits(tmp_path / "killed") == bits(tmp_path / "undisturbed")


def _children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found
