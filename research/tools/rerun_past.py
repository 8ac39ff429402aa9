"""A run as its directory describes it, and what it takes to do it again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.errors import InputError, one_line
from research.files import as_object, read_object, read_sealed_json, sha256
from research.printable import printable
from research.recording.code import PACKAGE, trained_with
from research.recording.environment import cores, describe_system, differences, flags
from research.recording.run_directory import CODE, LIBRARY, code_sha256, read_code
from research.recording.summary import IDENTITY
from research.tools.rerun_results import ENDS, End, checkpoints

# These options decide no bit; a rerun chooses its own, or needs others.
_FREE = ("run_dir", "data", "profile", "fork", "checkpoint_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True)
class Past:
    """A run as its directory describes it.

    Attributes:
        run: the directory.
        config: the content of config.json.
        environment: the content of environment.json; empty if it can't be read.
        code: the code that the directory keeps, by path.
        end: how the run ended.
        step: the step of its newest checkpoint.
    """

    run: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    code: dict[str, bytes]
    end: End
    step: int

    @property
    def file(self) -> Path:
        """The experiment's file in the directory."""
        return self.run / CODE / f"{self.config['experiment']}.py"

    @property
    def until(self) -> int | None:
        """The step after which a rerun is stopped, as the run was; None if it ends by itself."""
        return self.step if self.end == "stopped" else None


def read_past(run: Path) -> Past:
    """Reads what a run directory says about its run.

    Raises:
        InputError: if it is no run directory, is damaged, or keeps too little to do the run again.
    """
    try:
        config = read_sealed_json(run / "config.json")
        file = f"{CODE}/{config['experiment']}.py"
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{run}: not a run directory, its config.json can't be read ({one_line(error)[:100]}); "
            "name a directory under runs/"
        ) from error
    environment = read_object(run / "environment.json")
    try:
        code = read_code(run)
        code[file]  # it names the experiment
    except FileNotFoundError as error:
        commit = as_object(environment.get("git")).get("commit")
        raise InputError(
            f"{run}: it keeps no {LIBRARY}, the library of then, as runs of earlier versions do; "
            f"repeat command.txt in a checkout of commit {commit}"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{run}: the code of then can't be read ({one_line(error)[:100]}); restore it"
        ) from error
    step = max(checkpoints(run), default=0)
    past = Past(run, config, environment, code, end_of(run), step)
    if past.until is not None and step <= (config.get("at_step") or 0):
        raise InputError(
            f"{run}: it has no checkpoint beyond its start, and so nothing to compare; --resume it "
            "first"
        )
    return past


def end_of(run: Path) -> End:
    """How a run has ended; "stopped" also if there is none."""
    for end, name in ENDS.items():
        with contextlib.suppress(OSError, ValueError):
            read_sealed_json(run / name)
            return end
    return "stopped"


def arguments(past: Past, again: Path, data: Path | None) -> list[str]:
    """The command line, behind the experiment's file, that does a run again.

    Args:
        past: the run.
        again: the directory of the rerun; a rerun that is there already is resumed.
        data: the run's data, if they have been moved.

    Raises:
        InputError: if ``again`` is something else, or the checkpoint is gone that a fork went on
            from.
    """
    options = {name: value for name, value in past.config.items() if name not in IDENTITY}
    if data is not None:
        options["data"] = str(data)
    if os.path.lexists(again):
        _refuse_another(past, again)
        return ["--resume", str(again), *([] if data is None else ["--data", str(data)])]
    options |= {"run_dir": str(again), "profile": None}
    if past.until is not None:
        # A checkpoint of the same step, to compare; the times of the run's own --checkpoint-every
        # stay.
        every = [part for part in options["checkpoint_every"].split(",") if not part.isdigit()]
        options["checkpoint_every"] = ",".join([str(past.until), *every])
        options["keep_checkpoints"] = 1000
    fork, step = options.pop("fork"), options.pop("at_step")
    words = [word for name, value in options.items() for word in _words(name, value)]
    if fork is None:
        return words
    return ["--fork", str(_source(past, Path(fork), step)), "--at-step", str(step), *words]


def _words(name: str, value: Any) -> list[str]:
    """An option of config.json as words of a command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}={value[0]}", *map(str, value[1:])] if value else [f"--{name}"]
    return [f"--{name}={value}"]


def _source(past: Past, fork: Path, step: int) -> Path:
    """The run that still has the checkpoint from which a fork went on: the fork itself has a copy.

    Raises:
        InputError: if none has.
    """
    for run in (past.run, fork):
        if step in checkpoints(run):
            return run
    raise InputError(
        f"{past.run}: it is a fork of {fork} after step {step}, and neither keeps that checkpoint "
        "any more; restore it"
    )


def _refuse_another(past: Past, again: Path) -> None:
    """Refuses to go on in a directory that is no rerun of a run.

    Raises:
        InputError: if its options or its code are others.
    """
    try:
        config = read_sealed_json(again / "config.json")
        free = (*_FREE, "run")
        ours, theirs = (
            {name: value for name, value in each.items() if name not in free}
            for each in (past.config, config)
        )
        same = ours == theirs and read_code(again) == past.code
        if same and not again.samefile(past.run):
            return
    except (OSError, ValueError):
        pass
    raise InputError(
        f"--run-dir {again}: it exists, and is no rerun of {past.run} that could go on; name a new "
        "directory"
    )


def refuse_other_data(past: Past, data: Path | None, say: Callable[[str], None]) -> None:
    """Refuses data on which the run was not trained.

    Raises:
        InputError: if the data are gone, can't be read, or are others.
    """
    path = data or (past.config["data"] and Path(past.config["data"]))
    if data is None and path and not os.path.lexists(path):
        raise InputError(f"{past.run}: its data, {path}, are gone; say where they are with --data")
    found = load_mnist(say) if path is None else read_dataset(path)
    if found.first(past.config["examples"]).sha256() != past.config["data_sha256"]:
        raise InputError(
            f"{found.source}: not the data that {past.run} was trained on; name those with --data"
        )


def environment_of(past: Past) -> dict[str, str]:
    """The variables of this process, with those of the run that decide how TensorFlow computes."""
    if "flags" not in past.environment:
        return dict(os.environ)
    recorded = as_object(past.environment["flags"])
    theirs = flags({name: str(value) for name, value in recorded.items()})
    others = os.environ.keys() - flags(os.environ).keys()
    if "KERAS_HOME" in os.environ:  # where the data are today
        others.add("KERAS_HOME")
    return theirs | {name: os.environ[name] for name in others}


def cores_of(past: Past) -> list[int]:
    """As many cores as the run had, if there are more; TensorFlow has a thread for each."""
    count = past.environment.get("cores")
    return cores()[:count] if isinstance(count, int) and 0 < count < len(cores()) else []


def foreseen(past: Past, variables: Mapping[str, str]) -> list[str]:
    """Why bits may differ, as far as that is known before training, one phrase for each reason.

    Args:
        past: the run.
        variables: the environment variables of the rerun.
    """
    if not past.environment:
        return ["environment.json can't be read"]
    here = describe_system() | {"flags": flags(variables)}
    if cores_of(past):
        here["cores"] = past.environment["cores"]
    before = {name: value for name, value in past.environment.items() if name in here}
    return differences(before, here) + since(past)


def since(past: Past) -> list[str]:
    """What has happened since to a run, its code and the files that it names, in phrases."""
    found, code = [], code_sha256(past.run)
    recorded = as_object(past.environment.get("code"))
    edited = sorted(name for name in code | recorded if code.get(name) != recorded.get(name))
    found += [f"{past.run / name} has been edited" for name in edited]
    for name, digest in as_object(past.environment.get("files")).items():
        if _sha256(Path(name)) != digest:
            found.append(f"{name} is not what it was")
    for each in _resumptions(past):
        if each.get("differences"):
            what = "; ".join(map(str, each["differences"]))
            found.append(
                f"the run was resumed after step {each.get('step')}, with differences: {what}"
            )
    return [printable(line) for line in found]


def _sha256(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return sha256(path)
    return None


def _resumptions(past: Past) -> list[dict[str, Any]]:
    resumed = past.environment.get("resumed")
    return [as_object(each) for each in resumed] if isinstance(resumed, list) else []


def relogged(past: Past) -> int:
    """The last step after which a run was resumed with --log-every; -1 if there is none.

    A rerun has the option from its start, and so may have other lines on training up to there.
    """
    steps = [-1]
    for each in _resumptions(past):
        command, step = each.get("command"), each.get("step")
        words = [str(word).partition("=")[0] for word in command] if type(command) is list else []
        if type(step) is int and {"--log-every", "--log_every"} & {*words}:
            steps.append(step)
    return max(steps)


def edited_library(past: Past) -> list[str]:
    """The library's files that are others today than the run keeps, if trainings use them."""
    kept = {name: content for name, content in past.code.items() if trained_with(name)}
    return sorted(name for name, content in kept.items() if _today(name) != content)


def _today(name: str) -> bytes | None:
    try:
        return (PACKAGE.parent / name).read_bytes()
    except OSError:
        return None
