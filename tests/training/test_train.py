from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.data.batches import (
    Plan,
    batch_indices,
    epoch_order,
    indices_of_step,
    take_batch,
)
from research.data.dataset import Split, hold_out
from research.errors import NonFiniteError
from research.network.mnist_cnn import MnistCNN
from research.training.profiler import Profile
from research.training.schedules import LearningRate
from research.training.state import State
from research.training.strategy import make_strategy
from research.training.train import INPUT_SECONDS, Report, Unreported, go_to_non_finite, train

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_split, make_state, skip_if_onednn_aborts

Step = Callable[[State, Any, Any], dict[str, Any]]
DROPOUT_RATES = [(0.25, 0.5), pytest.param((0.0, 0.0), marks=pytest.mark.slow)]


def run(state: State, step: Step, split: Split, **options: Any) -> list[Report]:
    return list(train(state, step, split, **({"epochs": 2, "batch_size": 16} | options)))


def returned(report: Report) -> dict[str, float]:
    """The metrics without ``input_seconds``."""
    return {name: value for name, value in report.metrics.items() if name != INPUT_SECONDS}


def losses(reports: list[Report]) -> Any:
    return np.concatenate([report.history["loss"] for report in reports])


# Float32 trajectories with different orders of summation diverge when a max-pool picks another
# winner, at a step that depends on the processor. Float64 trajectories don't diverge here.
def float64_state(**options: Any) -> State:
    loss = tf.keras.losses.CategoricalCrossentropy(
        from_logits=True, reduction="none", dtype="float64"
    )
    return dataclasses.replace(make_state(precision="float64", **options), loss=loss)


def on_exact_images(step: Step) -> Step:
    """The step on images whose division by 255 is exact, compiled or not."""

    def exact(state: State, images: Any, labels: Any) -> dict[str, Any]:
        return step(state, tf.round(255 * tf.cast(images, tf.float64)) / 256, labels)

    return exact


def assert_equal_but_for_float64_rounding(one: State, other: State) -> None:
    for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.processor
def test_it_equals_keras_train_on_batch(step: Step) -> None:
    split = make_split(16 * 15)
    state = float64_state(dropout_rates=(0.0, 0.0))
    layers, dtype = tf.keras.layers, "float64"
    keras = tf.keras.Sequential(
        [
            tf.keras.Input((28, 28, 1), dtype=dtype),
            layers.Conv2D(32, 3, activation="relu", dtype=dtype),
            layers.Conv2D(64, 3, activation="relu", dtype=dtype),
            layers.MaxPooling2D(2, dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(8, activation="relu", dtype=dtype),
            layers.Dense(10, dtype=dtype),
        ]
    )
    keras.set_weights(state.model.get_weights())
    keras.compile(
        tf.keras.optimizers.Adadelta(1.0, rho=0.95, epsilon=1e-7),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, dtype=dtype),
    )
    before = state.model.get_weights()
    run(state, on_exact_images(step), split, epochs=1)
    order = epoch_order(0, 0, len(split))
    for k in range(15):
        indices = batch_indices(order, k, 16)
        _, labels = take_batch(split.images, split.labels, indices)
        keras.train_on_batch(tf.gather(split.images, indices).numpy() / 256, labels)
    for ours, theirs, start in zip(
        state.model.get_weights(), keras.get_weights(), before, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
        assert np.abs(ours - start).max() > 1e-3


@pytest.mark.processor
@pytest.mark.parametrize("held_out", [pytest.param(0, marks=pytest.mark.slow), 45])
def test_the_weights_do_not_depend_on_steps_per_call(held_out: int, step: Step) -> None:
    split = make_split(250)
    if held_out:
        split, _ = hold_out(split, held_out, seed=0)

    def weights(**options: Any) -> list[Any]:
        state = make_state()
        run(state, step, split, **options)
        return list(state.model.get_weights())

    reference = weights(steps_per_call=1)
    for steps_per_call in (7, 50):
        again = weights(steps_per_call=steps_per_call)
        assert all(map(np.array_equal, reference, again)), steps_per_call
    assert all(map(np.array_equal, reference, weights(report_every=3)))


@pytest.mark.processor
@pytest.mark.parametrize("dropout_rates", DROPOUT_RATES)
def test_compiled_equals_eager(dropout_rates: tuple[float, float], step: Step) -> None:
    pair = [float64_state(dropout_rates=dropout_rates) for _ in range(2)]
    for state, compiled in zip(pair, (True, False), strict=True):
        run(state, on_exact_images(step), make_split(103), epochs=3, compiled=compiled)
    assert_equal_but_for_float64_rounding(*pair)


def assert_gradients_equal_eager_ones(state: State, step: Step, split: Split) -> None:
    """Trains in float32; each time, one replica takes the same step eagerly from the same state.

    In one step of seven or less a max-pool, one of 147,456, picks another winner by rounding.
    """
    eager, differences = make_state(state.model.dropout_rates, clip_norm=state.clip_norm), []
    options: dict[str, Any] = {"epochs": 3, "batch_size": 16, "report_every": 1}
    before = state.values()
    for report in train(state, step, split, **options):
        given(eager, before)
        (other,) = run(eager, step, split, until=report.step, compiled=False, **options)
        assert report.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-5)
        ours, theirs = (r.last_step.returned for r in (report, other) if r.last_step)
        pairs = [(g, theirs[k]) for k, g in ours.items() if "gradients" in k]
        assert len(pairs) == 8
        differences.append(max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs))
        before = state.values()
    assert np.median(differences) < 1e-5
    assert max(differences) < 0.05


@pytest.mark.processor
@pytest.mark.parametrize("dropout_rates", DROPOUT_RATES)
def test_from_one_state_compiled_gradients_equal_eager_ones_in_float32(
    dropout_rates: tuple[float, float], step: Step
) -> None:
    assert_gradients_equal_eager_ones(make_state(dropout_rates), step, make_split(103))


def test_the_step_is_traced_once(step: Step) -> None:
    traces = []

    def counted(state: State, images: Any, labels: Any) -> dict[str, Any]:
        traces.append(images.shape)
        return step(state, images, labels)

    reports = run(make_state(), counted, make_split(103), epochs=3, steps_per_call=4)
    assert reports[-1].step == 3 * 7
    assert len(traces) == 1


def given(state: State, values: Mapping[str, Any]) -> State:
    state.assign(values.values())
    return state


@pytest.mark.parametrize("stop_at", [1, 5, 7, 9])  # in the middle, where a report is due, at the
def test_resumed_equals_uninterrupted(stop_at: int, step: Step) -> None:  # epoch's end, beyond it
    split, options = make_split(100), {"report_every": 5, "steps_per_call": 3}
    whole, first = make_state(), make_state()
    expected = run(whole, step, split, **options)
    reports = run(first, step, split, until=stop_at, **options)
    last = reports[-1]
    unreported = Unreported() if last.due else Unreported(last.history, last.seconds)
    reports = [report for report in reports if report.due]
    second = given(make_state(), first.values())
    reports += run(second, step, split, unreported=unreported, **options)
    for a, b in zip(whole.values().values(), second.values().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [(r.step, returned(r), r.examples) for r in reports] == [
        (r.step, returned(r), r.examples) for r in expected
    ]
    for found, other in zip(reports, expected, strict=True):
        assert found.last_step and other.last_step
        assert found.last_step.update_ratios == other.last_step.update_ratios
        np.testing.assert_array_equal(found.last_step.indices, other.last_step.indices)
        assert found.last_step.returned.keys() == other.last_step.returned.keys()
        for name, value in found.last_step.returned.items():
            np.testing.assert_array_equal(value, other.last_step.returned[name])


def test_state_of_ones_own_is_among_the_variables(step: Step) -> None:
    def averaging(state: State, images: Any, labels: Any) -> dict[str, Any]:
        metrics = step(state, images, labels)
        state.extra["average"].assign_add(0.1 * (metrics["loss"] - state.extra["average"]))
        return metrics | {"average": state.extra["average"].read_value()}

    def state() -> State:
        return make_state(extra={"average": tf.Variable(0.0)})

    whole, first = state(), state()
    run(whole, averaging, make_split(100))
    run(first, averaging, make_split(100), until=6)
    second = given(state(), first.values())
    run(second, averaging, make_split(100))
    assert whole.values()["extra/average"] == second.values()["extra/average"]


def test_one_can_go_back_to_the_step_before_something_became_non_finite(step: Step) -> None:
    def failing(state: State, images: Any, labels: Any) -> dict[str, Any]:
        metrics = step(state, images, labels)
        state.model.dense2.bias.assign_add(tf.where(state.step == 8, np.inf, 0.0) * tf.ones([10]))
        return {"loss": metrics["loss"]}

    state, twin = make_state(), make_state()
    options: dict[str, Any] = {"plan": Plan(100, 16, 2), "until": 12}
    assert go_to_non_finite(twin, step, make_split(100), **options) is None
    used = go_to_non_finite(state, failing, make_split(100), **options)
    np.testing.assert_array_equal(used, indices_of_step(0, 8, options["plan"]))
    assert state.step.numpy() == 8
    assert all(np.isfinite(value).all() for value in state.values().values())


@pytest.mark.parametrize(("learning_rate", "report_every"), [(1e24, 1), (1e30, 3)])
def test_the_error_names_the_step_that_one_can_go_back_to(
    learning_rate: float, report_every: int, step: Step
) -> None:
    state, twin = make_state(learning_rate=learning_rate), make_state(learning_rate=learning_rate)
    with pytest.raises(NonFiniteError, match=r"became (nan|inf) at step \d+") as caught:
        run(state, step, make_split(100), report_every=report_every)
    plan = Plan(100, 16, 2)
    assert go_to_non_finite(twin, step, make_split(100), plan=plan, until=14) is not None
    assert f" at step {twin.step.numpy() + 1};" in str(caught.value)


def test_reports_come_when_due_and_hold_means_over_examples(step: Step) -> None:
    reports = run(make_state(), step, make_split(100), report_every=5, steps_per_call=2)
    assert [r.step for r in reports] == [5, 7, 10, 14]
    assert [r.epoch for r in reports] == [1, 1, 2, 2]
    assert [r.epoch_ended for r in reports] == [False, True, False, True]
    assert [r.examples for r in reports] == [80, 20, 48, 52]
    last = reports[1]
    expected = np.average(last.history["loss"], weights=[16, 4])
    assert last.metrics["loss"] == pytest.approx(expected, rel=1e-6)
    by_step = {"loss", "accuracy", "optimizer/learning_rate", "optimizer/gradient_norm"}
    assert set(returned(last)) == by_step
    assert 0 < last.metrics[INPUT_SECONDS] < last.seconds
    assert all(r.seconds > 0 and r.examples_per_second > 0 for r in reports)


def test_training_may_end_within_an_epoch(step: Step) -> None:
    whole, part = make_state(), make_state()
    expected = run(whole, step, make_split(100), until=10)
    reports = run(part, step, make_split(100), epochs=1.4)
    assert [(r.step, r.epoch, r.epoch_ended, r.due) for r in reports] == [
        (7, 1, True, True),
        (10, 2, True, True),
    ]
    assert reports[-1].examples == 48
    np.testing.assert_array_equal(reports[-1].history["loss"], expected[-1].history["loss"])
    for a, b in zip(whole.values().values(), part.values().values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [r.step for r in run(make_state(), step, make_split(100), epochs=0.01)] == [1]


def test_reports_that_come_early_change_none_that_is_due(step: Step) -> None:
    plain, asked, regular = (
        run(make_state(), step, make_split(160), report_every=8, steps_per_call=2, **options)
        for options in ({}, {"report_now": lambda done: done % 3 == 0}, {"early_every": 6})
    )
    assert [r.step for r in plain] == [8, 10, 16, 20]
    assert [r.step for r in regular] == [6, 8, 10, 12, 16, 18, 20]
    assert len(asked) > len(plain)
    for reports in (asked, regular):
        due = [r for r in reports if r.due]
        assert [(r.step, returned(r)) for r in due] == [(r.step, returned(r)) for r in plain]


def test_it_learns(step: Step) -> None:
    reports = run(make_state((0.0, 0.0)), step, make_split(300), epochs=4)
    assert reports[-1].metrics["loss"] < 0.5 * reports[0].metrics["loss"]


# The last batch: 1 example for two replicas, 7, and whole.
@pytest.mark.processor
@pytest.mark.parametrize(
    "count", [97, *(pytest.param(n, marks=pytest.mark.slow) for n in (103, 96))]
)
def test_two_replicas_compute_what_one_does(count: int, step: Step) -> None:
    strategy = make_strategy("mirrored", batch_size=16)
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        state = make_state(clip_norm=1.0)
    assert_gradients_equal_eager_ones(state, step, make_split(count))


def test_replicas_and_steps_draw_different_random_numbers(step: Step) -> None:
    def drawing(state: State, images: Any, labels: Any) -> dict[str, Any]:
        number = tf.random.stateless_uniform([], state.random_seed("test"))
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        of_each = {f"of_{k}": tf.where(replica == k, number, 0.0) for k in (0, 1)}
        return step(state, images, labels) | of_each

    strategy = make_strategy("mirrored", batch_size=16)
    with strategy.scope():
        state = make_state()
    history = run(state, drawing, make_split(64), epochs=1)[0].history
    assert len({*history["of_0"], *history["of_1"]}) == 8


@pytest.mark.processor
@pytest.mark.parametrize("replicas", [1, 2])
def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow(
    replicas: int, step: Step
) -> None:
    strategy = make_strategy("mirrored" if replicas == 2 else "default", batch_size=16)
    with strategy.scope():
        state = make_state(precision="mixed_float16")
    scaling: Any = state.optimizer
    scaling.dynamic_scale.assign(2.0**60)
    before = state.model.get_weights()
    reports = run(state, step, make_split(64), epochs=1, batch_size=32)
    assert all(map(np.array_equal, before, state.model.get_weights()))
    np.testing.assert_array_equal(reports[0].history["optimizer/loss_scale"], [2.0**60, 2.0**59])
    scaling.dynamic_scale.assign(2.0**10)
    reports = run(state, step, make_split(64), epochs=10, batch_size=32)
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"]
    assert 0.01 < reports[-1].metrics["optimizer/gradient_norm"] < 100


def test_clipping_bounds_the_update(step: Step) -> None:
    clip, free = make_state(clip_norm=1e-3), make_state()
    reports = [run(state, step, make_split(16), epochs=1) for state in (clip, free)]
    clipped, unclipped = (report.metrics["optimizer/gradient_norm"] for (report,) in reports)
    assert clipped == pytest.approx(unclipped, rel=1e-6) and unclipped > 1e-3

    # After one step Adadelta's accumulator holds 0.05 times the squared gradient it was given.
    def given(state: State) -> float:
        slots = [v for name, v in state.values().items() if "accumulated_grad" in name]
        return float(np.sqrt(sum(slot.sum() for slot in slots) / 0.05))

    assert given(clip) == pytest.approx(1e-3, rel=1e-3)
    assert given(free) == pytest.approx(unclipped, rel=1e-3)


def test_the_learning_rate_follows_its_schedule(step: Step) -> None:
    schedule = LearningRate(2.0, total_steps=14, decay="linear", warmup_steps=4)
    reports = run(make_state(learning_rate=schedule), step, make_split(100))
    logged = np.concatenate([r.history["optimizer/learning_rate"] for r in reports])
    np.testing.assert_allclose(logged, [float(schedule(k)) for k in range(14)], rtol=1e-6)


def test_a_non_finite_value_is_named_with_its_step(step: Step) -> None:
    def bad(state: State, images: Any, labels: Any) -> dict[str, Any]:
        metrics = step(state, images, labels)
        return metrics | {"extra": tf.where(state.step == 4, float("nan"), 1.0)}

    with pytest.raises(NonFiniteError, match="extra became nan at step 5"):
        run(make_state(), bad, make_split(160))


def test_the_first_of_several_non_finite_values_is_named(step: Step) -> None:
    def bad(state: State, images: Any, labels: Any) -> dict[str, Any]:
        step(state, images, labels)
        late, early = (tf.where(state.step < n, 1.0, float("inf")) for n in (6, 4))
        return {"late": late, "early": early}

    with pytest.raises(NonFiniteError, match="early became inf at step 5"):
        run(make_state(), bad, make_split(160))


def test_a_step_that_trains_nothing_is_refused(step: Step) -> None:
    def forgets(state: State, images: Any, labels: Any) -> dict[str, Any]:
        return {"loss": tf.reduce_mean(state.loss(labels, state.model.logits(images)))}

    with pytest.raises(RuntimeError, match=r"no weight has changed .* state.update"):
        run(make_state(), forgets, make_split(32))


def test_a_warm_up_may_begin_with_the_learning_rate_zero(step: Step) -> None:
    rises = tf.keras.optimizers.schedules.PolynomialDecay(0.0, 10, 1.0)
    for early in (None, 1):
        reports = run(
            make_state(learning_rate=rises),
            step,
            make_split(64),
            report_every=1 + (early or 0),
            early_every=early,
        )
        assert len(reports) > 1


def test_a_loss_for_each_example_is_refused() -> None:
    def forgets(state: State, images: Any, labels: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = state.loss(labels, state.model.logits(images))
        return {"loss": loss, **state.update(state.gradients(tape, loss))}

    with pytest.raises(ValueError, match=r"the loss has shape \(.*\), .* tf.reduce_mean"):
        run(make_state(), forgets, make_split(32))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": 0.1}, "the optimizer is 0.1; give a Keras optimizer, or None"),
        ({"extra": {"rate": 0.5}}, r"extra\['rate'\] is 0.5, a float, .* tf.Variable"),
        ({"model": "mixed_float16", "optimizer": None}, "float16 model"),
    ],
)
def test_a_state_of_other_things_is_refused(options: dict[str, Any], words: str) -> None:
    skip_if_onednn_aborts(precision := options.get("model", "float32"))
    parts: dict[str, Any] = {"loss": tf.square} | options
    parts["model"] = MnistCNN(8, precision=precision)
    with pytest.raises(ValueError, match=words):
        State(**parts)


@pytest.mark.processor
def test_without_an_optimizer_a_step_changes_the_weights_itself(step: Step) -> None:
    def descending(state: State, images: Any, labels: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(state.loss(labels, state.model.logits(images)))
        gradients, measured = state.reduce(state.gradients(tape, loss))
        for variable, gradient in zip(state.model.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.01 * gradient)
        return {"loss": loss, **measured}

    keras, own = make_state((0.0, 0.0)), dataclasses.replace(make_state((0.0, 0.0)), optimizer=None)
    sgd = dataclasses.replace(keras, optimizer=tf.keras.optimizers.SGD(0.01))
    run(sgd, step, make_split(100))
    reports = run(own, descending, make_split(100))
    assert "optimizer/gradient_norm" in reports[0].metrics
    for a, b in zip(sgd.model.get_weights(), own.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"no optimizer .* state.reduce"):
        run(dataclasses.replace(own), step, make_split(32), until=20)


def test_a_step_knows_its_examples_and_the_state_may_decide_them(step: Step) -> None:
    split = make_split(60)

    def counting(state: State, images: Any, labels: Any) -> dict[str, Any]:
        assert state.indices is not None
        ones = tf.ones_like(state.indices, tf.float32)
        state.extra["seen"].scatter_nd_add(state.indices[:, tf.newaxis], ones)
        found = take_batch(split.images, split.labels, state.indices)[0]
        return step(state, images, labels) | {"right": tf.reduce_all(found == images)}

    def least_seen(state: State, plan: Plan) -> Any:
        return tf.argsort(state.extra["seen"], stable=True)[:8]

    def seen(**options: Any) -> tuple[Any, list[Report]]:
        state = make_state(extra={"seen": tf.Variable(tf.zeros([60]))})
        reports = run(state, counting, split, **options)
        assert all(report.metrics["right"] == 1 for report in reports)
        return state.extra["seen"].numpy(), reports

    np.testing.assert_array_equal(seen(epochs=3)[0], np.full(60, 3.0))
    counts, reports = seen(epochs=3, indices=least_seen, report_every=1, steps_per_call=1)
    assert counts.sum() == 12 * 8 and counts.max() - counts.min() == 1
    assert [report.examples for report in reports] == [8] * 12
    assert reports[1].last_step is not None
    np.testing.assert_array_equal(reports[1].last_step.indices, np.arange(8, 16))
    again, _ = seen(epochs=3, indices=least_seen, steps_per_call=5)
    np.testing.assert_array_equal(again, counts)


@pytest.mark.parametrize("found", [lambda: tf.zeros([3]), lambda: tf.zeros([2, 2], tf.int64)])
def test_indices_that_are_no_positions_are_refused(found: Callable[[], Any], step: Step) -> None:
    with pytest.raises(ValueError, match=r"indices returned shape .* int64"):
        run(make_state(), step, make_split(32), indices=lambda state, plan: found())


def test_a_model_without_variables_is_refused() -> None:
    class Unbuilt(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = tf.keras.layers.Dense(10)

    model = Unbuilt()
    with pytest.warns(UserWarning, match="unbuilt"):
        model.build((None, 28, 28, 1))
    with pytest.raises(ValueError, match="no trainable variables"):
        State(model=model, optimizer=tf.keras.optimizers.Adadelta(1.0), loss=tf.square)


def test_a_loss_that_keras_would_rescale_is_refused() -> None:
    loss = tf.keras.losses.CategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="reduction='none'"):
        State(model=MnistCNN(8), optimizer=tf.keras.optimizers.Adadelta(1.0), loss=loss)


def test_a_loss_apart_from_the_model_is_refused() -> None:
    def step(state: State, images: Any, labels: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(images)
        return {"loss": loss, **state.update(state.gradients(tape, loss))}

    with pytest.raises(ValueError, match="does not depend on"):
        run(make_state(), step, make_split(32))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x, "return a dictionary"),
        (lambda x: {}, "return a dictionary"),
        (lambda x: {3: tf.reduce_mean(x)}, "the key 3"),
        (lambda x: {"images": x}, "no scalar"),
        (lambda x: {"time/of_mine": tf.reduce_mean(x)}, "'time/of_mine', which is taken"),
        (lambda x: {"step": tf.reduce_mean(x)}, "'step', which is taken"),
        *(
            (lambda x, bad=bad: {"loss": tf.reduce_mean(x), "odd": bad(x)}, message)
            for bad, message in [
                (
                    lambda x: x[..., 0],
                    r"'odd' with shape \(None, 28, 28\).*a scalar, images .*vector",
                ),
                (lambda x: tf.concat([x, x], 3), r"'odd' with shape .* 2\).*1, 3 or 4 channels"),
                (lambda x: tf.cast(x, tf.int32), "'odd' with shape .* dtype int32"),
                (lambda x: tf.constant("text"), "'odd' with shape .* dtype string; it must be"),
                (lambda x: tf.cast(x, tf.complex64)[0, 0, 0, 0], "'odd' with shape .* complex64"),
                (lambda x: None, "'odd', a NoneType; it must be a scalar, images"),
                (tf.RaggedTensor.from_tensor, "'odd', a RaggedTensor; it must be"),
            ]
        ),
    ],
)
def test_a_step_that_returns_something_else_is_refused(
    returned: Callable[[Any], Any], message: str
) -> None:
    def step(state: State, images: Any, labels: Any) -> Any:
        return returned(images)

    with pytest.raises(ValueError, match=message):
        run(make_state(), step, make_split(32))


@pytest.mark.parametrize(("compiled", "replicas"), [(True, 1), (False, 1), (True, 2)])
def test_images_and_vectors_are_those_of_the_last_step(
    compiled: bool, replicas: int, step: Step
) -> None:
    def showing(state: State, images: Any, labels: Any) -> dict[str, Any]:
        pictures = {"bytes": tf.cast(255 * images, tf.uint8), "images": images}
        vectors = {"classes": tf.argmax(labels, 1)}
        return step(state, images, labels) | pictures | vectors

    split, strategy = make_split(103), make_strategy("default", 16)
    if replicas == 2:
        strategy = make_strategy("mirrored", 16)
    with strategy.scope():
        state = make_state()
    for report in train(
        state, showing, split, epochs=1, batch_size=16, report_every=3, compiled=compiled
    ):
        assert report.last_step is not None
        last = {name: np.asarray(value) for name, value in report.last_step.returned.items()}
        indices = indices_of_step(0, report.step - 1, Plan(103, 16, 1))
        np.testing.assert_array_equal(report.last_step.indices, indices)
        images, labels = take_batch(split.images, split.labels, indices)
        first = -(-len(indices) // replicas)  # of two replicas the first has the first half
        np.testing.assert_allclose(last["images"], images.numpy()[:first], rtol=1e-6)
        np.testing.assert_array_equal(last["classes"], np.argmax(labels, 1)[:first])
        assert last["bytes"].dtype == np.uint8
        assert last["weight_gradients/conv2/kernel"].shape == (3 * 3 * 32 * 64,)


@pytest.mark.processor
def test_the_update_ratio_is_that_of_the_last_step(step: Step) -> None:
    kept: list[dict[str, Any]] = []

    def keeping(state: State, images: Any, labels: Any) -> dict[str, Any]:
        kept.append({name: v.numpy() for name, v in state.weights().items()})
        return step(state, images, labels)

    state = make_state()
    (report,) = run(state, keeping, make_split(64), epochs=1, compiled=False)
    before, after = kept[-1], {name: v.numpy() for name, v in state.weights().items()}
    for layer in ("conv1", "conv2", "dense1", "dense2"):
        names = (f"{layer}/kernel", f"{layer}/bias")
        change = sum(np.square(after[name] - before[name]).sum() for name in names)
        weight = sum(np.square(before[name]).sum() for name in names)
        expected = pytest.approx(np.sqrt(change / weight), rel=1e-4)
        assert report.last_step is not None
        assert report.last_step.update_ratios[layer] == expected


@pytest.mark.processor
def test_the_gradients_are_those_that_the_norm_is_of(step: Step) -> None:
    report = run(make_state(), step, make_split(64))[-1]
    assert report.last_step is not None
    returned = report.last_step.returned.items()
    vectors = [v for name, v in returned if name.startswith("weight_gradients/")]
    assert len(vectors) == 8
    norm = report.history["optimizer/gradient_norm"][-1]
    assert float(tf.linalg.global_norm(vectors)) == pytest.approx(norm, rel=1e-5)


def test_the_graph_is_that_of_one_step_with_the_names_of_the_code(step: Step) -> None:
    graphs: list[Any] = []
    run(make_state(), step, make_split(64), show_graph=graphs.append)
    (graph,) = graphs
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} == {
        *("batch", "conv1", "conv2", "pool", "dropout1", "flatten", "dense1", "dropout2", "dense2"),
        "bias_relu",
        *("categorical_crossentropy", "gradient_tape", "update", "seed", "seed_1"),
        *("other", "variables"),
    }
    for node in graph.node:
        for source in node.input:
            assert source.removeprefix("^").split(":")[0] in names


def test_layers_called_twice_and_layers_of_one_name_can_be_told_apart() -> None:
    layers = [tf.keras.layers.Dense(10, name="twin") for _ in range(2)]

    class Twins(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__(name="twins")
            self.all = layers
            self(tf.zeros([1, 28, 28, 1]))

        def call(self, images: Any) -> Any:
            flat = tf.reshape(images, [-1, 784])
            return self.all[1](self.all[0](flat)) + self.all[1](self.all[0](-flat))

    def step(state: State, images: Any, labels: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(state.loss(labels, state.model(images)))
        return {"loss": loss, **state.update(state.gradients(tape, loss))}

    loss = tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none")
    state = State(model=Twins(), optimizer=tf.keras.optimizers.Adadelta(1.0), loss=loss)
    assert set(state.weights()) == {
        *("twin/kernel", "twin/bias", "twin_2/kernel", "twin_2/bias"),
    }
    graphs: list[Any] = []
    (report,) = run(state, step, make_split(16), epochs=1, show_graph=graphs.append)
    assert report.last_step is not None
    assert report.last_step.returned["weight_gradients/twin_2/kernel"].shape == (100,)
    names = [node.name for node in graphs[0].node]
    assert len(set(names)) == len(names)


def test_profiling_some_steps_changes_nothing(step: Step, tmp_path: Path) -> None:
    plain, profiled = make_state(), make_state()
    run(plain, step, make_split(100))
    reports = run(profiled, step, make_split(100), profile=Profile(3, 9, tmp_path))
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    assert len(losses(reports)) == 14
    for a, b in zip(plain.values().values(), profiled.values().values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_profile_that_is_left_in_the_middle_is_kept(step: Step, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "report_every": 5}
    profile = Profile(3, 9, tmp_path)
    reports = train(make_state(), step, make_split(100), profile=profile, **options)
    assert next(reports).step == 5
    reports.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_every_example_reaches_the_step_once_per_epoch() -> None:
    split = make_split(20)
    split.images[:, 0, 0, 0] = np.arange(20)

    def step(state: State, images: Any, labels: Any) -> dict[str, Any]:
        state.model.dense2.bias.assign_add(tf.ones([10]))
        return {"index": tf.round(255 * images[0, 0, 0, 0])}

    reports = run(make_state(), step, split, batch_size=1)
    seen = np.concatenate([r.history["index"] for r in reports])
    for epoch in (seen[:20], seen[20:]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert not np.array_equal(seen[:20], seen[20:])
