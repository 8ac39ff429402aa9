"""``diff``: what it says of two runs that are the same, and of two that are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from research.files import read_sealed_json, write_json, write_sealed_json

import pytest
from conftest import RunHere, contents
from printed import printed_tables


@pytest.fixture
def pair(finished_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of a finished run."""
    for name in ("one", "other"):
        shutil.copytree(finished_run, tmp_path / name)
    return Path("one"), Path("other")


def compared(run_here: RunHere, *words: str | Path) -> dict[str, Any]:
    result = run_here("research", "diff", *words, "--json")
    assert (result.status, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def edit_json(path: Path, **fields: Any) -> None:
    write_json(path, json.loads(path.read_text()) | fields)


def test_equal_runs_are_the_same_in_everything(pair: tuple[Path, Path], run_here: RunHere) -> None:
    result = run_here("research", "diff", *pair, columns=80)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(
        "A: one (mnist_cnn, finished)\nB: other (mnist_cnn, finished)\n"
    )
    everything = "experiment, options, code, library, data, versions, hardware, threads, flags"
    assert f"The same: {everything}\n" in result.stdout
    assert "Different" not in result.stdout
    assert "metrics.jsonl: all 9 common lines are the same\n" in result.stdout
    assert result.stdout.endswith("The weights in mnist.h5 have the same bits.\n")


def test_every_difference_is_shown(
    pair: tuple[Path, Path], tmp_path: Path, run_here: RunHere
) -> None:
    other = tmp_path / "other"
    config = read_sealed_json(other / "config.json")
    write_sealed_json(
        other / "config.json", config | {"seed": 1, "dropout": [0.0, 0.5], "data_sha256": "d" * 64}
    )
    environment = json.loads((other / "environment.json").read_text())
    packages = environment["packages"] | {"keras": "3.0.0"}
    edit_json(
        *(other / "environment.json",), packages=packages, cpu="another", library="1" * 64,
        threads={"inter_op": 1, "intra_op": 1}, flags={"TF_X": "1"},
    )  # fmt: skip
    code = other / "code" / "mnist_cnn.py"
    code.write_text(code.read_text().replace("training=True", "training=False"))
    (other / "code" / "helper.py").write_text("X = 1\n")
    evaluation = json.loads((other / "evaluation.json").read_text())
    evaluation["test"]["accuracy"] -= 0.25
    edit_json(other / "evaluation.json", test=evaluation["test"])
    lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(lines[4]) | {"loss": 9.5, "seconds": 1e6}
    (other / "metrics.jsonl").write_text("".join([*lines[:4], json.dumps(changed), "\n"]))

    found = compared(run_here, *pair)
    assert found["same"] == ["experiment"]
    different = found["different"]
    assert different["options"] == {"seed": [0, 1], "dropout": [[0.25, 0.5], [0.0, 0.5]]}
    assert different["code"] == {"mnist_cnn.py": [1, 1], "helper.py": [0, 1]}
    assert different["versions"] == {"keras": [environment["packages"]["keras"], "3.0.0"]}
    assert different["hardware"]["cpu"][1] == "another"
    assert different["threads"] == {"inter_op": [0, 1], "intra_op": [0, 1]}
    assert different["flags"]["TF_X"] == [None, "1"]
    assert different["library"]["digest"][1] == "1" * 64
    assert different["data"]["sha256"][1] == "d" * 64
    metrics = found["metrics"]
    assert (metrics["lines"], metrics["common"], metrics["same"]) == ([9, 5], 5, 4)
    first = metrics["first_difference"]
    before = json.loads(lines[4])
    assert first == {
        **{"split": before["split"], "step": before["step"], "name": "loss"},
        "values": [before["loss"], 9.5],
    }
    one, two = found["figures"]["test"]["accuracy"]
    assert one - two == pytest.approx(0.25)
    assert found["other_examples"] == ["validation", "test"]

    for columns in (60, 80):
        shown = run_here("research", "diff", *pair, "--code", columns=columns).stdout
        differences, figures = printed_tables(shown, columns, key=1)
        text = {tuple(row[1:]) for row in differences}
        assert ("--seed", "0", "1") in text
        assert ("helper.py", "0 lines of its own", "1 line of its own") in {
            tuple(cell.replace("\n", " ") for cell in row) for row in text
        }
        assert "-        logits = state.model.logits(images, training=True" in shown
        assert "+X = 1" in shown
        assert f"after 4 common lines the same: loss {before['loss']:.4f} against 9.5000" in shown
        assert "A has 9 lines, B has 5\n" in shown
        assert any("test, on other examples" in " ".join(row).replace("\n", " ") for row in figures)


def test_what_was_not_recorded_is_unknown(
    pair: tuple[Path, Path], tmp_path: Path, run_here: RunHere
) -> None:
    (tmp_path / "one" / "environment.json").unlink()
    found = compared(run_here, *pair)
    assert found["unknown"] == ["library", "versions", "hardware", "threads", "flags"]
    assert found["different"] == {}
    assert "Unknown, since not recorded: library" in run_here("research", "diff", *pair).stdout


def test_without_networks_the_newest_common_checkpoints_are_compared(
    pair: tuple[Path, Path], tmp_path: Path, run_here: RunHere
) -> None:
    for name in ("mnist.h5", "finished.json"):
        (tmp_path / "other" / name).unlink()
    newest = max(path.name for path in (tmp_path / "one" / "checkpoints").iterdir())
    assert compared(run_here, *pair)["weights"] == {"of": newest, "same": True}


def test_what_is_no_run_is_refused(pair: tuple[Path, Path], run_here: RunHere) -> None:
    for bad in ("nowhere", "one/code"):
        result = run_here("research", "diff", pair[0], bad)
        assert result.status == 2
        assert result.stderr.startswith(f"error: {bad}: no run (")
        assert result.stderr.count("\n") == 1


def test_nothing_is_changed(pair: tuple[Path, Path], tmp_path: Path, run_here: RunHere) -> None:
    before = contents(tmp_path)
    compared(run_here, *pair)
    assert contents(tmp_path) == before
