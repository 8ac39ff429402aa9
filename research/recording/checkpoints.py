"""Checkpoints: the state of a run, in one file that is written atomically.

A checkpoint is a file in the safetensors format, a JSON header and raw arrays, in which nothing can
be executed. It holds every variable of the state and the measurements since the last report. The
header holds the bookkeeping and a SHA-256 of each array, and has a SHA-256 itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from research.errors import InputError, NonFiniteError, one_line
from research.files import is_regular, replaced_atomically, storage_errors
from research.recording.logs import Logged
from research.training.state import State
from research.training.train import Unreported, non_finite

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import safe_open

Array = npt.NDArray[Any]

MOST_UNREPORTED = 10_000_000
# Raise this number when a change of the format would make older checkpoints read wrongly.
FORMAT = 2


class DamagedError(InputError):
    """A damaged checkpoint; the message names the file and the reason in one line."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: not a good checkpoint ({reason[:200]})")
        self.path = path


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run.

    Attributes:
        run: the identity of the run, see ``start.name_of_run``.
        variables: the values of ``State.variables()``, by name and in that order.
        seconds: how long the run has taken, without the time between two processes.
        unreported: the measurements since the last recorded report.
        logged: how much had been recorded.
        validation_due: whether a validation had begun and was not yet recorded.
        ended: whether the experiment's loop had ended training before all steps were done.
    """

    run: str
    variables: dict[str, Array]
    seconds: float = 0.0
    unreported: Unreported = dataclasses.field(default_factory=Unreported)
    logged: Logged = dataclasses.field(default_factory=Logged)
    validation_due: bool = False
    ended: bool = False

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.variables["step"])

    @property
    def recorded(self) -> int:
        """The last step whose measurements have been recorded."""
        return self.step - len(self.unreported)


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint of a step."""
    return folder / f"step-{step:08d}.safetensors"


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first.

    Raises:
        InputError: if the folder can't be read.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 - glob hides that it may not read a folder
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder}: can't be read ({error.strerror})") from error
    found = [folder / name for name in names if re.fullmatch(r"step-\d{8,}\.safetensors", name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint, atomically.

    Raises:
        NonFiniteError: if a variable holds NaN or infinity; nothing is written then.
        StorageError: if the file can't be written.
    """
    content = checkpoint_content(checkpoint)
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
        with replaced_atomically(path) as partial:
            partial.write_bytes(content)


def checkpoint_content(checkpoint: Checkpoint) -> bytes:
    """The content of a checkpoint's file.

    Raises:
        NonFiniteError: if a variable holds NaN or infinity.
    """
    if (name := non_finite(checkpoint.variables)) is not None:
        raise NonFiniteError(f"{name} holds NaN or infinity after step {checkpoint.step}")
    arrays = dict(checkpoint.variables)
    arrays |= {f"history/{name}": row for name, row in checkpoint.unreported.history.items()}
    about = {
        "format": FORMAT,
        "run": checkpoint.run,
        "seconds": checkpoint.seconds,
        "unreported_seconds": checkpoint.unreported.seconds,
        "logged": dataclasses.asdict(checkpoint.logged),
        "validation_due": checkpoint.validation_due,
        "ended": checkpoint.ended,
        "variables": list(checkpoint.variables),
        "history": list(checkpoint.unreported.history),
        "sha256": {name: _digest(array) for name, array in arrays.items()},
    }
    text = json.dumps(about, allow_nan=False)
    header = {"about": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}, header
    )


def read_checkpoint(path: Path, state: State, run: str | None = None) -> Checkpoint:
    """Reads a checkpoint and checks its digests. It reads no more than the state can hold.

    Args:
        path: the file.
        state: the state whose variables must fit; it is not changed.
        run: the run that the checkpoint must belong to; None for any.

    Raises:
        DamagedError: if the file is damaged, or belongs to another run or step.
        InputError: if the file is good but does not fit the state.
    """
    try:
        if not is_regular(path):
            raise ValueError("it is not a file")
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            if hashlib.sha256(header["about"].encode()).hexdigest() != header["sha256"]:
                raise ValueError("the digest of its header is wrong")
            about = json.loads(header["about"])
            if about.get("format") != FORMAT:
                raise InputError(
                    f"{path}: another version of this project has written it; use the version "
                    "whose commit stands in environment.json, or start a new run"
                )
            if run not in (None, about["run"]):
                raise ValueError("it belongs to another run, or to other options or files")
            names, history = about["variables"], [f"history/{n}" for n in about["history"]]
            built = _fitting(path, state, [(n, file.get_slice(n).get_shape()) for n in names])
            _check_types(about, [file.get_slice(name).get_shape() for name in history])
            arrays = {name: file.get_tensor(name) for name in [*names, *history]}
        for name, array in arrays.items():
            if _digest(array) != about["sha256"][name]:
                raise ValueError(f"the digest of {name} is wrong")
        if [arrays[name].dtype for name in names] != [value.dtype for value in built]:
            raise ValueError("its variables have other dtypes than the experiment's")
        if (bad := non_finite(arrays)) is not None:
            raise ValueError(f"{bad} holds NaN or infinity")
        unreported = {name: arrays[f"history/{name}"] for name in about["history"]}
        checkpoint = Checkpoint(
            run=about["run"],
            variables={name: arrays[name] for name in names},
            seconds=about["seconds"],
            unreported=Unreported(unreported, about["unreported_seconds"]),
            logged=Logged(**about["logged"]),
            validation_due=bool(about["validation_due"]),
            ended=bool(about["ended"]),
        )
        named = checkpoint_path(path.parent, checkpoint.step)
        if path.name.startswith("step-") and path != named:
            raise ValueError(f"it holds step {checkpoint.step}")
        if checkpoint.recorded < 0 or any(v.dtype != np.float32 for v in unreported.values()):
            raise ValueError("what it has measured does not fit its step")
    except InputError:
        raise
    except Exception as error:  # a damaged header leads to errors of many types
        raise DamagedError(path, one_line(error)) from error
    return checkpoint


def _check_types(about: dict[str, Any], history_shapes: list[list[int]]) -> None:
    """Refuses bookkeeping that no run can have written."""
    numbers = [about["seconds"], about["unreported_seconds"], about["logged"]["size"]]
    numbers += [n for name in ("lines", "events") for n in about["logged"][name].values()]
    if not all(type(x) in (int, float) and 0 <= x < 1e12 for x in numbers):
        raise ValueError("its bookkeeping holds something else than times and counts")
    if about["history"] and not about["unreported_seconds"] > 0:
        raise ValueError("what it has measured took no time")
    if len({tuple(shape) for shape in history_shapes} | {(0,)}) > 2 or any(
        len(shape) != 1 or shape[0] > MOST_UNREPORTED for shape in history_shapes
    ):
        raise ValueError("what it has measured is not one number a step")


def newest_good(
    paths: list[Path], state: State, run: str | None = None
) -> tuple[Checkpoint | None, list[DamagedError]]:
    """The first undamaged checkpoint of ``paths``, or None, and the errors of those before it.

    ``state``, ``run`` and InputError are those of ``read_checkpoint``.
    """
    damaged: list[DamagedError] = []
    for path in paths:
        try:
            return read_checkpoint(path, state, run), damaged
        except DamagedError as error:
            damaged.append(error)
    return None, damaged


def _fitting(path: Path, state: State, saved: list[tuple[str, list[int]]]) -> list[Array]:
    """The values of a state, if a checkpoint's variables have the same number and shapes.

    Variables are compared by position, not by name: Keras numbers unnamed layers, and a second
    model in one process gets other numbers.
    """
    built = state.values()
    if len({name for name, _ in saved}) < len(saved):
        raise ValueError("it names a variable twice")
    if len(saved) != len(built):
        raise InputError(
            f"{path}: it holds {len(saved)} variables and the experiment builds {len(built)}: "
            "give the experiment, the network and the optimizer that it was made with"
        )
    for (name, shape), (built_name, value) in zip(saved, built.items(), strict=True):
        if tuple(shape) != value.shape:
            raise InputError(
                f"{path}: it holds {name} with shape {tuple(shape)}, and the experiment builds "
                f"{built_name} with {value.shape}: give the options and the network that it was "
                "made with"
            )
    return list(built.values())


def _digest(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
