"""What two runs have left, compared bit by bit."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from research.errors import InputError, one_line
from research.files import read_json, read_regular, read_sealed_json, sha256
from research.printable import counted, printable
from research.recording.metrics import NAME as METRICS
from research.recording.metrics import Difference, Line, common_lines, first_difference

from safetensors import safe_open

End = Literal["finished", "non-finite", "stopped"]
_LARGEST_METRICS = 1 << 30
# The files that hold results, by how the run ended.
_LEFT_BY: dict[End, tuple[str, ...]] = {
    "finished": ("mnist.h5", "evaluation.json"),
    "non-finite": ("non_finite.json",),
    "stopped": (),
}


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run has left, without times and places.

    Attributes:
        lines: the lines of metrics.jsonl.
        states: for the step of each checkpoint, the digests of all variables by name.
        files: by name, the digest of mnist.h5, the figures in evaluation.json, and why the run
            became non-finite in non_finite.json, as far as the run has ended so.
    """

    lines: list[Line]
    states: dict[int, dict[str, str]]
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
        content = read_regular(run / METRICS, _LARGEST_METRICS)
        lines = [json.loads(line) for line in content.splitlines()]
        return Results(
            lines=[line for line in lines if until is None or line["step"] <= until],
            states={step: _state(path) for step, path in checkpoints(run).items()},
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


def _state(path: Path) -> dict[str, str]:
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["about"])
    return {name: about["sha256"][name] for name in about["variables"]}


def _files(run: Path, end: End) -> Iterator[tuple[str, Any]]:
    there = [
        name for name in _LEFT_BY[end] if os.path.lexists(run / name)
    ]  # the user may have deleted one
    for name in there:
        if name == "mnist.h5":
            yield name, sha256(run / name)
        elif name == "evaluation.json":
            yield name, {k: v for k, v in read_json(run / name).items() if k != "data"}
        else:
            yield name, read_sealed_json(run / name)["reason"]


def compare(then: Results, now: Results, end: End) -> Verdict:
    """Compares what a run has left with what its rerun has left; ``end`` is how the run ended."""
    same, different = [], []
    common = len(common_lines(then.lines, now.lines))
    first = first_difference(then.lines, now.lines)
    if first is not None:
        was, is_now = first.values
        value = f"{first.split} {printable(first.name)} at step {first.step}"
        different.append(f"{value} is {is_now}, and was {was}")
    else:
        of = "" if common == len(then.lines) else f" of {len(then.lines)}"
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


def _others(then: dict[str, str], now: dict[str, str]) -> int:
    """The number of variables that have another digest, or are in one of two states only."""
    return sum(then.get(name) != now.get(name) for name in then.keys() | now.keys())
