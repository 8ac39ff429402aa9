"""The main program of an experiment: short enough to read at once, and to copy and change."""

from __future__ import annotations

import inspect
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from research.config import AnyConfig, Config, parse
from research.data.batches import steps_per_epoch
from research.data.dataset import Dataset, Split, hold_out
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.errors import InputError, NonFiniteError
from research.interrupt import stop_request
from research.recording.run import Run, refuse_existing
from research.recording.screen import Screen, TrainingProgress
from research.results.evaluation import evaluate
from research.results.export import export_h5
from research.training.state import State
from research.training.strategy import make_strategy
from research.training.train import Step, train

INTERRUPTED = 130  # the exit status that shells give a program ended by Ctrl-C


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
            non-finite value; 130 after Ctrl-C, when what there is has been saved and evaluated.
    """
    status, message = 0, ""
    with Screen() as screen:
        try:
            config = parse(config_type, description=inspect.getdoc(inspect.getmodule(build)))
            finished = run(config, build, step, screen)
            status = 0 if finished else INTERRUPTED
        except InputError as error:
            status, message = 2, str(error)
        except NonFiniteError as error:
            status, message = 1, str(error)
        except KeyboardInterrupt:
            status, message = INTERRUPTED, "interrupted at once; nothing more was saved"
        except Exception:
            screen.log(traceback.format_exc())
            raise
        if message:
            screen.log(f"error: {message}")
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def run(
    config: AnyConfig, build: Callable[[AnyConfig, int], State], step: Step, screen: Screen
) -> bool:
    """Trains, saves and evaluates; says whether training came to its end before Ctrl-C."""
    refuse_existing(config.run_dir)
    strategy = make_strategy(config.strategy, config.batch_size)
    data, training, validation = load(config, screen)
    total_steps = config.epochs * steps_per_epoch(len(training), config.batch_size)

    with Run(config, Path(inspect.getfile(build)), data) as record, stop_request() as stop:
        screen.log_to(record.path / "log.txt")
        screen.say(f"Training for {total_steps} steps; see {record.path}")
        with strategy.scope():
            state = build(config, total_steps)
        reports = train(
            state,
            step,
            training,
            epochs=config.epochs,
            batch_size=config.batch_size,
            steps_per_call=config.steps_per_call,
            report_every=config.log_every,
            report_now=stop.is_set,
            compiled=not config.eager,
        )
        with TrainingProgress(screen, config.epochs, total_steps) as progress:
            for report in reports:
                speed = {"examples_per_second": report.examples_per_second}
                record.record("train", report.step, report.metrics | speed)
                progress.show(report)
                if report.epoch_ended:
                    found = evaluate(state.model, validation)
                    figures = {"loss": found.loss, "accuracy": found.accuracy}
                    record.record("validation", report.step, figures)
                    progress.show_validation(report.epoch, figures)
                if stop.is_set():
                    break
        return finish(state, total_steps, config, data, record, screen)


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


def finish(
    state: State, total_steps: int, config: Config, data: Dataset, record: Run, screen: Screen
) -> bool:
    """Saves mnist.h5 and evaluates it on the test set; says whether training was complete."""
    done = int(state.step.numpy())
    finished = done == total_steps
    screen.say(
        "Training finished successfully."
        if finished
        else f"Stopped by Ctrl-C after {done} of {total_steps} steps: saving what there is."
    )
    h5 = record.path / "mnist.h5"
    saved = export_h5(state.model, h5, data.test.images[:1000], config.learning_rate)
    test = evaluate(saved, data.test)
    record.write_evaluation(test, data=data.source, steps=done, finished=finished)
    low, high = test.accuracy_interval
    screen.say(f"Test loss: {test.loss:.4f}")
    screen.say(f"Test accuracy: {test.accuracy:.4f} (95% interval {low:.4f} to {high:.4f})")
    screen.say(f"Saved model: {h5}")
    screen.say(f"Look closer: python -m research evaluate {shlex.quote(str(record.path))}")
    folder = "runs" if config.run_dir is None else shlex.quote(str(record.path))
    screen.say(f"Watch metrics: tensorboard --logdir {folder}")
    return finished
