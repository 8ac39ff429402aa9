"""The main program of an experiment: short enough to read at once, and to copy and change."""

from __future__ import annotations

import contextlib
import inspect
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from research import BEGUN
from research.config import AnyConfig, Config, parse, require
from research.data.batches import steps_of_epochs, steps_per_epoch
from research.data.dataset import Dataset, Split, hold_out
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.errors import InputError, NonFiniteError, StorageError, in_few_lines
from research.recording.run import Run, begin, write_replay_bundle
from research.recording.run_directory import lock_directory, refuse_existing
from research.recording.screen import Screen, TrainingProgress
from research.recording.start import find_start, finished_accuracy
from research.recording.tensorboard import EMBEDDED
from research.recording.wall_time import StartUp, WallTime
from research.results.evaluation import (
    embed,
    evaluate_probabilities,
    predict_probabilities,
    validate,
)
from research.results.export import export_h5
from research.signals import StopRequest
from research.stderr import show_error
from research.training.profiler import Profile
from research.training.state import State
from research.training.strategy import calculates_with_bfloat16, make_strategy
from research.training.train import Report, Step, train


def main(
    config_type: type[AnyConfig], build: Callable[[AnyConfig, int], State], step: Step
) -> None:
    """Runs an experiment from its command line to its test accuracy, and exits.

    Args:
        config_type: a dataclass, the command line.
        build: a function (config, total steps) -> State, called within the strategy's scope. Its
            file is the experiment's, and the docstring of that the text of ``--help``.
        step: see ``research.training.train.train``.

    Raises:
        SystemExit: status 2 after bad input, with one line that says what and why; 1 after a
            non-finite value, an error in the experiment, or where a file can't be written; 128
            and the signal's number after one of ``research.signals.SIGNALS``, when a checkpoint
            has been saved.
    """
    status, message = 0, ""
    start_up = StartUp(BEGUN)  # of a second experiment in one process it tells too much
    start_up.done("importing")
    with Screen() as screen:
        try:
            experiment = Path(inspect.getfile(build))
            about = inspect.getdoc(inspect.getmodule(build))
            config = parse(config_type, description=about, experiment=experiment.stem)
            status = run(config, build, step, experiment, screen, start_up)
        except InputError as error:
            status, message = 2, str(error)
        except (NonFiniteError, StorageError) as error:
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
            status, message = 1, in_few_lines(error, step)
            screen.log(traceback.format_exc())
            if screen.log_path is None:
                traceback.print_exc()
            else:
                message += f"\nThe whole traceback is in {screen.log_path}"
        if message:
            screen.log(f"error: {message}")
    if message:
        show_error(f"error: {message}")
    sys.exit(status)


def run(
    config: AnyConfig,
    build: Callable[[AnyConfig, int], State],
    step: Step,
    experiment: Path,
    screen: Screen,
    start_up: StartUp,
) -> int:
    """Trains, saves and evaluates; returns the exit status, 0 where all of it is done."""
    if config.resume is None:
        refuse_existing(config.run_dir)
    strategy = make_strategy(config.strategy, config.batch_size)
    data, training, validation = load(config, screen)
    start_up.done("data")
    total_steps = steps_of_epochs(config.epochs, len(training), config.batch_size)
    if config.profile is not None:
        first, last = config.profile
        within = f"the run has {total_steps} steps; give two of them"
        require("profile", f"{first} {last}", last <= total_steps, within)
    if config.precision == "mixed_bfloat16" and not calculates_with_bfloat16():
        screen.say("There is no hardware for bfloat16 here: --precision float32 would be faster.")

    with StopRequest() as stop, contextlib.ExitStack() as stack:
        directory = None
        if config.resume is not None:
            directory = stack.enter_context(lock_directory(config.resume))
        with strategy.scope():
            state = build(config, total_steps)
        start = find_start(config, experiment, data, state, total_steps)
        if (accuracy := finished_accuracy(start, total_steps)) is not None:
            screen.say(f"{config.resume} is finished; its test accuracy is {accuracy:.4f}.")
            return 0
        state.assign(start.at.variables.values())
        start_up.done("network")
        per_epoch = steps_per_epoch(len(training), config.batch_size)
        record = stack.enter_context(begin(start, directory, state, per_epoch, total_steps))
        go_on = shlex.join(["python", sys.argv[0], "--resume", str(record.path)])
        try:
            screen.log_to(record.path / "log.txt")
            start_up.done("recording")
            there = f"Training for {total_steps - start.at.step} steps; see {record.path}"
            screen.say("\n".join([*start.notes, there]))
            reports = stop.unless_stopped(
                train,
                state,
                step,
                training,
                epochs=config.epochs,
                batch_size=config.batch_size,
                steps_per_call=config.steps_per_call,
                report_every=config.log_every,
                early_every=config.checkpoint_interval[0],
                report_now=lambda done: stop.is_set() or record.checkpoints.due(done),
                unreported=start.at.unreported,
                profile=config.profile and Profile(*config.profile, record.path),
                show_graph=record.show_graph,
                compiled=not config.eager,
            )
            if reports is not None:
                start_up.done("tracing")
                screen.say(f"Ready to train after {start_up}")
                progress = TrainingProgress(screen, config.epochs, total_steps, start.at.step)
                record_training(reports, state, training, validation, record, progress, stop)
            if stop.unless_stopped(finish, state, config, data, record, screen):
                return 0
        except NonFiniteError as error:
            screen.say("Looking for the step in which it happened ...")
            bundle = stop.unless_stopped(
                write_replay_bundle, record, state, step, training, total_steps, str(error)
            )
            look = f"look closer: python -m research replay {shlex.quote(str(bundle))}"
            raise NonFiniteError(f"{error}; {look if bundle else go_on}") from error
        except StorageError as error:
            raise StorageError(f"{error}, then go on: {go_on}") from error
        done = int(state.step.numpy())
        screen.say(f"Stopped by {stop} after {done} of {total_steps} steps. Go on: {go_on}")
        return stop.exit_status


def record_training(
    reports: Iterator[Report],
    state: State,
    training: Split,
    validation: Split,
    record: Run,
    progress: TrainingProgress,
    stop: StopRequest,
) -> None:
    """The loop: what happens between two reports on training."""
    wall_time = WallTime()

    def validate_now(step: int) -> None:
        wall_time.switch("validation")
        # If a signal ends it, a resumed run begins with it.
        found = stop.unless_stopped(validate, state.model, validation, training)
        wall_time.switch("logging")
        if found is not None:
            record.recorder.validation(step, found, validation)
            progress.show_validation(step, found.figures)

    with progress:
        if record.recorder.validation_due:
            validate_now(int(state.step.numpy()))
        wall_time.switch("training")
        for report in reports:
            wall_time.switch("logging")
            progress.show(report)
            if report.due:
                record.recorder.training(report, state, training, wall_time)
            if report.epoch_ended:
                validate_now(report.step)
            wall_time.switch("checkpointing")
            stopping = stop.is_set()  # asked once: it may be set between two lines
            if stopping or record.checkpoints.due(report.step):
                record.checkpoints.save(state, None if report.due else report)
            if stopping:
                return
            wall_time.switch("training")
        record.checkpoints.save(state)


def load(config: AnyConfig, screen: Screen) -> tuple[Dataset, Split, Split]:
    """The data that the configuration asks for: all of it, what to train on, what to validate on.

    As in the well-known Keras script the test set is what is validated on, and nothing is
    selected by it; with a held-out split the test set waits for the end.
    """
    data = load_mnist(screen.say) if config.data is None else read_dataset(config.data)
    data = data.first(config.examples)
    training, validation = data.train, data.test
    if config.holdout:
        training, validation = hold_out(training, config.holdout, config.seed)
    for split in dict.fromkeys((training, validation, data.test)):
        screen.say(f"{split.name} images {split.images.shape}, labels {split.labels.shape}")
    return data, training, validation


def finish(state: State, config: Config, data: Dataset, record: Run, screen: Screen) -> bool:
    """Saves mnist.h5 and evaluates it on the test set."""
    screen.say("Training finished successfully.")
    h5 = record.path / "mnist.h5"
    images, labels = data.test.images, data.test.labels
    saved = export_h5(state.model, h5, images[:1000], state.optimizer)
    probabilities = predict_probabilities(saved, images)
    test = evaluate_probabilities(probabilities, labels)
    embedding = embed(saved, images[:EMBEDDED])
    record.finish(int(state.step.numpy()), test, probabilities, embedding, data)
    low, high = test.accuracy_interval
    screen.say(f"Test loss: {test.loss:.4f}")
    screen.say(f"Test accuracy: {test.accuracy:.4f} (95% interval {low:.4f} to {high:.4f})")
    screen.say(f"Saved model: {h5}")
    screen.say(f"Look closer: python -m research evaluate {shlex.quote(str(record.path))}")
    which = "" if config.run_dir is None else f" {shlex.quote(str(record.path))}"
    screen.say(f"Watch metrics: python -m research board{which}")
    return True
