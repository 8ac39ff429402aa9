"""Damage to a run's logs is noticed, reported, and mended from the other log."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.recording.checkpoints import checkpoint_paths
from research.recording.tensorboard import event_files
from research.tools.verify_kills import left_by

import numpy as np
import pytest
from conftest import EXPERIMENTS, RunHere

EXPERIMENT = EXPERIMENTS / "mnist_cnn.py"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, as if killed after its last checkpoint but one."""
    copy = Path(shutil.copytree(finished_run, tmp_path / "run"))
    checkpoint_paths(copy / "checkpoints")[0].unlink()
    return copy


def only(path: Path) -> Path:
    """The one TensorBoard file in a folder."""
    (file,) = event_files(path)
    return file


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"spoiled\n"
    path.write_bytes(b"".join(lines))


def alter(path: Path) -> None:
    """Changes one digit, which no parser can notice."""
    lines = path.read_text().splitlines(keepends=True)
    values = json.loads(lines[2])
    lines[2] = json.dumps(values | {"loss": values["loss"] + 1}) + "\n"
    path.write_text("".join(lines))


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def same_lines(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether lines of metrics.jsonl are equal in float32 precision."""
    pairs = zip(found, expected, strict=True)
    return all(a.keys() == b.keys() and all(map(_same, a.values(), b.values())) for a, b in pairs)


def _same(a: Any, b: Any) -> bool:
    return a == b or bool(np.isclose(a, b, rtol=1e-6, atol=0))


# tests/test_damage.py does further kinds of damage to every file.
@pytest.mark.parametrize(
    "damage",
    [flip, Path.unlink, alter, *(pytest.param(d, marks=pytest.mark.slow) for d in (fifo, spoil))],
)
def test_a_damaged_log_is_told_kept_and_made_from_tensorboards_files(
    damage: Callable[[Path], Any], run: Path, finished_run: Path, run_here: RunHere
) -> None:
    damage(run / "metrics.jsonl")
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    found, expected = left_by(run), left_by(finished_run)
    assert same_lines(found.pop("metrics.jsonl"), expected.pop("metrics.jsonl"))
    assert found == expected
    told = r"metrics\.jsonl: damaged; \d of 6 lines made from TensorBoard's files"
    # A flip may hit the seconds, which no other log holds.
    assert len(re.findall(told, result.stdout)) == 1
    assert "lost" not in result.stdout
    assert os.path.lexists(run / "metrics.damaged") == (damage != Path.unlink)
    again = run_here(EXPERIMENT, "--resume", run)
    assert "is finished" in again.stdout
    assert left_by(run)["TensorBoard"] == expected["TensorBoard"]


@pytest.mark.parametrize(
    ("split", "damage"),
    [
        ("train", flip),
        ("validation", Path.unlink),
        *(pytest.param("train", damage, marks=pytest.mark.slow) for damage in (cut, fifo)),
        *(pytest.param("validation", damage, marks=pytest.mark.slow) for damage in (flip, link)),
    ],
)
def test_damaged_tensorboard_files_are_told_kept_and_made_from_the_log(
    split: str, damage: Callable[[Path], Any], run: Path, finished_run: Path, run_here: RunHere
) -> None:
    damage(only(run / split))
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    found, expected = left_by(run), left_by(finished_run)
    shown = expected["TensorBoard"][split]
    scalars = {tag for tag in shown if re.fullmatch(r"loss|accuracy|(quality|time)/.*", tag)}
    assert len(scalars) >= 4
    for tag in scalars:
        assert found["TensorBoard"][split][tag] == shown[tag]
    del found["TensorBoard"][split], expected["TensorBoard"][split]
    assert found == expected
    told = rf"run/{split}: TensorBoard's files are damaged; .*(points made from|lost)"
    assert len(re.findall(told, result.stdout)) == 1, result.stdout
    assert os.path.lexists(run / split / "events.damaged") == (damage != Path.unlink)
    assert len(event_files(run / split)) == 2  # the mended file, and the file of the resumed run


def test_what_is_lost_in_both_logs_is_counted(
    run: Path, finished_run: Path, run_here: RunHere
) -> None:
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "train")
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    assert "2 of 6 lines made from TensorBoard's files, 4 lost" in result.stdout
    found, expected = left_by(run), left_by(finished_run)
    lines = [x for x in expected["metrics.jsonl"] if x["split"] != "train" or x["step"] > 16]
    assert same_lines(found["metrics.jsonl"], lines)
    assert found["evaluation.json"] == expected["evaluation.json"]


def test_what_a_kill_cuts_off_is_no_damage(
    run: Path, finished_run: Path, run_here: RunHere
) -> None:
    for path in (run / "metrics.jsonl", only(run / "train"), only(run / "validation")):
        path.write_bytes(path.read_bytes()[:-3])
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    assert "damaged" not in result.stdout
    assert left_by(run) == left_by(finished_run)


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation.json"])
def test_damage_to_a_finished_run_is_mended_too(
    name: str, finished_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    cut(run / name)
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    assert "Resuming" in result.stdout
    assert "is finished" in run_here(EXPERIMENT, "--resume", run).stdout
    found, expected = left_by(run), left_by(finished_run)
    assert same_lines(found.pop("metrics.jsonl"), expected.pop("metrics.jsonl"))
    assert found == expected
