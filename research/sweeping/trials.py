"""Trains the trials of a sweep: what is missing, in the order in which they were asked for."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from research.comparing.cluster import Engine
from research.comparing.pairs import last_words
from research.comparing.trainings import Task
from research.errors import StorageError
from research.sweeping.journal import Journal
from research.sweeping.space import Setting
from research.sweeping.sweep import Sweep

from optuna.trial import TrialState


def train(sweep: Sweep, journal: Journal, trainers: Engine, trials: int) -> Iterator[list[int]]:
    """Trains until so many trials have ended, with those that have ended already.

    A setting that is drawn again shares the trainings of its first trial. If the sweep prunes, the
    first seed of a setting is trained before the others.

    Yields:
        About once a second, the numbers of the trials that have just ended.

    Raises:
        StorageError: if a training fails for another reason than a value that became non-finite.
    """
    work = _Work(sweep, journal, trials)
    while True:
        ended = work.settle()
        while trainers.has_room() and (task := work.next()) is not None:
            trainers.start(task)
        if not work.open and not trainers.running and not ended:
            return
        yield ended
        for one in trainers.wait(1) if trainers.running else []:
            trial, seed = one.task.key
            if sweep.outcome(trial, seed) is None and trial in work.open:
                why = f"{last_words(one)}; see {one.task.output}, then give the command again"
                raise StorageError(why)
        if sweep.fields["prune"]:
            for trial, seed in trainers.running:
                if work.is_hopeless(trial, seed, trainers.validations((trial, seed))):
                    trainers.stop((trial, seed))


class _Work:
    """What is still to be trained.

    Attributes:
        open: the trials that have not ended, with the first trial of the same setting.
    """

    def __init__(self, sweep: Sweep, journal: Journal, trials: int) -> None:
        self._sweep, self._journal, self._trials = sweep, journal, trials
        self.open: dict[int, int] = {}
        self._settings: dict[int, Setting] = {}
        self._firsts: dict[tuple[object, ...], int] = {}
        self._started: set[tuple[int, int]] = set()
        for trial in journal.trials():
            self._add(trial.number, trial.params, trial.state == TrialState.RUNNING)

    def _add(self, number: int, setting: Setting, is_open: bool) -> None:
        self._settings[number] = setting
        first = self._firsts.setdefault(tuple(sorted(setting.items())), number)
        if is_open:
            self.open[number] = first

    def next(self) -> Task | None:
        """The next training to start; None if there is none at the moment."""
        while True:
            for number in self.open:
                if self.open[number] != number:
                    continue
                for seed in self._seeds(number):
                    key = number, seed
                    if key not in self._started and self._sweep.outcome(*key) is None:
                        self._started.add(key)
                        return self._sweep.task(number, self._settings[number], seed)
            if len(self._settings) >= self._trials:
                return None
            self._add(*self._journal.ask(), True)

    def _seeds(self, number: int) -> range:
        seeds = self._sweep.seeds
        waits = self._sweep.fields["prune"] and self._sweep.outcome(number, seeds[0]) is None
        return seeds[:1] if waits else seeds

    def settle(self) -> list[int]:
        """Tells the journal which trials have ended; returns their numbers."""
        ended = []
        for number, first in list(self.open.items()):
            figures = self._sweep.figures(first)
            if self._journal.trials()[first].state == TrialState.PRUNED:
                self._journal.give_up(number)
            elif figures is not None:
                there = [figure for figure in figures if figure is not None]
                whole = len(there) == len(figures)
                self._journal.tell(number, statistics.fmean(there) if whole else None)
            else:
                continue
            del self.open[number]
            ended.append(number)
        return ended

    def is_hopeless(self, trial: int, seed: int, found: Sequence[dict[str, Any]]) -> bool:
        """Whether a training's validations so far are too bad to go on; then its trial ends."""
        if seed != self._sweep.seeds[0] or trial not in self.open:
            return False
        told = len(self._journal.trials()[trial].intermediate_values)
        for number, line in enumerate(found[told:], told + 1):
            value = self._sweep.metric.of(line)
            if value is not None and self._journal.report(trial, number, value):
                self._journal.give_up(trial)
                return True
        return False
