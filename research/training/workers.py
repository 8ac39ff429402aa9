"""Several processes, on one machine or many, that train together: the workers of a job.

Each worker runs the same program, and TensorFlow adds their gradients. The first worker, the chief,
alone writes files. What the clock, a signal or the chief's files decide is agreed here.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from research.errors import InputError, NonFiniteError, WorkerError, one_line
from research.signals import StopRequest
from research.stderr import show_error

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import (
    expand_hostlist,
    expand_tasks_per_node,
)
from tensorflow.python.eager import context

# All workers must have started within so many seconds, and answer within so many.
SECONDS_TO_START, SECONDS_TO_ANSWER = 120, 10
SECONDS_BETWEEN_LOOKS = 2
# On Slurm, the first worker on each machine takes a port from here on, by the number of the job.
FIRST_PORT, PORTS = 20_000, 10_000
_PR_SET_PDEATHSIG = 1

_FORM = (
    'give TF_CONFIG=\'{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", '
    '"index": 0}}\', with another index on each worker'
)


def cluster() -> tuple[list[str], int]:
    """The addresses of all workers, the chief's first, and the number of this one.

    They come from TF_CONFIG, or on Slurm from the variables of a job step.

    Raises:
        InputError: if neither is there, or TF_CONFIG is malformed.
    """
    if (text := os.environ.get("TF_CONFIG")) is None and "SLURM_STEP_NODELIST" in os.environ:
        return _slurm(os.environ)
    if not text:
        raise InputError(
            "--strategy multi_worker: TF_CONFIG is not set, which names the workers; set it, use "
            "srun or python -m research launch, or train in one process with --strategy default"
        )
    try:
        fields = json.loads(text)
        jobs, task = fields["cluster"], fields["task"]
        addresses = [*jobs.get("chief", []), *jobs.get("worker", [])]
        place = jobs[task["type"]].index(jobs[task["type"]][int(task["index"])])
        number = place + (len(jobs.get("chief", [])) if task["type"] == "worker" else 0)
        valid = all(re.fullmatch(r"\S+:\d{1,5}", address) for address in addresses)
        if not valid or jobs.keys() - {"chief", "worker"} or len(set(addresses)) < len(addresses):
            raise ValueError("its workers are no HOST:PORT, each once")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"TF_CONFIG={text[:200]}: {one_line(error)}; {_FORM}") from error
    if "launch" in fields:
        _stop_with(int(fields["launch"]["parent"]))
    return addresses, number


def _stop_with(parent: int) -> None:
    """Lets this process stop as by SIGTERM when its parent ends, however that ends."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended already
            sys.exit(128 + signal.SIGTERM)


def launched_by() -> list[str] | None:
    """The words of ``python -m research launch`` that started this worker, up to its experiment."""
    try:
        words = json.loads(os.environ["TF_CONFIG"])["launch"]["words"]
    except (KeyError, ValueError, TypeError):
        return None
    return [str(word) for word in words]


def _slurm(variables: Any) -> tuple[list[str], int]:
    """The same from the variables that ``srun`` sets; tasks must fill one node after the other."""
    try:
        hosts = expand_hostlist(variables["SLURM_STEP_NODELIST"])
        tasks = expand_tasks_per_node(variables["SLURM_STEP_TASKS_PER_NODE"])
        port = FIRST_PORT + int(variables["SLURM_JOB_ID"]) % PORTS
        pairs = zip(hosts, tasks, strict=True)
        addresses = [f"{host}:{port + k}" for host, count in pairs for k in range(count)]
        return addresses, range(len(addresses))[int(variables["SLURM_PROCID"])]
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"Slurm's variables name no workers ({one_line(error)}); start them with srun, or set "
            "TF_CONFIG"
        ) from error


def join(addresses: Sequence[str], number: int) -> tf.distribute.Strategy:
    """Waits for all workers; returns the strategy that they share.

    A worker that dies later makes the others' collective operations fail: at once if its process
    ends, and after ``SECONDS_TO_ANSWER`` if it does not answer.

    Raises:
        InputError: if a worker does not come, or this one's port is taken.
    """
    tf_context = context.context()
    tf_context.configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=1000 * SECONDS_TO_START,
        heartbeat_timeout_in_ms=1000 * SECONDS_TO_ANSWER,
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=len(addresses))],
    )
    # Without this, the chief would wait for the others for an hour.
    tf_context.coordination_service.cluster_register_with_barrier = True
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=number,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    try:
        with _default_signals():
            return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.DeadlineExceededError as error:
        missing = _name(_lost(error, number) or 0, addresses)
        raise InputError(
            f"{missing} has not come within {SECONDS_TO_START} s; start all workers together, and "
            "see what it says"
        ) from error
    except tf.errors.OpError as error:
        reason = one_line(error)[:100]
        raise InputError(
            f"{addresses[number]}: this worker can't listen there ({reason}); is the port taken? "
            "Name another in TF_CONFIG"
        ) from error


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """Lets Ctrl-C end the process while TensorFlow waits; undoes what it does to SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _name(number: int, addresses: Sequence[str]) -> str:
    """A worker as people know it."""
    return f"{f'worker {number}' if number else 'the chief'} ({addresses[number]})"


def _lost(error: BaseException, own: int) -> int | None:
    """The number of the first worker, but this one, that an error of TensorFlow names."""
    text = str(error)
    _, missing, names = text.partition("timed out task names:")
    numbers = map(int, re.findall(r"/job:worker/\S*?task:(\d+)", names if missing else text))
    return next((number for number in numbers if number != own), None)


def _listens(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Workers:
    """The workers of a job, seen by one of them. A program that trains alone is the only one.

    Attributes:
        strategy: their strategy.
        addresses: HOST:PORT of each, the chief's first; of a program that trains alone, one.
        number: the number of this worker; 0 is the chief.
    """

    strategy: tf.distribute.Strategy
    addresses: Sequence[str] = ("",)
    number: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the files."""
        return self.number == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return len(self.addresses) > 1

    @property
    def on_each(self) -> str:
        """For messages: where a command has to be given; empty if once is enough."""
        return " on each worker" if self.several and launched_by() is None else ""

    def name(self, number: int) -> str:
        """A worker as people know it."""
        return _name(number, self.addresses)

    def gather(self, *own: int) -> npt.NDArray[np.int64]:
        """What each worker gives, int64 [workers, numbers]; all workers must call this."""
        rows = np.zeros((len(self.addresses), len(own)), np.int64)
        rows[self.number] = own
        return self.sum(rows)

    def by_chief(self, work: Callable[[], Any]) -> Any:
        """What a function returns at the chief, which alone calls it; at the others a copy.

        Args:
            work: returns what JSON can hold.

        Raises:
            InputError, NonFiniteError: on all workers, if ``work`` raises it.
        """
        if not self.several:
            return work()
        answer: dict[str, Any] = {}
        if self.is_chief:
            try:
                answer["returned"] = work()
            except (InputError, NonFiniteError) as error:
                answer = {"raised": type(error).__name__, "message": str(error)}
        answer = json.loads(self.from_chief(json.dumps(answer).encode()))
        if "raised" in answer:
            kind = NonFiniteError if answer["raised"] == "NonFiniteError" else InputError
            raise kind(answer["message"])
        return answer["returned"]

    def status_of_chief(self, own: int) -> int:
        """The chief's exit status, which the others wait for while it exports and evaluates."""
        try:
            return int(self.gather(own)[0, 0])
        except tf.errors.OpError:
            if self.is_chief:  # it has all that it needs
                return own
            raise

    def from_chief(self, content: bytes = b"") -> bytes:
        """The chief's bytes, on all workers."""
        if not self.several:
            return content
        size = int(self.gather(len(content) * self.is_chief)[0, 0])
        words = np.zeros(-(-size // 8), np.int64)
        if self.is_chief:
            words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
        return self.sum(words).tobytes()[:size]

    def sum(self, own: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum over the workers of an array: int64, float32 or float64."""
        if not self.several:
            return own
        with tf.device("CPU:0"):
            total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, tf.constant(own), axis=None)
        found: npt.NDArray[Any] = total.numpy()
        return found

    @contextlib.contextmanager
    def watching_others(self, remedy: str) -> Iterator[None]:
        """A context for long work without the others: the loss of one ends the process.

        Nobody would hear of the loss before the next collective operation. The chief looks after
        all others, and they after the chief.

        Args:
            remedy: what to do then.
        """
        left = threading.Event()

        def watch() -> None:
            lost: list[int] = []
            while not left.wait(SECONDS_BETWEEN_LOOKS):
                before = lost
                others = range(1, len(self.addresses)) if self.is_chief else range(1)
                lost = [number for number in others if not _listens(self.addresses[number])]
                if (twice := [number for number in lost if number in before]) and not left.is_set():
                    name = self.name(twice[0])
                    show_error(f"error: {name} has ended, or can't be reached; {remedy}")
                    time.sleep(0.5)  # a thread shows the line
                    os._exit(1)

        if self.several:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            left.set()

    @contextlib.contextmanager
    def lost_ones_named(self, remedy: str) -> Iterator[None]:
        """A context in which the loss of a worker raises an error of one line.

        Args:
            remedy: what to do then.

        Raises:
            WorkerError: if TensorFlow reports that a worker can't be reached.
        """
        try:
            yield
        except tf.errors.OpError as error:
            lost = _lost(error, self.number)
            if not self.several or lost is None:
                raise
            name = self.name(lost)
            raise WorkerError(f"{name} has ended, or can't be reached; {remedy}") from error


class Agreement:
    """What the workers agree on after each call of the compiled function.

    Attributes:
        stop: the request to stop that all workers have heard of, after the same step.
    """

    def __init__(self, workers: Workers, own: StopRequest) -> None:
        self._workers, self._own = workers, own
        self.stop = StopRequest()  # never entered: only ``__call__`` sets it

    def __call__(self, early: bool, seconds: float) -> tuple[bool, float]:
        """Whether any worker wants an early report, and the mean of their seconds."""
        rows = self._workers.gather(self._own.signal or 0, early, round(1e6 * seconds))
        for number, sent in enumerate(rows[:, 0]):
            if sent and not self.stop.is_set():
                for stop in (self.stop, self._own):
                    stop.signal = signal.Signals(sent)
                    stop.place = f" at {self._workers.name(number)}"
        return bool(rows[:, 1].any()), max(1e-6, float(rows[:, 2].mean()) / 1e6)


def workers_of(strategy: tf.distribute.Strategy) -> Workers:
    """The workers that share a strategy."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return Workers(strategy)
    addresses = resolver.cluster_spec().job_tasks("worker")
    return Workers(strategy, addresses, resolver.task_id)
