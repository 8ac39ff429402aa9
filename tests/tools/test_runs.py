"""``runs``: what it says of runs that finished, were stopped, killed, spoiled, or are at work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from research.files import read_sealed_json, write_sealed_json
from research.recording.run_directory import is_locked, lock

import pytest
from conftest import EXPERIMENTS, REPOSITORY, RunHere, contents
from printed import printed_tables

SMALL = ("--epochs", "1", "--batch-size", "32", "--dense-width", "8", "--log-every", "4")
# The loop leaves a copy of the run, as a kill would leave it; then something happens to the run.
LOOP = """
import os, shutil
def loop(training):
    for report in training:
        training.record(report)
        if report.step == 8 and not os.path.exists("runs/killed"):
            shutil.copytree("runs/run", "runs/killed")
            {happens}
        if report.epoch_ended:
            training.validate()
"""


pytestmark = pytest.mark.usefixtures("handlers_as_before")


def with_loop(folder: Path, happens: str) -> Path:
    """The reference experiment with another loop."""
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    text = text.replace("\n\nexperiment = Experiment(", LOOP.format(happens=happens) + "\n\\0")
    text = text.replace("\\0", "experiment = Experiment(loop=loop, ")
    path = folder / "mnist_cnn.py"
    path.write_text(text)
    return path


def listed(run_here: RunHere, *arguments: str | Path) -> dict[str, dict[str, Any]]:
    """What ``runs`` says about each run, by the name of its directory."""
    result = run_here("research", "runs", *arguments, "--json")
    assert (result.status, result.stderr) == (0, "")
    return {Path(each["run"]).name: each for each in json.loads(result.stdout)["runs"]}


def test_stopped_and_killed_runs_go_on_with_the_command_that_is_shown(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    file = with_loop(tmp_path, "os.kill(os.getpid(), 15)")
    options = (*SMALL, "--data", data_file, "--holdout", "50", "--seed", "7")
    assert run_here(file, *options, "--run-dir", "runs/run").status == 128 + signal.SIGTERM
    before = contents(tmp_path)
    found = listed(run_here)
    assert contents(tmp_path) == before
    assert (found["run"]["status"], found["run"]["reason"]) == ("stopped", "by SIGTERM")
    assert (found["killed"]["status"], found["killed"]["reason"]) == ("killed", "")
    for each in found.values():
        assert (each["experiment"], each["seed"]) == ("mnist_cnn", 7)
        assert each["step"] == 8
        assert each["steps"] == 8

    shown = run_here("research", "runs", columns=60).stdout
    lines = shown.split("To go on:\n")[1].splitlines()
    commands = {why: command for command, _, why in (line.partition("  # ") for line in lines)}
    assert commands.keys() == {"stopped by SIGTERM", "killed"}
    assert run_here(*shlex.split(commands["killed"])[1:]).status == 0
    each = listed(run_here, "--status", "finished")["killed"]
    assert each["validation"]["step"] == each["step"] == 8
    assert each["go_on"] is None


@pytest.mark.parametrize(
    ("happens", "options", "reason", "next_words"),
    [
        ("raise ValueError('too far')", (), "ValueError: too far", "--resume runs/run"),
        ("", ("--learning-rate", "1e25"), "became", "research replay runs/run/replay-step-"),
    ],
)
def test_failed_runs_say_why(
    happens: str,
    options: tuple[str, ...],
    reason: str,
    next_words: str,
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
) -> None:
    file = with_loop(tmp_path, happens)
    words = (*SMALL, *options, "--data", data_file, "--run-dir", "runs/run")
    assert run_here(file, *words).status == 1
    each = listed(run_here)["run"]
    assert each["status"] == "failed"
    assert reason in each["reason"]
    assert next_words in each["go_on"]


@pytest.fixture
def copies(finished_run: Path, tmp_path: Path) -> Path:
    """A folder of runs with copies of the finished one."""
    for name in ("good", "at-work", "edited", "gone", "cut"):
        shutil.copytree(finished_run, tmp_path / "runs" / "mnist_cnn" / name)
    return tmp_path / "runs" / "mnist_cnn"


def test_damaged_and_unborn_runs_are_rows_like_others(copies: Path, run_here: RunHere) -> None:
    config = copies / "edited" / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    (copies / "gone" / "mnist.h5").unlink()
    for name in ("finished.json", "log.txt", "environment.json"):
        (copies / "cut" / name).write_bytes(b"\0\0")
    (copies / ".new-run-0").mkdir()
    (copies / "notes").mkdir()
    found = listed(run_here)
    assert {name: each["status"] for name, each in found.items()} == {
        **{"good": "finished", "at-work": "finished", "edited": "damaged", "gone": "damaged"},
        **{"cut": "damaged", ".new-run-0": "killed"},
    }
    assert "config.json" in found["edited"]["reason"]
    assert found["gone"]["reason"] == "mnist.h5 is gone"
    assert "finished.json" in found["cut"]["reason"]
    shown = run_here("research", "runs", columns=80)
    assert (shown.status, shown.stderr) == (0, "")
    assert max(map(len, shown.stdout.split("To go on:")[0].splitlines())) <= 80
    for words in ("config.json can't be read", "mnist.h5 is gone", "the next run there removes it"):
        assert words in re.sub(r"[\s│]+", " ", shown.stdout)


def test_a_run_at_work_is_running_and_is_not_disturbed(copies: Path, run_here: RunHere) -> None:
    shutil.copytree(copies / "at-work", copies / "read")
    (copies / "at-work" / "finished.json").unlink()
    reader = lock(copies / "read")  # a rerun reads a finished run under this lock
    assert listed(run_here)["read"]["status"] == "finished"
    os.close(reader)
    shutil.rmtree(copies / "read")
    descriptor = lock(copies / "at-work")
    try:
        assert list(listed(run_here, "--status", "running")) == ["at-work"]
    finally:
        os.close(descriptor)
    assert list(listed(run_here, "--status", "killed")) == ["at-work"]

    # However often somebody asks, a run gets its lock.
    ending = threading.Event()

    def ask() -> None:
        while not ending.is_set():
            is_locked(copies / "good")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(200):
            os.close(lock(copies / "good"))
            time.sleep(0.0005)
    finally:
        ending.set()
        thread.join()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_table_holds_what_a_run_has_come_to(
    columns: int, finished_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    shutil.copytree(finished_run.parents[1], tmp_path / "runs")
    result = run_here("research", "runs", columns=columns)
    assert (result.status, result.stderr) == (0, "")
    ((headings, row),) = printed_tables(result.stdout, columns, key=-4)
    text = " ".join(row).replace("\n", " ")
    evaluation = json.loads((finished_run / "evaluation.json").read_text())
    for words in (
        *("mnist_cnn --seed 0", "--epochs 3", "--batch-size 32", "--holdout 50", "--test"),
        *("--dense-width 16", "finished", f"{evaluation['test']['accuracy']:.4f}"),
    ):
        assert words in text
    assert f"runs/mnist_cnn/{finished_run.name}" in text.replace("/ ", "/")
    assert "--dropout" not in text  # it has its default
    assert headings[-5:] == ["status", "validation", "test", "when", "took"]


def test_runs_are_filtered_and_sorted(copies: Path, tmp_path: Path, run_here: RunHere) -> None:
    for number, name in enumerate(("good", "at-work", "edited", "gone", "cut")):
        path = copies / name / "environment.json"
        about = json.loads(path.read_text()) | {"began": f"2026-01-0{number + 1}T00:00:00+00:00"}
        path.write_text(json.dumps(about))
    for name in ("good", "cut"):
        path = copies / name / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        changed = [line | {"accuracy": 0.25 if name == "good" else 0.5} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    newest_first = ["cut", "gone", "edited", "at-work", "good"]
    assert list(listed(run_here)) == newest_first
    assert list(listed(run_here, "--last", "2")) == ["cut", "gone"]
    by_validation = list(listed(run_here, "mnist_cnn", "--sort", "validation"))
    assert by_validation[-2:] == ["cut", "good"]
    assert listed(run_here, "--experiment", "mixup") == {}
    none = run_here("research", "runs", "--experiment", "mixup").stdout
    assert none == "No run matches; there are 5 runs, of mnist_cnn.\n"
    assert list(listed(run_here, copies / "gone")) == ["gone"]


def test_without_recorded_defaults_an_experiments_own_options_are_shown(
    copies: Path, run_here: RunHere
) -> None:
    path = copies / "good" / "environment.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in about.items() if k not in ("defaults", "began")}))
    found = listed(run_here)
    more = found["good"]["changed"].keys() - found["gone"]["changed"].keys()
    assert more == {"dropout"}
    assert found["good"]["began"] is not None


def test_odd_fields_of_an_optional_file_are_ignored(copies: Path, run_here: RunHere) -> None:
    before = listed(run_here)
    for name, fields in (
        ("good", {"defaults": None, "began": 5, "command": 5}),
        ("gone", {"defaults": [], "began": "long ago", "command": [None], "working_directory": 1}),
    ):
        path = copies / name / "environment.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    found = listed(run_here)
    assert {each["status"] for each in found.values()} == {"finished"}
    assert found["good"]["test"] == before["good"]["test"]
    assert found["good"]["began"] is not None


def test_a_run_without_newer_options_is_a_row(copies: Path, run_here: RunHere) -> None:
    path = copies / "good" / "config.json"
    config = read_sealed_json(path)
    write_sealed_json(path, {k: v for k, v in config.items() if k not in ("select_by", "at_step")})
    (copies / "gone" / "finished.json").unlink()
    write_sealed_json(copies / "gone" / "finished.json", {"step": 24})
    found = listed(run_here)
    assert (found["good"]["status"], found["good"]["validation"]["step"] > 0) == ("finished", True)
    assert found["gone"]["reason"] == "finished.json can't be read (it has no files)"
    assert run_here("research", "runs").status == 0


def test_each_run_is_one_row_behind_links_and_by_any_spelling(
    copies: Path, tmp_path: Path, run_here: RunHere
) -> None:
    (copies / "good").rename(tmp_path / "elsewhere")
    (copies / "moved").symlink_to(tmp_path / "elsewhere")
    (copies / "loop").symlink_to(tmp_path / "runs")
    words = ("research", "runs", "runs", copies, "mnist_cnn", "--json")
    names = [Path(each["run"]).name for each in json.loads(run_here(*words).stdout)["runs"]]
    assert sorted(names) == ["at-work", "cut", "edited", "gone", "moved"]


def test_without_runs_it_says_how_to_make_one(run_here: RunHere) -> None:
    result = run_here("research", "runs")
    assert result.status == 0 and "Train one: python experiments/mnist_cnn.py" in result.stdout
    refused = run_here("research", "runs", "mixup")
    assert refused.status == 2
    assert refused.stderr.startswith("error: mixup: no such folder, and no runs/mixup; ")


def test_a_sweep_is_one_row_and_says_how_it_goes_on(tmp_path: Path, run_here: RunHere) -> None:
    folder = tmp_path / "runs" / "sweep" / "1-mnist_cnn"
    folder.mkdir(parents=True)
    fields = {
        **{"experiment": "-my tries/mnist_cnn.py", "over": ["learning_rate=0.1..10:log"]},
        **{"sampler": "tpe", "sampler_seed": 0, "seeds": 3, "metric": "lowest error"},
        **{"reserve": 60, "prune": True, "threads": 1},
        "options": ["--epochs", "1", "--holdout", "50", "--reserve", "60", "0"],
    }
    write_sealed_json(folder / "sweep.json", fields)
    best = {"options": ["--learning-rate", "1.2"], "mean": 0.0123, "sd": 0.001}
    found = {"metric": "lowest error", "settings": [best], "ended": 7, "trials": 30}

    def row() -> Any:
        (row,) = json.loads(run_here("research", "runs", "--json").stdout)["sweeps"]
        return row

    assert (row()["status"], row()["trials"], row()["of"]) == ("killed", 0, None)
    (folder / "results.json").write_text(json.dumps(found | {"status": "stopped"}))
    assert (row()["status"], row()["trials"], row()["of"]) == ("stopped", 7, 30)
    command = (
        "python -m research sweep './-my tries/mnist_cnn.py' --over learning_rate=0.1..10:log "
        "--sampler tpe --sampler-seed 0 --trials 30 --seeds 3 --metric 'lowest error' "
        "--reserve 60 --prune -- --epochs 1 --holdout 50"
    )
    assert row()["go_on"] == command
    shown = run_here("research", "runs", columns=80).stdout
    assert f"  {command}  # stopped" in shown.splitlines()
    assert max(map(len, shown.split("To go on:")[0].splitlines())) <= 80
    assert "│--learning-rate 1.2: error 1.230 ± 0.100%," in shown and "│7/30" in shown

    descriptor = lock(folder)
    assert row()["status"] == "running"
    os.close(descriptor)
    (folder / "results.json").write_text(json.dumps(found | {"status": "finished"}))
    assert (row()["status"], row()["go_on"]) == ("finished", None)
    (folder / "sweep.json").write_text("{}")
    assert row()["status"] == "damaged"


@pytest.mark.parametrize("verb", ["runs", "diff"])
def test_no_tensorflow_is_imported(verb: str) -> None:
    program = f"import research.tools.{verb}, sys; sys.exit('tensorflow' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False).returncode == 0
    )
