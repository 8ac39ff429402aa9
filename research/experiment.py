"""The experiment as one record, and its main program."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from research import BEGUN
from research.begin import (
    Begun,
    begin_run,
    command_to_go_on,
    options_of_chief,
    without_unseen_run,
)
from research.config import Config, parse, require
from research.data.batches import Plan
from research.data.dataset import Dataset, Split, hold_out
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.errors import (
    InputError,
    NonFiniteError,
    StorageError,
    WorkerError,
    in_few_lines,
    one_line,
)
from research.loop import Interrupted, Training, loop
from research.recording.about import learned
from research.recording.progress import TrainingProgress, show_start
from research.recording.replay_bundle import write_replay_bundle
from research.recording.run import Run
from research.recording.run_directory import refuse_existing
from research.recording.tensorboard import EMBEDDED
from research.recording.wall_time import StartUp
from research.results.evaluation import Validation, embed, validate
from research.results.export import check_exportable, export_h5
from research.results.selection import rank_by
from research.screen import Screen
from research.signals import SIGNALS, StopRequest
from research.stderr import show_error
from research.training.profiler import Profile
from research.training.state import State
from research.training.strategy import calculates_with_bfloat16, make_strategy
from research.training.train import Indices, Step, check_accumulation, train
from research.training.workers import Agreement, Workers, workers_of

import numpy as np
import numpy.typing as npt
import tensorflow as tf

_START_AGAIN = "see what it says, and start all workers again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment, as a record of functions. Every verb works on this record.

    Attributes:
        config: a frozen dataclass, whose fields are the command line's options.
        build: a function (config, plan) -> State, called within the strategy's scope.
        step: one training step, see ``research.training.train.train``.
        judged: a function state -> the model that is validated and exported: the trained model, or
            another one in the state, such as an average of the weights.
        figures: a function (state, split, the judged model's probabilities [N, 10] on the split) ->
            {name: tensor}. Its scalars are further figures; TensorBoard shows its images and
            vectors.
        indices: decides which examples make a batch, see ``research.training.train.train``.
        loop: the loop over reports, see ``research.loop.loop``.
    """

    config: type[Config]
    build: Callable[[Any, Plan], State]
    step: Step
    judged: Callable[[State], tf.keras.Model] = lambda state: state.model
    figures: Callable[[State, Split, npt.NDArray[np.float32]], Mapping[str, Any]] | None = None
    indices: Indices | None = None
    loop: Callable[[Training], None] = loop

    def validate(
        self,
        state: State,
        split: Split,
        training: Split | None = None,
        model: tf.keras.Model | None = None,
    ) -> Validation:
        """Evaluates a model on a split, by default the judged model; see ``evaluation.validate``.

        Raises:
            NonFiniteError: if a figure is NaN or infinite.
        """

        found = self._evaluate(state, split, training, model)
        found.require_finite()
        return found

    def figure_names(self, state: State, split: Split) -> list[str]:
        """The names of the figures of a validation, from a trial on the first ten examples.

        Raises:
            ValueError: if ``figures`` returns anything else, see ``evaluation.validate``.
        """
        few = split.first(10)
        return sorted(self._evaluate(state, few, few, None).figures)

    def _evaluate(
        self, state: State, split: Split, training: Split | None, model: tf.keras.Model | None
    ) -> Validation:
        own = self.figures
        further = None if own is None else functools.partial(own, state, split)
        return validate(self.judged(state) if model is None else model, split, training, further)


def main(experiment: Experiment) -> NoReturn:
    """Runs an experiment from its command line to its figures, and exits.

    The program's file is the experiment's file; its docstring is the text of ``--help``.

    Raises:
        SystemExit: with status 0 when the run has finished; 2 after bad input, with one line of
            explanation; 1 after a non-finite value, an error in the experiment, or if a file can't
            be written; 128 plus the signal's number after one of ``research.signals.SIGNALS``, when
            a checkpoint has been saved.
    """
    sys.exit(_run(experiment, None))


def run(experiment: Experiment, arguments: list[str] | None = None) -> int:
    """Does the work of ``main`` and returns the exit status, for a program that goes on.

    Call this in the main thread. Afterwards signals are handled as before, also if one stopped the
    run; ``main`` ignores further ones until the interpreter has ended.

    Args:
        experiment: the experiment to run.
        arguments: the words after the program's name; None takes those of this process.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        return _run(experiment, arguments)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(experiment: Experiment, arguments: list[str] | None) -> int:
    status, message = 0, ""
    start_up = StartUp(BEGUN)  # too long for a second run in one process
    start_up.done("importing")
    program = sys.modules["__main__"]
    file = Path(getattr(program, "__file__", None) or inspect.getfile(experiment.build))
    with Screen() as screen:
        try:
            about = inspect.getdoc(program)
            words = without_unseen_run(sys.argv[1:] if arguments is None else arguments)
            config = parse(experiment.config, words, about, experiment=file.stem)
            status = train_and_judge(experiment, config, file, screen, start_up)
        except InputError as error:
            status, message = 2, one_line(error)
        except (NonFiniteError, StorageError, WorkerError) as error:
            status, message = 1, str(error)
        except SystemExit as stop:
            if stop.code:
                raise
            # --help has been printed.
            message = screen.output_error()
            status = 1 if message else 0
        except KeyboardInterrupt:
            status, message = 130, "interrupted before training began; nothing is lost"
        except Exception as error:
            status, message = 1, in_few_lines(error, experiment.step)
            screen.log(traceback.format_exc())
            if screen.log_path is None:
                traceback.print_exc()
            else:
                message += f"\nThe whole traceback is in {screen.log_path}"
        if message:
            screen.log(f"error: {message}")
    if message:
        show_error(f"error: {message}")
    return status


def train_and_judge(
    experiment: Experiment, config: Config, file: Path, screen: Screen, start_up: StartUp
) -> int:
    """Trains, exports and evaluates; returns the exit status, 0 if the run has finished."""
    if config.resume is None:
        refuse_existing(config.run_dir)
    workers = workers_of(make_strategy(config.strategy, config.batch_size))
    screen.console.quiet = not workers.is_chief
    with workers.lost_ones_named(_START_AGAIN):
        config = options_of_chief(workers, config)
        data, training, validation = load(config, screen)
    splits = (training, validation)
    start_up.done("data")
    plan = Plan(len(training), config.examples_per_step, config.epochs)
    with StopRequest(say=workers.is_chief) as stop, contextlib.ExitStack() as stack:
        with workers.lost_ones_named(_START_AGAIN):
            state, built = build(experiment, config, workers, plan, *splits, screen)
            begun = begin_run(stack, workers, config, file, data, state, plan, built)
            if isinstance(begun, str):
                screen.say(begun)
                return 0
        start_up.done("network")
        run, go_on = begun.run, command_to_go_on(begun.path)
        try:
            if run is not None:
                screen.log_to(run.path / "log.txt")
                start_up.done("recording")
                show_start(screen, run, state, plan)
            remedy = f"go on{workers.on_each}: {go_on}"
            with workers.lost_ones_named(remedy):
                train_in_loop(
                    *(experiment, begun, state, *splits, plan, workers, remedy),
                    *(stop, screen, start_up),
                )
                done = int(state.step.numpy())  # before finish, which may assign other weights
                finished = False
                with stop.leaving():
                    if run is not None and not stop.is_set():
                        finish(experiment, state, data, validation, plan, run, screen)
                        finished = True
                status = workers.status_of_chief(0 if finished else stop.exit_status)
        except NonFiniteError as error:
            if run is None or workers.several:
                alone = shlex.join(["python", sys.argv[0], "--resume", begun.path])
                look = f"look closer in one process: {alone} --strategy default"
                if run is not None:
                    run.failed(str(error), None)
            else:
                what = (experiment, state, training, plan)
                look = keep_for_replay(*what, run, stop, screen, str(error)) or go_on
            raise NonFiniteError(f"{error}; {look}") from error
        except StorageError as error:
            raise StorageError(f"{error}, then go on: {go_on}") from error
        if status:
            where = f"after step {done} of {plan.steps}"
            screen.say(f"Stopped by {stop} {where}. Go on{workers.on_each}: {go_on}")
        return status


def train_in_loop(
    experiment: Experiment,
    begun: Begun,
    state: State,
    training: Split,
    validation: Split,
    plan: Plan,
    workers: Workers,
    remedy: str,
    stop: StopRequest,
    screen: Screen,
    start_up: StartUp,
) -> None:
    """Trains in the experiment's loop, until the loop ends or a signal comes to a worker."""
    config, start, run = begun.config, begun.at, begun.run
    agreement = Agreement(workers, stop) if workers.several else None
    heard = stop if agreement is None else agreement.stop

    def evaluate() -> Validation | None:
        found = None
        if not stop.is_set():
            with stop.leaving():
                found = experiment.validate(state, validation, training)
        return found

    def report_now(done: int) -> bool:
        return stop.is_set() or (run is not None and run.checkpoints.due(done))

    with heard.leaving(), workers.watching_others(remedy):
        reports = train(
            *(state, experiment.step, training),
            epochs=config.epochs,
            batch_size=config.examples_per_step,
            accumulate=config.accumulate,
            indices=experiment.indices,
            steps_per_call=config.steps_per_call,
            report_every=config.log_every,
            early_every=config.checkpoint_interval[0],
            report_now=report_now,
            agree=agreement,
            unreported=None if start.validation_due and begun.recorded else start.unreported,
            profile=config.profile and Profile(*config.profile, run.path if run else None),
            show_graph=run.show_graph if run else lambda graph: None,
            compiled=not config.eager,
        )
        start_up.done("tracing")
        screen.say_folded(f"Ready to train after {start_up}")
    if heard.is_set():
        return
    with TrainingProgress(screen, plan, start.step) as progress:
        trained = Training(
            *(evaluate, config, state, reports, training, validation, run, progress, heard),
            at=start,
            validations=begun.validations,
            workers=workers,
        )
        ended = start.ended
        if not ended:
            try:
                experiment.loop(trained)
                ended = trained.ended_by_loop and int(state.step.numpy()) < plan.steps
            except Interrupted:
                if agreement is not None:
                    agreement(False, 0.0)
        trained.save(ended)
    if not heard.is_set():
        progress.show_end()


def keep_for_replay(
    experiment: Experiment,
    state: State,
    training: Split,
    plan: Plan,
    run: Run,
    stop: StopRequest,
    screen: Screen,
    reason: str,
) -> str | None:
    """Keeps what ``replay`` needs; returns how to look at it, or None if the step is not found."""
    screen.say("Looking for the step in which it happened ...")
    bundle, what = None, (experiment.step, experiment.indices, training, plan)
    with stop.leaving():
        bundle = write_replay_bundle(run, state, *what, reason=reason)
        run.failed(reason, bundle)
    look = f"look closer: python -m research replay {shlex.quote(str(bundle))}"
    return look if bundle else None


def build(
    experiment: Experiment,
    config: Config,
    workers: Workers,
    plan: Plan,
    training: Split,
    validation: Split,
    screen: Screen,
) -> tuple[State, Callable[[Plan], State]]:
    """Builds the state, and refuses what would fail later: in an epoch, say, or at the end.

    Returns:
        The state, and a function that builds another one, for another plan, to be compared with it.
    """
    refuse_what_does_not_fit(config, plan, screen)

    def built(plan: Plan, strategy: tf.distribute.Strategy) -> State:
        options = dataclasses.replace(config, epochs=plan.epochs)
        with strategy.scope():
            return experiment.build(options, plan)

    state = built(plan, workers.strategy)
    check_exportable(experiment.judged(state))
    names = experiment.figure_names(state, validation)
    if config.holdout:
        rank_by(*config.selection)(dict.fromkeys(names, 0.0))
    check_accumulation(state, experiment.step, training, config.accumulate)
    # The chief alone builds another state: without the help of other workers.
    return state, functools.partial(built, strategy=tf.distribute.get_strategy())


def load(config: Config, screen: Screen) -> tuple[Dataset, Split, Split]:
    """Loads the data: the whole set, the split to train on, and the split to validate on.

    Without ``--holdout`` validation uses the test set, as the well-known Keras script does, and
    selects nothing by it.
    """
    data = load_mnist(screen.say) if config.data is None else read_dataset(config.data)
    data = data.first(config.examples)
    training, validation = data.train, data.test
    if config.reserve is not None:
        training, _ = hold_out(training, *config.reserve, option="reserve")
    if config.holdout:
        training, validation = hold_out(training, config.holdout, config.holding_out_seed)
    for split in dict.fromkeys((training, validation, data.test)):
        screen.say(f"{split.name} images {split.images.shape}, labels {split.labels.shape}")
    return data, training, validation


def refuse_what_does_not_fit(config: Config, plan: Plan, screen: Screen) -> None:
    """Refuses options that don't fit the data; warns of one that the machine emulates."""
    if config.profile is not None:
        first, last = config.profile
        within = f"the run has {plan.steps} steps; give two of them"
        require("profile", f"{first} {last}", last <= plan.steps, within)
    if config.precision == "mixed_bfloat16" and not calculates_with_bfloat16():
        screen.say("There is no hardware for bfloat16 here: --precision float32 would be faster.")


def choose_weights(state: State, plan: Plan, run: Run, screen: Screen) -> None:
    """Says which validation was best, and with ``--patience`` assigns its weights.

    Does nothing without held-out examples: nothing may be selected by the test set.
    """
    config, best = run.start.config, run.checkpoints.best_step
    if best is None:
        return
    figure, last = config.selection[0], int(state.step.numpy())
    (value,) = [v[figure] for v in run.recorder.validations if v["step"] == best]
    saved = "its weights are saved"
    if config.patience is None and best != last:
        saved = "the last weights are saved; with --patience, the best would be"
    elif config.patience is not None and (at := run.checkpoints.best(state)) is not None:
        state.assign(at.variables.values())
    elif config.patience is not None:
        saved = "its checkpoint is damaged or gone, so that the last weights are saved"
    epoch = f"epoch {plan.epochs_done(best):g}/{plan.epochs:g}"
    screen.say_folded(f"Best: {epoch}, {config.select_by} {value:.4f}; {saved}")


def finish(
    experiment: Experiment,
    state: State,
    data: Dataset,
    validation: Split,
    plan: Plan,
    run: Run,
    screen: Screen,
) -> None:
    """Exports mnist.h5 and evaluates it, on held-out examples if there are any, or the test set.

    With ``--patience`` the weights of the best validation are exported.
    """
    config, step = run.start.config, int(state.step.numpy())
    choose_weights(state, plan, run, screen)
    h5 = run.path / "mnist.h5"
    saved = export_h5(experiment.judged(state), h5, validation.images[:1000], state.optimizer)
    splits = [validation] if not (config.holdout and config.test) else [validation, data.test]
    # The figures are those of the file, which computes in float32.
    found = {split: experiment.validate(state, split, model=saved) for split in splits}
    judged = found[validation].evaluation
    screen.say_folded(learned(judged), style="green" if judged.has_learned else "red")
    for split, figures in found.items():
        run.recorder.final(step, figures, embed(saved, split.images[:EMBEDDED]), split)
        low, high = figures.evaluation.accuracy_interval
        name = "Test" if split is data.test else "Held-out"
        screen.say(f"{name} loss: {figures.evaluation.loss:.4f}")
        screen.say(
            f"{name} accuracy: {figures.evaluation.accuracy:.4f} "
            f"(95% interval {low:.4f} to {high:.4f})"
        )
    run.finish(step, int(state.step.numpy()), found, data.source)
    screen.say(f"Saved model: {h5}")
    screen.say(f"Look closer: python -m research evaluate {shlex.quote(str(run.path))}")
    which = "" if config.run_dir is None else f" {shlex.quote(str(run.path))}"
    screen.say(f"Watch metrics: python -m research board{which}")
