"""The training loop: compiles a step, feeds it, counts, and reports."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from research.data.batches import batch_indices, epoch_order, steps_per_epoch, take_batch
from research.data.dataset import Split
from research.errors import NonFiniteError
from research.training.state import State

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Step = Callable[[State, Any, Any], dict[str, Any]]

# Python hears a signal only between two calls of a compiled function: that bounds their length.
SECONDS_PER_CALL = 0.4


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened since the last report that was due.

    Attributes:
        step: number of steps done since the start of training.
        epoch: the epoch that the last of these steps belongs to, counted from 1.
        epoch_ended: whether that step was the epoch's last.
        due: whether a report was due here. One that is made early covers steps that the next
            will cover too: nothing is missing from the others because of it.
        metrics: for each value that the step returns, its mean over the examples since then.
        history: the same values step by step, each float32 [S].
        examples: number of examples since then.
        seconds: wall time spent on these steps, without tracing, and without what the caller
            did between two reports.
    """

    step: int
    epoch: int
    epoch_ended: bool
    due: bool
    metrics: dict[str, float]
    history: dict[str, npt.NDArray[np.float32]]
    examples: int
    seconds: float

    @property
    def examples_per_second(self) -> float:
        """Training speed."""
        return self.examples / self.seconds


@dataclasses.dataclass(frozen=True)
class Unreported:
    """What a report had measured that was early, or that was not dealt with; see ``Report``."""

    history: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(next(iter(self.history.values()), ()))


def train(
    state: State,
    step: Step,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    until: int | None = None,
    steps_per_call: int = 10,
    report_every: int = 20,
    early_every: int | None = None,
    report_now: Callable[[int], bool] = lambda done: False,
    unreported: Unreported | None = None,
    compiled: bool = True,
) -> Iterator[Report]:
    """Runs ``step`` on batch after batch until ``epochs`` are done.

    The step is traced once, by this call; it runs when the first report is asked for. Training
    goes on from ``state.step``, and since a batch is a function of seed and step, it goes on
    with the batch that is due.

    Args:
        state: is changed in place.
        step: a function (state, images float32 [B, 28, 28, 1] in 0..1, one-hot labels float32
            [B, 10]) -> {name: scalar}, written for one replica.
        split: what to train on; each example is used exactly once per epoch.
        epochs: passes over ``split``, counted from the very start of training.
        batch_size: examples per step over all replicas; an epoch's last batch may be smaller.
        until: ends training after so many steps, counted from the very start.
        steps_per_call: how many steps one call of the compiled function runs at most; fewer
            where they are slow, so that the caller is heard in time. It changes speed, never
            the result.
        report_every: a report is due each time this many steps are done, and after each epoch.
        early_every: an early report is made each time this many steps are done.
        report_now: is asked after every call, with the number of steps done; where it says yes,
            an early report is made.
        unreported: where ``state`` comes from before the last report was dealt with, what that
            had measured. If it was due, it is made again, first of all.
        compiled: False runs the step eagerly, for a debugger; slower, and equal but for rounding.

    Yields:
        A report, at every step where one is due or asked for.

    Raises:
        NonFiniteError: if a value that the step returns becomes NaN or infinite.
        RuntimeError: if the weights are the same after the first report as before.
        ValueError: if the step returns anything but named scalars.
    """
    run_steps, names = _several_steps(state, step, split, batch_size)
    if compiled:
        run_steps = tf.function(run_steps).get_concrete_function(tf.TensorSpec([], tf.int32))
    before = unreported or Unreported()
    per_epoch = steps_per_epoch(len(split), batch_size)
    last = epochs * per_epoch if until is None else min(until, epochs * per_epoch)

    def report(done: int, due: bool, rows: list[Any], earlier: Any, seconds: float) -> Report:
        history = _history(names, rows, earlier)
        sizes = np.full(len(next(iter(history.values()))), batch_size)
        if done % per_epoch == 0:
            sizes[-1] = len(split) - (per_epoch - 1) * batch_size
        _check_finite(history, done - len(sizes))
        return Report(
            step=done,
            epoch=(done - 1) // per_epoch + 1,
            epoch_ended=done % per_epoch == 0,
            due=due,
            metrics={n: float(np.average(v, weights=sizes)) for n, v in history.items()},
            history=history,
            examples=int(sizes.sum()),
            seconds=seconds,
        )

    def reports() -> Iterator[Report]:
        weights_before = [v.numpy() for v in state.model.trainable_variables]
        done = int(state.step.numpy())
        earlier, seconds = before.history, before.seconds
        rows: list[npt.NDArray[np.float32]] = []
        if earlier and 0 in (done % per_epoch, done % report_every):
            yield report(done, True, rows, earlier, seconds)
            earlier, seconds = {}, 0.0
        steps_in_time = 1
        while done < last:
            due = min(per_epoch - done % per_epoch, report_every - done % report_every)
            early = min(due, last - done, early_every - done % early_every if early_every else due)
            begun = time.perf_counter()
            rows.append(run_steps(tf.constant(min(early, steps_per_call, steps_in_time))).numpy())
            elapsed = time.perf_counter() - begun
            ran = len(rows[-1])
            seconds += elapsed
            done += ran
            steps_in_time = max(1, int(SECONDS_PER_CALL / elapsed * ran))
            if ran < early and not report_now(done):
                continue
            latest = report(done, ran == due, rows, earlier, seconds)
            if weights_before:
                _check_changed(state, weights_before, latest.history)
                weights_before = []
            yield latest
            if latest.due:
                earlier, seconds, rows = {}, 0.0, []

    return reports()


def go_to_non_finite(
    state: State, step: Step, split: Split, *, batch_size: int, until: int
) -> bool:
    """Trains, step by step, up to where the next step makes something NaN or infinite.

    Args:
        state: is left as it is before that step.
        step, split, batch_size: see ``train``.
        until: gives up after so many steps, counted from the very start.

    Returns:
        Whether there is such a step: its values or the variables after it are not finite.
    """
    before = state.values()
    try:
        for _ in train(
            state, step, split, epochs=until, batch_size=batch_size, until=until, report_every=1
        ):
            after = state.values()
            if non_finite(after) is not None:
                break
            before = after
        else:
            return False
    except NonFiniteError:
        pass
    state.assign(before.values())
    return True


def non_finite(values: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """The name of the first array that holds NaN or infinity, or None.

    What is kept under ``extra/`` may: a lowest loss so far begins with infinity.
    """
    for name, value in values.items():
        if name.startswith("extra/"):
            continue
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return name
    return None


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


def _history(
    names: list[str],
    rows: list[npt.NDArray[np.float32]],
    earlier: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, npt.NDArray[np.float32]]:
    """Each metric's values step by step, behind those from before the run was resumed."""
    if not rows:
        return dict(earlier)
    history = dict(zip(names, np.concatenate(rows).T, strict=True))
    if earlier.keys() == history.keys():  # as long as nobody has edited the step in between
        history = {name: np.concatenate([earlier[name], new]) for name, new in history.items()}
    return history


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
