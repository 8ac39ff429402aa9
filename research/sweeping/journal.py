"""The trials of a sweep, asked from and told to Optuna, in a journal that survives every kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from research.comparing.question import Metric
from research.errors import InputError, one_line
from research.files import storage_errors
from research.sweeping.space import Dimension, Setting, Value, grid

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

JOURNAL = "journal.log"
STUDY = "sweep"
# Of the settings that have been validated 2, 4, 8 ... times, the best half goes on.
_HALVING = 2  # and the number of validations before the first look


class Journal:
    """Optuna's study of a sweep. One process at a time may work on it, which locks the directory.

    Each trial is written with its setting as one record: after a kill it is there or not.

    Args:
        folder: the sweep's directory.
        space: the options to try.
        metric: the figure that judges.
        sampler: "tpe", "random" or "grid".
        seed: decides the draws; that of trial n is a function of (seed, n), with TPE also of the
            results so far.

    Raises:
        InputError: if the journal can't be read.
        StorageError: by all methods, if it can't be written.
    """

    def __init__(
        self, folder: Path, space: Sequence[Dimension], metric: Metric, sampler: str, seed: int
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._sampler, self._seed = space, sampler, seed
        self._grid = grid(space) if sampler == "grid" else []
        self._distributions = {each.name: _distribution(each) for each in space}
        self._direction: Literal["minimize", "maximize"] = (
            "minimize" if metric.worse > 0 else "maximize"
        )
        self._worst = metric.worse * float("inf")
        path = self._path = folder / JOURNAL
        try:
            with storage_errors(path):
                _mend(path)
                self.study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(path))),
                    study_name=STUDY,
                    direction=self._direction,
                    pruner=optuna.pruners.SuccessiveHalvingPruner(
                        min_resource=_HALVING, reduction_factor=_HALVING
                    ),
                    load_if_exists=True,
                )
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{path}: the journal can't be read ({one_line(error)[:100]}); delete it, and the "
                "trials are asked for again"
            ) from error

    def trials(self) -> list[FrozenTrial]:
        """All trials so far, by number."""
        return self.study.get_trials(deepcopy=False)

    def ask(self) -> tuple[int, Setting]:
        """Begins the next trial; returns its number and its setting."""
        before = self.trials()
        if self._grid:
            setting: dict[str, Value] = dict(self._grid[len(before)])
        else:
            # Drawn in memory: the journal gets the whole trial at once.
            draw = optuna.create_study(
                direction=self._direction, sampler=self._sampler_of(len(before))
            )
            draw.add_trials(before)
            drawn = draw.ask(self._distributions).params
            setting = {each.name: each.rounded(drawn[each.name]) for each in self._space}
        trial = create_trial(
            state=TrialState.RUNNING, params=setting, distributions=self._distributions
        )
        with storage_errors(self._path):
            self.study.add_trial(trial)
        return len(before), setting

    def _sampler_of(self, number: int) -> BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        if self._sampler == "random":
            return RandomSampler(seed)
        # Trials under way count as bad ones, so that workers don't all try the same.
        return TPESampler(seed=seed, constant_liar=True)

    def tell(self, number: int, value: float | None) -> None:
        """Ends a trial with its figure; None for a training that became non-finite."""
        told = self._worst if value is None else value
        with storage_errors(self._path):
            self.study.tell(number, told, skip_if_finished=True)

    def report(self, number: int, step: int, value: float) -> bool:
        """Records what a validation says; returns whether the trial is to be given up.

        Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter
        Tuning", 2020): after 2, 4, 8 ... validations, the best half of those seen so far goes on.
        """
        trial = Trial(self.study, self.trials()[number]._trial_id)
        with storage_errors(self._path):
            trial.report(value, step)
            return trial.should_prune()

    def give_up(self, number: int) -> None:
        """Ends a trial that is not worth its time."""
        with storage_errors(self._path):
            self.study.tell(number, state=TrialState.PRUNED)

    def importances(self) -> dict[str, float]:
        """How much each option decides whether a setting is among the better ones; sums to 1.

        PED-ANOVA (Watanabe, Bansal and Hutter, 2023); empty with fewer than four settings.
        """
        values = {trial.value for trial in self.trials() if trial.state == TrialState.COMPLETE}
        if len([value for value in values if value is not None and np.isfinite(value)]) < 4:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(self.study, evaluator=evaluator)


def _distribution(of: Dimension) -> BaseDistribution:
    if of.values:
        return CategoricalDistribution(of.values)
    if of.whole:
        return IntDistribution(int(of.low), int(of.high), log=of.log)
    return FloatDistribution(of.low, of.high, log=of.log)


def _mend(path: Path) -> None:
    """Removes what a process left that was killed while it wrote: half a line, and the lock."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if os.path.lexists(path):
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
