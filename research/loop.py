"""The loop of an experiment: what happens between two reports on training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.config import Config
from research.data.dataset import Split
from research.recording.run import Run
from research.recording.screen import TrainingProgress
from research.recording.wall_time import WallTime
from research.results.selection import rank_by, waited
from research.signals import StopRequest
from research.training.state import State
from research.training.train import Report

if TYPE_CHECKING:
    from research.experiment import Experiment


def loop(training: Training) -> None:
    """Records what is reported, validates after every epoch, and ends when patience is over."""
    for report in training:
        training.record(report)
        if report.epoch_ended:
            training.validate()
        if training.patience_over():
            break


class Training:
    """A training at work, as its loop sees it: an iterator over reports, and what to do with them.

    Going on to the next report saves a checkpoint where one is due; after a signal there is no
    next one. A loop that breaks has ended its training, which is recorded. Since a run may be
    killed at any point, what a loop decides by must be in the state or in ``validations``.

    Args:
        experiment: what is trained.
        config: its options.
        state: is changed as the loop goes on.
        reports: from ``research.training.train.train``.
        splits: what is trained on, and what is validated on.
        run: where it is recorded; None for nowhere.
        progress: where it is shown.
        stop: a signal that has come.

    Attributes:
        state, config: of the training.
        wall_time: what it has been spent on.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: Config,
        state: State,
        reports: Iterator[Report],
        splits: tuple[Split, Split],
        run: Run | None,
        progress: TrainingProgress,
        stop: StopRequest,
    ) -> None:
        self.state = state
        self.config = config
        self._experiment = experiment
        self._reports = reports
        self._training, self._validation = splits
        self._run = run
        self._progress = progress
        self._stop = stop
        self.wall_time = WallTime()
        self._validations: list[Mapping[str, Any]] = []
        self._last: Report | None = None

    @property
    def validations(self) -> Sequence[Mapping[str, Any]]:
        """What was recorded of each validation: ``step``, and every figure by name."""
        return self._run.recorder.validations if self._run else self._validations

    def __iter__(self) -> Iterator[Report]:
        if self._run and self._run.recorder.validation_due:
            self.validate()  # a signal had interrupted it
        if self.patience_over() or self._stop.is_set():
            return
        self.wall_time.switch("training")
        for report in self._reports:
            self.wall_time.switch("logging")
            self._progress.show(report)
            self._last = report
            yield report
            self.wall_time.switch("checkpointing")
            stopping = self._stop.is_set()  # asked once: it may be set between two lines
            if stopping or (self._run and self._run.checkpoints.due(report.step)):
                self.save()
            if stopping:
                return
            self.wall_time.switch("training")

    def record(self, report: Report) -> None:
        """Records a report, if one was due: the next covers what an early one has measured."""
        if report.due and self._run:
            self._run.recorder.training(report, self.state, self._training, self.wall_time)

    def validate(self) -> None:
        """Evaluates the model that is judged, on the validation split, and records what it finds.

        A signal leaves it in the middle; a run that is resumed then begins with it.
        """
        step = int(self.state.step.numpy())
        self.wall_time.switch("validation")
        if self._run:
            self._run.recorder.validation_due = True
        found = None
        if not self._stop.is_set():
            with self._stop.leaving():
                found = self._experiment.validate(self.state, self._validation, self._training)
        self.wall_time.switch("logging")
        if found is not None:
            if self._run:
                self._run.recorder.validation(step, found, self._validation)
            else:
                self._validations.append({"step": step, **found.figures})
            self._progress.show_validation(step, found.figures)

    def patience_over(self) -> bool:
        """Whether so many validations as ``--patience`` says were no better than one before."""
        patience = self.config.patience
        return (
            patience is not None
            and waited(self.validations, rank_by(*self.config.selection)) >= patience
        )

    def save(self, ended: bool = False) -> None:
        """Saves a checkpoint, unless that has just been done.

        Args:
            ended: whether the loop has ended training before all steps were done.
        """
        if self._run:
            unrecorded = None if self._last is None or self._last.due else self._last
            self._run.checkpoints.save(self.state, unrecorded, ended)
