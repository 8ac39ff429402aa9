"""The verb ``replay``: runs again the one step in which something became NaN or infinite."""

from __future__ import annotations

import dataclasses
import json
import re
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

from research.config import config_from_json
from research.errors import InputError, one_line
from research.files import read_json
from research.recording.checkpoints import read_checkpoint
from research.recording.screen import Screen
from research.stderr import silenced_stderr
from research.tools.load_experiment import load_experiment
from research.training.state import State
from research.training.train import Step

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tyro
from rich.table import Column, Table

Values = list[tuple[str, npt.NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class Replay:
    """Run again the step in which something became NaN or infinite, and show where it began.

    The experiment's file in the bundle is run, like any program: replay what you trust.
    """

    bundle: Annotated[Path, tyro.conf.Positional]
    """A directory replay-step-... that a run has left."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self, screen: Screen) -> None:
        """Runs the step eagerly and prints what it computes, in the order of computation.

        Raises:
            InputError: if the bundle is damaged.
        """
        state, step, images, labels, reason = read_bundle(self.bundle)
        number = int(state.step.numpy()) + 1
        before = state.values()
        computed = watch(state, step, images, labels)
        bad = next((name for name, value in computed if not np.isfinite(value).all()), None)
        state.assign(before.values())
        line = None if bad is None else first_bad_line(state, step, images, labels)
        if self.json:
            found = {"step": number, "reason": reason, "first_non_finite": bad, "line": line}
            print(json.dumps(found, indent=2))
            return
        first = Column("in the order of computation", no_wrap=True)
        table = Table(first, "shape", "smallest", "largest", "finite")
        names = [name for name, _ in computed]
        shown = len(names) if bad is None else names.index(bad) + 4
        for name, value in computed[:shown]:
            finite = value[np.isfinite(value)]
            ends = [f"{end(finite):.4g}" if finite.size else "" for end in (np.min, np.max)]
            share = f"{finite.size / max(value.size, 1):.2%}"
            style = "bold red" if name == bad else None
            table.add_row(name, str(value.shape), *ends, share, style=style)
        screen.say(f"Step {number}: {reason}")
        screen.console.print(table)
        if shown < len(computed):
            screen.say(f"(and {len(computed) - shown} more)")
        if bad is None:
            screen.say("Everything is finite in this one step, run eagerly and on one replica.")
        else:
            screen.say(f"The first that is not finite: {bad}")
        if line is not None:
            screen.say(f"The first operation that makes it so: {line}")


def read_bundle(bundle: Path) -> tuple[State, Step, Any, Any, str]:
    """The state before a step, the step, its images [B, 28, 28, 1] and labels [B, 10], and why.

    Raises:
        InputError: if there is no bundle, or it is damaged.
    """
    try:
        about = read_json(bundle / "bundle.json")
        experiment = bundle / Path(about["experiment"]).name
        config_type, build, step = load_experiment(experiment)
        state = build(config_from_json(config_type, about["config"]), int(about["total_steps"]))
        saved = read_checkpoint(bundle / "state.safetensors", state)
        state.assign(saved.variables.values())
        with np.load(bundle / "batch.npz", allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        count = len(labels)
        for array, shape in ((images, (count, 28, 28, 1)), (labels, (count, 10))):
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"its batch holds {array.dtype}{array.shape}")
        return state, step, images, labels, str(about["reason"])
    except InputError:
        raise
    except Exception as error:  # zipfile and NumPy raise errors of many kinds
        raise InputError(
            f"{bundle}: not a replay bundle that can be read ({one_line(error)[:200]}); name a "
            "directory replay-step-... in a run directory"
        ) from error


def watch(state: State, step: Step, images: Any, labels: Any) -> Values:
    """Runs a step eagerly; returns the name and the value of everything on its way.

    That is: the batch, the variables before, each layer's output, the loss, the gradients, the
    variables after, and what the step returns.
    """
    seen: Values = [("images", images), ("labels", labels)]
    seen += [(f"{name} before", value) for name, value in _readable(state)]
    call = tf.keras.layers.Layer.__call__

    def watched_call(layer: Any, *arguments: Any, **options: Any) -> Any:
        output = call(layer, *arguments, **options)
        seen.extend((f"output of {layer.name}", np.asarray(t)) for t in tf.nest.flatten(output))
        return output

    class Watched(State):
        def gradients(self, tape: tf.GradientTape, loss: Any) -> list[Any]:
            seen.append(("loss", np.asarray(loss)))
            gradients = super().gradients(tape, loss)
            names = [f"gradient of {v.path}" for v in self.model.trainable_variables]
            seen.extend(zip(names, map(np.asarray, gradients), strict=True))
            return gradients

    watched = Watched(**{field.name: getattr(state, field.name) for field in fields(State)})
    with mock.patch.object(tf.keras.layers.Layer, "__call__", watched_call):
        returned = step(watched, tf.constant(images), tf.constant(labels))
    seen += [(f"{name} after", value) for name, value in _readable(state)]
    seen += [(f"{name}, as returned", np.asarray(value)) for name, value in returned.items()]
    return [(name, value) for name, value in seen if value.dtype.kind == "f" and value.size]


def _readable(state: State) -> Values:
    """The values of a state; of the optimizer's only those that are not finite."""
    return [
        (name.split("/", 2)[-1], value)
        for name, value in state.values().items()
        if not name.startswith("optimizer/") or not np.isfinite(value).all()
    ]


def first_bad_line(state: State, step: Step, images: Any, labels: Any) -> str | None:
    """The operation that first makes something non-finite, and the line of code it stands on.

    None where TensorFlow's check finds none, or the line is not in this project. See
    ``tf.debugging.enable_check_numerics``.
    """
    tf.debugging.enable_check_numerics()
    try:
        with silenced_stderr():  # the error is logged, too
            step(state, tf.constant(images), tf.constant(labels))
    except tf.errors.InvalidArgumentError as error:
        operation = re.search(r'op "(\w+)"', str(error))
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "site-packages" not in frame.filename]
        where = f"{ours[-1].filename}, line {ours[-1].lineno}: {ours[-1].line}"
        return f"{operation[1]} in {where}" if operation else where
    finally:
        tf.debugging.disable_check_numerics()
    return None
