"""Trainings on the workers of a Dask cluster: run, refused, killed, sent back, each once."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from research.comparing import cluster
from research.comparing.cluster import Cluster
from research.comparing.comparison import describe_machine
from research.comparing.trainings import Ended, Task
from research.errors import InputError, StorageError
from research.recording.code import PACKAGE

import distributed
import pytest


@pytest.fixture(scope="module")
def workers() -> Iterator[distributed.LocalCluster]:
    """Two workers in processes of their own; one that is killed is replaced."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as found:
        yield found


def dask(kind: str, *words: str, cwd: Path, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a scheduler or worker as users do, silently."""
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, "--no-dashboard"],
        cwd=cwd,
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def task(tmp_path: Path) -> Callable[[str], Task]:
    """Makes a task of a program's text. Its library is empty, so that nothing is imported."""
    root = tmp_path / "study" / "code" / "now"
    (root / "research").mkdir(parents=True)
    (root / "research" / "__init__.py").touch()

    def make(text: str) -> Task:
        number = len(list(root.glob("program-*.py")))
        file = root / f"program-{number}.py"
        file.write_text(text)
        run = tmp_path / "study" / f"run-{number}"
        return Task(number, f"program {number}", root, file, ["--seed", str(number)], run)

    return make


# Leaves a run directory that says how it was run. As a run does, one that has ended stays as it is.
TRAINING = (
    "import sys, time\nfrom pathlib import Path\n"
    "run = Path(sys.argv[-1])\nresumed = '--resume' in sys.argv\n"
    "time.sleep({})\nrun.mkdir(exist_ok=resumed)\nsaid = run / 'said'\n"
    "if not said.exists():\n"
    "    said.write_text('resumed' if resumed else ' '.join(sys.argv[1:3]))\n"
)


def all_ended(trainers: Cluster, tasks: list[Task], seconds: float = 120) -> list[Ended]:
    found: list[Ended] = []
    until, waiting = time.monotonic() + seconds, list(tasks)
    while len(found) < len(tasks) and time.monotonic() < until:
        while waiting and trainers.has_room():
            trainers.start(waiting.pop(0))
        found += trainers.wait(0.5)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [True, False])
def test_a_worker_trains_and_the_run_directory_is_where_it_belongs(
    is_shared: bool,
    workers: distributed.LocalCluster,
    task: Callable[[str], Task],
    tmp_path: Path,
) -> None:
    said: list[str] = []
    tasks = [task(TRAINING.format(0)), task("import sys; sys.exit('a message')")]
    with Cluster(workers.scheduler_address, 1, tmp_path / "study", said.append) as trainers:
        assert trainers.workers == 2
        if not is_shared:  # the workers find another content there than the user's
            (tmp_path / "study" / "cluster.txt").write_text("another machine's")
        ended = all_ended(trainers, tasks)
    assert sorted((each.task.key, each.status, each.whole) for each in ended) == [
        (0, 0, True),
        (1, 1, True),
    ]
    assert (tasks[0].run / "said").read_text() == "--seed 0"
    assert tasks[1].output.read_text() == "a message\n"
    assert said == []
    assert not (tmp_path / "study" / "cluster.txt").exists()
    left = {path.name for path in (tmp_path / "study").iterdir()}
    assert left - {"server-now.txt"} == {"code", "run-0", "run-0.txt", "run-1.txt"}


@pytest.mark.slow
def test_a_training_whose_worker_is_killed_is_run_once_by_another(
    workers: distributed.LocalCluster, task: Callable[[str], Task], tmp_path: Path
) -> None:
    tasks = [task(TRAINING.format(2)) for _ in range(3)]
    with Cluster(workers.scheduler_address, 1, tmp_path / "study", print) as trainers:
        for each in tasks[:2]:
            trainers.start(each)
        assert trainers.wait(0.5) == []
        with distributed.Client(workers.scheduler_address, set_as_default=False) as client:
            pids = client.run(os.getpid)
        os.kill(min(pids.values()), signal.SIGKILL)
        ended: list[Ended] = []
        waiting = tasks[2:]
        while waiting or trainers.running:
            while waiting and trainers.has_room():
                trainers.start(waiting.pop())
            ended += trainers.wait(1)
    assert sorted(each.task.key for each in ended) == [0, 1, 2]
    for each in tasks:
        assert (each.run / "said").read_text() == f"--seed {each.key}"


@pytest.mark.slow
def test_of_40_trainings_none_is_lost_or_run_twice_while_workers_die_and_join(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    tasks = [task(TRAINING.format(0.2)) for _ in range(40)]
    randomly, ended, waiting = random.Random(0), list[Ended](), list(tasks)
    with (
        distributed.LocalCluster(
            n_workers=6, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as found,
        distributed.Client(found.scheduler_address, set_as_default=False) as client,
        Cluster(found.scheduler_address, 1, tmp_path / "study", print) as trainers,
    ):
        kill_at = {n: n for n in range(5, 40, 5)}
        while waiting or trainers.running:
            while waiting and trainers.has_room():
                trainers.start(waiting.pop(0))
            ended += trainers.wait(0.2)
            if kill_at.pop(len(ended) // 5 * 5, None):
                pids = client.run(os.getpid, on_error="ignore")
                os.kill(randomly.choice(sorted(pids.values())), signal.SIGKILL)
            if len(ended) >= 20 and len(found.workers) < 8:
                found.scale(8)
    assert sorted(each.task.key for each in ended) == list(range(40))
    for each in tasks:
        assert (each.run / "said").read_text() in (f"--seed {each.key}", "resumed")
    assert len(list((tmp_path / "study").glob("run-*/said"))) == 40


# Validates three times, and then trains for a minute.
VALIDATING = (
    "import json, sys, time\nfrom pathlib import Path\n"
    "run = Path(sys.argv[-1])\nrun.mkdir()\n"
    "for step in range(3):\n"
    "    for split in ('train', 'validation'):\n"
    "        with (run / 'metrics.jsonl').open('a') as file:\n"
    "            file.write(json.dumps({'split': split, 'step': step, 'accuracy': 0.9}) + '\\n')\n"
    "    time.sleep(0.6)\n"
    "time.sleep(60)\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("is_shared", [True, False])
def test_validations_are_told_while_a_worker_trains_and_it_can_be_stopped(
    is_shared: bool,
    workers: distributed.LocalCluster,
    task: Callable[[str], Task],
    tmp_path: Path,
) -> None:
    with Cluster(workers.scheduler_address, 1, tmp_path / "study", print) as trainers:
        if not is_shared:
            (tmp_path / "study" / "cluster.txt").write_text("another machine's")
        one = task(VALIDATING)
        trainers.start(one)
        until = time.monotonic() + 30
        while len(trainers.validations(one.key)) < 3 and time.monotonic() < until:
            assert trainers.wait(0.2) == []
        line = {"split": "validation", "accuracy": 0.9}
        assert trainers.validations(one.key) == [line | {"step": step} for step in range(3)]
        trainers.stop(one.key)
        other = task(TRAINING.format(0))
        assert [each.task.key for each in all_ended(trainers, [other])] == [other.key]
        assert trainers.validations(other.key) == []
    assert one.run.exists() == is_shared


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_old", "said"),
    [(False, "commit is [0-9a-f]{12} there, "), (True, "research can't be imported there")],
)
def test_a_worker_that_joins_later_with_another_commit_is_refused_by_name(
    is_old: bool,
    said: str,
    workers: distributed.LocalCluster,
    task: Callable[[str], Task],
    tmp_path: Path,
) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(PACKAGE, clone / "research")
    if is_old:  # of before there were clusters
        (clone / "research" / "comparing" / "cluster.py").unlink()
    git = ["git", "-c", "user.name=nobody", "-c", "user.email=nobody", "-C", str(clone)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "another"], check=True)
    lines: list[str] = []
    with Cluster(workers.scheduler_address, 1, tmp_path / "study", lines.append) as trainers:
        words = ("worker", workers.scheduler_address, "--nthreads", "1", "--nworkers", "1")
        late = dask(*words, cwd=tmp_path, PYTHONPATH=str(clone))
        try:
            ended = all_ended(trainers, [task(TRAINING.format(0.5))])
            until = time.monotonic() + 30
            while not lines and time.monotonic() < until:
                trainers.wait(0.5)
                trainers.has_room()
            tasks = [task(TRAINING.format(0)) for _ in range(4)]
            ended += all_ended(trainers, tasks)
            assert trainers.workers == 2
        finally:
            late.terminate()
            late.wait()
    assert [each.status for each in ended] == [0] * 5
    assert len(lines) == 1
    assert re.match(rf"Worker tcp://127.0.0.1:\d+ is refused: {said}", lines[0])


def test_other_versions_are_refused_by_name(
    workers: distributed.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = describe_machine()
    other = machine | {"packages": machine["packages"] | {"numpy": "9.9"}}
    # In this process alone: a worker has its own.
    monkeypatch.setattr(cluster, "describe_machine", lambda: other)
    with pytest.raises(InputError, match=r"worker tcp://127.0.0.1:\d+: numpy is 2\S* there, 9.9"):
        Cluster(workers.scheduler_address, 1, tmp_path, print)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "odd name", "file.json"])
def test_a_scheduler_that_does_not_answer_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.json").write_text("no JSON")
    with pytest.raises(InputError, match=rf"--scheduler {address}: no scheduler answers"):
        Cluster(address, 1, tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_command_in_one_line(
    task: Callable[[str], Task], tmp_path: Path
) -> None:
    file = tmp_path / "scheduler.json"
    scheduler = dask("scheduler", "--port", "0", "--scheduler-file", str(file), cwd=tmp_path)
    worker = dask("worker", "--scheduler-file", str(file), "--nthreads", "1", cwd=tmp_path)
    try:
        while not file.exists():
            time.sleep(0.1)
        with Cluster(str(file), 1, tmp_path / "study", print) as trainers:
            while not trainers.has_room():
                time.sleep(0.1)
            trainers.start(task(TRAINING.format(60)))
            trainers.wait(1)
            scheduler.kill()
            scheduler.wait()
            with pytest.raises(
                StorageError, match=r"scheduler.json: it can't be reached any more; start"
            ):
                while True:
                    trainers.has_room()
                    trainers.wait(1)
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait()
