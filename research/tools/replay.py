"""The verb ``replay``: repeats the one step in which a value became NaN or infinite."""

from __future__ import annotations

import json
import os
import re
import traceback
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

from research.config import config_from_json
from research.data.batches import Plan
from research.errors import InputError, one_line
from research.files import read_json
from research.printable import printable
from research.recording.checkpoints import read_checkpoint
from research.recording.run_directory import CODE
from research.screen import Screen
from research.stderr import silenced_stderr
from research.tools.load_experiment import load_experiment
from research.training.returned import sorted_by_kind
from research.training.state import State
from research.training.train import Step
from research.verbs import Replay

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from rich.table import Column, Table
from rich.text import Text

Values = list[tuple[str, npt.NDArray[Any]]]

# The number of values shown before and after the first non-finite one.
AROUND = 3


def run(asked: Replay, screen: Screen) -> None:
    """Runs the step eagerly and prints its values in the order of computation.

    Raises:
        InputError: if the bundle is damaged, or its step fails when it is run.
    """
    state, step, images, labels, reason = read_bundle(asked.bundle)
    number = int(state.step.numpy()) + 1
    before = state.values()
    try:
        computed = watch(state, step, images, labels)
    except Exception as error:  # a step may fail in any way
        frames = traceback.extract_tb(error.__traceback__)
        here = asked.bundle.resolve() / CODE
        lines = [frame.lineno for frame in frames if Path(frame.filename).parent == here]
        where = f", line {lines[-1]}" if lines else ""
        raise InputError(
            f"{asked.bundle}: its step fails when it is run again ({one_line(error)[:200]}"
            f"{where}); mend the experiment's file in the bundle"
        ) from error
    state.assign(before.values())
    place = first_non_finite(computed)
    bad = None if place is None else computed[place][0]
    line = None if place is None else first_bad_line(state, step, images, labels)
    if asked.json:
        values = [_summary(name, value) for name, value in computed]
        found = {"step": number, "reason": reason, "first_non_finite": bad, "line": line}
        print(json.dumps(found | {"values": values}, indent=2))
        return
    screen.say(f"The run stopped: {printable(reason)}")
    screen.say(f"Step {number}, run again eagerly and on one replica:")
    shown = range(len(computed))
    if not asked.all:
        around = slice(0) if place is None else slice(max(place - AROUND, 0), place + AROUND + 1)
        shown = shown[around]
    if shown:
        screen.console.print(_table(computed, shown, place))
    if bad is None:
        screen.say(
            f"All {len(computed)} values are finite. The run computed this step compiled, and "
            "on all its replicas, which rounds differently."
        )
    else:
        screen.say(f"The first that is not finite: {printable(bad)}")
    if line is not None:
        screen.say(f"The first operation that makes it so: {printable(line)}")
    if len(shown) < len(computed):
        screen.say(f"Shown are {len(shown)} of {len(computed)} values; --all shows all.")


def first_non_finite(computed: Values) -> int | None:
    """The position of the first value that holds NaN or infinity, or None.

    As in ``research.training.train.non_finite``, values under ``extra/`` don't count.
    """
    for place, (name, value) in enumerate(computed):
        own = name.startswith("extra/") and name.endswith((" before", " after"))
        if not own and not np.isfinite(value).all():
            return place
    return None


def _summary(name: str, value: npt.NDArray[Any]) -> dict[str, Any]:
    """The shape, range and number of non-finite elements of a non-empty array."""
    finite = value[np.isfinite(value)]
    ends = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return {
        "name": name,
        "shape": value.shape,
        "smallest": ends[0],
        "largest": ends[1],
        "not_finite": value.size - finite.size,
    }


def _table(computed: Values, shown: range, bad: int | None) -> Table:
    """A table of some values; rich folds long cells and cuts none."""
    table = Table(Column("in the order of computation", overflow="fold"))
    for heading in ("smallest", "largest"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("not finite", justify="right", overflow="fold")
    for place in shown:
        about = _summary(*computed[place])
        name = Text(f"{printable(about['name'])} {list(about['shape'])}")
        ends = ("" if x is None else f"{x:.3g}" for x in (about["smallest"], about["largest"]))
        count = about["not_finite"]
        many = "all" if count == computed[place][1].size else f"{count:,}"
        table.add_row(name, *ends, many, style="bold red" if place == bad else None)
    return table


def read_bundle(
    bundle: Path,
) -> tuple[State, Step, npt.NDArray[np.float32], npt.NDArray[np.float32], str]:
    """Reads the state before a step, the step, its images and labels, and the error message.

    Raises:
        InputError: if the bundle is missing or damaged.
    """
    try:
        about = read_json(_file(bundle, "bundle.json"))
        file = _file(bundle, f"{CODE}/{Path(about['experiment']).name}")
        experiment = load_experiment(file)
        config = config_from_json(experiment.config, about["config"])
        state = experiment.build(config, Plan(**about["plan"]))
        if not isinstance(state, State):
            raise ValueError(f"its build returns {type(state).__name__}, not State")
        saved = read_checkpoint(_file(bundle, "state.safetensors"), state)
        state.assign(saved.variables.values())
        with np.load(_file(bundle, "batch.npz"), allow_pickle=False) as arrays:
            images, labels, indices = (arrays[k] for k in ("images", "labels", "indices"))
        count = len(labels)
        for array, shape in ((images, (count, 28, 28, 1)), (labels, (count, 10))):
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"its batch holds {array.dtype}{array.shape}")
        if indices.shape != (count,) or indices.dtype != np.int64:
            raise ValueError("it does not say which examples its batch is made of")
        if not count:
            raise ValueError("its batch is empty")
        state = replace(state, indices=tf.constant(indices))
        return state, experiment.step, images, labels, str(about["reason"])
    except InputError:
        raise
    except Exception as error:  # zipfile and NumPy raise errors of many types
        raise InputError(
            f"{bundle}: not a replay bundle that can be read ({one_line(error)[:200]}); name a "
            "directory replay-step-... in a run directory"
        ) from error


def _file(bundle: Path, name: str) -> Path:
    """A regular file of a bundle: opening a FIFO would wait for its writer."""
    if not os.path.isfile(bundle / name):
        raise ValueError(f"it has no file {name!r}")
    return bundle / name


def watch(state: State, step: Step, images: tf.Tensor, labels: tf.Tensor) -> Values:
    """Runs a step eagerly; returns its values by name, in the order of computation.

    They are the batch, the variables before, each layer's output, the loss, the gradients, the
    variables after, and the values that the step returns.

    Raises:
        ValueError: if the step returns values that ``train`` would refuse.
    """
    seen: Values = [("images", images), ("labels", labels)]
    seen += [(f"{name} before", value) for name, value in _readable(state)]
    call = tf.keras.layers.Layer.__call__

    def watched_call(layer: Any, *arguments: Any, **options: Any) -> Any:
        output = call(layer, *arguments, **options)
        seen.extend((f"output of {layer.name}", _array(t)) for t in tf.nest.flatten(output))
        return output

    class Watched(State):
        def gradients(self, tape: tf.GradientTape, loss: tf.Tensor) -> list[tf.Tensor]:
            seen.append(("loss", _array(loss)))
            gradients = super().gradients(tape, loss)
            names = [f"gradient of {name}" for name in self.weights()]
            seen.extend(zip(names, map(_array, gradients), strict=True))
            return gradients

    watched = Watched(**{field.name: getattr(state, field.name) for field in fields(State)})
    with mock.patch.object(tf.keras.layers.Layer, "__call__", watched_call):
        returned = step(watched, tf.constant(images), tf.constant(labels))
    seen += [(f"{name} after", value) for name, value in _readable(state)]
    for kind in sorted_by_kind(returned):
        seen += [(f"{name}, as returned", _array(value)) for name, value in kind.items()]
    return [(name, value) for name, value in seen if value.dtype.kind == "f" and value.size]


def _array(value: Any) -> npt.NDArray[Any]:
    """A tensor's value. Half precision becomes float32: NumPy has no bfloat16."""
    half = getattr(value, "dtype", None) in (tf.bfloat16, tf.float16)
    return np.asarray(tf.cast(value, tf.float32) if half else value)


def _readable(state: State) -> Values:
    """The values of a state by short names; of the optimizer's only the non-finite ones."""
    return [
        (re.sub(rf"^(model/\d+/({re.escape(state.model.name)}/)?|optimizer/\d+/)", "", name), value)
        for name, value in state.values().items()
        if not name.startswith("optimizer/") or not np.isfinite(value).all()
    ]


def first_bad_line(state: State, step: Step, images: tf.Tensor, labels: tf.Tensor) -> str | None:
    """The first operation that makes a value non-finite, and its line of code.

    None if TensorFlow's check finds no operation. See ``tf.debugging.enable_check_numerics``.
    """
    tf.debugging.enable_check_numerics()
    try:
        with silenced_stderr():  # TensorFlow also logs the error
            step(state, tf.constant(images), tf.constant(labels))
    except tf.errors.InvalidArgumentError as error:
        operation = re.search(r'op "(\w+)"', str(error))
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "site-packages" not in frame.filename]
        where = f"{ours[-1].filename}, line {ours[-1].lineno}: {ours[-1].line}"
        return f"{operation[1]} in {where}" if operation else where
    except Exception:  # a step that keeps values outside the state may not run twice
        return None
    finally:
        tf.debugging.disable_check_numerics()
    return None
