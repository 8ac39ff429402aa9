"""The checks of ``verify`` within one process: is the step sound?"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from research.config import Config, parse
from research.data.batches import Plan
from research.data.dataset import Split, hold_out
from research.errors import InputError, one_line
from research.printable import counted
from research.tools.check import Check
from research.tools.load_experiment import load_experiment
from research.training.strategy import divide_cpu, make_strategy
from research.training.train import INPUT_SECONDS, Report, Unreported, train

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Arrays = dict[str, npt.NDArray[Any]]

STEPS = 16  # 200 examples in batches of 16 are 13 steps per epoch
FIXED_BATCH_STEPS = 40

KEEP = "make it in build, and hand it over in State.extra"
FROZEN = (
    "Python's or NumPy's random numbers, or other Python values, are frozen when the step is "
    "traced; use state.random_seed, state.step and variables"
)
WHOLE_BATCH = (
    "A step trains alike on any number of replicas if it takes the mean of something of each "
    "example, not of the batch as a whole, and draws by state.random_uniform"
)


def step_is_sound(
    experiment: Path, arguments: Sequence[str], split: Split, say: Callable[[str], None]
) -> Iterator[Check]:
    """Trains an experiment for a few steps in several ways and compares the results.

    Args:
        experiment: the experiment's file.
        arguments: the experiment's command line, which makes it small.
        split: the training set, before examples are held out.
        say: is called with a line about each check.

    Yields:
        The checks; a failed check leaves out those that depend on it.

    Raises:
        InputError: if the experiment's Config or ``build`` refuses the arguments.
    """
    divide_cpu()
    checks = _checks(functools.partial(Trial, experiment, arguments, split))
    while True:
        try:
            check = next(checks)
        except StopIteration:
            return
        except InputError:
            raise
        except Exception as error:  # a step may fail in any way
            cause = "" if "tf.Variable" not in str(error) else f"it makes a variable; {KEEP}: "
            check = Check("it runs", False, cause + one_line(error)[-300:])
        say(f"{'holds' if check.holds else 'FAILS'}  {check.name}")
        yield check


class Outcome(NamedTuple):
    """The values that one step returned, and all variables after it, by name."""

    returned: Arrays
    variables: Arrays


class Trial:
    """A small experiment, loaded afresh, so that it shares no state with an earlier one.

    Args:
        experiment, arguments, split: see ``step_is_sound``.
        one_batch: whether each step trains on the same batch.
        strategy: replaces that of the arguments.
    """

    def __init__(
        self,
        experiment: Path,
        arguments: Sequence[str],
        split: Split,
        *,
        one_batch: bool = False,
        strategy: Literal["default", "mirrored"] | None = None,
    ) -> None:
        self.experiment = load_experiment(experiment)
        config: Config = parse(self.experiment.config, arguments)
        if strategy is not None:
            config = dataclasses.replace(config, strategy=strategy)
        if one_batch:
            config = dataclasses.replace(config, examples=config.holdout + config.examples_per_step)
        split = split.first(config.examples or len(split))
        if config.holdout:
            split, _ = hold_out(split, config.holdout, config.holding_out_seed)
        least = FIXED_BATCH_STEPS if one_batch else 2 * STEPS
        # max: a warm-up, for instance, may not be longer than the training.
        plan = Plan(len(split), config.examples_per_step, config.epochs)
        epochs = max(config.epochs, least / plan.steps_per_epoch)
        self.config, self.split = dataclasses.replace(config, epochs=epochs), split
        with make_strategy(config.strategy, config.batch_size).scope():
            self.state = self.experiment.build(
                self.config, dataclasses.replace(plan, epochs=epochs)
            )
        self.traces = 0
        self.history: Arrays = {}

    def _counted(self, *arguments: Any) -> dict[str, Any]:
        self.traces += 1
        return self.experiment.step(*arguments)

    def reports(self, **options: Any) -> Iterator[Report]:
        """The reports of ``train``, with the plan that ``build`` was given."""
        config = self.config
        chosen: dict[str, Any] = {"epochs": config.epochs, "batch_size": config.examples_per_step}
        chosen |= {"accumulate": config.accumulate}
        chosen |= {"indices": self.experiment.indices, "report_every": 1000} | options
        return train(self.state, self._counted, self.split, **chosen)

    def train(self, until: int, **options: Any) -> Arrays:
        """Trains and returns all variables; ``self.history`` then holds each step's scalars."""
        self.history = {}
        for report in self.reports(until=until, **options):
            for name, row in report.history.items():
                self.history[name] = np.concatenate([self.history.get(name, row[:0]), row])
        return self.state.values()

    def each_step(
        self, reports: Iterator[Report], starts: Iterable[Arrays] = ()
    ) -> Iterator[Outcome]:
        """Yields the outcome of each of ``STEPS`` steps.

        Args:
            reports: reports after every step.
            starts: the states before the steps; without them each step begins where the last ended.
        """
        for start in itertools.islice(itertools.chain(starts, itertools.repeat(None)), STEPS):
            if start is not None:
                self.state.assign(start.values())
            report = next(reports)
            returned = {k: v for k, v in report.history.items() if k != INPUT_SECONDS}
            last = report.last_step
            assert last is not None, "a report after every step is due"
            looked_at = {k: np.asarray(v) for k, v in last.returned.items()}
            looked_at["indices"] = np.asarray(last.indices)
            yield Outcome(returned | looked_at, self.state.values())


def _checks(trial: Callable[..., Trial]) -> Iterator[Check]:
    """Yields the checks; ``trial`` makes a ``Trial``."""
    first = trial()
    before = first.state.values()
    reference = first.train(STEPS)
    sizes = 1 + (len(first.split) % first.config.examples_per_step > 0)
    of_sizes = f"on batches of {counted(sizes, 'size')}"
    found = f"{counted(first.traces, 'trace')} in {STEPS} steps {of_sizes}"
    replicas = first.state.strategy.num_replicas_in_sync
    # Each replica traces the step, and each part of its batch.
    yield Check("traced once", first.traces == replicas * first.config.accumulate, found)

    trainable = {v.path for v in first.state.model.trainable_variables}
    of_model = [name for name in before if name.startswith("model/")]
    changing = [name for name in of_model if name.split("/", 2)[-1] in trainable]
    still = [name for name in changing if np.array_equal(reference[name], before[name])]
    found = f"these do not: {', '.join(still)}" if still else f"{len(changing)} of them"
    yield Check("every weight changes", not still, found)

    one_by_one = trial()
    starts = [one_by_one.state.values()]
    reports = one_by_one.reports(until=2 * STEPS, report_every=1, steps_per_call=1)
    compiled = list(one_by_one.each_step(reports))
    starts += [outcome.variables for outcome in compiled[:-1]]
    # The control uses the same compiled step, with the same frozen values.
    model, rng = one_by_one.state.model, np.random.default_rng(0)
    changed = [_with_other_last_bits(start, model, rng) for start in starts]
    rounding = _rounding(compiled, one_by_one.each_step(reports, changed))
    if replicas > 1:
        yield Check("compiled equals eager", True, "not tried: eager replicas can't communicate")
    else:
        found = _differs_from_eager(starts, compiled, rounding, trial())
        yield Check("compiled equals eager", not found, found)
    yield _on_several_replicas(starts, compiled, rounding, trial, replicas)

    alike = _equal(reference, compiled[-1].variables)
    same = alike or _equal(reference, trial().train(STEPS))
    found = "it draws random numbers that state.random_seed does not decide"
    yield Check("gives the same bits again", same, "" if same else found)
    if not same:
        return  # the checks below compare bits

    found = "it depends on Python values that change between two calls"
    yield Check("independent of steps per call", alike, "" if alike else found)

    half, rest = trial(), trial()
    rest.state.assign(half.train(STEPS // 2).values())
    same = _equal(reference, rest.train(STEPS, unreported=Unreported(half.history, 1.0)))
    found = f"something that changes is kept outside the state, and lost; {KEEP}"
    yield Check("resumed equals uninterrupted", same, "" if same else found)

    fixed = trial(one_batch=True)
    fixed.train(FIXED_BATCH_STEPS)
    losses = fixed.history.get("loss")
    if losses is None:
        yield Check("loss falls on a fixed batch", False, "the step returns no 'loss'")
    else:
        start, end = float(losses[:4].mean()), float(losses[-4:].mean())
        found = f"from {start:.3g} to {end:.3g} in {FIXED_BATCH_STEPS} steps"
        yield Check("loss falls on a fixed batch", end < start, found)


def _equal(a: Arrays, b: Arrays) -> bool:
    # By position: names differ, since Keras numbers them when a process builds several models.
    pairs = zip(a.values(), b.values(), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


# --- Compiled and eager ---------------------------------------------------------------------------


def _rounding(compiled: Sequence[Outcome], control: Iterable[Outcome]) -> dict[str, float]:
    """The largest effect of rounding on each array, as a Euclidean distance.

    Args:
        compiled: the outcomes of the compiled steps.
        control: the outcomes of compiled steps from weights with other last bits.
    """
    found: dict[str, float] = {}
    for outcome, other in zip(compiled, control, strict=True):
        for name, _, distance in _distances(outcome, other):
            found[name] = max(found.get(name, 0.0), distance)
    return found


def _differing(
    start: Arrays, one: Outcome, other: Outcome, rounding: Mapping[str, float]
) -> str | None:
    """The first array that differs by more than rounding after the same step, if any.

    Where sums have another order, each array may differ by 1e-5 of its Euclidean norm (for a
    variable, of the norm of its change) plus ten times the largest effect of rounding. The second
    term is for arrays that are nothing but rounding, such as the gradient of a bias before a
    normalization.
    """
    for name, value, distance in _distances(one, other):
        moved = value - start[name] if name in start else value
        if distance > 1e-5 * np.linalg.norm(moved) + 10 * rounding.get(name, 0.0):
            return name
    return None


def _differs_from_eager(
    starts: Sequence[Arrays],
    compiled: Sequence[Outcome],
    rounding: Mapping[str, float],
    eager: Trial,
) -> str:
    """How eager steps differ from compiled ones, each from the same state; "" if they don't.

    Args:
        starts: the state before each step.
        compiled: the outcomes of the compiled steps.
        rounding: see ``_rounding``.
        eager: the trial that runs eagerly.
    """
    seen = []
    outcomes = eager.each_step(eager.reports(until=STEPS, report_every=1, compiled=False), starts)
    for number, (start, one, other) in enumerate(zip(starts, compiled, outcomes, strict=True), 1):
        if name := _differing(start, one, other, rounding):
            return f"{name} differs at step {number}: {FROZEN}"
        seen.append(_python_values(eager))
    for name in seen[-1]:
        values = [values.get(name) for values in seen]
        if all(a != b for a, b in itertools.pairwise(values)):
            return f"each call changes the Python value {name}, but compiled steps don't: {FROZEN}"
    return ""


def _on_several_replicas(
    starts: Sequence[Arrays],
    compiled: Sequence[Outcome],
    rounding: Mapping[str, float],
    trial: Callable[..., Trial],
    replicas: int,
) -> Check:
    """Says whether one replica and several take the same steps, each from the same state.

    It always holds: a step may have its reasons for looking at the batch as a whole.
    """
    name = "on several replicas"
    try:
        other = trial(strategy="default" if replicas > 1 else "mirrored")
        outcomes = other.each_step(other.reports(until=STEPS, report_every=1), starts)
        for number, (start, one, two) in enumerate(zip(starts, compiled, outcomes, strict=True), 1):
            if differing := _differing(start, *_same_rows(one, two), rounding):
                found = f"another training: {differing} differs at step {number}. {WHOLE_BATCH}"
                return Check(name, True, found)
    except Exception as error:  # a step may fail in any way
        return Check(name, True, f"it fails: {one_line(error)[-300:]}")
    return Check(name, True, "the same training, but for rounding")


def _same_rows(one: Outcome, two: Outcome) -> tuple[Outcome, Outcome]:
    """The outcomes without the rows of images and vectors that only one of them has.

    Of several replicas, the first one's are returned.
    """
    rows = {k: min(map(len, (one.returned[k], two.returned[k]))) for k in one.returned}
    first = ({k: v[: rows[k]] for k, v in outcome.returned.items()} for outcome in (one, two))
    return one._replace(returned=next(first)), two._replace(returned=next(first))


def _with_other_last_bits(
    values: Arrays, model: tf.keras.Model, rng: np.random.Generator
) -> Arrays:
    """A state's values with the model's weights changed by 1e-6, or 1% if not in float32."""
    size = 1e-6 if model.compute_dtype == "float32" else 1e-2
    return {
        name: (value * (1 + rng.uniform(-size, size, value.shape))).astype(value.dtype)
        if name.startswith("model/") and value.dtype.kind == "f"
        else value
        for name, value in values.items()
    }


def _distances(
    one: Outcome, other: Outcome
) -> Iterator[tuple[str, npt.NDArray[np.float64], float]]:
    """Yields each array's name, its values in ``one``, and its Euclidean distance in ``other``."""
    if len(one.returned) != len(other.returned):
        yield "the number of values that the step returns", np.zeros(1), np.inf
        return
    # By position, see ``_equal``.
    values = [*other.returned.values(), *other.variables.values()]
    for (name, a), b in zip((one.returned | one.variables).items(), values, strict=True):
        if a.shape != b.shape:
            yield name, np.asarray(a, np.float64), np.inf
        else:
            differ = a != b  # infinity minus infinity would be NaN
            distance = np.linalg.norm(a[differ].astype(float) - b[differ].astype(float))
            yield name, np.asarray(a, np.float64), float(distance)


def _python_values(trial: Trial) -> dict[str, Any]:
    """The Python values that the experiment's file, its step and its layers hold, by name."""
    step, model = trial.experiment.step, trial.state.model
    names = getattr(step, "__globals__", {})
    holders = {"": names, "step.": getattr(step, "__dict__", {}), "model.": vars(model)}
    holders |= {f"{layer.name}.": vars(layer) for layer in model.layers}
    return {
        prefix + name: _plain(value, names.get("__name__"))
        for prefix, holder in holders.items()
        for name, value in list(holder.items())
        if not name.startswith("__")
    }


def _plain(value: Any, module: str | None, depth: int = 4) -> Any:
    """The numbers and strings in a value, also in objects of the experiment's own classes."""
    if isinstance(value, bool | int | float | str | itertools.count):
        return repr(value)
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__ == module and hasattr(value, "__dict__"):
        value = dict(vars(value))
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [_plain(item, module, depth - 1) for item in value]
    return None
