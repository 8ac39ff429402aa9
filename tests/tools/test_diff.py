"""``diff``: what it says of two runs that are the same, and of two that are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from research.files import read_sealed_json, write_json, write_sealed_json

import pytest
from conftest import RunHere, contents, edit_library
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
    assert result.stdout.endswith("The weights in mnist.h5 are the same, bit for bit.\n")


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
        *(other / "environment.json",), packages=packages, cpu="another", extensions=["mmx"],
        threads={"inter_op": 1, "intra_op": 1}, flags={"TF_X": "1"},
    )  # fmt: skip
    code = other / "code" / "mnist_cnn.py"
    code.write_text(code.read_text().replace("training=True", "training=False"))
    (other / "code" / "helper.py").write_text("X = 1\n")
    edit_library(other, "research/loop.py", lambda text: f"{text}Y = 2\n")
    edit_library(other, "research/verbs.py", lambda text: f"{text}Z = 3\n")
    evaluation = json.loads((other / "evaluation.json").read_text())
    evaluation["test"]["accuracy"] -= 0.25
    edit_json(other / "evaluation.json", test=evaluation["test"])
    lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    changed = json.loads(lines[4]) | {"loss": 9.5, "seconds": 1e6, "extra": 1.0}
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
    assert different["hardware"]["extensions"][1] == "mmx"
    assert different["library"] == {"research/loop.py": [0, 1]}
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
        assert ("helper.py", "0 lines only here", "1 line only here") in {
            tuple(cell.replace("\n", " ") for cell in row) for row in text
        }
        assert "-        logits = state.model.logits(images, training=True" in shown
        assert "+X = 1" in shown and "+Y = 2" in shown and "+Z = 3" not in shown
        assert f"after 4 common lines the same: loss {before['loss']:.4f} against 9.5000" in shown
        assert "A has 9 lines, B has 5; only B measures extra\n" in shown
        assert any("test, on other examples" in " ".join(row).replace("\n", " ") for row in figures)


def test_what_was_not_recorded_is_unknown(
    pair: tuple[Path, Path], tmp_path: Path, run_here: RunHere
) -> None:
    (tmp_path / "one" / "environment.json").unlink()
    (tmp_path / "one" / "library.zip").unlink()
    shutil.rmtree(tmp_path / "other" / "code")
    found = compared(run_here, *pair)
    unknown = ["code", "library", "versions", "hardware", "threads", "flags"]
    assert found["unknown"] == unknown
    assert found["different"] == {}
    shown = run_here("research", "diff", *pair, "--code").stdout
    assert f"Unknown, since not recorded: {', '.join(unknown)}\n" in shown
    assert "No difference of code is known.\n" in shown


def test_runs_of_earlier_versions_are_compared_as_far_as_they_record(
    pair: tuple[Path, Path], tmp_path: Path, run_here: RunHere
) -> None:
    for path in (tmp_path / "one", tmp_path / "other"):
        (path / "library.zip").unlink()
    environment = json.loads((tmp_path / "one" / "environment.json").read_text())
    del environment["extensions"]
    write_json(tmp_path / "one" / "environment.json", environment)
    edit_json(tmp_path / "other" / "environment.json", library="1" * 64, git="none")
    found = compared(run_here, *pair)
    assert found["different"]["library"]["digest"][1] == "1" * 64
    assert "hardware" in found["same"]


def test_files_of_one_name_and_line_ends_are_told_apart(
    pair: tuple[Path, Path], tmp_path: Path, run_here: RunHere
) -> None:
    for name, ends in (("one", b"\n"), ("other", b"\r\n")):
        for folder in ("parts", "more"):
            (tmp_path / name / "code" / folder).mkdir()
        (tmp_path / name / "code" / "parts" / "each.py").write_bytes(b"X = 1" + ends)
        (tmp_path / name / "code" / "more" / "each.py").write_bytes(b"Y = '\xff'" + ends[-1:])
    (tmp_path / "other" / "code" / "more" / "each.py").write_bytes(b"Y = '\xfe'")
    assert compared(run_here, *pair)["different"] == {
        "code": {"more/each.py": [1, 1], "parts/each.py": [1, 1]}
    }


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
