"""The training loop: compiles a step, feeds it, counts, and reports."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from research.data.batches import batch_indices, epoch_order, steps_per_epoch, take_batch
from research.data.dataset import Split
from research.errors import NonFiniteError
from research.training.state import State

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Step = Callable[[State, Any, Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened since the report before.

    Attributes:
        step: number of steps done since the start of training.
        epoch: the epoch that the last of these steps belongs to, counted from 1.
        epoch_ended: whether that step was the epoch's last.
        metrics: for each value that the step returns, its mean over the examples since then.
        history: the same values step by step, each float32 [S].
        examples: number of examples since then.
        seconds: wall time spent on these steps, without tracing, and without what the caller
            did between two reports.
    """

    step: int
    epoch: int
    epoch_ended: bool
    metrics: dict[str, float]
    history: dict[str, npt.NDArray[np.float32]]
    examples: int
    seconds: float

    @property
    def examples_per_second(self) -> float:
        """Training speed."""
        return self.examples / self.seconds


def train(
    state: State,
    step: Step,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    steps_per_call: int = 10,
    report_every: int = 20,
    report_now: Callable[[], bool] = lambda: False,
    compiled: bool = True,
) -> Iterator[Report]:
    """Runs ``step`` on batch after batch until ``epochs`` are done.

    The step is traced once, before the first step runs. Training goes on from ``state.step``,
    and since a batch is a function of seed and step, it goes on with the batch that is due.

    Args:
        state: is changed in place.
        step: a function (state, images float32 [B, 28, 28, 1] in 0..1, one-hot labels float32
            [B, 10]) -> {name: scalar}, written for one replica.
        split: what to train on; each example is used exactly once per epoch.
        epochs: passes over ``split``, counted from the very start of training.
        batch_size: examples per step over all replicas; an epoch's last batch may be smaller.
        steps_per_call: how many steps one call of the compiled function runs. It changes speed
            and how soon the caller is heard, never the result.
        report_every: a report is due each time this many steps are done, and after each epoch.
        report_now: is asked after every call; where it says yes, a report is made early.
        compiled: False runs the step eagerly, for a debugger; slower, and equal but for rounding.

    Yields:
        A report, at every step where one is due.

    Raises:
        NonFiniteError: if a value that the step returns becomes NaN or infinite.
        RuntimeError: if the weights are the same after the first report as before.
        ValueError: if the step returns anything but named scalars.
    """
    run_steps, names = _several_steps(state, step, split, batch_size)
    if compiled:
        run_steps = tf.function(run_steps).get_concrete_function(tf.TensorSpec([], tf.int32))
    weights_before = [v.numpy() for v in state.model.trainable_variables]
    per_epoch = steps_per_epoch(len(split), batch_size)
    done = reported = int(state.step.numpy())
    seconds, rows = 0.0, []
    while done < epochs * per_epoch:
        epoch, in_epoch = divmod(done, per_epoch)
        due = min(per_epoch - in_epoch, report_every - done % report_every)
        begun = time.perf_counter()
        rows.append(run_steps(tf.constant(min(due, steps_per_call))).numpy())
        seconds += time.perf_counter() - begun
        done += len(rows[-1])
        if len(rows[-1]) < due and not report_now():
            continue
        sizes = np.full(done - reported, batch_size)
        if done % per_epoch == 0:
            sizes[-1] = len(split) - (per_epoch - 1) * batch_size
        history = dict(zip(names, np.concatenate(rows).T, strict=True))
        _check_finite(history, reported)
        if weights_before:
            _check_changed(state, weights_before, history)
            weights_before = []
        metrics = {n: float(np.average(v, weights=sizes)) for n, v in history.items()}
        ended = done % per_epoch == 0
        yield Report(done, epoch + 1, ended, metrics, history, int(sizes.sum()), seconds)
        reported, seconds, rows = done, 0.0, []


def _several_steps(
    state: State, step: Step, split: Split, batch_size: int
) -> tuple[Callable[[Any], Any], list[str]]:
    """A function (number of steps) -> float32 [steps, metrics], and the metrics' names.

    The names are filled in when the function is first traced or run.
    """
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    replicas = state.strategy.num_replicas_in_sync
    per_epoch = steps_per_epoch(len(split), batch_size)
    names: list[str] = []

    def one_replica(indices: Any) -> Any:
        share = None
        if replicas > 1:
            batch, replica = tf.size(indices), tf.distribute.get_replica_context()
            indices = indices[replica.replica_id_in_sync_group :: replicas]
            share = tf.cast(tf.size(indices) / batch, tf.float32)
        view = dataclasses.replace(state, share=share)
        metrics = step(view, *take_batch(images, labels, indices))
        names[:] = _checked_names(metrics)
        row = tf.stack([tf.cast(metrics[name], tf.float32) for name in names])
        return row if share is None else tf.math.multiply_no_nan(row, share)

    def run_steps(count: Any) -> Any:
        # All steps of one call lie in one epoch.
        order = epoch_order(state.seed, state.step // per_epoch, len(split))
        rows = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            indices = batch_indices(order, state.step % per_epoch, batch_size)
            row = state.strategy.run(one_replica, args=(indices,))
            rows = rows.write(i, state.strategy.reduce(tf.distribute.ReduceOp.SUM, row, axis=None))
            state.step.assign_add(1)
        return rows.stack()

    return run_steps, names


def _checked_names(metrics: Any) -> list[str]:
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(f"the step returned {metrics!r}; return a dictionary {{name: scalar}}")
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise ValueError(f"the step returned the key {name!r}; keys are strings")
        if tf.convert_to_tensor(value).shape.rank != 0:
            raise ValueError(
                f"the step returned {name!r} with shape {tf.convert_to_tensor(value).shape}; "
                "return scalars, such as tf.reduce_mean of it"
            )
    return list(metrics)


def _check_finite(history: dict[str, npt.NDArray[np.float32]], before: int) -> None:
    for name, values in history.items():
        if not np.isfinite(values).all():
            first = int(np.argmin(np.isfinite(values)))
            raise NonFiniteError(
                f"{name} became {values[first]} at step {before + first + 1}; try a lower "
                "--learning-rate, --clip-norm 1, or --precision float32"
            )


def _check_changed(state: State, before: list[Any], history: dict[str, Any]) -> None:
    after = [v.numpy() for v in state.model.trainable_variables]
    if "loss_scale" not in history and all(map(np.array_equal, before, after)):
        raise RuntimeError(
            "no weight has changed in the first steps: check that the step calls "
            "state.update(gradients) and that the learning rate is above 0"
        )
