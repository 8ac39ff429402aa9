"""Several workers: the training of as many replicas in one process, whatever ends one of them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from research.comparing.trainings import thread_variables
from research.errors import InputError
from research.tools.verify_kills import left_by
from research.training.workers import cluster

import pytest
from conftest import EXPERIMENTS, RunHere, run_python

OPTIONS = ("--epochs", "2", "--batch-size", "32", "--dense-width", "8", "--log-every", "4")
# How many SIGKILLs of workers a slow test survives.
KILLS = int(os.environ.get("KILLS", "6"))
# No job takes longer to end after one of its workers.
SECONDS_TO_END = 30


class Job:
    """A job of two workers on this machine, under ``launch``."""

    def __init__(self, folder: Path, *options: str | Path) -> None:
        self.output = folder / "output.txt"
        command = [sys.executable, "-m", "research", "launch", EXPERIMENTS / "mnist_cnn.py"]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*map(str, command), *map(str, options)],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.workers: list[int] = []

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 180) -> None:
        """Waits until the chief has said something, or the job has ended."""
        until = time.monotonic() + seconds
        while text not in self.said() and self.process.poll() is None:
            assert time.monotonic() < until, self.said()
            self.find_workers()
            time.sleep(0.05)

    def find_workers(self) -> None:
        """The process ids of the workers, the chief's first."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        if len(self.workers) < 2 and children.exists():
            self.workers = sorted(map(int, children.read_text().split()))

    def kill(self, worker: int, number: int) -> None:
        """Sends a worker a signal, if it has not ended."""
        self.find_workers()
        if self.process.poll() is None and len(self.workers) == 2:
            os.kill(self.workers[worker], number)

    def ends(self, seconds: float) -> int:
        """The exit status; nothing of the job may be left running then."""
        status = self.process.wait(seconds)
        for worker in self.workers:
            assert not Path(f"/proc/{worker}").exists()
        return status


def steps_of(run: Path) -> list[tuple[str, int]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["split"], line["step"]) for line in lines]


def test_two_workers_train_as_two_replicas_in_one_process(data_file: Path, tmp_path: Path) -> None:
    options = ("--data", data_file, *OPTIONS, "--holdout", "50")
    job = Job(tmp_path, *options, "--run-dir", "two")
    assert job.ends(200) == 0, job.said()
    assert "replicas   2" in job.said()
    one = run_python(
        *(EXPERIMENTS / "mnist_cnn.py", *options, "--strategy", "mirrored", "--run-dir", "one"),
        cwd=tmp_path,
        variables=thread_variables(1),
    )
    assert one.returncode == 0, one.stderr
    assert left_by(tmp_path / "two") == left_by(tmp_path / "one")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, ["TF_CONFIG is not set", "python -m research launch", "--strategy default"]),
        ({"TF_CONFIG": "{"}, ["TF_CONFIG={", '"cluster"']),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}}'}, ["'task'", '"index": 0']),
        (
            {
                "TF_CONFIG": json.dumps(
                    {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}
                )
            },
            ["out of range", "another index on each worker"],
        ),
    ],
)
def test_workers_that_are_not_named_are_refused(
    variables: dict[str, str], words: list[str], run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = run_here(EXPERIMENTS / "mnist_cnn.py", "--strategy", "multi_worker")
    assert result.status == 2
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_the_workers_are_those_of_tf_config_or_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    config = {"cluster": jobs, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert cluster() == (["a:1", "b:1", "c:1"], 2)
    monkeypatch.delenv("TF_CONFIG")
    variables = {"NODELIST": "n[9-10]", "TASKS_PER_NODE": "2,1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_STEP_{name}", value)
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    monkeypatch.setenv("SLURM_PROCID", "2")
    # Slurm numbers its tasks in the order of its list of nodes, n9 before n10.
    assert cluster() == (["n9:22345", "n9:22346", "n10:22345"], 2)
    monkeypatch.setenv("SLURM_PROCID", "3")
    with pytest.raises(InputError, match="srun"):
        cluster()


@pytest.mark.slow
@pytest.mark.parametrize("worker", [0, 1])
def test_a_signal_at_one_worker_stops_all_after_the_same_step(
    worker: int, data_file: Path, tmp_path: Path
) -> None:
    options = ("--data", data_file, *OPTIONS, "--epochs", "400", "--run-dir", "run")
    job = Job(tmp_path, *options)
    job.wait_for("epoch   2/400")
    job.kill(worker, signal.SIGTERM)
    assert job.ends(SECONDS_TO_END) == 128 + signal.SIGTERM
    found = re.search(r"Stopped by SIGTERM.* after step (\d+) of 4000\. Go on: (.*)\n", job.said())
    assert found is not None, job.said()
    assert "research launch" in found[2]
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert newest.name == f"step-{int(found[1]):08d}.safetensors"
    assert len(set(steps_of(tmp_path / "run"))) == len(steps_of(tmp_path / "run"))


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them, as root on Linux; their names."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("network namespaces need ip, and root")
    names = [f"machine-{os.getpid()}-{number}" for number in range(2)]
    ends = [f"end{number}-{os.getpid()}" for number in range(2)]
    commands = [f"link add {ends[0]} type veth peer name {ends[1]}"]
    for number, (name, end) in enumerate(zip(names, ends, strict=True)):
        commands += [f"netns add {name}", f"link set {end} netns {name}"]
        commands += [f"-n {name} addr add 10.77.0.{number + 1}/24 dev {end}"]
        commands += [f"-n {name} link set {device} up" for device in ("lo", end)]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"there are no network namespaces here: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_only_the_chiefs_machine_needs_the_run(
    two_machines: list[str], data_file: Path, tmp_path: Path
) -> None:
    addresses = ["10.77.0.1:4711", "10.77.0.2:4711"]
    first = ("--data", data_file, *OPTIONS, "--strategy", "multi_worker", "--run-dir", "run")
    for options in (first, ("--resume", "run", "--epochs", "3")):
        processes = []
        for number, machine in enumerate(two_machines):
            folder = tmp_path / machine
            folder.mkdir(exist_ok=True)
            task = {"type": "worker", "index": number}
            config = json.dumps({"cluster": {"worker": addresses}, "task": task})
            command = ["ip", "netns", "exec", machine, sys.executable]
            command += map(str, [EXPERIMENTS / "mnist_cnn.py", *options])
            variables = os.environ | thread_variables(1) | {"TF_CONFIG": config}
            with (tmp_path / f"{machine}.txt").open("wb") as output:
                streams: dict[str, Any] = {"stdout": output, "stderr": subprocess.STDOUT}
                processes.append(subprocess.Popen(command, cwd=folder, env=variables, **streams))
        said = tmp_path / f"{two_machines[0]}.txt"
        assert [process.wait(200) for process in processes] == [0, 0], said.read_text()
    assert "Resuming run after step 20" in said.read_text()
    assert [len(list((tmp_path / machine).iterdir())) for machine in two_machines] == [1, 0]


@pytest.mark.slow
def test_a_job_whose_workers_are_killed_ends_as_an_undisturbed_one(
    data_file: Path, tmp_path: Path
) -> None:
    """Kills of a random worker, at random moments from the first import to the export."""
    options = (*OPTIONS, "--holdout", "50", "--checkpoint-every", "3", "--epochs", "6")
    first = ("--data", data_file, *options, "--run-dir")
    undisturbed = Job(tmp_path, *first, "undisturbed")
    assert undisturbed.ends(300) == 0, undisturbed.said()
    expected, moments, kills = left_by(tmp_path / "undisturbed"), random.Random(0), 0
    for number in range(100):
        run = tmp_path / f"run-{number}"
        while not (run / "finished.json").exists():
            job = Job(tmp_path, *(("--resume", run) if run.exists() else (*first, run)))
            if kills < KILLS:
                kills += 1
                job.wait_for(moments.choice(["images", "Ready", "Ready", "Ready", "epoch"]))
                time.sleep(moments.uniform(0, 6))
                worker = moments.randrange(2)
                job.kill(worker, signal.SIGKILL)
                begun = time.monotonic()
                status = job.ends(SECONDS_TO_END)
                print(kills, run.name, worker, status, f"{time.monotonic() - begun:.1f} s")
                print(job.said()[-600:])
                assert status in (0, 1), job.said()
                assert status == 0 or "was killed by SIGKILL" in job.said()
            else:
                assert job.ends(300) == 0, job.said()
        assert left_by(run) == expected
        assert len(set(steps_of(run))) == len(steps_of(run))
        if kills == KILLS:
            return
