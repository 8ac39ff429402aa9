"""The loop of an experiment over the reports on its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from research.config import Config
from research.data.batches import Plan
from research.data.dataset import Split
from research.recording.checkpoints import Checkpoint
from research.recording.progress import TrainingProgress
from research.recording.run import Run
from research.recording.wall_time import WallTime
from research.results.evaluation import Validation
from research.results.selection import own, rank_by, waited
from research.signals import StopRequest
from research.training.state import State
from research.training.train import Report, make_report
from research.training.workers import Workers


def loop(training: Training) -> None:
    """Records each report, and validates after each epoch."""
    for report in training:
        training.record(report)
        if report.epoch_ended:
            training.validate()


class Interrupted(BaseException):
    """Leaves the loop where a signal has interrupted a validation."""


class Training:
    """A training as its loop sees it: an iterator over reports, and methods to deal with them.

    Taking the next report first saves a checkpoint if one is due. There is no next report after a
    signal, or when ``--patience`` is over. A loop that breaks ends its training, and the end is
    recorded. A run may be killed at any point, so a loop may decide only by the step of the report,
    the state and ``validations``. A loop records a report before it validates. It gets no early
    report: those depend on the clock and on signals.

    Args:
        evaluate: evaluates the judged model on the validation split; None if a signal came.
        config: the options of the experiment.
        state: the state, which training changes.
        reports: from ``research.training.train.train``.
        training: the split to train on.
        validation: the split to validate on.
        run: where the training is recorded; None for nowhere.
        progress: where the training is shown.
        stop: the request of a signal to stop; of several workers, the one that all have heard of.
        at: the checkpoint from which the training starts or resumes.
        validations: the validations before it.
        workers: those that train together. The chief validates, for all.

    Attributes:
        state, config: as above.
        wall_time: the time spent on each activity.
    """

    def __init__(
        self,
        evaluate: Callable[[], Validation | None],
        config: Config,
        state: State,
        reports: Iterator[Report],
        training: Split,
        validation: Split,
        run: Run | None,
        progress: TrainingProgress,
        stop: StopRequest,
        at: Checkpoint | None = None,
        validations: Sequence[Mapping[str, Any]] = (),
        workers: Workers | None = None,
    ) -> None:
        self.state = state
        self.config = config
        self._evaluate = evaluate
        self._reports = reports
        self._training, self._validation = training, validation
        self._run = run
        self._progress = progress
        self._stop = stop
        self.wall_time = WallTime()
        self._workers = workers
        self._validations = list(validations)
        self._repeated = None if at is None else interrupted(at, config, len(training))
        self._last = self._repeated
        self._recorded = self._last is None or (run is not None and run.recorder.is_recorded(state))
        self._breaks = False

    @property
    def validations(self) -> Sequence[Mapping[str, Any]]:
        """The recorded validations: for each ``step``, and every figure by name."""
        return self._run.recorder.validations if self._run else self._validations

    def __iter__(self) -> Iterator[Report]:
        self._breaks = False
        for report, early in self._all_reports():
            if not early:
                self.wall_time.switch("logging")
                self._breaks = True
                yield report
                self._breaks = False
            if self._run:
                self._run.recorder.validation_due = False
            self.wall_time.switch("checkpointing")
            stopping = self._stop.is_set()  # read once: a signal may come between two lines
            if stopping or (self._run and self._run.checkpoints.due(report.step)):
                self.save()
            if stopping:
                return
            self.wall_time.switch("training")

    def _all_reports(self) -> Iterator[tuple[Report, bool]]:
        """The reports, and whether each is early.

        The first is that in the midst of whose handling a validation was interrupted, if any.
        """
        if self._repeated is not None and not self._stop.is_set():
            # Once only: a loop may iterate a second time.
            repeated, self._repeated = self._repeated, None
            yield repeated, False
        self.wall_time.switch("training")
        while not (self.patience_over() or self._stop.is_set()):
            report = next(self._reports, None)
            if report is None:
                return
            self._progress.show(report)
            self._last, self._recorded = report, report.due
            yield report, not report.due

    def record(self, report: Report) -> None:
        """Records a report; not again where only its validation is repeated after a signal."""
        if self._run:
            self._run.recorder.training(report, self.state, self._training, self.wall_time)

    @property
    def ended_by_loop(self) -> bool:
        """Whether the loop, which is over, has left training before there was no next report."""
        return self._breaks

    def validate(self) -> None:
        """Evaluates the judged model on the validation split and records the figures.

        Of several workers the chief evaluates, and all have its figures: other processors may round
        otherwise. Does nothing where that has been done after this step. A signal leaves it in the
        middle, and the loop with it; a run that is resumed then begins with the same report again.

        Raises:
            Interrupted: after a signal.
        """
        step = int(self.state.step.numpy())
        if self.validations and self.validations[-1]["step"] == step:
            return
        self.wall_time.switch("validation")
        if self._run:
            self._run.recorder.validation_due = True
        found: Validation | None = None

        def evaluate() -> dict[str, float] | None:
            nonlocal found
            if not self._stop.is_set():
                found = self._evaluate()
            return None if found is None else found.figures

        figures = self._workers.by_chief(evaluate) if self._workers else evaluate()
        if figures is None:
            raise Interrupted
        self.wall_time.switch("logging")
        if self._run and found is not None:
            self._run.recorder.validation(step, found, self._validation)
        else:
            self._validations.append({"step": step, **figures})
        # Only held-out examples may select: without them, no validation is the best.
        best = self._run is not None and self._run.checkpoints.best_step == step
        self._progress.show_validation(step, figures, self._validation.name, best)

    def patience_over(self) -> bool:
        """Whether the last ``--patience`` validations were no better than an earlier one."""
        patience = self.config.patience
        if patience is None:
            return False
        validations = own(self.validations, self.config.at_step)
        return waited(validations, rank_by(*self.config.selection)) >= patience

    def save(self, ended: bool = False) -> None:
        """Saves a checkpoint, unless the newest one already holds the same.

        Args:
            ended: whether the loop has ended training before all steps were done.
        """
        if self._run:
            # A report whose handling has been interrupted will be needed again.
            needed = not self._recorded or self._run.recorder.validation_due
            self._run.checkpoints.save(self.state, self._last if needed else None, ended)


def interrupted(at: Checkpoint, config: Config, examples: int) -> Report | None:
    """The report in the midst of whose handling a signal interrupted a validation, or None.

    Args:
        at: the checkpoint that was saved where that happened.
        config: the options of the experiment.
        examples: number of training examples.
    """
    if not (at.validation_due and at.unreported):
        return None
    plan = Plan(examples, config.examples_per_step, config.epochs)
    return make_report(plan, at.step, at.unreported.history, at.unreported.seconds)
