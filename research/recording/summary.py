"""What a run directory says about its run: read within milliseconds, without TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.config import Config, defaults_as_json
from research.errors import one_line
from research.files import (
    as_object,
    is_regular,
    open_regular,
    read_json,
    read_object,
    read_sealed_json,
    sha256,
)
from research.recording.metrics import NAME as METRICS
from research.recording.metrics import VALIDATION, parsed
from research.recording.run_directory import CODE, FINISHED, NEW, NON_FINITE, is_locked
from research.results.selection import best, own, rank_by
from research.verbs import RunStatus

# What config.json holds beside options.
IDENTITY = ("experiment", "run", "data_sha256")
# A folder with two of these is a run directory, or what is left of one.
_MARKS = {"config.json", "environment.json", "command.txt", METRICS, "checkpoints", CODE}
# The end of log.txt that is searched for how the run ended, in bytes.
_END_OF_LOG = 1 << 18


@dataclasses.dataclass(frozen=True)
class Summary:
    """What is known about a run; whatever is unknown is None or empty.

    Attributes:
        run: the run directory.
        status: ``stopped`` by a signal that let the run save a checkpoint, ``killed`` without a
            word, ``failed`` by a value that became NaN or infinite or by another error, ``damaged``
            if a file that it needs is gone or spoiled.
        reason: why it failed, or what is damaged.
        experiment: the experiment's name.
        seed: the run's seed.
        data: the SHA-256 of the data.
        options: all options.
        changed: the options that differ from the experiment's defaults. In a run that has not
            recorded its defaults: from those that all experiments have in common.
        step, steps: the last recorded step, and the number of steps of the whole training.
        validation: the figures of the best validation on held-out examples, and its ``step``.
        test: the figures on the test set: those of the exported network, or, in a run without
            held-out examples, those of the last validation.
        began: when it began, in ISO 8601 with the time zone.
        seconds: how long it took so far, without the time between two processes.
        go_on: the command that goes on with it, or that looks closer at a non-finite value.
    """

    run: Path
    status: RunStatus
    reason: str = ""
    experiment: str = ""
    seed: int | None = None
    data: str | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    changed: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    steps: int | None = None
    validation: dict[str, float] | None = None
    test: dict[str, float] | None = None
    began: str | None = None
    seconds: float | None = None
    go_on: str | None = None


def is_run(folder: Path, names: set[str]) -> bool:
    """Whether a folder with entries of these names is a run directory, whole or not."""
    return folder.name.startswith(NEW) or len(_MARKS & names) >= 2


def summarize(run: Path) -> Summary:
    """Summarizes a run directory, whatever state it is in; disturbs no run at work."""
    try:
        if run.name.startswith(NEW):
            return _unborn(run)
        locked = is_locked(run)  # before the files, which are the last ones if it isn't
        config = _sealed(run / "config.json")
    except (OSError, ValueError) as error:
        return Summary(run, "damaged", getattr(error, "strerror", None) or one_line(error)[:200])
    known = Summary(
        run,
        "running",
        experiment=str(config.get("experiment", "")),
        seed=config.get("seed"),
        data=config.get("data_sha256"),
        options={
            name: value for name, value in config.items() if name not in (*IDENTITY, "run_dir")
        },
    )
    try:
        known = _with_environment(known)
        known = _with_figures(known)
        log = _last_log(run / "log.txt")
        if begun := re.match(r"(?:.* after step (\d+)\n)?Training for (\d+) steps", log):
            steps = int(begun[1] or 0) + int(begun[2])
            known = dataclasses.replace(known, steps=steps)
        # A finished run may be locked by a process that reads it, or has yet to exit.
        return known if locked and not is_regular(run / FINISHED) else _with_end(known, log)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return dataclasses.replace(known, status="damaged", reason=one_line(error)[:200])


def _unborn(run: Path) -> Summary:
    """A run directory that has not got its name yet."""
    if is_locked(run):
        return Summary(run, "running", "it is being created")
    return Summary(run, "killed", "while it was created; the next run there removes it")


def _with_environment(known: Summary) -> Summary:
    """Adds what environment.json says: defaults, when the run began, how it is resumed."""
    environment = read_object(known.run / "environment.json")
    defaults = as_object(environment.get("defaults"))
    defaults = defaults or json.loads(json.dumps(defaults_as_json(Config)))
    changed = {
        name: value
        for name, value in known.options.items()
        if name != "seed" and (name not in defaults or defaults[name] != value)
    }
    began = None
    with contextlib.suppress(ValueError):
        began = datetime.datetime.fromisoformat(str(environment.get("began")))
    if began is None and (code := known.run / CODE).is_dir():
        # A run writes this folder once.
        began = datetime.datetime.fromtimestamp(code.stat().st_mtime).astimezone()
    go_on = _command(known.run, _experiment_file(known, environment))
    moment = None if began is None else began.isoformat(timespec="seconds")
    return dataclasses.replace(known, changed=changed, began=moment, go_on=go_on)


def _experiment_file(known: Summary, environment: Mapping[str, Any]) -> Path:
    """The experiment's file, as the run's command names it; if it is gone, the run's copy."""
    name = f"{known.experiment}.py"
    command = environment.get("command")
    for word in map(str, command if isinstance(command, list) else []):
        if Path(word).name == name:
            file = Path(str(environment.get("working_directory") or ""), word)
            if file.is_file():
                here = Path.cwd()
                return file.relative_to(here) if file.is_relative_to(here) else file
    return known.run / CODE / name


def _command(run: Path, file: Path) -> str | None:
    """The command that goes on with a run, or None if it is a rerun that is done.

    A rerun was started with the experiment's file in the directory of the run that it repeats, but
    with that run's library: only ``rerun`` goes on so.
    """
    repeated = file.parent.parent
    again = file.parent.name == CODE and (repeated / "config.json").is_file()
    if not again or repeated.resolve() == run.resolve():
        return shlex.join(["python", str(file), "--resume", str(run)])
    stopped = not any(is_regular(repeated / name) for name in (FINISHED, NON_FINITE))
    newest = max((path.name for path in (repeated / "checkpoints").glob("step-*")), default="")
    if stopped and (run / "checkpoints" / newest).is_file():
        return None
    return shlex.join(["python", "-m", "research", "rerun", str(repeated), "--run-dir", str(run)])


def _with_figures(known: Summary) -> Summary:
    """Adds what metrics.jsonl and evaluation.json say."""
    validations, last = _recorded(known.run / METRICS)
    held_out = bool(known.options.get("holdout"))
    validation = test = None
    if held_out:
        direction, _, figure = str(known.options.get("select_by", Config.select_by)).partition(" ")
        mine = own(validations, known.options.get("at_step"))
        at = best(mine, rank_by(figure, 1 if direction == "highest" else -1))
        validation = None if at is None else _numbers(mine[at])
    elif validations:
        test = _numbers(validations[-1])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = read_json(known.run / "evaluation.json")
        test = {"step": found["exported_step"], **_numbers(found["test"])}
    step, seconds = last.get("step", 0), last.get("seconds")
    return dataclasses.replace(known, step=step, seconds=seconds, validation=validation, test=test)


def _recorded(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The validations in a metrics.jsonl, and its last line; what was cut off is left out."""
    validations: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    with contextlib.suppress(OSError), open_regular(path) as file:
        lines = file.readlines()
        for number, line in enumerate(lines):
            # Most lines are about training; to parse them all would take most of the time.
            read = b'"validation"' in line or number >= len(lines) - 2
            if read and (found := parsed(line)) is not None:
                last = found
                validations += [found] if found["split"] == VALIDATION else []
    return validations, last


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in figures.items() if type(v) in (int, float) and k != "seconds"}


def _with_end(known: Summary, log: str) -> Summary:
    """Adds how a run ended at which no process is at work."""
    run = known.run
    if is_regular(run / FINISHED):
        return dataclasses.replace(known, **_finished(run))
    if is_regular(run / NON_FINITE):
        found = _sealed(run / NON_FINITE, "bundle", "reason")
        if found["bundle"] is not None:
            look = ["python", "-m", "research", "replay", str(run / found["bundle"])]
            known = dataclasses.replace(known, go_on=shlex.join(look))
        return dataclasses.replace(known, status="failed", reason=found["reason"])
    if next((run / "checkpoints").glob("step-*"), None) is None:
        gone = "its checkpoints are gone"
        return dataclasses.replace(known, status="damaged", reason=gone, go_on=None)
    # The program's own message is the last thing in the log.
    _, found_error, error = log.rpartition("\nerror: ")
    if found_error and "\nepoch " not in error:
        said = error.partition("\nThe whole traceback")[0].splitlines()
        reason = ": ".join(line for line in said if not line.startswith(" "))  # without the code
        return dataclasses.replace(known, status="failed", reason=reason[:300])
    if stopped := re.search(r"^Stopped by (.+?) after (?:step )?(\d+) of (\d+)", log, re.M):
        step, steps = int(stopped[2]), int(stopped[3])
        why = f"by {stopped[1]}"
        return dataclasses.replace(known, status="stopped", reason=why, step=step, steps=steps)
    return dataclasses.replace(known, status="killed")


def _finished(run: Path) -> dict[str, Any]:
    """The fields of a summary that finished.json decides."""
    found = _sealed(run / FINISHED, "files", "step")
    for name, digest in found["files"].items():
        # The larger files are not read: `evaluate` does.
        if not is_regular(run / name):
            return {"status": "damaged", "reason": f"{name} is gone"}
        if name == "evaluation.json" and sha256(run / name) != digest:
            return {"status": "damaged", "reason": f"{name} has been changed"}
    return {"status": "finished", "step": found["step"], "go_on": None}


def _last_log(path: Path) -> str:
    """What log.txt says since the run was started or resumed last."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - _END_OF_LOG))
        log = file.read().decode(errors="replace")
        begun = [*re.finditer(r"^(?:.* after step \d+\n)?Training for ", log, re.MULTILINE)]
        return log[begun[-1].start() :] if begun else log
    return ""


def _sealed(path: Path, *fields: str) -> dict[str, Any]:
    """Reads a sealed JSON file that has these fields; the error names it."""
    try:
        found = read_sealed_json(path)
        if missing := [name for name in fields if name not in found]:
            raise ValueError(f"it has no {missing[0]}")
        return found
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise ValueError(f"{path.name} can't be read ({reason})") from error
