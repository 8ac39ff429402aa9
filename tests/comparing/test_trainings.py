"""Trainings in processes of their own: ended, failed, killed, and left alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from research.comparing.trainings import Ended, Task, Trainers, lock_file
from research.errors import InputError

import pytest


@pytest.fixture
def task(tmp_path: Path) -> Callable[[str], Task]:
    """Makes a task of a program's text. Its library is empty, so that nothing is imported."""
    root = tmp_path / "code"
    (root / "research").mkdir(parents=True)
    (root / "research" / "__init__.py").touch()

    def make(text: str) -> Task:
        number = len(list(tmp_path.glob("program-*.py")))
        file = tmp_path / f"program-{number}.py"
        file.write_text(text)
        return Task(number, root, file, ["--word", "two words"], tmp_path / f"output-{number}")

    return make


def all_ended(trainers: Trainers, count: int) -> list[Ended]:
    found: list[Ended] = []
    until = time.monotonic() + 60
    while len(found) < count and time.monotonic() < until:
        found += trainers.wait(0.2)
    return found


def wait_for(path: Path) -> str:
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    return path.read_text()


def test_a_training_runs_as_python_runs_a_file(task: Callable[[str], Task], tmp_path: Path) -> None:
    text = (
        "import os, sys, beside\n"
        "print(sys.argv[1:], __name__, beside.value, os.environ['TF_NUM_INTRAOP_THREADS'])\n"
        "print(len(os.sched_getaffinity(0)), sys.stdin.read())\nsys.exit(3)\n"
    )
    (tmp_path / "beside.py").write_text("value = 'beside'")
    with Trainers(1, 1, tmp_path) as trainers:
        trainers.start(task(text))
        assert not trainers.has_room()
        (ended,) = all_ended(trainers, 1)
        assert trainers.has_room()
    assert (ended.status, ended.task.key) == (3, 0)
    assert ended.peak_memory > 1 << 20
    assert ended.task.output.read_text() == "['--word', 'two words'] __main__ beside 1\n1 \n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("import os; os._exit(7)", 7),
        ("raise ValueError('no')", 1),
        ("import sys; sys.exit('a message')", 1),
        ("import sys; sys.exit(None)", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_the_exit_status_is_the_programs(
    text: str, status: int, task: Callable[[str], Task], tmp_path: Path
) -> None:
    with Trainers(1, 1, tmp_path) as trainers:
        trainers.start(task(text))
        (ended,) = all_ended(trainers, 1)
    assert ended.status == status


SLEEPING = "import os, time\nopen({!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and has not been waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_trainings_of_a_server_that_is_killed_stop_and_are_given_back(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    with Trainers(2, 1, tmp_path) as trainers:
        for number in range(2):
            trainers.start(task(SLEEPING.format(str(tmp_path / f"pid-{number}"))))
        pids = [int(wait_for(tmp_path / f"pid-{number}")) for number in range(2)]
        server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        ended = all_ended(trainers, 2)
        assert [(e.task.key, e.status) for e in ended] == [(0, -9), (1, -9)]
        until = time.monotonic() + 20
        while any(map(lives, pids)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(lives, pids))
        trainers.start(task("print('goes on')"))
        assert all_ended(trainers, 1)[0].status == 0


def test_trainings_end_with_the_comparison_and_hold_its_lock_until_then(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    lock = lock_file(folder)
    assert lock is not None
    with Trainers(1, 1, tmp_path, lock) as trainers:
        trainers.start(task(SLEEPING.format(str(tmp_path / "pid"))))
        pid = int(wait_for(tmp_path / "pid"))
        os.close(lock)
        assert lock_file(folder) is None
    assert not lives(pid)
    assert lock_file(folder) is not None


def test_code_that_ends_the_server_is_named(task: Callable[[str], Task], tmp_path: Path) -> None:
    (tmp_path / "code" / "research" / "__init__.py").write_text("import os; os._exit(1)")
    with Trainers(1, 1, tmp_path) as trainers:
        trainers.start(task(""))
        with pytest.raises(InputError, match=r"can't be imported; see .*server-code\.txt"):
            all_ended(trainers, 1)
