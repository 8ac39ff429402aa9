"""The verb ``launch``: an experiment on several workers of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from research.comparing.trainings import cores_here, thread_variables
from research.errors import InputError
from research.screen import Screen
from research.signals import StopRequest
from research.stderr import show_error
from research.verbs import Launch

# Workers that have not ended so long after a signal, or after one of them has failed, are killed.
SECONDS_TO_END = 25
_LAST_LINES = 20
STRATEGY = ("--strategy", "multi_worker")


def run(asked: Launch, screen: Screen) -> None:
    """Trains, with the chief's output on the screen; the others' is shown where it explains more.

    Raises:
        InputError: if there is no such experiment.
        SystemExit: with the workers' exit status if they have not finished; 1 if one was killed.
    """
    if not os.path.isfile(asked.experiment):
        raise InputError(f"{asked.experiment}: no such file; name an experiment")
    with StopRequest(say=False) as stop, contextlib.ExitStack() as stack:
        outputs = [
            stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            for _ in range(asked.workers)
        ]
        workers = [
            subprocess.Popen(
                [sys.executable, str(asked.experiment), *asked.options, *STRATEGY],
                env=os.environ | variables,
                stdout=outputs[number] if number else None,
                stderr=outputs[number] if number else screen.stderr,
                start_new_session=True,  # Ctrl-C in a terminal is for this process alone
            )
            for number, variables in enumerate(environments(asked))
        ]
        try:
            order = wait(workers, stop)
        finally:
            for worker in workers:
                worker.kill()
        statuses = [worker.returncode for worker in workers]
        for number in to_explain(order, statuses):
            outputs[number].seek(0)
            for line in outputs[number].read().strip().splitlines()[-_LAST_LINES:]:
                show_error(f"worker {number}: {line}")
    if any(statuses) and stop.is_set():
        raise SystemExit(stop.exit_status)
    if failed := [number for number in order if statuses[number]]:
        first, status = name(failed[0]), statuses[failed[0]]
        if status < 0:
            show_error(f"error: {first} was killed by {signal.Signals(-status).name}")
        raise SystemExit(max(statuses) if min(statuses) >= 0 else 1)


def environments(asked: Launch) -> list[dict[str, str]]:
    """The environment variables of each worker: TF_CONFIG, and its share of the cores."""
    threads = asked.threads or max(1, cores_here() // asked.workers)
    words = ["python", "-m", "research", "launch", "--workers", str(asked.workers)]
    words += ["--threads", str(asked.threads)] * (asked.threads is not None)
    config = {
        "cluster": {"worker": [f"127.0.0.1:{port}" for port in free_ports(asked.workers)]},
        "launch": {"words": [*words, str(asked.experiment)], "parent": os.getpid()},
    }
    return [
        {"TF_CONFIG": json.dumps(config | {"task": {"type": "worker", "index": number}})}
        | thread_variables(threads)
        for number in range(asked.workers)
    ]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, as many as asked for."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def wait(workers: Sequence[subprocess.Popen[bytes]], stop: StopRequest) -> list[int]:
    """Waits for all workers, and sends each a signal that comes; returns the order of their ends.

    Workers that are left when one has failed, or when a signal has come, are killed after
    ``SECONDS_TO_END``.
    """
    order: list[int] = []
    sent, until = False, float("inf")
    while len(order) < len(workers):
        for number, worker in enumerate(workers):
            if number not in order and worker.poll() is not None:
                order.append(number)
                if worker.returncode:
                    until = min(until, time.monotonic() + SECONDS_TO_END)
        if stop.signal is not None and not sent:
            sent, until = True, time.monotonic() + SECONDS_TO_END
            for worker in workers:
                worker.send_signal(stop.signal)
        if time.monotonic() > until:
            until = float("inf")
            for number, worker in enumerate(workers):
                if number not in order:
                    show_error(f"{name(number)} has not ended after {SECONDS_TO_END} s: killed")
                    worker.kill()
        time.sleep(0.05)
    return order


def name(number: int) -> str:
    """A worker as people know it."""
    return f"worker {number}" if number else "the chief"


def to_explain(order: Sequence[int], statuses: Sequence[int]) -> list[int]:
    """The workers, without the chief, whose output explains what the chief's does not."""
    if statuses[0] < 0:
        return [number for number in order if number and statuses[number] > 0][:1]
    first = next((number for number in order if statuses[number]), 0)
    return [first] if first and statuses[first] not in (statuses[0], -signal.SIGKILL) else []
