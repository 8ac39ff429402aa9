"""The training loop: compiles a step, feeds it, counts, and reports."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from research.data.batches import (
    batch_indices,
    epoch_order,
    steps_of_epochs,
    steps_per_epoch,
    take_batch,
)
from research.data.dataset import Split
from research.errors import NonFiniteError
from research.training.graph import with_names_of_the_code
from research.training.profiler import Profile, Profiler
from research.training.returned import sorted_by_kind
from research.training.state import State

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Step = Callable[[State, Any, Any], dict[str, Any]]

# What train adds to the scalars that a step returns: wall time until its batch was ready.
INPUT_SECONDS = "input_seconds"

# Python hears a signal only between two calls of a compiled function: that bounds their length.
SECONDS_PER_CALL = 0.4


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened since the last report that was due.

    Attributes:
        step: number of steps done since the start of training.
        epoch: the epoch that the last of these steps belongs to, counted from 1.
        epoch_ended: whether that step was the epoch's last, or the last of all.
        due: whether a report was due here. One that is made early covers steps that the next
            will cover too: nothing is missing from the others because of it.
        metrics: for each scalar that the step returns, its mean over the examples since then;
            and ``input_seconds``, the wall time until a step's batch was ready, likewise.
        history: the same scalars step by step, each float32 [S].
        last_step: where the report is due, what is looked at in its last step only: the images
            and vectors that the first replica's step returns, by name, and for each layer
            ``update_ratio/<layer>``, how far the step moved its weights, as the ratio of the
            Euclidean norms of the change and of the weights before, 0 where these are 0.
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
    last_step: Mapping[str, Any]
    examples: int
    seconds: float

    @property
    def examples_per_second(self) -> float:
        """Training speed."""
        return self.examples / self.seconds


@dataclasses.dataclass(frozen=True)
class Unreported:
    """What a report that was made early has measured; see ``Report``."""

    history: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(next(iter(self.history.values()), ()))


def train(
    state: State,
    step: Step,
    split: Split,
    *,
    epochs: float,
    batch_size: int,
    until: int | None = None,
    steps_per_call: int = 10,
    report_every: int = 20,
    early_every: int | None = None,
    report_now: Callable[[int], bool] = lambda done: False,
    unreported: Unreported | None = None,
    profile: Profile | None = None,
    show_graph: Callable[[Any], None] = lambda graph: None,
    compiled: bool = True,
) -> Generator[Report, None, None]:
    """Runs ``step`` on batch after batch until ``epochs`` are done.

    The step is traced once, by this call; it runs when the first report is asked for. Training
    goes on from ``state.step``, and since a batch is a function of seed and step, it goes on
    with the batch that is due.

    Args:
        state: is changed in place.
        step: a function (state, images float32 [B, 28, 28, 1] in 0..1, one-hot labels float32
            [B, 10]) -> {name: tensor}, written for one replica. The tensors are scalars, images
            [N, height, width, 1, 3 or 4] (0..1 if float, 0..255 if uint8), or vectors [N] of
            numbers to make a histogram of.
        split: what to train on; each example is used exactly once per epoch.
        epochs: passes over ``split``, counted from the very start of training; after the last
            whole one there may be a part of one.
        batch_size: examples per step over all replicas; an epoch's last batch may be smaller.
        until: ends training after so many steps, counted from the very start.
        steps_per_call: how many steps one call of the compiled function runs at most; fewer
            where they are slow, so that the caller is heard in time. It changes speed, never
            the result.
        report_every: a report is due each time this many steps are done, after each epoch, and
            at the end.
        early_every: an early report is made each time this many steps are done.
        report_now: is asked after every call, with the number of steps done; where it says yes,
            an early report is made.
        unreported: where ``state`` comes from an early report, what that had measured.
        profile: which steps to profile, if any.
        show_graph: is given the graph of one step, a ``GraphDef``, when it has been traced.
        compiled: False runs the step eagerly, for a debugger; slower, and equal but for rounding.

    Yields:
        A report, at every step where one is due or asked for.

    Raises:
        NonFiniteError: if a scalar that the step returns becomes NaN or infinite.
        RuntimeError: if the weights are the same after the first report as before.
        ValueError: if the step returns anything but scalars, images and vectors, each by name.
    """
    one_step, names = _one_step(state, step, split, batch_size)
    shown = show_graph if compiled else None
    run_steps = _several_steps(one_step, state, split, batch_size, shown)
    before = unreported or Unreported()
    per_epoch = steps_per_epoch(len(split), batch_size)
    total = steps_of_epochs(epochs, len(split), batch_size)
    last = total if until is None else min(until, total)

    def report(done: int, looked_at: Any, rows: list[Any], earlier: Any, seconds: float) -> Report:
        history = _history(names, rows, earlier)
        sizes = np.full(len(next(iter(history.values()))), batch_size)
        if done % per_epoch == 0:
            sizes[-1] = len(split) - (per_epoch - 1) * batch_size
        _check_finite(history, done - len(sizes))
        ratios = {k: np.array([v]) for k, v in (looked_at or {}).items() if isinstance(v, float)}
        _check_finite(ratios, done - 1)
        return Report(
            step=done,
            epoch=(done - 1) // per_epoch + 1,
            epoch_ended=done % per_epoch == 0 or done == total,
            due=looked_at is not None,
            metrics={n: float(np.average(v, weights=sizes)) for n, v in history.items()},
            history=history,
            last_step=looked_at or {},
            examples=int(sizes.sum()),
            seconds=seconds,
        )

    def reports() -> Generator[Report, None, None]:
        weights_before = [v.numpy() for v in state.model.trainable_variables]
        done = int(state.step.numpy())
        earlier, seconds = before.history, before.seconds
        rows: list[npt.NDArray[np.float32]] = []
        steps_in_time = 1
        with Profiler(profile) as profiler:
            while done < last:
                due = min(
                    report_every - done % report_every, per_epoch - done % per_epoch, total - done
                )
                early = early_every - done % early_every if early_every else due
                ahead = min(due, early, last - done)
                # The last step before a report that is due has a call to itself: it is looked at.
                alone = ahead - (1 < ahead == due)
                count = min(alone, steps_per_call, steps_in_time, profiler.at_most(done))
                weights = _weights_by_layer(state) if due == 1 else {}
                with profiler.around(done):
                    begun = time.perf_counter()
                    scalars, others = run_steps(tf.constant(count))
                    rows.append(scalars.numpy())
                    elapsed = time.perf_counter() - begun
                seconds += elapsed
                done += count
                steps_in_time = max(1, int(SECONDS_PER_CALL / elapsed * count))
                if count < ahead and not report_now(done):
                    continue
                ratios = _update_ratios(weights, _weights_by_layer(state)) if due == 1 else {}
                looked_at = ratios | others if due == 1 else None
                latest = report(done, looked_at, rows, earlier, seconds)
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
        Whether there is such a step: a scalar that it returns, or a variable after it, is not
        finite. Only these count: no figure that ``train`` computes for its reports.
    """
    one_step, _ = _one_step(state, step, split, batch_size)
    run_steps = _several_steps(one_step, state, split, batch_size, lambda graph: None)
    while int(state.step.numpy()) < until:
        before = state.values()
        scalars, _ = run_steps(tf.constant(1))
        if not np.isfinite(scalars.numpy()).all() or non_finite(state.values()) is not None:
            state.assign(before.values())
            return True
    return False


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


def _one_step(
    state: State, step: Step, split: Split, batch_size: int
) -> tuple[Callable[[Any], Any], list[str]]:
    """A function (order of the epoch) -> what the step that is due returns; scalars' names.

    That is the scalars, as float32 [scalars], and by name the images and vectors. The names are
    filled in when the function is first traced or run.
    """
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    replicas = state.strategy.num_replicas_in_sync
    per_epoch = steps_per_epoch(len(split), batch_size)
    names: list[str] = []

    def one_replica(indices: Any) -> Any:
        share = None
        if replicas > 1:
            batch, replica = indices, tf.distribute.get_replica_context()
            indices = batch[replica.replica_id_in_sync_group :: replicas]
            share = tf.cast(tf.size(indices) / tf.size(batch), tf.float32)
            # Without any example it takes one that does not count: not all kernels can do nothing.
            indices = tf.cond(tf.size(indices) > 0, lambda: indices, lambda: batch[:1])
        view = dataclasses.replace(state, share=share)
        begun = tf.timestamp()
        with tf.name_scope("batch"), tf.control_dependencies([begun]):
            batch_of_replica = take_batch(images, labels, indices)
        with tf.control_dependencies(batch_of_replica):
            # The clock may be set back.
            input_seconds = tf.cast(tf.maximum(tf.timestamp() - begun, 0), tf.float32)
        scalars, others = sorted_by_kind(step(view, *batch_of_replica))
        names[:] = [*scalars, INPUT_SECONDS]
        row = tf.stack([*scalars.values(), input_seconds])
        return row if share is None else row * share, others

    def one_step(order: Any) -> Any:
        indices = batch_indices(order, state.step % per_epoch, batch_size)
        row, others = state.strategy.run(one_replica, args=(indices,))
        row = state.strategy.reduce(tf.distribute.ReduceOp.SUM, row, axis=None)
        state.step.assign_add(1)
        first = {k: state.strategy.experimental_local_results(v)[0] for k, v in others.items()}
        return row, first

    return one_step, names


def _several_steps(
    one_step: Callable[[Any], Any],
    state: State,
    split: Split,
    batch_size: int,
    show_graph: Callable[[Any], None] | None,
) -> Callable[[Any], Any]:
    """A function (number of steps) -> float32 [steps, scalars], the last one's images and vectors.

    All steps of one call lie in one epoch.

    Args:
        one_step, state, split, batch_size: see ``_one_step``.
        show_graph: see ``train``; None where nothing is to be compiled.
    """
    per_epoch = steps_per_epoch(len(split), batch_size)
    like: Mapping[str, Any] = {}
    if show_graph is not None:
        order = tf.TensorSpec([len(split)], tf.int64)
        concrete: Any = tf.function(one_step).get_concrete_function(order)
        show_graph(with_names_of_the_code(concrete.graph.as_graph_def()))
        one_step, like = concrete, concrete.structured_outputs[1]
    shapes = {name: tensor.shape for name, tensor in like.items()}

    def run_steps(count: Any) -> Any:
        order = epoch_order(state.seed, state.step // per_epoch, len(split))
        rows = tf.TensorArray(tf.float32, size=count)
        others = {k: tf.zeros([size or 0 for size in v.shape], v.dtype) for k, v in like.items()}
        for i in tf.range(count):
            tf.autograph.experimental.set_loop_options(shape_invariants=[(others, shapes)])
            row, others = one_step(order)
            rows = rows.write(i, row)
        return rows.stack(), others

    if show_graph is None:
        return run_steps
    return tf.function(run_steps).get_concrete_function(tf.TensorSpec([], tf.int32))


def _weights_by_layer(state: State) -> dict[str, list[Any]]:
    """The values of each layer's trainable variables; they stay as they are now."""
    layers: dict[str, list[Any]] = {}
    for name, variable in state.weights().items():
        layers.setdefault(name.rpartition("/")[0] or name, []).append(
            tf.convert_to_tensor(variable.value)
        )
    return layers


def _update_ratios(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> dict[str, Any]:
    """For each layer the norm of the change of its weights over the norm before."""
    ratios: dict[str, Any] = {}
    for layer, old in before.items():
        # In float32 the squares of finite weights overflow.
        weights, new = ([tf.cast(t, tf.float64) for t in of] for of in (old, after[layer]))
        change = tf.linalg.global_norm([b - a for a, b in zip(weights, new, strict=True)])
        ratio = tf.math.divide_no_nan(change, tf.linalg.global_norm(weights))
        ratios[f"update_ratio/{layer}"] = float(ratio)
    return ratios


def _history(
    names: list[str],
    rows: list[npt.NDArray[np.float32]],
    earlier: Mapping[str, npt.NDArray[np.float32]],
) -> dict[str, npt.NDArray[np.float32]]:
    """Each metric's values step by step, behind those from before the run was resumed."""
    history = dict(zip(names, np.concatenate(rows).T, strict=True))
    if earlier.keys() == history.keys():  # as long as nobody has edited the step in between
        history = {name: np.concatenate([earlier[name], new]) for name, new in history.items()}
    return history


def _check_finite(values_by_name: Mapping[str, npt.NDArray[Any]], before: int) -> None:
    """Refuses values step by step, after ``before`` steps; names the first that is not finite."""
    bad = {n: np.flatnonzero(~np.isfinite(v)) for n, v in values_by_name.items()}
    firsts = {name: int(places[0]) for name, places in bad.items() if places.size}
    if firsts:
        name = min(firsts, key=lambda key: firsts[key])
        raise NonFiniteError(
            f"{name} became {values_by_name[name][firsts[name]]} at step "
            f"{before + firsts[name] + 1}; try a lower --learning-rate, --clip-norm 1, or "
            "--precision float32"
        )


def _check_changed(state: State, before: list[Any], history: dict[str, Any]) -> None:
    after = [v.numpy() for v in state.model.trainable_variables]
    if "optimizer/loss_scale" not in history and all(map(np.array_equal, before, after)):
        raise RuntimeError(
            "no weight has changed in the first steps: check that the step calls "
            "state.update(gradients) and that the learning rate is above 0"
        )
