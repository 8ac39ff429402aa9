"""How a training begins: its chief, or its only process, finds the run, and tells the others."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import research
from research.config import AnyConfig, Config, config_as_json, config_from_json
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.errors import InputError
from research.recording.checkpoints import Checkpoint, checkpoint_content, read_checkpoint
from research.recording.code import code_of, library_sha256
from research.recording.environment import PACKAGES, version
from research.recording.run import Run, begin
from research.recording.run_directory import lock_directory
from research.recording.start import find_start
from research.training.state import State
from research.training.workers import Workers, cluster, launched_by


@dataclasses.dataclass(frozen=True)
class Begun:
    """A training that has begun, as one of its workers knows it.

    Attributes:
        config: the options; a fork's ``at_step`` is the step that it starts from.
        at: the checkpoint that it starts from; the state has its values.
        validations: the validations before it.
        recorded: whether the last report before it has been recorded.
        path: the run directory.
        run: the run; only the chief has it.
    """

    config: Config
    at: Checkpoint
    validations: Sequence[Mapping[str, Any]]
    recorded: bool
    path: str
    run: Run | None


def begin_run(
    stack: contextlib.ExitStack,
    workers: Workers,
    config: Config,
    experiment: Path,
    data: Dataset,
    state: State,
    plan: Plan,
    built: Callable[[Plan], State],
) -> Begun | str:
    """Creates or resumes the run, and assigns the values that it starts from to the state.

    Only the chief touches files. What it refuses is refused by all workers.

    Args:
        stack: keeps the run open.
        workers: those that train together.
        config, experiment, data, state, plan, built: see ``find_start``.

    Returns:
        The training, or a message on how it ended if it is finished.

    Raises:
        InputError: if the run can't start, or other workers have been given something else.
        StorageError: if a file can't be written.
    """
    refuse_other_workers(workers, config, experiment, data)
    run: Run | None = None

    def by_chief() -> dict[str, Any]:
        nonlocal run
        directory = None
        if config.resume is not None:
            directory = stack.enter_context(lock_directory(config.resume))
        start = find_start(config, experiment, data, state, plan, built)
        if start.finished is not None:
            return {"finished": start.finished}
        state.assign(start.at.variables.values())
        run = stack.enter_context(begin(start, directory, state))
        return {
            "finished": None,
            "at_step": start.config.at_step,
            "validations": run.recorder.validations,
            "recorded": run.recorder.is_recorded(state),
            "path": str(run.path),
        }

    told = workers.by_chief(by_chief)
    if told["finished"] is not None:
        return str(told["finished"])
    at = run.start.at if run is not None else None
    if workers.several:  # a program that trains alone need not encode its checkpoint
        content = workers.from_chief(b"" if at is None else checkpoint_content(at))
    if at is None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sent.safetensors"
            path.write_bytes(content)
            at = read_checkpoint(path, state)
        state.assign(at.variables.values())
    return Begun(
        config=dataclasses.replace(config, at_step=told["at_step"]),
        at=at,
        validations=told["validations"],
        recorded=told["recorded"],
        path=told["path"],
        run=run,
    )


def without_unseen_run(words: Sequence[str]) -> Sequence[str]:
    """A command line; instead, of a worker that can't see its run, one that asks the chief.

    A run that is resumed or forked decides its options, and only the chief needs its directory.
    """
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--resume", "--fork"):
        named.add_argument(option, nargs="?")
    paths = [path for path in vars(named.parse_known_args(words)[0]).values() if path]
    if not paths or any(map(os.path.lexists, paths)):
        return words
    try:
        return ["--strategy", "multi_worker"] if cluster()[1] else words
    except InputError:  # there are no workers
        return words


def options_of_chief(workers: Workers, config: AnyConfig) -> AnyConfig:
    """The options; those of the chief if it resumes or forks a run, which others may not see."""

    def by_chief() -> dict[str, Any] | None:
        return config_as_json(config) if config.resume or config.fork else None

    sent = workers.by_chief(by_chief)
    if workers.is_chief or sent is None:
        return config
    return config_from_json(type(config), sent)


def refuse_other_workers(workers: Workers, config: Config, experiment: Path, data: Dataset) -> None:
    """Refuses workers that have been given something else than the chief.

    Raises:
        InputError: with the first such worker, and what it has.
    """
    if not workers.several:
        return
    options = config_as_json(config)
    for name in ("data", "run_dir", "fork", "at_step"):  # paths may differ; the chief needs the run
        del options[name]
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in code_of(experiment)]
    facts = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    facts |= {"code": [*code, library_sha256(Path(research.__file__).parents[1])]}
    facts |= {"data": data.sha256()} | {name: version(name) for name in PACKAGES}
    own = {name: json.dumps(fact) for name, fact in facts.items()}
    of_chief = json.loads(workers.from_chief(json.dumps(own).encode()))
    rows = workers.gather(*(own.get(name) != fact for name, fact in of_chief.items()))
    for number, row in enumerate(rows):
        if row.any():
            different = [name for name, differs in zip(of_chief, row, strict=True) if differs]
            raise InputError(
                f"{workers.name(number)} has not the chief's {', '.join(different)}: give all "
                "workers the same command, code, data and versions"
            )


def command_to_go_on(path: str) -> str:
    """What to type to go on with a run; on each worker if there are several."""
    words = launched_by() or ["python", sys.argv[0]]
    return shlex.join([*words, "--resume", path])
