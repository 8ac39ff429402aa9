"""The verb ``rerun``: does a run again from its directory alone, and compares every bit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import InputError, StorageError
from research.files import read_object
from research.recording.environment import differences
from research.recording.run_directory import free_names, lock
from research.screen import Screen
from research.signals import StopRequest
from research.tools import rerun_child
from research.tools.rerun_past import (
    Past,
    arguments,
    cores_of,
    edited_library,
    end_of,
    environment_of,
    foreseen,
    read_past,
    refuse_other_data,
    relogged,
    since,
)
from research.tools.rerun_results import Verdict, checkpoints, compare, read_results
from research.verbs import Rerun

_SECONDS_BETWEEN_LOOKS = 0.1
# A terminal sends Ctrl-C to the training, too.
_SECONDS_UNTIL_SENT_ON = 1.0
_MOST_NAMED = 3


def run(asked: Rerun, screen: Screen) -> bool:
    """Trains in a process of its own, and prints whether the results are the same.

    Returns:
        Whether every bit is the same.

    Raises:
        InputError: if the run can't be done again, with the reason.
        StorageError: if the training was killed, or its code can't be run.
        SystemExit: if a signal has stopped the training.
    """
    say = (lambda line: None) if asked.json else screen.say
    with _locked(asked.run):
        past = read_past(asked.run)
        names = free_names(past.config["experiment"], past.config["seed"])
        again = asked.run_dir or next(path for path in names if not os.path.lexists(path))
        words = arguments(past, again, asked.data)
        refuse_other_data(past, asked.data, say)
        then = read_results(past.run, past.end, past.until)
    variables = environment_of(past)
    for line in _announcement(past, again, variables):
        say(line)
    stop = StopRequest(say=False)
    with stop:
        status = _train(past, words, variables, again, stop, quiet=asked.json)
    ended = _has_ended(past, again)
    if stop.is_set() and not ended:
        go_on = f"; go on, and compare: {_command(past, again)}" if again.exists() else ""
        say(f"Stopped by {stop}{go_on}")
        raise SystemExit(stop.exit_status)
    if not ended:
        _refuse_to_compare(past, again, status)
    now = read_results(again, past.end, past.until)
    verdict = compare(then, now, past.end, past.until, relogged(past))
    reasons = _reasons(past, again)
    if not ended:
        verdict.different.append(f"it ended with exit status {status}")
    if asked.json:
        print(json.dumps(_as_json(past, again, verdict, reasons), indent=2))
    else:
        for line in _sentences(past, verdict, reasons):
            say(line)
    return not verdict.different


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keeps a run as it is while it is read.

    Raises:
        InputError: if it is no directory, or another process is at work on it.
    """
    try:
        descriptor = lock(run)
    except BlockingIOError as error:
        raise InputError(
            f"{run}: another process is at work on it; wait for it, or stop it"
        ) from error
    except OSError as error:
        raise InputError(
            f"{run}: not a run directory ({error.strerror}); name a directory under runs/"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _announcement(past: Past, again: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """What is done, and whether the same bits are to be expected, in lines."""
    yield f"Doing {past.run} again, with the code, options and seed that it keeps, in {again}"
    if edited := edited_library(past):
        more = "" if len(edited) <= _MOST_NAMED else ", ..."
        named = ", ".join(edited[:_MOST_NAMED]) + more
        have = "has" if len(edited) == 1 else "have"
        yield f"{named} {have} changed since; the rerun uses the run's own copy"
    if past.until is not None:
        yield (
            f"The run was stopped; the rerun stops at step {past.until}, the run's last checkpoint"
        )
    if reasons := foreseen(past, variables):
        yield f"Perhaps not the same bits: {'; '.join(reasons)}"
    else:
        yield "Versions, processor and flags are the same: every bit should be"


def _train(
    past: Past,
    words: Sequence[str],
    variables: Mapping[str, str],
    again: Path,
    stop: StopRequest,
    quiet: bool,
) -> int:
    """Trains with the code of then, until it ends or is where the run was; the exit status."""
    if _has_ended(past, again):
        return 0
    with tempfile.TemporaryDirectory(prefix="research-rerun-") as name:
        folder = Path(name)
        for file, content in past.code.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        path = os.pathsep.join(filter(None, [name, variables.get("PYTHONPATH")]))
        copy = folder / past.file.relative_to(past.run)
        program = [sys.executable, rerun_child.__file__, ",".join(map(str, cores_of(past)))]
        process = subprocess.Popen(
            [*program, str(copy), str(past.file), *words],
            env={**variables, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else None,
        )
        sent = False
        while (status := _status(process, _SECONDS_BETWEEN_LOOKS)) is None:
            if stop.is_set() and not sent:
                sent = True
                if _status(process, _SECONDS_UNTIL_SENT_ON) is None:
                    process.send_signal(stop.exit_status - 128)
            elif past.until is not None and not sent and _has_ended(past, again):
                sent = True
                process.terminate()
        return status


def _status(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit status of a process, or None if it goes on for so many seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def _has_ended(past: Past, again: Path) -> bool:
    """Whether a rerun has all that is to be compared."""
    if past.until is not None:
        return past.until in checkpoints(again)
    return end_of(again) == past.end


def _refuse_to_compare(past: Past, again: Path, status: int) -> None:
    """Raises an error if a training has ended so early that there is nothing to compare."""
    if status == 2:
        raise InputError(f"{past.run}: it can't be done again here; the line above says why")
    if not again.exists() and 0 < status <= 128:
        raise StorageError(f"{past.run}: its code fails here before it trains; see above")
    if status < 0 or status > 128:
        how = f"go on: {_command(past, again)}" if again.exists() else "give the command again"
        raise StorageError(
            f"{again}: the training was killed (status {status}), for want of memory perhaps; {how}"
        )


def _command(past: Past, again: Path) -> str:
    return shlex.join(["python", "-m", "research", "rerun", str(past.run), "--run-dir", str(again)])


def _reasons(past: Past, again: Path) -> list[str]:
    """What differs by the records of both runs and may change bits, one phrase for each."""
    before, now = dict(past.environment), read_object(again / "environment.json")
    if not before:
        return foreseen(past, os.environ)
    if not now:
        return [f"{again / 'environment.json'} can't be read", *since(past)]
    # The code is the same, wherever it lies.
    before.pop("git", None)
    now.pop("git", None)
    return differences(before, now) + since(past)


def _sentences(past: Past, verdict: Verdict, reasons: Sequence[str]) -> Iterator[str]:
    """The verdict in lines for the screen."""
    if not verdict.different:
        although = f", although {'; '.join(reasons)}" if reasons else ""
        yield f"Every bit is the same: {', '.join(verdict.same)}{although}"
        return
    same = f"; the same: {', '.join(verdict.same)}" if verdict.same else ""
    yield f"Not the same: {'; '.join(verdict.different)}{same}"
    if reasons:
        yield f"Perhaps because {'; '.join(reasons)}"
    else:
        verify = shlex.join(["python", "-m", "research", "verify", str(past.file)])
        yield (
            "Nothing that was recorded explains it: code, options, data, versions, processor, "
            f"threads and flags are the same. Is the step reproducible? {verify}"
        )


def _as_json(past: Past, again: Path, verdict: Verdict, reasons: Sequence[str]) -> dict[str, Any]:
    first = verdict.first and dataclasses.asdict(verdict.first)
    return {
        "run": str(past.run),
        "rerun": str(again),
        "same": not verdict.different,
        "equal": verdict.same,
        "different": verdict.different,
        "first_difference": first,
        "reasons": reasons,
    }
