"""Loops of an experiment's own: the reports that they get, and what a fork does with their end."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from research.experiment import run
from research.signals import SIGNALS
from research.tools.load_experiment import load_experiment
from research.tools.verify_kills import left_by

import pytest
from conftest import EXPERIMENTS, RunHere
from test_seams import EXPERIMENT, at_step, stop

SMALL = ("--epochs", "2", "--batch-size", "32", "--log-every", "4", "--dense-width", "8")
EACH = """
    for report in training:
        training.record(report)
        training.validate()
"""
TWICE = """
    for report in training:
        training.record(report)
        if report.step >= 8:
            training.validate()
            break
    for report in training:
        training.record(report)
"""
SHORT = """
    for report in training:
        training.record(report)
        break
"""


def with_loop(folder: Path, loop: str) -> Path:
    """The reference experiment with another loop."""
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    own = f"def loop(training):{loop}\n\n" + EXPERIMENT.replace("step=step", "step=step, loop=loop")
    path = folder / "changed.py"
    path.write_text(text.replace(EXPERIMENT, own))
    return path


def steps(run: str, split: str) -> list[int]:
    rows = [json.loads(row) for row in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["split"] == split]


def test_a_loop_gets_no_early_report_so_that_a_stop_changes_nothing(
    data_file: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = with_loop(tmp_path, EACH)
    options = ("--data", data_file, *SMALL, "--steps-per-call", "1")
    assert run_here(file, *options, "--run-dir", "whole").status == 0
    with monkeypatch.context() as patch:
        at_step(patch, 6, stop)
        patch.setattr("research.recording.run.Checkpoints.due", lambda _, step: step == 6)
        assert run_here(file, *options, "--run-dir", "run").status == 143
    assert run_here(file, "--resume", "run").status == 0
    assert steps("run", "validation") == steps("whole", "validation") == [4, 8, 10, 12, 16, 20]
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_a_loop_may_iterate_twice(data_file: Path, tmp_path: Path, run_here: RunHere) -> None:
    file = with_loop(tmp_path, TWICE)
    assert run_here(file, "--data", data_file, *SMALL, "--run-dir", "run").status == 0
    assert steps("run", "train") == [4, 8, 10, 12, 16, 20]


def test_a_fork_of_a_run_that_its_loop_has_ended_is_trained(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    file = with_loop(tmp_path, SHORT)
    assert run_here(file, "--data", data_file, *SMALL, "--run-dir", "run").status == 0
    with_loop(tmp_path, EACH)
    fork = run_here(file, "--fork", "run", "--holdout", "50", "--run-dir", "fork")
    assert fork.status == 0, fork.stderr
    assert "run held out other examples, and was trained on some that are held out" in fork.stdout
    assert json.loads(Path("fork", "evaluation.json").read_text())["steps"] == 16


def test_patience_that_is_given_later_exports_the_best_weights(
    data_file: Path, run_here: RunHere
) -> None:
    file = EXPERIMENTS / "mnist_cnn.py"
    options = ("--holdout", "50", "--select-by", "highest loss", "--run-dir", "run")
    assert run_here(file, "--data", data_file, *SMALL, *options).status == 0
    exported = []
    for patience in ((), ("--patience", "9"), ()):
        assert run_here(file, "--resume", "run", *patience).status == 0
        exported.append(json.loads(Path("run", "evaluation.json").read_text())["exported_step"])
    assert exported == [16, 8, 8]


def test_a_program_that_goes_on_after_a_stop_handles_signals_as_before(
    data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(EXPERIMENTS / "mnist_cnn.py")
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in SIGNALS]
    at_step(monkeypatch, 4, stop)
    assert run(experiment, ["--data", str(data_file), *SMALL, "--run-dir", "run"]) == 143
    assert [signal.getsignal(number) for number in SIGNALS] == before
