"""Records the measurements of a run, in metrics.jsonl and for TensorBoard."""

from __future__ import annotations

import collections
import functools
import time
from collections.abc import Mapping
from typing import Any

from research.config import Config
from research.data.batches import take_batch
from research.data.dataset import Split
from research.recording.checkpoints import Checkpoint
from research.recording.logs import Logged, Logs
from research.recording.metrics import MetricsFile
from research.recording.run_directory import RunDirectory
from research.recording.tensorboard import TEST, TRAIN, VALIDATION, Status, TensorBoardWriter
from research.recording.wall_time import WallTime
from research.results.evaluation import Validation
from research.training.state import State
from research.training.train import INPUT_SECONDS, Report

import numpy.typing as npt
import tensorflow as tf

Array = npt.NDArray[Any]


class Recorder:
    """Records the measurements of a run.

    Args:
        directory: the run directory, which holds the logs in ``logs``.
        logs: the logs so far.
        at: the checkpoint from which the run starts or resumes.
        config: says what the run validates on, and in which precision.

    Attributes:
        validations: the lines of metrics.jsonl about validation, in order.
        validation_due: whether a validation has begun and is not yet recorded.

    Raises:
        StorageError: by the constructor and by all methods, if a file can't be written.
    """

    def __init__(
        self,
        directory: RunDirectory,
        logs: Logs,
        at: Checkpoint,
        config: Config,
    ) -> None:
        self._directory = directory
        self._config = config
        self._began = time.monotonic() - at.seconds
        logged = logs.logged()
        self._lines = collections.Counter(logged.lines)
        self._metrics = MetricsFile(directory.path)
        self.board = TensorBoardWriter(directory.path)
        self.board.events |= logged.events
        self.validations = logs.of(VALIDATION)
        self.validation_due = at.validation_due
        self._trained = max((line["step"] for line in logs.of(TRAIN)), default=0)

    @property
    def seconds(self) -> float:
        """How long the run has taken, without the time between two processes."""
        return round(time.monotonic() - self._began, 3)

    def is_recorded(self, state: State) -> bool:
        """Whether the last report on training, up to the step of ``state``, has been recorded."""
        return self._trained == int(state.step.numpy())

    def training(self, report: Report, state: State, split: Split, wall_time: WallTime) -> None:
        """Records a report that was due; also pictures, after each epoch and at the first report.

        Args:
            report: the report; an early one is ignored.
            state: the state after its last step.
            split: the training examples.
            wall_time: the time spent on each activity.
        """
        last = report.last_step
        if last is None:
            return
        metrics = dict(report.metrics)
        steps = len(report.history[INPUT_SECONDS])
        shares = wall_time.shares(metrics.pop(INPUT_SECONDS) * steps)
        speed = {"speed/examples_per_second": report.examples_per_second}
        ratios = {f"update_ratio/{layer}": ratio for layer, ratio in last.update_ratios.items()}
        self._record(TRAIN, report.step, metrics | speed | ratios | shares)
        self._trained = report.step
        if report.epoch_ended or report.step == steps:
            batch = functools.partial(take_batch, split.images, split.labels, last.indices)
            variables = state.weights(all_layers=True)
            weights = {name: tf.convert_to_tensor(v.value) for name, v in variables.items()}
            self.board.training(report.step, weights, last.returned, batch)

    def validation(self, step: int, found: Validation, split: Split) -> None:
        """Records a validation on ``split`` after ``step`` steps."""
        line = self._record(VALIDATION, step, found.figures)
        self.board.evaluation(VALIDATION, step, found, split)
        self.validations.append(line)
        self.validation_due = False

    def final(self, step: int, found: Validation, embedding: Array, split: Split) -> None:
        """Writes the evaluation of the exported model for TensorBoard.

        Nothing is drawn of the test set if a float32 run has validated on it after this step: the
        same figures and pictures are there. Under mixed precision they are not: the exported model
        computes in float32.

        Args:
            step: number of steps done.
            found: the model's evaluation on the split.
            embedding: [M, units], the inputs of its last layer for the first M examples.
            split: the test set, or the held-out examples, whose figures are already recorded.
        """
        self._directory.check()
        last = self.validations[-1]["step"] if self.validations else None
        there = not self._config.holdout and last == step and self._config.precision == "float32"
        folder = TEST if split.name == TEST and not there else VALIDATION
        if folder == TEST:
            self.board.scalars(TEST, step, found.figures)
            self.board.evaluation(TEST, step, found, split)
        self.board.embedding(folder, embedding, found.probabilities, split)
        self.board.sync()

    def sync(self) -> Logged:
        """Flushes the logs to the disk and returns how much has been recorded."""
        self._metrics.sync()
        self.board.sync()
        return Logged(
            size=self._metrics.size,
            sha256=self._metrics.sha256,
            lines=dict(self._lines),
            events=dict(self.board.events),
        )

    def ended(self, status: Status, result: str) -> None:
        """Records for TensorBoard how the run ended, in Markdown; only the first call counts."""
        self.board.ended(status, self._trained, result)

    def close(self) -> None:
        """Closes the logs."""
        self._metrics.close()
        self.board.close()

    def _record(self, split: str, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Writes finite values by name to both logs; returns the line of metrics.jsonl."""
        self._directory.check()
        line = {"split": split, "step": step, "seconds": self.seconds, **metrics}
        self._metrics.write(line)
        self._lines[split] += 1
        self.board.scalars(split, step, metrics)
        return line
