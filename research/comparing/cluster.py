"""Runs trainings on the workers of a Dask cluster, by the same few functions as on this machine.

``dask.distributed`` hands a training whose worker has died to another one. Where that worker can
reach the directory of the comparison or sweep, the training is resumed, else repeated, and its run
directory is sent back. A worker runs it as this machine would, see ``trainings``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
import tarfile
import tempfile
import time
import uuid
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from research.comparing.checkout import PROJECT
from research.comparing.comparison import describe_machine
from research.comparing.trainings import MOST_KILLS, Ended, Task, Trainers, trainings_at_a_time
from research.errors import InputError, StorageError, one_line
from research.files import read_object, replaced_atomically, storage_errors
from research.recording.code import library_sha256
from research.recording.run_directory import is_locked
from research.recording.source import commit_of

# Its content tells a worker that the directory it sees at a path is the user's.
_TOKEN = "cluster.txt"
_SECONDS_TO_CONNECT = 10
_SECONDS_BETWEEN_LOOKS = 0.01


@dataclasses.dataclass(frozen=True)
class Job:
    """A training as it is sent to a worker.

    Attributes:
        task: the training.
        threads: number of threads.
        token, secret: a file in the user's directory, and its content, which is also the topic of
            the events that tell of validations.
        code: the code to run, as a ZIP archive of the folder that holds ``task.root``.
        facts: the versions that the worker must have, see ``versions``.
    """

    task: Task
    threads: int
    token: Path
    secret: str
    code: bytes
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a worker sends back.

    Attributes:
        refused: the worker's address and why it can't run the training; None if it has.
        facts: of ``Ended``: status, seconds, peak_memory and whole.
        files: the run directory and what the training printed, as a tar archive; empty where the
            user's directory has them.
    """

    refused: tuple[str, str] | None = None
    facts: tuple[int, float, int, bool] = (0, 0.0, 0, True)
    files: bytes = b""


def versions() -> dict[str, Any]:
    """What must be the same here and on a worker: commit, library, Python and packages."""
    machine = describe_machine()
    commit = commit_of(PROJECT / "research" / "__init__.py")
    same = {"commit": commit and commit[:12], "Python": machine["python"], **machine["packages"]}
    return same | {"library": library_sha256(PROJECT)}


@functools.cache
def own_versions() -> dict[str, Any]:
    """The versions of this worker; what is edited later is not what it runs."""
    return versions()


def difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """The first version that differs on a worker, in words; empty if none does."""
    for name, value in here.items():
        if there.get(name) != value:
            if name == "library":
                return "the code in research/ is another one there; put the same code there"
            other = there.get(name) or "missing"
            return f"{name} is {other} there, {value or 'missing'} here; put the same one there"
    return ""


class Cluster:
    """Workers of a Dask cluster that run trainings; used like ``trainings.Trainers``.

    Args:
        address: the scheduler's, or a file that it has written it into (--scheduler-file).
        threads: number of threads of each training.
        folder: the directory of the comparison, sweep or study.
        say: is called with a line for the user.
        most: number of trainings at a time; None takes as many as the workers have threads.

    Raises:
        InputError: if Dask is missing here, no scheduler answers, or a worker has other versions.
    """

    def __init__(
        self,
        address: str,
        threads: int,
        folder: Path,
        say: Callable[[str], None],
        most: int | None = None,
    ) -> None:
        self._address, self._threads, self._say, self._most = address, threads, say, most
        self._facts, self._secret = versions(), uuid.uuid4().hex
        self._token = folder.absolute() / _TOKEN
        self._stack = contextlib.ExitStack()
        self._client = self._stack.enter_context(_connected(address))
        self._workers, self._looked = dict[str, int](), 0.0
        self._refused: set[str] = set()
        _refuse_others(self._client, self._facts)
        # Of each training, by its name, the lines on its validations by their numbers.
        self._validations: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self._client.subscribe_topic(self._secret, self._hear)
        self._sent: dict[Any, _Sent] = {}
        self._again: list[Task] = []
        self._is_waiting = False
        self._kills: Counter[Any] = Counter()
        with storage_errors(self._token):  # after all that refuses
            self._token.write_text(self._secret)

    @property
    def workers(self) -> int:
        """The number of trainings at a time."""
        return max(1, self._room())

    @property
    def running(self) -> dict[Any, float]:
        """The keys of trainings that have not ended, and for how many seconds they are out."""
        now = time.monotonic()
        waiting = {task.key: 0.0 for task in self._again}
        return waiting | {key: now - sent.begun for key, sent in self._sent.items()}

    def _room(self) -> int:
        if time.monotonic() > self._looked + 1:
            try:
                there, known = self._client.nthreads(), self._workers
                reasons = _refusals(self._client, self._facts, there.keys() - known.keys())
            except OSError as error:
                raise self._lost() from error
            for worker, reason in reasons.items():
                self._refuse(worker, reason)
            self._workers = {w: n for w, n in there.items() if w in known or w in reasons}
            self._looked = time.monotonic()
        there = sum(n for worker, n in self._workers.items() if worker not in self._refused)
        return there if self._most is None else min(there, self._most)

    def _lost(self) -> StorageError:
        return StorageError(
            f"--scheduler {self._address}: it can't be reached any more; start it again, and give "
            "the command again"
        )

    def _refuse(self, worker: str, reason: str) -> None:
        if reason and worker not in self._refused:
            self._refused.add(worker)
            self._say(f"Worker {worker} is refused: {reason}")

    def _hear(self, event: tuple[float, tuple[str, int, dict[str, Any]]]) -> None:
        name, number, line = event[1]
        self._validations[name][number] = line

    def validations(self, key: Any) -> list[dict[str, Any]]:
        """What a training that is running has recorded of its validations so far."""
        there = self._validations[self._sent[key].task.name] if key in self._sent else {}
        return list(there.values())

    def has_room(self) -> bool:
        """Whether another training can start; those that were lost come first."""
        return not self._again and len(self._sent) < self._room()

    def start(self, task: Task) -> None:
        """Sends a training to a worker."""
        absolute = {name: getattr(task, name).absolute() for name in ("root", "file", "run")}
        task = dataclasses.replace(task, **absolute)
        code = _packed_code(task.root, task.file.parent)
        job = Job(task, self._threads, self._token, self._secret, code, self._facts)
        # Where no worker has been refused, one that joins later may take it, too.
        good = [w for w in self._workers if w not in self._refused] if self._refused else None
        future = self._client.submit(
            run_here,
            job,
            key=f"{task.name} {uuid.uuid4().hex}",
            pure=False,
            workers=good,
        )
        self._sent[task.key] = _Sent(future, task, time.monotonic(), good)

    def stop(self, key: Any) -> None:
        """Asks a training to stop; it does not end for the caller."""
        self._again = [task for task in self._again if task.key != key]
        if key in self._sent:
            self._sent.pop(key).future.cancel()

    def wait(self, seconds: float) -> list[Ended]:
        """Waits for at most so many seconds; returns the trainings that have ended.

        Raises:
            StorageError: if a training failed on the cluster, or the scheduler is gone.
        """
        if self._client.status != "running":
            raise self._lost()
        while self._again and len(self._sent) < self._room():
            self.start(self._again.pop(0))
        if not self._room() and not self._is_waiting:
            self._say("No worker is there yet; waiting for one ...")
        self._is_waiting = not self._room()
        until = time.monotonic() + seconds
        while time.monotonic() < until and not any(s.future.done() for s in self._sent.values()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        ended = []
        for key, sent in list(self._sent.items()):
            if sent.future.done():
                del self._sent[key]
                if (one := self._ended(sent.future, sent.task)) is None:
                    self._again.append(sent.task)
                else:
                    ended.append(one)
            elif sent.workers is not None and self._workers.keys().isdisjoint(sent.workers):
                del self._sent[key]  # all that may run it are gone; others may have come
                sent.future.cancel()
                self._again.append(sent.task)
        return ended

    def _ended(self, future: Any, task: Task) -> Ended | None:
        """The end of a training; None if it is to be sent out again."""
        if future.status != "finished":
            error = None if future.cancelled() else future.exception()
            self._kills[task.key] += 1
            self._looked = 0.0  # perhaps by a worker that has joined just now, with other code
            if self._kills[task.key] == MOST_KILLS:
                reason = one_line(error) if error else "lost by the scheduler"
                raise StorageError(f"{task.name}: {reason[:300]}; give the command again")
            return None
        answer = future.result()
        if answer.refused is not None:
            self._refuse(*answer.refused)
            return None
        if answer.files:
            _unpack(answer.files, task)
        return Ended(task, *answer.facts)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        for sent in self._sent.values():
            with contextlib.suppress(Exception):
                sent.future.cancel()  # the worker stops the training, which saves a checkpoint
        self._stack.close()
        with contextlib.suppress(OSError):
            self._token.unlink()


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A training on its way: since when, and the workers that may run it (None: all)."""

    future: Any
    task: Task
    begun: float
    workers: list[str] | None


# What runs trainings.
Engine = Trainers | Cluster


def engine(
    scheduler: str | None,
    most: int | None,
    threads: int,
    folder: Path,
    lock: int,
    say: Callable[[str], None],
) -> Engine:
    """Runs trainings on the workers of a scheduler if there is one, else on this machine.

    Args:
        scheduler: the address, or None.
        most: number of trainings at a time; None takes as many as there is room for.
        threads: number of threads of each.
        folder: the directory of the comparison, sweep or study.
        lock: a descriptor that stays open as long as a training runs on this machine.
        say: is called with a line for the user.

    Raises:
        InputError: if the scheduler can't be used, see ``Cluster``.
    """
    if scheduler is not None:
        return Cluster(scheduler, threads, folder, say, most)
    return Trainers(most or trainings_at_a_time(threads), threads, folder, lock)


def room_for(scheduler: str | None, most: int | None, threads: int) -> int:
    """The number of trainings at a time of such an ``engine``.

    Raises:
        InputError: if the scheduler can't be used, see ``Cluster``.
    """
    if scheduler is None:
        return most or trainings_at_a_time(threads)
    with _connected(scheduler) as client:
        _refuse_others(client, versions())
        size = max(1, sum(client.nthreads().values()))
        return size if most is None else min(size, most)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            f'--scheduler {address}: Dask is not installed; pip install -e ".[cluster]"'
        )
    import distributed

    place = address
    if os.path.isfile(address):
        place = str(read_object(Path(address)).get("address"))
    try:
        client = distributed.Client(place, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except Exception as error:  # of many kinds: an address may be odd in many ways
        raise InputError(
            f"--scheduler {address}: no scheduler answers ({one_line(error)[:100]}); start one "
            "with `dask scheduler`, and give the address that it prints"
        ) from error
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=_SECONDS_TO_CONNECT)


def _refuse_others(client: Any, facts: Mapping[str, Any]) -> None:
    """Refuses a cluster with a worker of other versions.

    Raises:
        InputError: with the worker's name.
    """
    for worker, reason in _refusals(client, facts, client.nthreads()).items():
        if reason:
            raise InputError(f"worker {worker}: {reason}")


def _refusals(client: Any, facts: Mapping[str, Any], workers: Iterable[str]) -> dict[str, str]:
    """Why each worker can't run trainings, empty if it can; without those that don't answer."""
    reasons = {}
    found = client.run(own_versions, workers=list(workers), on_error="return") if workers else {}
    for worker, there in found.items():
        if isinstance(there, OSError):
            continue  # it has just died
        reasons[worker] = (
            "research can't be imported there; install the project there"
            if isinstance(there, BaseException)
            else difference(facts, there)
        )
    return reasons


def run_here(job: Job) -> Answer:
    """Runs a training on this worker."""
    import distributed

    worker = distributed.get_worker()
    key = worker.get_current_task()
    if reason := difference(job.facts, own_versions()):
        return Answer(refused=(worker.address, reason))
    task = job.task
    with contextlib.ExitStack() as stack:
        shared = _content(job.token) == job.secret
        folder = job.token.parent
        if not shared:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="research-")))
            task = _moved(task, job.code, folder)
        # A worker that the scheduler takes for dead may still be at work on it.
        while shared and os.path.isdir(task.run) and is_locked(task.run):
            if _is_cancelled(worker, key):
                return Answer()
            time.sleep(0.5)
        with Trainers(1, job.threads, folder) as trainers:
            trainers.start(task)
            told = 0
            while not (ended := trainers.wait(0.5)):
                if _is_cancelled(worker, key):
                    return Answer()
                found = trainers.validations(task.key)
                for number, line in enumerate(found[told:], told):
                    worker.log_event(job.secret, [task.name, number, line])
                told = len(found)
        facts = (ended[0].status, ended[0].seconds, ended[0].peak_memory, ended[0].whole)
        return Answer(None, facts, b"" if shared else _packed_run(task))


def _is_cancelled(worker: Any, key: str) -> bool:
    """Whether nobody waits for a training any more: it was stopped, or its user is gone."""
    state = worker.state.tasks.get(key)
    return state is None or state.state == "cancelled"


def _content(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text()
    return ""


@functools.lru_cache(maxsize=8)  # no copy of the code changes
def _packed_code(root: Path, beside: Path) -> bytes:
    """The Python files of a copy of the code, by path from the folder that holds the copy."""
    content = io.BytesIO()
    files = {*(root / "research").rglob("*.py"), *beside.glob("*.py")}
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            archive.write(path, path.relative_to(root.parent))
    return content.getvalue()


def _moved(task: Task, code: bytes, folder: Path) -> Task:
    """The training in a folder of this worker's own."""
    with zipfile.ZipFile(io.BytesIO(code)) as archive:
        archive.extractall(folder)
    file = folder / task.file.relative_to(task.root.parent)
    root, run = folder / task.root.name, folder / "run" / task.run.name
    run.parent.mkdir()
    return dataclasses.replace(task, root=root, file=file, run=run)


def _packed_run(task: Task) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path, name in ((task.run, "run"), (task.output, "output")):
            if os.path.lexists(path):
                archive.add(path, name)
    return content.getvalue()


def _unpack(files: bytes, task: Task) -> None:
    """Puts a run directory from a worker where the training's belongs, whole or not at all."""
    with storage_errors(task.run), tempfile.TemporaryDirectory(dir=task.run.parent) as temporary:
        with tarfile.open(fileobj=io.BytesIO(files)) as archive:
            archive.extractall(temporary, filter="data")
        for name, path in (("output", task.output), ("run", task.run)):
            made = Path(temporary) / name
            if made.exists():
                with replaced_atomically(path) as partial:
                    made.rename(partial)
