"""metrics.jsonl: every scalar of a run, one JSON object a line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.files import storage_errors

NAME = "metrics.jsonl"
# The splits that lines are about; TensorBoard's folders have the same names.
SPLITS = TRAIN, VALIDATION = "train", "validation"
# A line of the file: ``split``, ``step``, ``seconds``, and the measured values by name.
Line = Mapping[str, Any]
# What a line is about: its split; the steps after one (of a validation: at one), up to another.
Steps = tuple[str, int, int]
# Two runs with the same results differ in these.
_TIMES = re.compile("seconds|speed/.*|time/.*")


class MetricsFile:
    """Appends lines to metrics.jsonl; readers see each line as soon as it is written.

    Args:
        run: the run directory.

    Attributes:
        size: number of bytes in the file.

    Raises:
        StorageError: by the constructor and by all methods, if the file can't be written.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
        with storage_errors(self._path):
            content = self._path.read_bytes() if self._path.exists() else b""
            self._digest, self.size = hashlib.sha256(content), len(content)
            # Unbuffered: closing the file then has nothing left to write, and can't fail.
            self._file = self._path.open("ab", buffering=0)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file's content, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line. NaN and infinity are refused."""
        with storage_errors(self._path):
            content = json.dumps(line, allow_nan=False).encode() + b"\n"
            self._digest.update(content)
            self.size += len(content)
            while content:
                content = content[self._file.write(content) :]

    def sync(self) -> None:
        """Flushes the lines to the disk, so that they survive a crash of the machine."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl as a dictionary, or None if it is damaged."""
    try:
        values = json.loads(line)
        steps = type(values["step"]) is int and values["step"] >= 0 and "seconds" in values
        numbers = [value for name, value in values.items() if name != "split"]
        finite = all(type(x) in (int, float) and math.isfinite(x) for x in numbers)
        return values if values["split"] in SPLITS and steps and finite else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


@dataclasses.dataclass(frozen=True)
class Difference:
    """A measured value that differs between two runs.

    Attributes:
        split, step: the split and the step of the lines that hold it.
        name: the value's name.
        values: the value in the one and in the other run.
    """

    split: str
    step: int
    name: str
    values: tuple[float, float]


def without_times(line: Line) -> dict[str, Any]:
    """A line without the values that depend on the speed of the machine."""
    return {name: value for name, value in line.items() if not _TIMES.fullmatch(name)}


def common_lines(one: Sequence[Line], other: Sequence[Line]) -> list[tuple[Line, Line]]:
    """The lines of two runs on the same steps of the same split, by step.

    A line on training has means over the steps since the line before. With another ``--log-every``
    they are means over other steps, and such lines are left out.
    """
    there = by_steps(other)
    return [(line, there[steps]) for steps, line in by_steps(one).items() if steps in there]


def first_difference(one: Sequence[Line], other: Sequence[Line]) -> Difference | None:
    """Where the metrics of two runs first differ; None if all common lines are the same.

    Times are not compared, and neither are values that one of the runs does not measure.

    Args:
        one, other: the lines of each run's metrics.jsonl, see ``common_lines``.
    """
    for ours, theirs in common_lines(one, other):
        for name, value in without_times(ours).items():
            if name in theirs and theirs[name] != value:
                return Difference(ours["split"], ours["step"], name, (value, theirs[name]))
    return None


def by_steps(lines: Sequence[Line]) -> dict[Steps, Line]:
    """The lines by their split and the steps that they are about."""
    found, trained = {}, 0
    for line in lines:
        split, step = line["split"], line["step"]
        found[split, trained if split == TRAIN else step, step] = line
        if split == TRAIN:
            trained = step
    return found
