"""What a run measures, written as it comes: to metrics.jsonl and to TensorBoard."""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from research.config import Config
from research.data.batches import batch_of_step
from research.data.dataset import Dataset, Split
from research.errors import StorageError
from research.recording.logs import Logged, Logs
from research.recording.metrics import MetricsFile
from research.recording.run_directory import RunDirectory
from research.recording.tensorboard import TEST, TRAIN, VALIDATION, Status, TensorBoardWriter
from research.recording.wall_time import WallTime
from research.results.evaluation import Evaluation, Validation
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
        config: the run's options.
        seconds: how long the run has been going on.
        ends_epoch: says of a number of steps whether a validation is due after them.

    Attributes:
        validations: the lines of metrics.jsonl about validation, in order.
        validation_due: whether an epoch has ended and its validation has not been recorded.

    Raises:
        StorageError: here and by its methods, if a file can't be written.
    """

    def __init__(
        self,
        directory: RunDirectory,
        logs: Logs,
        config: Config,
        seconds: float,
        ends_epoch: Callable[[int], bool],
    ) -> None:
        self._directory = directory
        self._config = config
        self._began = time.monotonic() - seconds
        self._lines = collections.Counter(line["split"] for line in logs.parsed())
        self._metrics = MetricsFile(directory.path)
        self.board = TensorBoardWriter(directory.path)
        self.board.events |= {split: len(events) for split, events in logs.events.items()}
        self.validations = logs.of(VALIDATION)
        trained = [line["step"] for line in logs.of(TRAIN)[-1:]]
        validated = [line["step"] for line in self.validations[-1:]]
        self.validation_due = any(map(ends_epoch, trained)) and trained != validated

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
            self.board.training(report.step, weights, returned, batch)

    def validation(self, step: int, found: Validation, split: Split) -> None:
        """Records a validation on a split, after so many steps."""
        line = self._record(VALIDATION, step, found.figures)
        self.board.evaluation(VALIDATION, step, found.evaluation, found.probabilities, split)
        self.validations.append(line)
        self.validation_due = False

    def test(
        self, step: int, found: Evaluation, probabilities: Array, embedding: Array, data: Dataset
    ) -> None:
        """Records the evaluation of the finished model on the test set, for TensorBoard.

        Args:
            step: number of steps done.
            found: what ``probabilities`` [N, 10] amount to.
            probabilities: the model's, on all of the test set.
            embedding: [M, units], what goes into its last layer for the first M test examples.
            data: the test set is part of it.
        """
        self._directory.path  # noqa: B018 - raises where it is another directory by now
        self.board.scalars(TEST, step, found.figures)
        self.board.evaluation(TEST, step, found, probabilities, data.test)
        self.board.embedding(embedding, probabilities, data.test)
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
