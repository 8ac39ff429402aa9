"""The code of an experiment is kept with its run: the file, and what it imports from beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from research.recording.code import PACKAGE
from research.recording.run_directory import code_sha256, read_code

import pytest
from conftest import EXPERIMENTS, REPOSITORY, RunHere


@pytest.fixture
def with_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reference experiment, with its build in a module and a package beside it."""
    folder = tmp_path / "mine"
    (folder / "parts").mkdir(parents=True)
    head, _, rest = (EXPERIMENTS / "mnist_cnn.py").read_text().partition("def build(")
    build, _, rest = rest.partition("\n\n\ndef step(")
    (folder / "parts" / "building.py").write_text(f"{head}def build({build}\n")
    (folder / "neighbour.py").write_text("from parts.building import build as build\n")
    (folder / "unused.py").write_text("raise RuntimeError\n")
    (folder / "mine.py").write_text(f"{head}from neighbour import build\n\n\ndef step({rest}")
    monkeypatch.syspath_prepend(folder)  # as Python does where a program is started
    yield folder / "mine.py"
    for name in [name for name in sys.modules if name.startswith(("neighbour", "parts"))]:
        del sys.modules[name]


def test_what_an_experiment_imports_from_beside_it_is_kept_and_replayed(
    with_neighbours: Path, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    small = ("--data", data_file, "--epochs", "1", "--dense-width", "8", "--batch-size", "64")
    result = run_here("mine/mine.py", *small, "--run-dir", "nan", "--learning-rate", "1e30")
    assert result.status == 1, result.stderr
    (bundle,) = (tmp_path / "nan").glob("replay-*")
    for folder in (tmp_path / "nan" / "code", bundle / "code"):
        kept = {path.relative_to(folder): path for path in folder.rglob("*.py")}
        assert set(map(str, kept)) == {"mine.py", "neighbour.py", "parts/building.py"}
        for name, path in kept.items():
            assert path.read_bytes() == (with_neighbours.parent / name).read_bytes()
    (with_neighbours.parent / "neighbour.py").rename(tmp_path / "elsewhere.py")
    replayed = run_here("research", "replay", bundle, "--json")
    assert (replayed.status, replayed.stderr) == (0, "")
    assert json.loads(replayed.stdout)["first_non_finite"] is not None


def test_an_edit_beside_the_experiment_is_said_when_a_run_is_resumed(
    with_neighbours: Path, data_file: Path, run_here: RunHere
) -> None:
    small = ("--data", data_file, "--dense-width", "8", "--batch-size", "64", "--run-dir", "run")
    assert run_here("mine/mine.py", *small, "--epochs", "1").status == 0
    neighbour = with_neighbours.parent / "neighbour.py"
    neighbour.write_text(neighbour.read_text() + "# edited\n")
    result = run_here("mine/mine.py", "--resume", "run", "--epochs", "2")
    assert (result.status, result.stderr) == (0, "")
    (line,) = [line for line in result.stdout.splitlines() if "bit for bit" in line]
    assert "neighbour.py has been edited" in line
    assert "mine.py has been edited" not in line


def test_the_library_is_kept_with_its_digest(finished_run: Path) -> None:
    kept = read_code(finished_run)
    library = {name: content for name, content in kept.items() if name.startswith("research/")}
    there = {path.relative_to(REPOSITORY).as_posix(): path for path in PACKAGE.rglob("*.py")}
    assert library == {name: path.read_bytes() for name, path in there.items()}
    assert kept.keys() - library.keys() == {"code/mnist_cnn.py"}
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment["code"] == code_sha256(finished_run)
    assert environment["code"].keys() == {"code/mnist_cnn.py", "library.zip"}
