"""Whole comparisons, as a user runs them; small ones in this process, killed ones in their own."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from research.data.dataset import Dataset

import pytest
from conftest import EXPERIMENTS, REPOSITORY, RunHere, contents, make_split, save_npz
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

MNIST_CNN = str(EXPERIMENTS / "mnist_cnn.py")
SMALL = ("--epochs", "1", "--batch-size", "32", "--dense-width", "8", "--holdout", "50")


def without_times(verdict: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in verdict.items() if k != "cost"}


def comparison(folder: Path) -> Path:
    (found,) = (folder / "runs" / "compare").iterdir()
    return found


def scalars(folder: Path, prefix: str) -> dict[str, list[float]]:
    """The values of the scalars in TensorBoard's files whose tags begin so."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: [float(make_ndarray(point.tensor_proto)) for point in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag.startswith(prefix)
    }


@pytest.mark.slow
def test_an_experiment_against_itself_is_identical(
    run_here: RunHere, data_file: Path, tmp_path: Path
) -> None:
    words = ("compare", MNIST_CNN, f"{MNIST_CNN} --log-every 5", "--", *SMALL, "--data", data_file)
    result = run_here("research", *words, columns=80)
    assert (result.status, result.stderr) == (0, "")
    there = comparison(tmp_path)
    verdict = json.loads((there / "verdict.json").read_text())
    (finding,) = verdict["findings"]
    assert (finding["verdict"], finding["pairs"], finding["interval"]) == ("identical", 2, None)
    assert "identical" in result.stdout
    # The sentences about the challenger are folded on a terminal only.
    sentences = ("mnist_cnn --log-every 5 is identical to ", "mnist_cnn --log-every 5: won 0 of 2 ")
    others = [line for line in result.stdout.splitlines() if not line.startswith(sentences)]
    assert len(others) == result.stdout.count("\n") - 2
    assert max(map(len, others)) <= 80 + len(str(there))

    took = verdict["cost"]["arms"][1]["ratio_of_seconds"]
    assert took[2] == 2  # the cost of every pair that counts is known

    # Nothing was evaluated on the test set.
    runs = sorted(there.glob("*/seed-[01]"))
    assert len(runs) == 4
    for run in runs:
        assert "test" not in json.loads((run / "evaluation.json").read_text())
        assert not (run / "test").exists()
    for name in ("verdict.md", "differences.png"):
        assert (there / name).stat().st_size > 100

    # Arms of the same bits have the same bands of validation; the last line says how to see them.
    folders = sorted((there / "bands").iterdir())
    assert [folder.name[-8:] for folder in folders] == ["-2-seeds"] * 2
    ours, theirs = (scalars(folder, "bands/validation/") for folder in folders)
    assert ours == theirs and "bands/validation/accuracy/mean" in ours
    last = result.stdout.splitlines()[-1]
    assert last.endswith(f"python -m research board {(there / 'bands').relative_to(tmp_path)}")

    # `runs` shows the comparison as one row, and its trainings when it is named.
    listed = json.loads(run_here("research", "runs", "--json").stdout)
    assert listed["runs"] == []
    (row,) = listed["comparisons"]
    assert row["directory"] == str(there.relative_to(tmp_path))
    assert (row["status"], row["pairs"], row["verdicts"]) == ("finished", 2, ["identical"])
    shown = run_here("research", "runs", columns=80).stdout
    assert "mnist_cnn --log-every 5: identical," in shown and "against mnist_cnn" in shown
    listed = json.loads(run_here("research", "runs", there, "--json").stdout)
    assert {Path(each["run"]) for each in listed["runs"]} >= set(runs)  # and one that was begun

    # The same command finds the verdict, and trains nothing.
    before = contents(there)
    result = run_here("research", *words)
    assert result.status == 0 and comparison(tmp_path) == there
    changed = {p.name for p, content in contents(there).items() if before.get(p) != content}
    assert changed <= {"verdict.json", "verdict.md"}
    again = json.loads((there / "verdict.json").read_text())
    assert without_times(again) == without_times(verdict)

    # A lower --most-pairs forgets no pair.
    result = run_here("research", *words[:3], "--most-pairs", "1", *words[3:])
    assert result.status == 0 and comparison(tmp_path) == there
    again = json.loads((there / "verdict.json").read_text())
    assert again["findings"] == verdict["findings"]

    # Another figure is exploration.
    result = run_here("research", "compare", "--again", there, "--metric", "lowest loss")
    assert result.status == 0 and result.stdout.startswith("Exploration: ")
    assert contents(there).keys() == before.keys()

    # A directory of another comparison is refused; run_here sees that nothing changes.
    result = run_here(
        "research", "compare", MNIST_CNN, MNIST_CNN, "--directory", there, "--", *SMALL,
        *("--data", data_file),
    )  # fmt: skip
    assert result.status == 2 and "another comparison" in result.stderr


@pytest.mark.slow
def test_another_test_set_changes_no_verdict(tmp_path: Path, run_here: RunHere) -> None:
    found = []
    for seed in (1, 2):
        dataset = Dataset(make_split(300), make_split(100, "test", seed), "made up")
        data = save_npz(dataset, tmp_path / f"{seed}.npz")
        words = ("compare", MNIST_CNN, f"{MNIST_CNN} --dropout 0.9 0.9", "--most-pairs", "1")
        directory = tmp_path / f"comparison-{seed}"
        result = run_here(
            "research", *words, "--directory", directory, "--", *SMALL, "--data", data
        )
        assert result.status == 0
        found.append(json.loads((directory / "verdict.json").read_text()))
    assert found[0]["findings"] == found[1]["findings"]
    assert found[0]["pairs"] == found[1]["pairs"]


@pytest.mark.slow
def test_an_edit_begins_another_comparison_and_reuses_the_baseline(
    run_here: RunHere, data_file: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    shutil.copyfile(MNIST_CNN, mine)
    arms = (MNIST_CNN, str(mine), "--most-pairs", "2")
    words = ("compare", *arms, "--", *SMALL, "--data", str(data_file))
    assert run_here("research", *words).status == 0
    first = comparison(tmp_path)
    mine.write_text(
        mine.read_text().replace("loss = tf.reduce_mean", "loss = 0.5 * tf.reduce_mean")
    )
    time.sleep(1.1)  # the name of a directory has the second
    result = run_here("research", *words)
    assert result.status == 0
    (second,) = {*(tmp_path / "runs" / "compare").iterdir()} - {first}
    verdict = json.loads((second / "verdict.json").read_text())
    assert verdict["findings"][0]["verdict"] == "undecided"
    assert verdict["reused_baseline_seeds"] == [0, 1]
    assert not list(second.glob("0-*/seed-?"))
    assert str(first) in result.stdout or first.name in result.stdout
    assert "0.5 * tf.reduce_mean" in verdict["differences_of_code"][0]


@pytest.mark.slow
def test_a_challenger_that_diverges_is_worse(
    run_here: RunHere, data_file: Path, tmp_path: Path
) -> None:
    words = ("compare", MNIST_CNN, f"{MNIST_CNN} --learning-rate 1e30", "--", *SMALL)
    assert run_here("research", *words, "--data", data_file).status == 0
    verdict = json.loads((comparison(tmp_path) / "verdict.json").read_text())
    (finding,) = verdict["findings"]
    assert (finding["verdict"], finding["won"]) == ("worse", 0)
    assert finding["failed"] == [0, finding["pairs"]]
    assert verdict["results"][1] == {
        **{"name": "mnist_cnn --learning-rate 1e30", "n": 0, "mean": None, "sd": None},
        "failed": finding["pairs"],
    }


def processes(parent: int) -> list[int]:
    """The processes that a process has started, and those that these have started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found += [int(path.parent.name), *processes(int(path.parent.name))]
    return found


@pytest.mark.slow
def test_killed_comparisons_end_with_the_same_verdict(tmp_path: Path, data_file: Path) -> None:
    """Twelve kills: of the comparison, of all its processes, and twice as often of one of them."""
    most, kills, rng = 3, 12, random.Random(0)
    kinds = itertools.cycle(["comparison", "one", "all", "one"])

    def begin(directory: Path) -> subprocess.Popen[bytes]:
        words = [MNIST_CNN, f"{MNIST_CNN} --dropout 0.9 0.9", "--most-pairs", str(most)]
        words += ["--directory", str(directory), "--", *SMALL, "--data", str(data_file)]
        return subprocess.Popen(
            [sys.executable, "-m", "research", "compare", *words],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def end(process: subprocess.Popen[bytes]) -> None:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors

    whole = tmp_path / "whole" / "alone"
    begun = time.monotonic()
    end(begin(whole))
    seconds = time.monotonic() - begun
    expected = without_times(json.loads((whole / "verdict.json").read_text()))
    assert [pair["seed"] for pair in expected["pairs"]] == list(
        range(expected["findings"][0]["pairs"])
    )

    landed = number = 0
    while landed < kills:
        number += 1
        directory = tmp_path / f"killed-{number}" / "alone"  # with no baseline to reuse
        process = begin(directory)
        while landed < kills and process.poll() is None:
            try:
                process.wait(rng.uniform(0, seconds * 0.4))
                break
            except subprocess.TimeoutExpired:
                pass
            below = processes(process.pid)
            victims = {
                "comparison": [process.pid],
                "all": [process.pid, *below],
                "one": rng.sample(below, min(1, len(below))),
            }[next(kinds)]
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                landed += pid == victims[0]
            if process.pid in victims:
                process.communicate()
                process = begin(directory)
        end(process)
        found = without_times(json.loads((directory / "verdict.json").read_text()))
        # The directory's own name is in no field.
        assert found == expected
