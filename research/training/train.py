"""The training loop: compiles a step, feeds it, counts, and reports."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from research.data.batches import (
    Plan,
    batch_indices,
    epoch_order,
    indices_of_step,
    share_of_batch,
    take_batch,
)
from research.data.dataset import Split
from research.errors import InputError, NonFiniteError
from research.training.graph import with_names_of_the_code
from research.training.profiler import Profile, Profiler
from research.training.returned import sorted_by_kind
from research.training.state import Part, State
from research.training.workers import workers_of

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Step = Callable[[State, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
Indices = Callable[[State, Plan], tf.Tensor]
# What one step returns: scalars, and images and vectors, by name.
Returned = tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]
# What several steps return: scalars [steps], the last step's images and vectors, and its indices.
Stepped = tuple[dict[str, tf.Tensor], dict[str, tf.Tensor], tf.Tensor]
History = dict[str, npt.NDArray[np.float32]]

# train adds two scalars to those that a step returns: the wall time until the step's batch was
# ready, and the number of examples in the batch.
INPUT_SECONDS, EXAMPLES = "input_seconds", "examples"

# How the names of operations begin that change a variable.
WRITING = ("Assign", "ResourceApply", "ResourceScatter", "ResourceSparse", "ResourceStrided")

# Python handles signals only between two calls of a compiled function, so calls must be short.
SECONDS_PER_CALL = 0.4


@dataclasses.dataclass(frozen=True)
class LastStep:
    """Details of the last step before a report that is due; other steps are not looked at.

    Attributes:
        indices: int64 [B], the positions of the batch's examples in the training split.
        returned: the images and vectors that the first replica's step returned, by name.
        update_ratios: for each layer the Euclidean norm of the step's change of the weights,
            divided by the norm of the weights before; 0 if these are 0.
    """

    indices: tf.Tensor
    returned: Mapping[str, tf.Tensor]
    update_ratios: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Report:
    """The measurements since the last report that was due.

    A report is due at fixed steps. An early report is made in between, for a checkpoint: the next
    report covers its steps again, so that early reports change no other report.

    Attributes:
        step: number of steps done since the start of training.
        epoch: the epoch of the last of these steps, counted from 1.
        epoch_ended: whether that step was the last of its epoch, or of the training.
        metrics: for each scalar that the step returns, its mean over the examples of these steps;
            and the mean of ``input_seconds``, the wall time until a step's batch was ready.
        history: the same scalars step by step, each float32 [S], and ``examples``, the number of
            examples in each batch.
        last_step: details of the last step; None if the report is early.
        examples: number of examples in these steps.
        seconds: wall time of these steps, without tracing and without the caller's time between
            two reports.
    """

    step: int
    epoch: int
    epoch_ended: bool
    metrics: dict[str, float]
    history: History
    last_step: LastStep | None
    examples: int
    seconds: float

    @property
    def due(self) -> bool:
        """Whether the report was due; False if it is early."""
        return self.last_step is not None

    @property
    def examples_per_second(self) -> float:
        """The training speed."""
        return self.examples / self.seconds


@dataclasses.dataclass(frozen=True)
class Unreported:
    """The measurements of an early report, for training that is resumed; see ``Report``."""

    history: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(next(iter(self.history.values()), ()))


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the compiled function.

    Attributes:
        steps: the number of steps in the call.
        reaches: whether a report, due or early, follows the call.
        looked_at: whether that report is due. The call then has one step, whose details are kept.
    """

    steps: int
    reaches: bool
    looked_at: bool


def next_call(
    done: int,
    plan: Plan,
    *,
    until: int,
    report_every: int,
    early_every: int | None = None,
    at_most: int,
) -> Call:
    """Decides how many steps the next call runs.

    No call goes beyond a step that a report follows. The last step before a report that is due has
    a call of its own.

    Args:
        done: number of steps done, fewer than ``until``.
        plan: how training goes over its examples.
        until: the step after which training ends, at most the plan's last.
        report_every: a report is due every ``report_every`` steps, after each epoch, and after the
            plan's last step.
        early_every: an early report is made every ``early_every`` steps; None for never.
        at_most: the largest number of steps in one call, at least 1.
    """
    per_epoch = plan.steps_per_epoch
    due = min(report_every - done % report_every, per_epoch - done % per_epoch, plan.steps - done)
    early = early_every - done % early_every if early_every else due
    ahead = min(due, early, until - done)
    alone = ahead - (1 < ahead == due)
    steps = min(alone, at_most)
    return Call(steps, reaches=steps == ahead, looked_at=due == 1)


def train(
    state: State,
    step: Step,
    split: Split,
    *,
    epochs: float,
    batch_size: int,
    accumulate: int = 1,
    until: int | None = None,
    indices: Indices | None = None,
    steps_per_call: int = 10,
    report_every: int = 20,
    early_every: int | None = None,
    report_now: Callable[[int], bool] = lambda done: False,
    agree: Callable[[bool, float], tuple[bool, float]] | None = None,
    unreported: Unreported | None = None,
    profile: Profile | None = None,
    show_graph: Callable[[tf.compat.v1.GraphDef], None] = lambda graph: None,
    compiled: bool = True,
) -> Generator[Report, None, None]:
    """Runs ``step`` on batch after batch until ``epochs`` are done.

    train() traces the step once; the steps run while the returned generator is consumed. Training
    starts at ``state.step``. A batch is a function of seed and step, so a resumed training goes on
    with the right batch.

    Args:
        state: is changed in place.
        step: a function (state, images float32 [B, 28, 28, 1] in 0..1, one-hot labels float32
            [B, 10]) -> {name: tensor}, written for one replica. The tensors are scalars, images
            [N, height, width, 1, 3 or 4] (0..1 if float, 0..255 if uint8), or vectors [N] of
            numbers for a histogram.
        split: the training examples.
        epochs: passes over ``split`` in the whole training, fractions allowed.
        batch_size: examples per step over all replicas; an epoch's last batch may be smaller.
        accumulate: how many parts of the batch each replica works on in turn, to need less memory;
            their gradients are added. The result changes by rounding only.
        until: the step after which training ends, counted from the start of training; None for the
            last step.
        indices: decides which examples make a batch: a function (state, plan) -> int64 [B],
            positions in ``split``, of the state alone. None uses each example exactly once per
            epoch, in an order that is a function of the seed.
        steps_per_call: the largest number of steps in one call of the compiled function; slow steps
            get shorter calls, so that the caller is heard in time. It changes the speed, never the
            result.
        report_every: a report is due every so many steps, after each epoch, and at the end.
        early_every: an early report is made every ``early_every`` steps; None for never.
        report_now: a function of the number of steps done, called after every call; an early report
            is made if it returns True.
        agree: with several workers, a function of whether this one wants an early report and of the
            seconds of the last call, which returns both as all workers agree on them.
        unreported: the measurements of the early report that ``state`` was saved after, if any.
        profile: which steps to profile, if any.
        show_graph: is called once with the ``GraphDef`` of the traced step.
        compiled: False runs the step eagerly, for a debugger: slower, and equal up to rounding.

    Yields:
        A report after every step where one is due or an early one is made.

    Raises:
        NonFiniteError: if a scalar that the step returns becomes NaN or infinite.
        RuntimeError: if no weight has changed by the first report that is due and covers a step
            with a learning rate above 0, or by the end; or if a variable then has different values
            on different replicas.
        ValueError: if the step returns anything but scalars, images and vectors by name, or
            ``indices`` anything but positions.
        InputError: with ``accumulate``, see ``check_accumulation``.
    """
    plan = Plan(len(split), batch_size, epochs)
    run_steps = _several_steps(state, step, split, plan, indices, show_graph, compiled, accumulate)
    before = unreported or Unreported()
    last = plan.steps if until is None else min(until, plan.steps)

    def reports() -> Generator[Report, None, None]:
        weights_before = [v.numpy() for v in state.model.trainable_variables]
        done = int(state.step.numpy())
        history, seconds = dict(before.history), before.seconds
        steps_in_time = 1
        with Profiler(profile) as profiler:
            while done < last:
                call = next_call(
                    done,
                    plan,
                    until=last,
                    report_every=report_every,
                    early_every=early_every,
                    at_most=min(steps_per_call, steps_in_time, profiler.at_most(done)),
                )
                weights = _weights_by_layer(state) if call.looked_at else {}
                with profiler.around(done):
                    begun = time.perf_counter()
                    scalars, returned, used = run_steps(tf.constant(call.steps))
                    history = _appended(history, {k: v.numpy() for k, v in scalars.items()})
                    elapsed = time.perf_counter() - begun
                seconds += elapsed
                done += call.steps
                early = not call.reaches and report_now(done)
                if agree is not None:
                    early, elapsed = agree(early, elapsed)
                steps_in_time = max(1, int(SECONDS_PER_CALL / elapsed * call.steps))
                if not call.reaches and not early:
                    continue
                last_step = None
                if call.looked_at:
                    ratios = _update_ratios(weights, _weights_by_layer(state))
                    last_step = LastStep(used, returned, ratios)
                latest = make_report(plan, done, history, seconds, last_step)
                # A warm-up may begin with the learning rate 0.
                rates = history.get("optimizer/learning_rate", np.ones(1))
                if weights_before and (done == last or (latest.due and rates.any())):
                    _check_changed(state, weights_before, history)
                    _check_copies(state)
                    weights_before = []
                yield latest
                if latest.due:
                    history, seconds = {}, 0.0

    return reports()


def make_report(
    plan: Plan,
    done: int,
    history: Mapping[str, npt.NDArray[np.float32]],
    seconds: float,
    last_step: LastStep | None = None,
) -> Report:
    """A report on the last of so many steps, from what each of them has measured.

    Args:
        plan: how training goes over its examples.
        done: number of steps done.
        history, seconds, last_step: see ``Report``.

    Raises:
        NonFiniteError: if something that was measured is NaN or infinite.
    """
    sizes = history[EXAMPLES].astype(np.float64)
    _check_finite(history, done - len(sizes))
    if last_step is not None:
        ratios = last_step.update_ratios.items()
        _check_finite({f"update_ratio/{k}": np.array([v]) for k, v in ratios}, done - 1)
    means = {name: float(np.average(row, weights=sizes)) for name, row in history.items()}
    del means[EXAMPLES]
    return Report(
        step=done,
        epoch=(done - 1) // plan.steps_per_epoch + 1,
        epoch_ended=plan.ends_epoch(done),
        metrics=means,
        history=dict(history),
        last_step=last_step,
        examples=int(sizes.sum()),
        seconds=seconds,
    )


def go_to_non_finite(
    state: State,
    step: Step,
    split: Split,
    *,
    plan: Plan,
    until: int,
    accumulate: int = 1,
    indices: Indices | None = None,
) -> tf.Tensor | None:
    """Trains, step by step, up to where the next step makes something NaN or infinite.

    Args:
        state: is left as it is before that step.
        step, split, accumulate, indices: see ``train``.
        plan: how training goes over its examples, and how far.
        until: gives up after so many steps, counted from the very start.

    Returns:
        Which examples that step works on, int64 [B]; None if there is no such step. A scalar that
        it returns, or a variable after it, is not finite. Only these count: no figure that
        ``train`` computes for its reports.
    """
    run_steps = _several_steps(
        state, step, split, plan, indices, lambda graph: None, True, accumulate
    )
    while int(state.step.numpy()) < until:
        before = state.values()
        scalars, _, used = run_steps(tf.constant(1))
        finite = all(np.isfinite(row.numpy()).all() for row in scalars.values())
        if not finite or non_finite(state.values()) is not None:
            state.assign(before.values())
            return used
    return None


def non_finite(values: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """The name of the first array that holds NaN or infinity, or None.

    Arrays under ``extra/`` don't count: a lowest loss so far, for instance, begins with infinity.
    """
    for name, value in values.items():
        if name.startswith("extra/"):
            continue
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return name
    return None


def indices_of_next_step(state: State, plan: Plan, indices: Indices | None) -> tf.Tensor:
    """The positions of the next step's examples: int64 [B]; see ``train``.

    Raises:
        ValueError: if ``indices`` returns anything but integers [B].
    """
    if indices is None:
        return indices_of_step(state.seed, state.step, plan)
    found = tf.convert_to_tensor(indices(state, plan))
    if found.shape.rank != 1 or not found.dtype.is_integer:
        raise ValueError(
            f"indices returned shape {found.shape} and dtype {found.dtype.name}; it must return "
            "positions in the training split, int64 [B]"
        )
    return tf.cast(found, tf.int64)


def _one_step(
    state: State, step: Step, split: Split, accumulate: int
) -> Callable[[tf.Tensor], Returned]:
    """A function (indices of the batch) -> (scalars, images and vectors) of one step, by name.

    The scalars are float32, averaged over the batch. Images and vectors are those of the first
    replica and, with ``accumulate``, of its last part.
    """
    images, labels = tf.constant(split.images), tf.constant(split.labels)
    parts = state.strategy.num_replicas_in_sync * accumulate

    def one_part(view: State) -> Returned:
        begun = tf.timestamp()
        with tf.name_scope("batch"), tf.control_dependencies([begun]):
            batch = take_batch(images, labels, view.indices)
        with tf.control_dependencies(batch):
            # max: the clock may be set back.
            input_seconds = tf.cast(tf.maximum(tf.timestamp() - begun, 0), tf.float32)
        scalars, others = sorted_by_kind(step(view, *batch))
        scalars[INPUT_SECONDS] = input_seconds
        return scalars, others

    names: list[str] = []

    def one_replica(batch: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        scalars, others = on_replica(batch)
        names.clear()
        names.extend(scalars)
        return tf.stack([scalars[name] for name in names]), others

    def on_replica(batch: tf.Tensor) -> Returned:
        if parts == 1:
            return one_part(dataclasses.replace(state, indices=batch))
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        sums: list[list[tf.Tensor]] = []
        of_parts, shares = [], []
        for turn in range(accumulate):
            number = replica * accumulate + turn
            first, indices = share_of_batch(batch, number, parts)
            share = tf.size(indices) / tf.size(batch)  # float64
            part = Part(number, first, tf.size(batch), share * parts, accumulate, sums)
            indices = _with_an_example(indices, batch)
            view = dataclasses.replace(state, indices=indices, part=part)
            # One part after the other: together they would need the memory of the whole batch.
            with tf.control_dependencies(sums[-1] if sums else []):
                of_parts.append(one_part(view))
            shares.append(tf.cast(share, tf.float32))
            if accumulate > 1:
                _check_accumulated(part, turn + 1)
        return _over_parts([scalars for scalars, _ in of_parts], shares), of_parts[-1][1]

    def one_step(positions: tf.Tensor) -> Returned:
        stacked, others = state.strategy.run(one_replica, args=(positions,))
        # One reduction of all: each costs a message to every worker.
        total = state.strategy.reduce(tf.distribute.ReduceOp.SUM, stacked, axis=None)
        scalars = dict(zip(names, tf.unstack(total, len(names)), strict=True))
        scalars[EXAMPLES] = tf.cast(tf.size(positions), tf.float32)
        state.step.assign_add(1)
        first = {k: state.strategy.experimental_local_results(v)[0] for k, v in others.items()}
        return scalars, first

    return one_step


def _with_an_example(indices: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
    """The indices of a part; if it has none, the batch's first: some kernels need an example.

    The part then has share and weight 0.
    """
    return tf.cond(tf.size(indices) > 0, lambda: indices, lambda: batch[:1])


def _over_parts(
    of_parts: Sequence[Mapping[str, tf.Tensor]], shares: Sequence[tf.Tensor]
) -> dict[str, tf.Tensor]:
    """What a replica adds to the mean of each scalar over the batch.

    Only the last part updates the weights: what ``State.update`` measures is that part's.
    """
    found = {}
    for name, last in of_parts[-1].items():
        if name == INPUT_SECONDS:
            found[name] = tf.add_n([scalars[name] for scalars in of_parts]) * tf.add_n(shares)
        elif name.startswith("optimizer/"):
            found[name] = last * tf.add_n(shares)
        else:
            pairs = zip(of_parts, shares, strict=True)
            found[name] = tf.add_n([scalars[name] * share for scalars, share in pairs])
    return found


@tf.autograph.experimental.do_not_convert
def _check_accumulated(part: Part, done: int) -> None:
    """Refuses a step that does more than one update; ``done`` parts of it have been traced."""
    option = f"--accumulate {part.of_replica}"
    if len(part.sums) != done:
        raise InputError(
            f"{option}: the step calls state.update or state.reduce {len(part.sums) / done:g} "
            "times, and only one call can be accumulated; give a larger --batch-size instead"
        )
    if part.is_last or tf.executing_eagerly():
        return
    graph = tf.compat.v1.get_default_graph().as_graph_def()
    functions = (function.node_def for function in graph.library.function)
    if any(node.op.startswith(WRITING) for node in itertools.chain(graph.node, *functions)):
        raise InputError(
            f"{option}: the step changes more variables than state.update does (those of batch "
            f"normalization, say, or an average of the weights), and would do so "
            f"{part.of_replica} times; give a larger --batch-size instead"
        )


def check_accumulation(state: State, step: Step, split: Split, accumulate: int) -> None:
    """Refuses a step whose gradients can't be accumulated; traces it, and runs nothing.

    Args:
        state, step, split, accumulate: see ``train``; ``accumulate`` 1 suits every step.

    Raises:
        InputError: if the step changes variables by anything but one ``state.update``.
    """
    if accumulate > 1:
        one_step = tf.function(_one_step(state, step, split, accumulate))
        one_step.get_concrete_function(tf.TensorSpec([None], tf.int64))


def _several_steps(
    state: State,
    step: Step,
    split: Split,
    plan: Plan,
    indices: Indices | None,
    show_graph: Callable[[tf.compat.v1.GraphDef], None],
    compiled: bool,
    accumulate: int = 1,
) -> Callable[[tf.Tensor], Stepped]:
    """A function (number of steps) -> (scalars, images and vectors, indices).

    It runs these steps, which must lie in one epoch. The scalars are float32 [steps], by name; the
    rest is the last step's. The arguments are those of ``train``.
    """
    one_step = _one_step(state, step, split, accumulate)

    def order_of_epoch() -> tf.Tensor:
        """The order of the epoch; computed once per call, since it costs a part of a step."""
        if indices is not None:
            return tf.zeros([0], tf.int64)
        return epoch_order(state.seed, state.step // plan.steps_per_epoch, plan.examples)

    def batch_due(order: tf.Tensor) -> tf.Tensor:
        if indices is not None:
            return indices_of_next_step(state, plan, indices)
        return batch_indices(order, state.step % plan.steps_per_epoch, plan.batch_size)

    def run_eagerly(count: tf.Tensor) -> Stepped:
        order, found = order_of_epoch(), []
        for _ in range(int(count)):
            batch = batch_due(order)
            found.append(one_step(batch))
        rows = {name: tf.stack([s[name] for s, _ in found]) for name in found[0][0]}
        return rows, found[-1][1], batch

    if not compiled and accumulate == 1:
        return run_eagerly
    concrete: Any = tf.function(one_step).get_concrete_function(tf.TensorSpec([None], tf.int64))
    if not compiled:
        return run_eagerly  # with accumulate, tracing has checked what the step changes
    show_graph(with_names_of_the_code(concrete.graph.as_graph_def()))
    names, like = list(concrete.structured_outputs[0]), concrete.structured_outputs[1]
    shapes = {name: tensor.shape for name, tensor in like.items()}

    def run_compiled(count: tf.Tensor) -> Stepped:
        order = order_of_epoch()
        rows = tf.TensorArray(tf.float32, size=count)
        batch = tf.zeros([0], tf.int64)
        others = {k: tf.zeros([size or 0 for size in v.shape], v.dtype) for k, v in like.items()}
        for i in tf.range(count):
            tf.autograph.experimental.set_loop_options(
                shape_invariants=[(others, shapes), (batch, tf.TensorShape([None]))]
            )
            batch = batch_due(order)
            scalars, others = concrete(batch)
            rows = rows.write(i, tf.stack([scalars[name] for name in names]))
        by_name = zip(names, tf.unstack(rows.stack(), len(names), axis=1), strict=True)
        return dict(by_name), others, batch

    return tf.function(run_compiled).get_concrete_function(tf.TensorSpec([], tf.int32))


def _weights_by_layer(state: State) -> dict[str, list[tf.Tensor]]:
    """Copies of each layer's trainable variables."""
    layers: dict[str, list[tf.Tensor]] = {}
    for name, variable in state.weights().items():
        layers.setdefault(name.rpartition("/")[0] or name, []).append(
            tf.convert_to_tensor(variable.value)
        )
    return layers


def _update_ratios(
    before: dict[str, list[tf.Tensor]], after: dict[str, list[tf.Tensor]]
) -> dict[str, float]:
    """For each layer the norm of the change of its weights, divided by the norm before."""
    ratios: dict[str, float] = {}
    for layer, old in before.items():
        # float64: in float32 the squares of large finite weights overflow.
        weights, new = ([tf.cast(t, tf.float64) for t in of] for of in (old, after[layer]))
        change = tf.linalg.global_norm([b - a for a, b in zip(weights, new, strict=True)])
        ratio = tf.math.divide_no_nan(change, tf.linalg.global_norm(weights))
        ratios[layer] = float(ratio)
    return ratios


def _appended(
    earlier: Mapping[str, npt.NDArray[np.float32]], new: Mapping[str, npt.NDArray[np.float32]]
) -> History:
    """The history with the new steps appended."""
    if earlier.keys() != new.keys():  # no earlier steps, or an edited step
        return dict(new)
    return {name: np.concatenate([earlier[name], row]) for name, row in new.items()}


def _check_finite(values_by_name: Mapping[str, npt.NDArray[Any]], before: int) -> None:
    """Raises NonFiniteError that names the first non-finite value after ``before`` steps."""
    bad = {n: np.flatnonzero(~np.isfinite(v)) for n, v in values_by_name.items()}
    firsts = {name: int(places[0]) for name, places in bad.items() if places.size}
    if firsts:
        name = min(firsts, key=lambda key: firsts[key])
        raise NonFiniteError(
            f"{name} became {values_by_name[name][firsts[name]]} at step "
            f"{before + firsts[name] + 1}; try a lower --learning-rate, --clip-norm 1, or "
            "--precision float32"
        )


def _check_changed(state: State, before: list[tf.Tensor], history: History) -> None:
    after = [v.numpy() for v in state.model.trainable_variables]
    if "optimizer/loss_scale" not in history and all(map(np.array_equal, before, after)):
        raise RuntimeError(
            "no weight has changed in the first steps: check that the step calls "
            "state.update(gradients) and that the learning rate is above 0"
        )


def _check_copies(state: State) -> None:
    """Raises RuntimeError if the replicas' copies of a variable differ, here or at other workers.

    Workers with other processors round otherwise: their copies may differ a little.
    """
    workers = workers_of(state.strategy)
    for name, variable in state.variables().items():
        mirrored = variable.value if isinstance(variable, tf.keras.Variable) else variable
        copies = state.strategy.experimental_local_results(mirrored)
        first, *others = (copy.numpy() for copy in copies)
        drifted = any(not np.array_equal(first, other) for other in others)
        if workers.several and first.dtype.kind == "f":
            mean = workers.sum(first) / len(workers.addresses)
            drifted |= not np.allclose(first, mean, rtol=0, atol=1e-3 * np.abs(mean).max(initial=0))
        if drifted:
            raise RuntimeError(
                f"{name} has drifted apart on the replicas: change it by the same values on all, "
                "such as means over tf.distribute.get_replica_context().all_reduce, or with "
                "batch normalization by synchronized=True"
            )
