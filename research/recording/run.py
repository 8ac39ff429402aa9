"""One directory for each run: what was run, with what, what it measured, what it produced."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from research.config import Config, config_as_json, decisive_options
from research.data.batches import batch_of_step
from research.data.dataset import Dataset, Split
from research.errors import InputError, StorageError
from research.files import (
    read_json,
    remove_partial_files,
    replaced_atomically,
    sha256,
    storage_errors,
    write_json,
)
from research.recording.checkpoints import (
    Checkpoint,
    DamagedError,
    checkpoint_path,
    checkpoint_paths,
    newest_good,
    step_of,
    write_checkpoint,
)
from research.recording.environment import (
    describe_environment,
    differences,
    uncommitted_changes,
)
from research.recording.metrics import MetricsFile, cut_metrics
from research.recording.tensorboard import (
    TEST,
    TRAIN,
    VALIDATION,
    TensorBoardWriter,
    cut_events,
)
from research.recording.wall_time import WallTime
from research.results.evaluation import Evaluation, Validation
from research.training.state import State
from research.training.train import INPUT_SECONDS, Report, Step, Unreported, go_to_non_finite

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Array = npt.NDArray[Any]

# How much of what is not committed TensorBoard shows, in bytes.
MOST_SHOWN = 20_000


class Run:
    """The directory of a run, which belongs to this process until it is closed.

    It holds ``config.json``, ``environment.json``, ``command.txt``, ``uncommitted.diff``, a copy
    of the experiment's file, ``metrics.jsonl``, TensorBoard's event files, here and in ``train/``,
    ``validation/`` and ``test/``, profiles in ``plugins/``, ``log.txt``, ``checkpoints/``, and at
    the end ``mnist.h5``, ``mnist.h5.sha256`` and ``evaluation.json``. With them a run can be
    understood, continued and repeated.

    Args:
        config: is written down. It says whether this is a new run, one that is resumed, or one
            that goes on from a checkpoint of another.
        experiment: the file of the experiment.
        data: is identified by its digest.
        say: is given what the user should know, line by line.

    Raises:
        InputError: if the directory can't be created, or the run can't be resumed.
        StorageError: here and by its methods, if a file can't be written.
    """

    def __init__(
        self, config: Config, experiment: Path, data: Dataset, say: Callable[[str], None]
    ) -> None:
        self._config = config
        self._checkpoint_interval = config.checkpoint_interval  # asked for after every call
        self._experiment = experiment
        self._say = say
        self.path = config.resume or _create_directory(config, experiment.stem)
        self._lock = _lock(self.path)
        self._checkpoints = self.path / "checkpoints"
        self._metrics: MetricsFile | None = None
        self._tensorboard = TensorBoardWriter(self.path)
        try:
            self._uncommitted = uncommitted_changes(experiment)
            environment = describe_environment(experiment, self._uncommitted)
            environment["data"] = {"source": data.source, "sha256": data.sha256()}
            with storage_errors(self.path):
                if config.resume is None:
                    self._describe(environment)
                else:
                    self._compare(environment)
        except BaseException:
            self.__exit__()
            raise

    def restore(self, state: State, total_steps: int) -> Checkpoint:
        """Gives a state the values that it had when the run was last at work.

        What the run has recorded since then is taken back, to be recorded again. A new run
        leaves the state as it is built, or has it go on from the run that it is forked from. A
        checkpoint that is damaged is named and moved aside, and the newest good one is used.

        Args:
            state: as the experiment builds it; is changed.
            total_steps: how far the run is to go.

        Returns:
            Where the run stands.

        Raises:
            InputError: if there are checkpoints, and none is good, or if it is there already.
        """
        try:
            source, at = self._origin(state, total_steps)
        except InputError:
            if self._config.resume is None:
                shutil.rmtree(self.path, ignore_errors=True)  # nothing has come of it
            raise
        forked = source != self.path
        with storage_errors(self.path):
            self._describe_resumed(at.step, forked)
            # A test belongs to the end; and a fork that was killed has taken over things already.
            for split in (TRAIN, VALIDATION, TEST) if forked else (TEST,):
                if (self.path / split).exists():
                    shutil.rmtree(self.path / split)
        validated = at.recorded - at.validation_due
        cut_metrics(source, self.path, at.recorded, validated)
        cut_events(source, self.path, at.recorded, validated)
        self.validation_due = at.validation_due
        self._metrics = MetricsFile(self.path)
        self._tensorboard.describe(self._options(), self._texts(state))
        if forked:
            self._say(f"Forked from {source} after step {at.step}")
        elif self._config.resume is not None:
            self._say(f"Resuming {self.path} after step {at.step}")
        if not checkpoint_path(self._checkpoints, at.step).exists():
            write_checkpoint(at, checkpoint_path(self._checkpoints, at.step))
        self._best, self._best_saved = at.best, True
        self._saved_all = not at.unreported
        self._began = time.monotonic() - at.seconds
        self._saved_step, self._saved_time = at.step, time.monotonic()
        return at

    def show_graph(self, graph: Any) -> None:
        """Writes the graph of the training step, a ``GraphDef``, for TensorBoard."""
        self._tensorboard.graph(graph)

    def record_training(
        self, report: Report, state: State, split: Split, wall_time: WallTime
    ) -> None:
        """Records a report that was due, and after an epoch, and the first time, pictures.

        Args:
            report, state: from training on ``split``.
            split: what is trained on.
            wall_time: what the time since the last report went into.
        """
        metrics = dict(report.metrics)
        steps = len(report.history[INPUT_SECONDS])
        shares = wall_time.split(metrics.pop(INPUT_SECONDS) * steps)
        speed = {"speed/examples_per_second": report.examples_per_second}
        ratios = {k: v for k, v in report.last_step.items() if isinstance(v, float)}
        self._record(TRAIN, report.step, metrics | speed | ratios | shares)
        self.validation_due = report.epoch_ended
        if report.epoch_ended or report.step == steps:
            batch = functools.partial(
                batch_of_step, state.seed, report.step - 1, split, self._config.batch_size
            )
            returned = {k: v for k, v in report.last_step.items() if k not in ratios}
            variables = state.weights(all_layers=True)
            weights = {name: tf.convert_to_tensor(v.value) for name, v in variables.items()}
            self._tensorboard.training(report.step, weights, returned, batch)

    def record_validation(self, step: int, found: Validation, split: Split) -> None:
        """Records a validation on a split, after so many steps."""
        figures = found.figures
        self._record(VALIDATION, step, figures)
        self._tensorboard.evaluation(VALIDATION, step, found.evaluation, found.probabilities, split)
        self.validation_due, self._saved_all = False, False
        # Nothing may be selected on the test set: without held-out examples there is no best.
        if self._config.holdout:
            best = {"step": step} | {name: figures[name] for name in ("accuracy", "loss")}
            if self._best is None or _rank(best) > _rank(self._best):
                self._best, self._best_saved = best, False

    def _record(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes finite values by name to metrics.jsonl and to TensorBoard."""
        assert self._metrics is not None, "restore a state first"
        seconds = round(time.monotonic() - self._began, 3)
        self._metrics.write({"split": split, "step": step, "seconds": seconds, **metrics})
        self._tensorboard.scalars(split, step, metrics)

    def checkpoint_due(self, step: int) -> bool:
        """Whether it is time for a checkpoint, or the last validation was the best so far.

        Args:
            step: number of steps done.
        """
        if not self._best_saved:
            return True
        steps, seconds = self._checkpoint_interval
        return (steps is not None and step % steps == 0 and step > self._saved_step) or (
            seconds is not None and time.monotonic() - self._saved_time >= seconds
        )

    def checkpoint(self, state: State, unrecorded: Report | None = None) -> None:
        """Saves where the run stands, and removes checkpoints that are no longer to be kept.

        Does nothing where that has just been done.

        Args:
            state: as it is after the last step.
            unrecorded: a report on the last steps that has not been recorded.

        Raises:
            NonFiniteError: if the state holds NaN or infinity; nothing is saved then.
            StorageError: if there is no room; the checkpoints before are intact.
        """
        assert self._metrics is not None, "restore a state first"
        if int(state.step.numpy()) == self._saved_step and self._saved_all:
            return
        # What a checkpoint says has been recorded must outlast a crash as it does.
        self._metrics.sync()
        self._tensorboard.sync()
        at = Checkpoint(
            run=self._identity,
            variables=state.values(),
            seconds=round(time.monotonic() - self._began, 3),
            best=self._best,
            unreported=Unreported(unrecorded.history, unrecorded.seconds)
            if unrecorded is not None
            else Unreported(),
            validation_due=self.validation_due,
        )
        write_checkpoint(at, checkpoint_path(self._checkpoints, at.step))
        self._saved_step, self._saved_time = at.step, time.monotonic()
        self._saved_all, self._best_saved = unrecorded is None, True
        best = self._best and checkpoint_path(self._checkpoints, int(self._best["step"]))
        for path in checkpoint_paths(self._checkpoints)[self._config.keep_checkpoints :]:
            if path != best:
                path.unlink()

    def write_replay_bundle(
        self, state: State, step: Step, split: Split, total_steps: int, reason: str
    ) -> Path | None:
        """Goes back to the last checkpoint, and on to the step that makes something non-finite.

        What is needed to run that step again is left in a directory: the state before it, the
        batch, the configuration with the seed, and the experiment's file.

        Args:
            state: is left as it was before that step.
            step, split: what is trained, and on what.
            total_steps: what the experiment's ``build`` was given.
            reason: what was found to be non-finite.

        Returns:
            The directory; None if everything stayed finite this time.
        """
        config, until = self._config, int(state.step.numpy())
        last, _ = self._newest_good(state)
        if last is None:
            return None
        state.assign(last.variables.values())
        if not go_to_non_finite(state, step, split, batch_size=config.batch_size, until=until):
            return None
        done = int(state.step.numpy())
        folder = self.path / f"replay-step-{done + 1:08d}"
        with storage_errors(folder), replaced_atomically(folder) as partial:
            partial.mkdir()
            at = Checkpoint(self._identity, state.values())
            write_checkpoint(at, partial / "state.safetensors")
            images, labels = batch_of_step(state.seed, done, split, config.batch_size)
            np.savez(partial / "batch.npz", images=images, labels=labels)
            shutil.copy(self._experiment, partial)
            about: dict[str, Any] = {"experiment": self._experiment.name, "reason": reason}
            about |= {"total_steps": total_steps, "config": config_as_json(config)}
            write_json(partial / "bundle.json", about)
        return folder

    def finish(
        self, step: int, test: Evaluation, probabilities: Array, embedding: Array, data: Dataset
    ) -> None:
        """Records the evaluation of the finished model on the test set.

        Args:
            step: number of steps done.
            test: what ``probabilities`` [N, 10] amount to.
            probabilities: the model's, on all of the test set.
            embedding: [M, units], what goes into its last layer for the first M test examples.
            data: the test set is part of it.
        """
        board = self._tensorboard
        board.scalars(TEST, step, test.figures)
        board.evaluation(TEST, step, test, probabilities, data.test)
        board.embedding(embedding, probabilities, data.test)
        board.sync()
        board.ended("success")
        facts = {"data": data.source, "steps": step}
        write_json(self.path / "evaluation.json", facts | dataclasses.asdict(test))

    def finished_accuracy(self, total_steps: int) -> float | None:
        """The test accuracy of a run that has already done so many steps and saved its model."""
        try:
            found = read_json(self.path / "evaluation.json")
            digest = (self.path / "mnist.h5.sha256").read_text().split()[0]
            finished = found["steps"] == total_steps and digest == sha256(self.path / "mnist.h5")
            return float(found["accuracy"]) if finished else None
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            return None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
        with contextlib.suppress(StorageError):
            self._tensorboard.ended("failure" if any(error) else "unknown")
        self._tensorboard.close()
        os.close(self._lock)

    def _describe(self, environment: dict[str, Any]) -> None:
        """Writes down what a new run is; first config.json, by which it can be resumed."""
        self._name, self._environment = uuid.uuid4().hex, environment
        self._write_config()
        self._write_command(environment["command"])
        if self._uncommitted:
            (self.path / "uncommitted.diff").write_bytes(self._uncommitted)
        shutil.copy(self._experiment, self.path)
        write_json(self.path / "environment.json", environment)

    def _compare(self, environment: dict[str, Any]) -> None:
        """Compares a run that is resumed with what it was."""
        if not (self.path / "environment.json").exists() and not self._checkpoints.exists():
            self._describe(environment)  # it was killed before it had been described
        try:
            fields = read_json(self.path / "config.json")
            before = read_json(self.path / "environment.json")
            self._name, eager = str(fields["run"]), fields["eager"]
            data, now = before["data"]["sha256"], environment["data"]
            before.setdefault("resumed", []).append({"command": environment["command"]})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"--resume {self.path}: its config.json or environment.json does not say what run "
                "it is and what data it was trained on; restore it, or start a new run"
            ) from error
        if data != now["sha256"]:
            raise InputError(
                f"--resume {self.path}: {now['source']} is not what it was trained on; restore "
                "the data, or start a new run"
            )
        different = differences(before, environment)
        copy = self.path / self._experiment.name
        if not copy.exists() or copy.read_bytes() != self._experiment.read_bytes():
            different.append(f"{copy.name} has been edited")
        if eager != self._config.eager:
            different.append(f"--eager is now {self._config.eager}")
        if different:
            self._say(f"Perhaps not bit for bit from here on: {'; '.join(different)}")
        before["resumed"][-1]["differences"] = different
        self._environment = before

    def _describe_resumed(self, step: int, forked: bool) -> None:
        """Writes down from where a run goes on."""
        if self._config.resume is not None:
            remove_partial_files(self.path)
            resumed = self._environment["resumed"][-1]
            resumed["step"] = step
            write_json(self.path / "environment.json", self._environment)
            self._write_command(resumed["command"])
        if forked:
            self._config = dataclasses.replace(self._config, at_step=step)
        self._write_config()

    def _options(self) -> dict[str, Any]:
        """What may make a difference between this run's results and others', for TensorBoard."""
        config = self._config
        options = {
            "experiment": self._experiment.stem,
            "epochs": config.epochs,
            "data": config.data and config.data.name,
        }
        return options | decisive_options(config)

    def _texts(self, state: State) -> dict[str, str]:
        """What the run is, in Markdown, for TensorBoard."""
        environment = dict(self._environment)
        commit = environment.pop("git", {}).get("commit")
        diff = self.path / "uncommitted.diff"
        patch = diff.read_bytes()[:MOST_SHOWN] if diff.exists() else b""
        rows = [f"| `{k}` | `{v}` |" for k, v in config_as_json(self._config).items()]
        summary: list[str] = []
        state.model.summary(print_fn=lambda line, **_: summary.append(line), line_length=80)
        texts = {
            "experiment": ast.get_docstring(ast.parse(self._experiment.read_bytes())) or "",
            "configuration": "\n".join(["| option | value |", "| --- | --- |", *rows]),
            "command": _block((self.path / "command.txt").read_text()),
            "environment": _block(json.dumps(environment, indent=2)),
            "git": f"commit {commit}\n\n" + _block(patch.decode(errors="replace")),
            "model": _block("\n".join(summary)),
        }
        if self._config.fork is not None:
            texts["lineage"] = f"`{self._config.fork}`, step {self._config.at_step}"
        return texts

    @property
    def _identity(self) -> str:
        """Tells the checkpoints of this run, with its options, from any others."""
        text = json.dumps([self._name, decisive_options(self._config)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _write_config(self) -> None:
        about = {"experiment": self._experiment.stem, "run": self._name}
        write_json(self.path / "config.json", about | config_as_json(self._config))

    def _write_command(self, command: list[str]) -> None:
        with (self.path / "command.txt").open("a", errors="backslashreplace") as file:
            file.write(shlex.join(command) + "\n")

    def _origin(self, state: State, total_steps: int) -> tuple[Path, Checkpoint]:
        """Gives a state the values that it starts from; whose they are, and where that stands."""
        source = self.path
        at, damaged = self._newest_good(state)
        if at is not None:
            state.assign(at.variables.values())
        elif damaged:
            raise InputError(f"{damaged[0]}; no other checkpoint is good: start a new run")
        elif self._config.fork is not None:
            source, at = self._config.fork, self._fork(state)
        elif MetricsFile.holds_lines(self.path):
            raise InputError(
                f"--resume {self.path}: it has been trained, and its checkpoints are gone; restore "
                "them, or start a new run"
            )
        else:
            at = Checkpoint(self._identity, state.values())
        if at.step > total_steps:
            epochs = f"--epochs {self._config.epochs:g}"
            raise InputError(f"{epochs}: of {total_steps} steps {at.step} are done; give more")
        for error in damaged:
            aside = error.path.with_suffix(".damaged")
            with storage_errors(aside):
                error.path.replace(aside)
            self._say(f"{error}; moved aside to {aside.name}")
        return source, at

    def _newest_good(self, state: State) -> tuple[Checkpoint | None, list[DamagedError]]:
        """The newest checkpoint that is not damaged, or None, and what is wrong with others."""
        return newest_good(checkpoint_paths(self._checkpoints), state, self._identity)

    def _fork(self, state: State) -> Checkpoint:
        """Takes the state over from another run; returns where this run stands."""
        source, step = self._config.fork, self._config.at_step
        assert source is not None
        there = checkpoint_paths(source / "checkpoints")
        if step is not None:
            wanted = checkpoint_path(source / "checkpoints", step)
            if wanted not in there:
                steps = ", ".join(str(step_of(path)) for path in reversed(there)) or "none"
                raise InputError(
                    f"--at-step {step}: {source} keeps checkpoints of other steps: {steps}"
                )
            there = [wanted]
        at, damaged = newest_good(there, state)
        for error in damaged:
            self._say(f"{error}")
        if at is None:
            raise InputError(f"--fork {source}: it has no checkpoint that is good")
        # Keras keeps a constant learning rate in a variable; the new run's is what it asks for.
        built = state.values()
        state.assign(
            built[name] if re.fullmatch(r"optimizer/.*/learning_rate", name) else value
            for name, value in zip(built, at.variables.values(), strict=True)
        )
        return dataclasses.replace(at, run=self._identity, variables=state.values(), best=None)


def _block(text: str) -> str:
    """Text as it stands, in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _rank(figures: Mapping[str, float]) -> tuple[float, float]:
    return figures["accuracy"], -figures["loss"]


def refuse_existing(run_dir: Path | None) -> None:
    """Refuses a run directory that is there already, before anything else is done.

    Raises:
        InputError: if it exists.
    """
    if run_dir is not None and os.path.lexists(run_dir):
        raise InputError(
            f"--run-dir {run_dir}: it exists, and a run never writes into another's directory; "
            "name a new one, or --resume this one"
        )


def _lock(path: Path) -> int:
    """A descriptor whose lock on a run directory the kernel gives up when this process ends.

    Raises:
        InputError: if another process has it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        busy = "another process is at work on it; wait for it, or stop it"
        reason = busy if isinstance(error, BlockingIOError) else f"can't lock it ({error.strerror})"
        raise InputError(f"--resume {path}: {reason}") from error
    return descriptor


def _create_directory(config: Config, experiment: str) -> Path:
    if config.run_dir is not None:
        refuse_existing(config.run_dir)
        candidates = iter([config.run_dir])
    else:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.seed}"
        folder = Path("runs") / experiment
        later = (folder / f"{name}-{n}" for n in itertools.count(2))
        candidates = itertools.chain([folder / name], later)
    for path in candidates:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError as error:
            if not os.path.lexists(path):  # it was the parent, which is no directory
                raise InputError(f"{path}: can't be created ({error.strerror})") from error
            continue
        except OSError as error:
            raise InputError(f"{path}: can't be created ({error.strerror})") from error
        return path
    raise InputError(f"--run-dir {config.run_dir}: it has just been created by another program")
