"""Runs trainings in processes that have imported TensorFlow already; a program of its own.

``research.comparing.trainings`` starts it, with the code to run in PYTHONPATH. That code may be of
another commit, so this file imports nothing of it by a fixed name but ``research``.

Its arguments are the folder of that code and, if there is one, a descriptor with a lock, which
trainings keep open. Standard input has a line of JSON for each training: ``id``, ``file``,
``arguments``, ``output`` (the file for what it prints) and ``cores`` (to run on; none: any).
Standard output gets a line when it begins (``id``, ``pid``) and one when it has ended (``id``,
``status`` as in ``subprocess``, ``seconds``, ``peak_memory`` in bytes). When standard input ends,
trainings are asked to stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

# What a training imports sooner or later.
MODULES = (
    *("research.experiment", "research.__main__"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg"),
)
_SECONDS_TO_STOP = 30
_PR_SET_PDEATHSIG = 1
# The unit of ru_maxrss.
_BYTES = 1 if sys.platform == "darwin" else 1024


def main() -> None:
    # The folder of this file is nothing for trainings; with some options Python leaves it out.
    sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
    answers = os.dup(1)
    os.dup2(2, 1)  # what an import prints is no answer
    for name in MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    root, library = Path(sys.argv[1]).resolve(), importlib.import_module("research").__file__
    if library is None or not Path(library).resolve().is_relative_to(root):
        sys.exit(f"research is imported from {library}, and not from {root}")
    # A child that ends wakes select() through this pipe.
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, tuple[int, float]] = {}
    pending, stop_by = b"", None
    _answer(answers, {"ready": True})
    while stop_by is None or children:
        readable = select.select([woken] if stop_by else [0, woken], [], [], 1)[0]
        if woken in readable:
            os.read(woken, 4096)
        if 0 in readable:
            if block := os.read(0, 65536):
                *lines, pending = (pending + block).split(b"\n")
                for line in lines:
                    task = json.loads(line)
                    pid = _start(task)
                    children[pid] = (task["id"], time.monotonic())
                    _answer(answers, {"id": task["id"], "pid": pid})
            else:
                stop_by = time.monotonic() + _SECONDS_TO_STOP
                _signal(children, signal.SIGTERM)
        if stop_by is not None and time.monotonic() > stop_by:
            _signal(children, signal.SIGKILL)
        for pid in list(children):
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                number, begun = children.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                seconds, memory = time.monotonic() - begun, usage.ru_maxrss * _BYTES
                facts = {"status": code, "seconds": seconds, "peak_memory": memory}
                _answer(answers, {"id": number, **facts})


def _signal(children: dict[int, Any], number: int) -> None:
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _answer(descriptor: int, facts: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # then standard input has ended, too
        os.write(descriptor, json.dumps(facts).encode() + b"\n")


def _start(task: dict[str, Any]) -> int:
    """Starts a training; returns its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(task, server)
    return pid


def _become(task: dict[str, Any], server: int) -> NoReturn:
    """Makes this process one that was started by ``python FILE ARGUMENTS``."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.suppress(OSError, AttributeError):  # Linux only
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != server:  # it has ended before the line above
            os._exit(128 + signal.SIGTERM)
        null = os.open(os.devnull, os.O_RDONLY)
        output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for descriptor, number in ((null, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, number)
        _close_all_but(*map(int, sys.argv[2:]))
        if task["cores"]:
            os.sched_setaffinity(0, task["cores"])
        _run(task["file"], task["arguments"])
    except SystemExit as stop:
        _exit(stop.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        _exit(1)
    _exit(0)


def _close_all_but(*kept: int) -> None:
    for descriptor in range(3, 1024):
        if descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _run(file: str, arguments: list[str]) -> None:
    sys.argv = [file, *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path.insert(0, str(Path(file).parent))
    # The time of this process begins now, not with the imports of the server.
    for name in ("research", "research.experiment"):
        if hasattr(sys.modules.get(name), "BEGUN"):
            sys.modules[name].BEGUN = time.monotonic()  # type: ignore[attr-defined]
    runpy.run_path(file, run_name="__main__")


def _exit(code: Any) -> NoReturn:
    """Ends this process at once, without what the server would do at its end."""
    with contextlib.suppress(Exception):
        if isinstance(code, str):
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
