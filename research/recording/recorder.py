"""What a run measures, written as it comes: to metrics.jsonl and to TensorBoard."""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Mapping
from typing import Any

from research.data.batches import take_batch
from research.data.dataset import Split
from research.errors import StorageError
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
    """Writes what a run measures.

    Args:
        directory: the run's; its logs are those in ``logs``.
        logs: what has been recorded so far.
        at: the checkpoint that the run goes on from.

    Attributes:
        validations: the lines of metrics.jsonl about validation, in order.
        validation_due: whether a validation has begun and has not been recorded.

    Raises:
        StorageError: here and by its methods, if a file can't be written.
    """

    def __init__(
        self,
        directory: RunDirectory,
        logs: Logs,
        at: Checkpoint,
    ) -> None:
        self._directory = directory
        self._began = time.monotonic() - at.seconds
        self._lines = collections.Counter(line["split"] for line in logs.parsed())
        self._metrics = MetricsFile(directory.path)
        self.board = TensorBoardWriter(directory.path)
        self.board.events |= {split: len(events) for split, events in logs.events.items()}
        self.validations = logs.of(VALIDATION)
        self.validation_due = at.validation_due

    @property
    def seconds(self) -> float:
        """How long the run has been going on, without the time between two processes."""
        return round(time.monotonic() - self._began, 3)

    def training(self, report: Report, state: State, split: Split, wall_time: WallTime) -> None:
        """Records a report that was due, and after an epoch, and the first time, pictures.

        Args:
            report, state: from training on ``split``.
            split: what is trained on.
            wall_time: what the time since the last report went into.
        """
        last = report.last_step
        if last is None:
            return
        metrics = dict(report.metrics)
        steps = len(report.history[INPUT_SECONDS])
        shares = wall_time.split(metrics.pop(INPUT_SECONDS) * steps)
        speed = {"speed/examples_per_second": report.examples_per_second}
        ratios = {f"update_ratio/{layer}": ratio for layer, ratio in last.update_ratios.items()}
        self._record(TRAIN, report.step, metrics | speed | ratios | shares)
        if report.epoch_ended or report.step == steps:
            batch = functools.partial(take_batch, split.images, split.labels, last.indices)
            variables = state.weights(all_layers=True)
            weights = {name: tf.convert_to_tensor(v.value) for name, v in variables.items()}
            self.board.training(report.step, weights, last.returned, batch)

    def validation(self, step: int, found: Validation, split: Split) -> None:
        """Records a validation on a split, after so many steps."""
        line = self._record(VALIDATION, step, found.figures)
        self.board.evaluation(VALIDATION, step, found, split)
        self.validations.append(line)
        self.validation_due = False

    def final(self, step: int, found: Validation, embedding: Array, split: Split) -> None:
        """Writes the evaluation of the finished model for TensorBoard.

        Args:
            step: number of steps done.
            found: what the model does on the split.
            embedding: [M, units], what goes into its last layer for the first M examples.
            split: the test set, or held-out examples, whose figures validation has recorded.
        """
        self._directory.path  # noqa: B018 - raises where it is another directory by now
        folder = TEST if split.name == TEST else VALIDATION
        if folder == TEST:
            self.board.scalars(TEST, step, found.figures)
            self.board.evaluation(TEST, step, found, split)
        self.board.embedding(folder, embedding, found.probabilities, split)
        self.board.sync()

    def sync(self) -> Logged:
        """Has all that was recorded survive a crash of the machine; says how much that is."""
        self._metrics.sync()
        self.board.sync()
        return Logged(
            size=self._metrics.size,
            sha256=self._metrics.sha256,
            lines=dict(self._lines),
            events=dict(self.board.events),
        )

    def close(self, status: Status) -> None:
        """Closes the files, and tells TensorBoard how the run has ended."""
        self._metrics.close()
        with contextlib.suppress(StorageError):
            self.board.ended(status)
        self.board.close()

    def _record(self, split: str, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Writes finite values by name to both logs; returns the line of metrics.jsonl."""
        self._directory.path  # noqa: B018 - raises where it is another directory by now
        line = {"split": split, "step": step, "seconds": self.seconds, **metrics}
        self._metrics.write(line)
        self._lines[split] += 1
        self.board.scalars(split, step, metrics)
        return line
