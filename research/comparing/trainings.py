"""Runs trainings side by side, each in a process of its own, on cores of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from research.comparing import serve
from research.errors import InputError, StorageError
from research.files import json_lines, storage_errors
from research.recording.environment import cores
from research.recording.metrics import NAME as METRICS
from research.recording.metrics import VALIDATION

# A training that was killed so often in a row is not repeated any more.
MOST_KILLS = 5
_SECONDS_TO_CLOSE = 35


@dataclasses.dataclass(frozen=True)
class Task:
    """A training to run.

    Attributes:
        key: what the caller knows the training by.
        name: what a user knows it by.
        root: the folder of the code, which holds ``research``.
        file: the experiment's file.
        arguments: the experiment's command line, without a directory.
        run: the run directory; if it exists, the training is resumed.
    """

    key: Any
    name: str
    root: Path
    file: Path
    arguments: Sequence[str]
    run: Path

    @property
    def output(self) -> Path:
        """The file for what the training prints."""
        return self.run.with_name(f"{self.run.name}.txt")


@dataclasses.dataclass(frozen=True)
class Ended:
    """A training that has ended.

    Attributes:
        task: the training.
        status: its exit status; 0 if it has finished.
        seconds: how long it took.
        peak_memory: the most that it had in memory, in bytes.
        whole: whether it ran in one go.
    """

    task: Task
    status: int
    seconds: float
    peak_memory: int
    whole: bool


class Trainers:
    """Processes that run trainings: as many at a time as ``workers`` says.

    A program (``research.comparing.serve``) for each version of the code imports TensorFlow once
    and runs each training in a fork of itself, so that no training waits for imports. A training
    that was killed, or asked to stop by somebody else, is resumed.

    Args:
        workers: number of trainings at a time.
        threads: number of threads of each.
        folder: where the programs write what they have to say.
        lock: a descriptor that stays open as long as a training runs, or None.
    """

    def __init__(self, workers: int, threads: int, folder: Path, lock: int | None = None) -> None:
        self.workers, self._threads, self._folder, self._lock = workers, threads, folder, lock
        self._servers: dict[Path, _Server] = {}
        self._running: dict[int, _Running] = {}
        self._again: list[Task] = []
        self._kills: Counter[Any] = Counter()
        self._unwanted: set[Any] = set()
        self._orphans: dict[int, float] = {}  # process ids, and until when to wait for them
        self._number = 0

    @property
    def running(self) -> dict[Any, float]:
        """The keys of the trainings that have not ended, and for how many seconds they run."""
        now = time.monotonic()
        waiting = {task.key: 0.0 for task in self._again}
        return waiting | {each.task.key: now - each.begun for each in self._running.values()}

    def validations(self, key: Any) -> list[dict[str, Any]]:
        """What a training that is running has recorded of its validations so far."""
        runs = [each.task.run for each in self._running.values() if each.task.key == key]
        lines = [line for run in runs for line in json_lines(run / METRICS)]
        return [line for line in lines if line.get("split") == VALIDATION]

    def has_room(self) -> bool:
        """Whether another training can start; those that were killed come first."""
        return not self._again and self._has_place()

    def _has_place(self) -> bool:
        now = time.monotonic()
        # Trainings of a server that was killed stop by themselves, a little later. Until then
        # they may still create the run directories that they are to be resumed from.
        self._orphans = {
            p: until for p, until in self._orphans.items() if _lives(p) and now < until
        }
        return not self._orphans and len(self._running) < self.workers

    def start(self, task: Task) -> None:
        """Starts a training, or resumes it if its run directory exists."""
        server = self._servers.get(task.root)
        if server is None:
            server = _Server(task.root, self._threads, self._folder, self._lock)
            self._servers[task.root] = server
        used = {each.place for each in self._running.values()}
        place = next(n for n in range(self.workers) if n not in used)
        resumed = os.path.lexists(task.run)
        words = ["--resume"] if resumed else [*task.arguments, "--run-dir"]
        self._number += 1
        self._running[self._number] = _Running(task, server, time.monotonic(), place, not resumed)
        server.ask(
            {
                "id": self._number,
                "file": str(task.file),
                "arguments": [*words, str(task.run)],
                "output": str(task.output),
                "cores": _cores(place, self.workers, self._threads),
            }
        )

    def stop(self, key: Any) -> None:
        """Asks a training to stop; it is not resumed, and ends with the status of its signal."""
        self._unwanted.add(key)
        self._again = [task for task in self._again if task.key != key]
        for each in self._running.values():
            if each.task.key == key and each.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGTERM)

    def wait(self, seconds: float) -> list[Ended]:
        """Resumes trainings that were killed, and waits for at most so many seconds.

        Returns:
            The trainings that have ended.

        Raises:
            InputError: if a version of the code can't be imported.
            StorageError: if a training was killed ``MOST_KILLS`` times.
        """
        while self._again and self._has_place():
            self.start(self._again.pop(0))
        by_stream = {server.answers: server for server in self._servers.values()}
        if not by_stream:
            time.sleep(seconds)
            return []
        ended = []
        for stream in select.select(list(by_stream), [], [], seconds)[0]:
            server = by_stream[stream]
            for answer in server.read():
                if "pid" in answer:
                    self._running[answer["id"]].pid = answer["pid"]
                elif "status" in answer:
                    each, status = self._running.pop(answer["id"]), answer["status"]
                    if (status < 0 or status > 128) and each.task.key not in self._unwanted:
                        self._repeat(each.task, status)
                    else:
                        facts = (status, answer["seconds"], answer["peak_memory"])
                        ended.append(Ended(each.task, *facts, each.whole))
            if server.has_ended:
                self._replace(server)
        return ended

    def _repeat(self, task: Task, status: int) -> None:
        if task.key in self._unwanted:
            return
        self._kills[task.key] += 1
        if self._kills[task.key] == MOST_KILLS:
            raise StorageError(
                f"{task.name}: was killed {MOST_KILLS} times (status {status}), for want of memory "
                f"perhaps; see {task.output}; fewer --workers need less"
            )
        self._again.append(task)

    def _replace(self, server: _Server) -> None:
        """Repeats the trainings of a server that was killed, once they have stopped."""
        del self._servers[server.root]
        server.ask_to_end()
        if server.end() >= 0 and not server.was_ready:
            said = server.log.read_text(errors="replace").strip().splitlines()
            reason = said[-1] if said else "it said nothing"
            raise InputError(f"{server.root}: its code can't be imported ({reason[:300]})")
        for number, each in list(self._running.items()):
            if each.server is server:
                del self._running[number]
                if each.pid is not None:
                    self._orphans[each.pid] = time.monotonic() + _SECONDS_TO_CLOSE
                self._repeat(each.task, -9)

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers.values():
            server.ask_to_end()
        for server in self._servers.values():
            server.end()


@dataclasses.dataclass
class _Running:
    task: Task
    server: _Server
    begun: float
    place: int
    whole: bool
    pid: int | None = None


class _Server:
    """The program ``research.comparing.serve`` for one version of the code."""

    def __init__(self, root: Path, threads: int, folder: Path, lock: int | None) -> None:
        self.root, self.log = root, folder / f"server-{root.name}.txt"
        self.was_ready = self.has_ended = False
        self._pending = b""
        environment = dict(os.environ) | thread_variables(threads)
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(root), os.environ.get("PYTHONPATH")])
        )
        with storage_errors(self.log):
            log = self.log.open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, serve.__file__, str(root), *([] if lock is None else [str(lock)])],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in a terminal is for the comparison alone
                pass_fds=() if lock is None else (lock,),
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._questions: IO[bytes] = self._process.stdin
        self.answers: IO[bytes] = self._process.stdout

    def ask(self, task: Mapping[str, Any]) -> None:
        """Sends a task. One that is lost with the server comes back as killed."""
        with contextlib.suppress(BrokenPipeError):
            self._questions.write(json.dumps(task).encode() + b"\n")

    def read(self) -> Iterator[dict[str, Any]]:
        """The answers that are there."""
        block = os.read(self.answers.fileno(), 65536)
        self.has_ended = not block
        *lines, self._pending = (self._pending + block).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self.was_ready = True
            yield answer

    def ask_to_end(self) -> None:
        """Lets the server stop its trainings and end."""
        with contextlib.suppress(OSError):
            self._questions.close()

    def end(self) -> int:
        """Waits until it has ended, and kills it if it does not; returns its exit status."""
        try:
            self._process.wait(_SECONDS_TO_CLOSE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.answers.close()
        return self._process.returncode


def thread_variables(threads: int) -> dict[str, str]:
    """The environment variables that give a training so many threads."""
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def _cores(place: int, workers: int, threads: int) -> list[int]:
    """The cores of a worker; none, which lets the system choose, unless workers need them all."""
    all_of_them = workers * threads == len(cores())
    return cores()[place * threads : (place + 1) * threads] if all_of_them else []


def cores_here() -> int:
    """The number of cores that this process may use."""
    return len(cores()) or os.cpu_count() or 1


def trainings_at_a_time(threads: int) -> int:
    """As many as the cores have room for; one where there is a GPU, which they would share."""
    import tensorflow as tf  # takes seconds; `runs` and `diff` need none

    if tf.config.list_physical_devices("GPU"):
        return 1
    return max(1, cores_here() // threads)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # the number belongs to another user's process by now
    return True
