"""Trainings in processes of their own: ended, failed, killed, and left alone."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from research.comparing.trainings import Ended, Task, Trainers, cores_here
from research.errors import InputError, StorageError
from research.recording.run_directory import lock

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
        words = ["--word", "two words"]
        return Task(number, f"program {number}", root, file, words, tmp_path / f"run-{number}")

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
    with Trainers(cores_here(), 1, tmp_path) as trainers:
        trainers.start(task(text))
        assert trainers.has_room() == (cores_here() > 1)
        (ended,) = all_ended(trainers, 1)
        assert trainers.has_room()
    assert (ended.status, ended.task.key, ended.whole) == (3, 0, True)
    assert ended.peak_memory > 1 << 20
    said = f"['--word', 'two words', '--run-dir', '{tmp_path}/run-0'] __main__ beside 1\n1 \n"
    assert ended.task.output.read_text() == said


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("import os; os._exit(7)", 7),
        ("raise ValueError('no')", 1),
        ("import sys; sys.exit('a message')", 1),
        ("import sys; sys.exit(None)", 0),
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


# Creates its run directory, and ends only if it is resumed.
RESUMABLE = (
    "import os, signal, sys\nfrom pathlib import Path\n"
    "run = Path(sys.argv[-1])\n"
    "if '--resume' not in sys.argv:\n    run.mkdir()\n    os.kill(os.getpid(), {})\n"
    "sys.exit(0 if sys.argv[1:] == ['--resume', str(run)] else 9)\n"
)


@pytest.mark.parametrize("number", ["signal.SIGKILL", "signal.SIGTERM"])
def test_a_training_that_was_killed_is_resumed(
    number: str, task: Callable[[str], Task], tmp_path: Path
) -> None:
    with Trainers(1, 1, tmp_path) as trainers:
        trainers.start(task(RESUMABLE.format(number)))
        found: list[Ended] = []
        while not found:
            found = trainers.wait(0.2)
    assert (found[0].status, found[0].whole) == (0, False)


def test_a_training_that_is_always_killed_is_given_up(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    always = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with (
        Trainers(1, 1, tmp_path) as trainers,
        pytest.raises(StorageError, match=r"program 0: was killed 5 times \(status -9\)"),
    ):
        trainers.start(task(always))
        while trainers.running:
            trainers.wait(0.2)


def test_trainings_of_a_server_that_is_killed_stop_and_are_repeated(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    once = "import os, sys, time\nplace = {!r}\nif os.path.exists(place):\n    sys.exit(0)\n"
    text = once + "open(place, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    with Trainers(2, 1, tmp_path) as trainers:
        for number in range(2):
            trainers.start(task(text.format(str(tmp_path / f"pid-{number}"))))
        pids = [int(wait_for(tmp_path / f"pid-{number}")) for number in range(2)]
        server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        found: list[Ended] = []
        until = time.monotonic() + 60
        while len(found) < 2 and time.monotonic() < until:
            found += trainers.wait(0.2)
        assert sorted((e.task.key, e.status) for e in found) == [(0, 0), (1, 0)]
        assert not any(map(lives, pids))


# As a training does, notices SIGTERM only after it has created its run directory.
LATE = (
    "import os, signal, sys, time\nfrom pathlib import Path\nrun = Path(sys.argv[-1])\n"
    "if '--resume' not in sys.argv:\n"
    "    signal.signal(signal.SIGTERM, lambda *_: None)\n"
    "    Path({!r}).write_text(str(os.getpid()))\n"
    "    until = time.monotonic() + 1.5\n"
    "    while time.monotonic() < until:\n        time.sleep(0.1)\n"
    "    run.mkdir()\n    sys.exit(143)\n"
)


def test_a_training_whose_server_is_killed_has_stopped_before_it_is_repeated(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    with Trainers(2, 1, tmp_path) as trainers:
        trainers.start(task(LATE.format(str(tmp_path / "pid"))))
        pid = int(wait_for(tmp_path / "pid"))
        server = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(server, signal.SIGKILL)
        (ended,) = all_ended(trainers, 1)
    assert (ended.status, ended.whole) == (0, False)  # resumed


def test_trainings_end_with_the_comparison_and_hold_its_lock_until_then(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    held = lock(folder)
    with Trainers(1, 1, tmp_path, held) as trainers:
        trainers.start(task(SLEEPING.format(str(tmp_path / "pid"))))
        pid = int(wait_for(tmp_path / "pid"))
        os.close(held)
        with pytest.raises(BlockingIOError):
            lock(folder)
    assert not lives(pid)
    os.close(lock(folder))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_code_that_can_not_be_imported_is_named(
    elsewhere: bool, task: Callable[[str], Task], tmp_path: Path
) -> None:
    library = tmp_path / "code" / "research" / "__init__.py"
    library.write_text("import sys; sys.exit('no')" if not elsewhere else "")
    reason = "no" if not elsewhere else "research is imported from"
    trial = task("")
    if elsewhere:  # a copy of the code without the library
        trial = dataclasses.replace(trial, root=tmp_path / "empty")
        trial.root.mkdir()
    with (
        Trainers(1, 1, tmp_path) as trainers,
        pytest.raises(InputError, match=rf"can't be imported \({reason}"),
    ):
        trainers.start(trial)
        all_ended(trainers, 1)
