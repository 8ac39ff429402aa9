"""A run at work: its directory, its recorder and its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.dataset import Split
from research.errors import StorageError, one_line
from research.files import (
    is_regular,
    move_aside,
    remove_partial_files,
    sha256,
    storage_errors,
    write_json,
    write_sealed_json,
)
from research.recording.about import describe_run, figures_of
from research.recording.checkpoints import (
    Checkpoint,
    checkpoint_path,
    checkpoint_paths,
    newest_good,
    write_checkpoint,
)
from research.recording.logs import write_logs
from research.recording.recorder import Recorder
from research.recording.run_directory import (
    FINISHED,
    NON_FINITE,
    RunDirectory,
    create_directory,
    describe,
    write_command,
    write_config,
)
from research.recording.start import Start
from research.recording.tensorboard import PROJECTOR_FILES, TEST, VALIDATION, Status
from research.results.evaluation import Validation
from research.results.selection import best, own, rank_by
from research.training.state import State
from research.training.train import Report, Unreported

import tensorflow as tf

# The files that a resumed run writes, besides its logs and checkpoints.
WRITTEN = (
    *("log.txt", "command.txt", "environment.json", "evaluation.json", FINISHED, NON_FINITE),
    *("mnist.h5", "mnist.h5.sha256"),
    *(f"{VALIDATION}/{name}" for name in PROJECTOR_FILES),
)


class Checkpoints:
    """Saves a run's checkpoints and decides when they are due and which to keep.

    Args:
        directory: the run directory.
        at: the checkpoint from which the run starts or resumes; the directory holds it.
        recorder: the run's recorder; each checkpoint holds how much has been recorded.
        config: says how often to save checkpoints and how many to keep.
    """

    def __init__(
        self,
        directory: RunDirectory,
        at: Checkpoint,
        recorder: Recorder,
        config: Config,
    ) -> None:
        self._directory = directory
        self._run = at.run
        self._recorder = recorder
        self._config = config
        self._interval = config.checkpoint_interval  # kept: ``due`` runs after every call
        self._saved = (at.step, len(recorder.validations), not at.unreported, at.ended)
        self._saved_time = time.monotonic()

    @property
    def best_step(self) -> int | None:
        """The step of the best validation; None without held-out examples.

        Without them validation uses the test set, and nothing may be selected on the test set. In
        a fork only its own validations count: the source run keeps the checkpoints of the others.
        """
        if not self._config.holdout:
            return None
        validations = own(self._recorder.validations, self._config.at_step)
        position = best(validations, rank_by(*self._config.selection))
        return None if position is None else int(validations[position]["step"])

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due: by steps, by time, or since the last validation was best.

        Args:
            step: number of steps done.
        """
        saved_step, validations, *_ = self._saved
        if validations < len(self._recorder.validations) and self.best_step == step:
            return True
        steps, seconds = self._interval
        return (steps is not None and step % steps == 0 and step > saved_step) or (
            seconds is not None and time.monotonic() - self._saved_time >= seconds
        )

    def save(self, state: State, unrecorded: Report | None = None, ended: bool = False) -> None:
        """Saves a checkpoint and removes checkpoints that are no longer kept.

        Does nothing if the newest checkpoint already holds all of this.

        Args:
            state: the state after the last step.
            unrecorded: an early report on the last steps, if there is one.
            ended: whether the experiment's loop has ended training before all steps were done.

        Raises:
            NonFiniteError: if the state holds NaN or infinity; nothing is saved then.
            StorageError: if the file can't be written; earlier checkpoints are intact.
        """
        validations = len(self._recorder.validations)
        now = (int(state.step.numpy()), validations, unrecorded is None, ended)
        if now == self._saved:
            return
        folder = self._directory.path / "checkpoints"
        # recorder.sync: the records that a checkpoint counts must survive a crash as it does.
        at = Checkpoint(
            run=self._run,
            variables=state.values(),
            seconds=self._recorder.seconds,
            unreported=Unreported(unrecorded.history, unrecorded.seconds)
            if unrecorded is not None
            else Unreported(),
            logged=self._recorder.sync(),
            validation_due=self._recorder.validation_due,
            ended=ended,
        )
        write_checkpoint(at, checkpoint_path(folder, at.step))
        self._saved, self._saved_time = now, time.monotonic()
        chosen = self.best_step
        for path in checkpoint_paths(folder)[self._config.keep_checkpoints :]:
            if chosen is None or path != checkpoint_path(folder, chosen):
                with storage_errors(path):
                    path.unlink()

    def newest(self, state: State) -> Checkpoint | None:
        """The newest checkpoint of this run that is not damaged."""
        paths = checkpoint_paths(self._directory.path / "checkpoints")
        return newest_good(paths, state, self._run)[0]

    def best(self, state: State) -> Checkpoint | None:
        """The checkpoint of the best validation; None if there is none or it is damaged."""
        if (step := self.best_step) is None:
            return None
        path = checkpoint_path(self._directory.path / "checkpoints", step)
        return newest_good([path], state, self._run)[0]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run at work.

    ``runs/README.md`` lists the files of its directory, with which the run can be understood,
    resumed and repeated.

    Attributes:
        start: what the run starts from.
        directory: the run directory, locked for this process.
        recorder: records the measurements.
        checkpoints: saves the checkpoints.
    """

    start: Start
    directory: RunDirectory
    recorder: Recorder
    checkpoints: Checkpoints

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    def show_graph(self, graph: tf.compat.v1.GraphDef) -> None:
        """Writes the graph of the training step, a ``GraphDef``, for TensorBoard."""
        self.recorder.board.graph(graph)

    def finish(
        self, step: int, exported: int, found: Mapping[Split, Validation], source: str
    ) -> None:
        """Writes evaluation.json and finished.json, the last files of a run.

        Args:
            step: number of steps done.
            exported: the step whose weights have been exported.
            found: the exported model's evaluation on each split.
            source: the data set's ``source``.
        """
        self.recorder.ended("success", figures_of(found, step, exported))
        facts: dict[str, Any] = {"data": source, "steps": step, "exported_step": exported}
        for split, validation in found.items():
            facts[split.name] = dataclasses.asdict(validation.evaluation) | validation.figures
        write_json(self.path / "evaluation.json", facts)
        left = ("mnist.h5", "mnist.h5.sha256", "evaluation.json", f"{TEST}/*")
        files = sorted(path for name in left for path in self.path.glob(name))
        digests = {str(path.relative_to(self.path)): sha256(path) for path in files}
        write_sealed_json(self.path / FINISHED, {"step": step, "files": digests})

    def failed(self, reason: str, bundle: Path | None) -> None:
        """Writes non_finite.json: a value became NaN or infinite.

        Args:
            reason: the value and, where it is known, the step.
            bundle: what ``replay`` needs, if the step was found.
        """
        name = bundle and bundle.name
        write_sealed_json(self.path / NON_FINITE, {"reason": reason, "bundle": name})


@contextlib.contextmanager
def begin(start: Start, resumed: RunDirectory | None, state: State) -> Iterator[Run]:
    """Creates or resumes a run directory, and yields the run, to be trained.

    Args:
        start: from ``find_start``.
        resumed: the locked directory of the run to resume; None creates a directory.
        state: the state with the values of ``start``.

    Raises:
        InputError: if the directory can't be created.
        StorageError: if a file can't be written.
    """
    config = start.config
    with contextlib.ExitStack() as stack:
        if resumed is None:
            names = (config.run_dir, start.experiment.stem, config.seed)
            new = create_directory(*names, lambda folder: _write_start(folder, start))
            directory = stack.enter_context(new)
        else:
            directory = resumed
            _go_on(directory, start)
        recorder = Recorder(directory, start.logs, start.at, config)
        status: Status = "failure"
        result = ""
        try:
            recorder.board.describe(describe_run(directory.path, start, state))
            checkpoints = Checkpoints(directory, start.at, recorder, config)
            yield Run(start, directory, recorder, checkpoints)
            status, result = "unknown", "Stopped by a signal; `--resume` goes on."
        except BaseException as error:
            result = f"Failed: {one_line(error)}"
            raise
        finally:
            with contextlib.suppress(StorageError):  # the run has said so elsewhere
                recorder.ended(status, result)
            recorder.close()


def _write_start(folder: Path, start: Start) -> None:
    """Writes the first files of a new run: logs, description and first checkpoint."""
    write_logs(start.logs, folder)
    describe(
        *(folder, start.config, start.identity),
        *(start.environment, start.uncommitted, start.experiment),
    )
    at = dataclasses.replace(start.at, logged=start.logs.logged())
    write_checkpoint(at, checkpoint_path(folder / "checkpoints", at.step))


def _go_on(directory: RunDirectory, start: Start) -> None:
    """Removes what a resumed run did after its checkpoint, and records the resumption."""
    run = directory.path
    with storage_errors(run):
        # First: the run is unfinished from here on, even if the process is killed.
        for name in (FINISHED, NON_FINITE):
            if is_regular(run / name):
                (run / name).unlink()
        remove_partial_files(run)
        for path in start.damaged:
            move_aside(path)
        for path in (run / name for name in WRITTEN):
            if os.path.lexists(path) and not is_regular(path):
                move_aside(path)
        if os.path.isdir(run / TEST) and not (run / TEST).is_symlink():
            shutil.rmtree(run / TEST)
        elif os.path.lexists(run / TEST):
            move_aside(run / TEST)
    write_json(run / "environment.json", start.environment)
    write_command(run, start.environment["resumed"][-1]["command"])
    write_config(run, start.config, start.identity)
    write_logs(start.logs, run)
    if start.logs.damage:
        at = dataclasses.replace(start.at, logged=start.logs.logged())
        write_checkpoint(at, checkpoint_path(run / "checkpoints", at.step))
