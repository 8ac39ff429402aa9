"""Finds and checks what a run starts from, before any file is written."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import research
from research.config import Config, decisive_options, defaults_as_json
from research.data.batches import Plan
from research.data.dataset import HOLDOUT, TEST, Dataset
from research.errors import InputError, one_line
from research.files import is_regular, read_json, read_sealed_json, sha256
from research.printable import counted
from research.recording.checkpoints import (
    Checkpoint,
    checkpoint_path,
    checkpoint_paths,
    newest_good,
    step_of,
)
from research.recording.code import code_of, library_sha256
from research.recording.environment import describe_environment, differences
from research.recording.logs import Logs, read_logs
from research.recording.run_directory import CODE, FINISHED
from research.recording.source import uncommitted_changes
from research.recording.tensorboard import VALIDATION
from research.results.selection import best, own, rank_by, waited
from research.training.optimizer import learning_rate_at
from research.training.state import State

# The learning rates of at most this many steps are compared.
LEARNING_RATES_COMPARED = 200


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        config: the run's options; a fork's ``at_step`` is the step that it starts from.
        identity: the run's identity in config.json: ``experiment``, ``run`` (a random name) and
            ``data_sha256``.
        experiment: the experiment's file.
        environment: the content of environment.json.
        uncommitted: the content of uncommitted.diff, for a new run.
        at: the checkpoint to start from, with this run's name.
        logs: the logs up to this checkpoint.
        damaged: damaged checkpoints of this run.
        notes: messages for the user, one line each.
        finished: a message on how the run ended, if it has ended and its files are intact; else
            None.
    """

    config: Config
    identity: dict[str, str]
    experiment: Path
    environment: dict[str, Any]
    uncommitted: bytes
    at: Checkpoint
    logs: Logs
    damaged: list[Path] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    finished: str | None = None


def find_start(
    config: Config,
    experiment: Path,
    data: Dataset,
    state: State,
    plan: Plan,
    built: Callable[[Plan], State],
) -> Start:
    """Finds what a run starts from; changes neither the state nor any file.

    Args:
        config: the options: a new run, a resumed one, whose directory must be locked already, or a
            fork.
        experiment: the experiment's file.
        data: the data set.
        state: the state as the experiment builds it.
        plan: the plan of the whole training.
        built: builds a state for another plan.

    Raises:
        InputError: if the run can't start, with the reason.
    """
    uncommitted = uncommitted_changes(experiment)
    environment = describe_environment(experiment, uncommitted)
    environment["data"] = {"source": data.source, "sha256": data.sha256()}
    environment["library"] = library_sha256(Path(research.__file__).parents[1])
    environment["defaults"] = defaults_as_json(type(config))
    environment["began"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    environment["files"] = files_sha256(config)
    identity = {
        "experiment": experiment.stem,
        "run": uuid.uuid4().hex,
        "data_sha256": environment["data"]["sha256"],
    }
    new = Start(
        config=config,
        identity=identity,
        experiment=experiment,
        environment=environment,
        uncommitted=uncommitted,
        at=Checkpoint(name_of_run(identity, config), state.values()),
        logs=Logs(),
    )
    if config.resume is not None:
        start = _resumed(new, config.resume, state, plan, built)
    else:
        start = new if config.fork is None else _forked(new, config.fork, state)
    if start.at.step > plan.steps:
        raise InputError(
            f"--epochs {config.epochs:g}: that would be step {plan.steps}, and the run has reached "
            f"step {start.at.step}; give more"
        )
    return start


def name_of_run(identity: dict[str, str], config: Config) -> str:
    """The name of a run, its data, its options and the files they name; checkpoints hold it."""
    options, files = decisive_options(config), files_sha256(config).values()
    facts = [identity["run"], identity["data_sha256"], options, *files]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def files_sha256(config: Config) -> dict[str, str]:
    """The SHA-256 of each file that a decisive option names, by its path."""
    paths = [getattr(config, name) for name in decisive_options(config)]
    files = [path for path in paths if isinstance(path, Path) and os.path.isfile(path)]
    return {str(path.resolve()): sha256(path) for path in files}


def _finished(start: Start, run: Path, plan: Plan) -> str | None:
    """A message on how a run ended; None if it has not ended or a file is not intact."""
    config, at = start.config, start.at
    validations, rank = own(start.logs.of(VALIDATION), config.at_step), rank_by(*config.selection)
    waiting = waited(validations, rank) if config.patience else 0
    impatient = config.patience is not None and waiting >= config.patience
    if not (at.ended or impatient or at.step == plan.steps) or start.logs.damage:
        return None
    try:
        finished = read_sealed_json(run / FINISHED)
        files = {run / name: digest for name, digest in finished["files"].items()}
        intact = all(is_regular(p) and sha256(p) == digest for p, digest in files.items())
        if finished["step"] != at.step or not intact:
            return None
        evaluation = read_json(run / "evaluation.json")
        tested = TEST in evaluation
        chosen = best(validations, rank) if config.patience else None
        exported = at.step if chosen is None else validations[chosen]["step"]
        # --test or --patience may have been given since.
        if (config.test and not tested) or evaluation["exported_step"] != exported:
            return None
        accuracy = evaluation[TEST if tested else HOLDOUT]["accuracy"]
        what = f"its {'test' if tested else 'held-out'} accuracy is {accuracy:.4f}"
        if at.step == plan.steps:
            return f"{run} is finished; {what}."
        since = f"no better one in {counted(waiting, 'validation')}"
        why = since if impatient else "its loop ended it"
        which = f"the best was after step {exported}; " if impatient else ""
        return f"{run} ended after step {at.step} of {plan.steps}: {why}; {which}{what}."
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _resumed(
    new: Start, run: Path, state: State, plan: Plan, built: Callable[[Plan], State]
) -> Start:
    """The start of a resumed run: its newest good checkpoint."""
    try:
        fields = read_sealed_json(run / "config.json")
        identity = {name: str(fields[name]) for name in new.identity}
        eager, epochs = bool(fields["eager"]), float(fields["epochs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--resume {run}: its config.json can't be read ({one_line(error)[:100]}); restore "
            "it, or start a new run"
        ) from error
    if identity["data_sha256"] != new.identity["data_sha256"]:
        raise InputError(
            f"--resume {run}: {new.environment['data']['source']} is not what it was trained on; "
            "restore the data, or start a new run"
        )
    paths = checkpoint_paths(run / "checkpoints")
    at, damaged = newest_good(paths, state, name_of_run(identity, new.config))
    if at is None:
        reason = (
            f"{damaged[0]}; no other checkpoint is good" if damaged else "its checkpoints are gone"
        )
        raise InputError(f"--resume {run}: {reason}: restore them, or start a new run")
    if epochs != plan.epochs:
        _refuse_another_past(state, built(dataclasses.replace(plan, epochs=epochs)), at.step, new)
    logs = read_logs(run, at.logged)
    if new.config.holdout:
        # A figure of --select-by that earlier validations lack is refused here.
        best(own(logs.of(VALIDATION), new.config.at_step), rank_by(*new.config.selection))
    environment, different = _compared(run, new, at.step)
    if eager != new.config.eager:
        different.append(f"--eager is now {new.config.eager}")
    notes = [f"{error}; moved aside" for error in damaged] + logs.damage
    if different:
        notes.append(f"Perhaps not bit for bit from here on: {'; '.join(different)}")
    start = dataclasses.replace(
        new,
        identity=identity,
        environment=environment,
        at=at,
        logs=logs,
        damaged=[error.path for error in damaged],
        notes=[*notes, f"Resuming {run} after step {at.step}"],
    )
    return dataclasses.replace(start, finished=_finished(start, run, plan))


def _refuse_another_past(now: State, before: State, done: int, new: Start) -> None:
    """Refuses other epochs if the steps done would have had other learning rates."""
    steps = range(0, done, -(-done // LEARNING_RATES_COMPARED)) if done else ()
    rates = [
        [learning_rate_at(state.optimizer, k) for k in steps if state.optimizer is not None]
        for state in (now, before)
    ]
    if rates[0] != rates[1]:
        raise InputError(
            f"--epochs {new.config.epochs:g}: the learning rate depends on the number of epochs, "
            "so that with other epochs the run's past would be another; --fork "
            f"{new.config.resume} makes it a new run"
        )


def _compared(run: Path, new: Start, step: int) -> tuple[dict[str, Any], list[str]]:
    """A run's environment with this resumption added, and the differences since its start."""
    try:
        before = read_json(run / "environment.json")
        resumed = [*before.get("resumed", [])]
    except (OSError, ValueError, TypeError, AttributeError):
        before, resumed = dict(new.environment), []
        different = ["environment.json can't be read, and is begun afresh"]
    else:
        different = differences(before, new.environment)
    folder = new.experiment.resolve().parent
    for path in code_of(new.experiment):
        name = path.relative_to(folder)
        copy = run / CODE / name
        if not (is_regular(copy) and copy.read_bytes() == path.read_bytes()):
            different.append(f"{name} has been edited")
    now = {"command": new.environment["command"], "step": step, "differences": list(different)}
    return before | {"resumed": [*resumed, now]}, different


def _forked(new: Start, source: Path, state: State) -> Start:
    """The start of a fork: a checkpoint of another run."""
    there, step = checkpoint_paths(source / "checkpoints"), new.config.at_step
    if step is not None:
        wanted = checkpoint_path(source / "checkpoints", step)
        if wanted not in there:
            steps = ", ".join(str(step_of(path)) for path in reversed(there)) or "none"
            raise InputError(
                f"--at-step {step}: {source} keeps checkpoints of other steps: {steps}"
            )
        there = [wanted]
    at, damaged = newest_good(there, state)
    if at is None:
        reason = f" ({damaged[0]})" if damaged else ""
        raise InputError(f"--fork {source}: it has no checkpoint that is good{reason}")
    logs = read_logs(source, at.logged)
    # Keras keeps a constant learning rate in a variable; the fork has its own rate.
    variables = {
        name: built if re.fullmatch(r"optimizer/.*/learning_rate", name) else value
        for (name, built), value in zip(state.values().items(), at.variables.values(), strict=True)
    }
    config = dataclasses.replace(new.config, at_step=at.step)
    other = _other_held_out(config, source)
    # The loop of the source may have ended it; the fork's own loop decides anew.
    at = dataclasses.replace(at, run=new.at.run, variables=variables, ended=False)
    notes = [*map(str, damaged), *logs.damage, *other, f"Forked from {source} after step {at.step}"]
    return dataclasses.replace(new, config=config, at=at, logs=logs, notes=notes)


def _other_held_out(config: Config, source: Path) -> list[str]:
    """A warning if the source run may have been trained on examples that its fork holds out."""
    try:
        theirs = read_sealed_json(source / "config.json")
        seed, count = theirs["holdout_seed"], theirs["holdout"]
        before = (theirs["seed"] if seed is None else seed, theirs["examples"])
    except (OSError, ValueError, KeyError):
        return []
    # With the same seed, fewer held-out examples are some of the same.
    if config.holdout and (
        (config.holding_out_seed, config.examples) != before or config.holdout > count
    ):
        return [
            f"{source} held out other examples, and was trained on some that are held out now: "
            "their figures are too good"
        ]
    return []
