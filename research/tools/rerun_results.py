"""What two runs have left, compared bit by bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Literal

from research.errors import InputError, one_line
from research.files import read_json, read_regular, read_sealed_json, sha256
from research.printable import counted, printable
from research.recording.metrics import NAME as METRICS
from research.recording.metrics import (
    TRAIN,
    VALIDATION,
    Difference,
    Line,
    Steps,
    by_steps,
    first_difference,
    parsed,
    without_times,
)
from research.recording.run_directory import FINISHED, NON_FINITE

from safetensors import safe_open

End = Literal["finished", "non-finite", "stopped"]
_LARGEST_METRICS = 1 << 30
# The file that says how a run has ended, by its end; a run that was stopped has none.
ENDS: dict[End, str] = {"finished": FINISHED, "non-finite": NON_FINITE}
# The files that hold results, by how the run ended.
_LEFT_BY: dict[End, tuple[str, ...]] = {
    "finished": ("mnist.h5", "evaluation.json"),
    "non-finite": (NON_FINITE,),
    "stopped": (),
}


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run has left, without times and places.

    Attributes:
        lines: the lines of metrics.jsonl.
        states: for the step of each checkpoint, the digests of all variables in their order.
        files: by name, the digest of mnist.h5, the figures in evaluation.json, and why the run
            became non-finite in non_finite.json, as far as the run has ended so.
    """

    lines: list[Line]
    states: dict[int, list[str]]
    files: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the results of two runs are the same.

    Attributes:
        same, different: phrases on the results that are compared.
        first: the first measured value that differs, or None.
    """

    same: list[str]
    different: list[str]
    first: Difference | None


def read_results(run: Path, end: End, until: int | None) -> Results:
    """Reads the results of a run, metrics up to a step, by default all.

    Raises:
        InputError: if they are damaged.
    """
    try:
        return Results(
            lines=_lines(run / METRICS, until),
            states={step: variables_sha256(path) for step, path in checkpoints(run).items()},
            files=dict(_files(run, end)),
        )
    except Exception as error:  # a damaged checkpoint leads to errors of many types
        raise InputError(
            f"{run}: its results can't be read ({one_line(error)[:200]}); restore them"
        ) from error


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps."""
    paths = (run / "checkpoints").glob("step-*.safetensors")
    steps = ((path.stem.removeprefix("step-"), path) for path in paths)
    return {int(step): path for step, path in steps if step.isdecimal()}


def _lines(path: Path, until: int | None) -> list[Line]:
    """The lines of metrics.jsonl, up to a step.

    Raises:
        OSError: if it can't be read.
        ValueError: if a line is damaged. A kill may have cut the last line of a stopped run.
    """
    lines = [parsed(line) for line in read_regular(path, _LARGEST_METRICS).splitlines()]
    while until is not None and lines and lines[-1] is None:
        lines.pop()
    if None in lines:
        raise ValueError(f"line {lines.index(None) + 1} of {path.name} is damaged")
    return [line for line in lines if line and (until is None or line["step"] <= until)]


def variables_sha256(checkpoint: Path) -> list[str]:
    """The SHA-256 of each variable in a checkpoint, in their order, as its header says.

    Not by name: Keras numbers unnamed layers and optimizers, and a second model in one process gets
    other numbers.

    Raises:
        OSError, KeyError, ValueError, SafetensorError: if the checkpoint is damaged.
    """
    with safe_open(checkpoint, "numpy") as file:
        about = json.loads(file.metadata()["about"])
    return [about["sha256"][name] for name in about["variables"]]


def _files(run: Path, end: End) -> Iterator[tuple[str, Any]]:
    for name in _LEFT_BY[end]:
        if not os.path.lexists(run / name):
            continue  # the user may have deleted it
        if name == "mnist.h5":
            yield name, sha256(run / name)
        elif name == "evaluation.json":
            yield name, {k: v for k, v in read_json(run / name).items() if k != "data"}
        else:
            yield name, read_sealed_json(run / name)["reason"]


def compare(
    then: Results, now: Results, end: End, until: int | None = None, relogged: int = -1
) -> Verdict:
    """Compares what a run has left with what its rerun has left.

    Args:
        then, now: the results of the run and of its rerun.
        end: how the run ended.
        until: the step after which the rerun was stopped, if the run was. Either may have been
            stopped before the validation after that step.
        relogged: the last step after which the run was resumed with --log-every. Up to there,
            lines on training that only one of them has are no difference.
    """
    same, different = [], []
    ours, theirs = by_steps(then.lines), by_steps(now.lines)
    first = first_difference(then.lines, now.lines)
    if first is not None:
        was, is_now = first.values
        value = f"{first.split} {printable(first.name)} at step {first.step}"
        different.append(f"{value} is {is_now}, and was {was}")
    free = {(VALIDATION, until, until)}
    free |= {k for k in ours.keys() | theirs.keys() if k[0] == TRAIN and k[1] <= relogged}
    different += _only_in(ours, theirs, free, "run") + _only_in(theirs, ours, free, "rerun")
    if not different:
        common = len(ours.keys() & theirs.keys())
        of = "" if common == len(ours) else f" of {len(ours)}"
        same.append(f"{common}{of} lines of metrics")
    steps = sorted(then.states.keys() & now.states.keys())
    for step in [step for step in steps if then.states[step] != now.states[step]][:1]:
        variables = counted(len(then.states[step]), "variable")
        number = _others(then.states[step], now.states[step])
        different.append(f"{number} of {variables} after step {step}")
    if steps and then.states[steps[-1]] == now.states[steps[-1]]:
        same.append(f"all {len(then.states[steps[-1]])} variables after step {steps[-1]}")
    last = max(then.states, default=0)
    if end != "non-finite" and then.states and last not in steps:
        different.append(f"it ended after step {max(now.states, default=0)}, and not {last}")
    for name, content in then.files.items():
        (same if now.files.get(name) == content else different).append(name)
    return Verdict(same, different, first)


def _only_in(
    one: Mapping[Steps, Line], other: Mapping[Steps, Line], free: Set[Any], whose: str
) -> list[str]:
    """Phrases on the lines, but for free ones, and on the values that only one of two runs has."""
    found = []
    if missing := [steps for steps in one if steps not in other and steps not in free]:
        where = f"the first is {missing[0][0]} at step {missing[0][2]}"
        lines = counted(len(missing), "line")
        found.append(f"{lines} of metrics only in the {whose} ({where})")
    common = one.keys() & other.keys()
    names = {name for k in common for name in without_times(one[k]).keys() - other[k].keys()}
    if names:
        found.append(f"{printable(', '.join(sorted(names)))} measured only by the {whose}")
    return found


def _others(then: list[str], now: list[str]) -> int:
    """The number of variables that have another digest, or are in one of two states only."""
    return sum(was != is_now for was, is_now in itertools.zip_longest(then, now))
