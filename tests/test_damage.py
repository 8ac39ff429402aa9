"""Any file of a run directory may be damaged in any way: nothing is lost in silence."""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.recording.checkpoints import checkpoint_paths
from research.tools.verify_kills import left_by

import pytest
from conftest import EXPERIMENTS, RunHere
from recording.test_logs import same_lines

EXPERIMENT = EXPERIMENTS / "mnist_cnn.py"
TOLD = re.compile(r"damaged|lost|not a good checkpoint|can't be read|has been edited")


def flip(path: Path, rng: random.Random, others: list[Path]) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random, others: list[Path]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) or 1)])


def empty(path: Path, rng: random.Random, others: list[Path]) -> None:
    path.write_bytes(b"")


def delete(path: Path, rng: random.Random, others: list[Path]) -> None:
    path.unlink()


def swap(path: Path, rng: random.Random, others: list[Path]) -> None:
    other, content = rng.choice(others), path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def fifo(path: Path, rng: random.Random, others: list[Path]) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path, rng: random.Random, others: list[Path]) -> None:
    path.unlink()
    path.mkdir()
    (path / "mine").touch()


def link(target: str, path: Path, rng: random.Random, others: list[Path]) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to(target or path.name)


DAMAGES: dict[str, Callable[[Path, random.Random, list[Path]], None]] = {
    **{"flip": flip, "cut": cut, "empty": empty, "delete": delete, "swap": swap},
    **{"FIFO": fifo, "folder": folder},
    "link to the file": functools.partial(link, "elsewhere"),
    "link to nothing": functools.partial(link, "nowhere"),
    "link to itself": functools.partial(link, ""),
    "link to zeros without end": functools.partial(link, "/dev/zero"),
}


def hanging(number: int, frame: Any) -> None:
    raise TimeoutError("it hangs")


@pytest.fixture(scope="module")
def killed_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, as if killed after its last checkpoint but one."""
    run = Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("killed") / "run"))
    for name in ("mnist.h5", "mnist.h5.sha256", "evaluation.json", "finished.json"):
        (run / name).unlink()
    shutil.rmtree(run / "test")
    checkpoint_paths(run / "checkpoints")[0].unlink()
    return run


def files_of(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def damage_and_resume(
    damage: str,
    name: str,
    source: Path,
    expected: dict[str, Any],
    folder: Path,
    run_here: RunHere,
) -> str:
    """Damages one file of a copy of a run, resumes it, and says what came of it."""
    what, run = f"{damage}: {name}", folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(source, run)
    others = [run / other for other in files_of(run) if other != name]
    DAMAGES[damage](run / name, random.Random(damage), others)
    signal.signal(signal.SIGALRM, hanging)
    signal.alarm(120)
    try:
        result = run_here(EXPERIMENT, "--resume", "run")
    finally:
        signal.alarm(0)
    shown = f"{what}: {result}"
    if result.status == 2:
        assert re.fullmatch(r"error: .*\n", result.stderr), shown
        return "refused"
    assert (result.status, result.stderr) == (0, ""), shown
    found = left_by(run)
    same = found.keys() == expected.keys() and all(
        found[name] == expected[name] for name in found.keys() - {"metrics.jsonl"}
    )
    if same and found["metrics.jsonl"] == expected["metrics.jsonl"]:
        return "as uninterrupted"
    assert TOLD.search(result.stdout), shown
    lines = found["metrics.jsonl"]
    mended = len(lines) == len(expected["metrics.jsonl"]) and same_lines(
        lines, expected["metrics.jsonl"]
    )
    assert mended or re.search(r"\d+ lost", result.stdout), shown
    assert found["the last checkpoint"] == expected["the last checkpoint"], shown
    return "mended, and told" if mended else "lost, and told"


@pytest.mark.parametrize(
    ("damage", "name"),
    [("swap", "config.json"), ("link to zeros without end", "code/mnist_cnn.py")],
)
def test_a_damaged_file_is_never_a_silent_loss(
    damage: str,
    name: str,
    killed_run: Path,
    finished_run: Path,
    tmp_path: Path,
    run_here: RunHere,
) -> None:
    expected = left_by(finished_run)
    damage_and_resume(damage, name, killed_run, expected, tmp_path, run_here)


def test_code_that_is_no_file_is_not_waited_for(
    killed_run: Path, finished_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    run = shutil.copytree(killed_run, tmp_path / "run")
    fifo(run / "code" / "mnist_cnn.py", random.Random(0), [])
    signal.signal(signal.SIGALRM, hanging)
    signal.alarm(120)
    try:
        refused = run_here("research", "rerun", "run")
        assert (refused.status, refused.stdout) == (2, ""), refused
        assert "it is a FIFO, not a file" in refused.stderr
        shown = run_here("research", "diff", "run", finished_run)
        assert (shown.status, shown.stderr) == (0, ""), shown
        resumed = run_here(EXPERIMENT, "--resume", "run")
        assert (resumed.status, resumed.stderr) == (0, ""), resumed
        assert "mnist_cnn.py has been edited" in resumed.stdout
    finally:
        signal.alarm(0)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_damaged_in_every_way(
    damage: str, killed_run: Path, finished_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    """Each file of a killed run, and the files that a finished run has beside these."""
    expected, came_of_it = left_by(finished_run), Counter[str]()
    tried = dict.fromkeys(files_of(finished_run), finished_run)
    tried |= dict.fromkeys(files_of(killed_run), killed_run)
    for name, source in tried.items():
        result = damage_and_resume(damage, name, source, expected, tmp_path, run_here)
        came_of_it[result] += 1
    print(f"{len(tried)} files: {dict(came_of_it)}")
    assert came_of_it["as uninterrupted"] > len(tried) / 8
