"""A study: many trainings of one experiment, in one directory, each counted once."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.checkout import PROJECT, code_sha256, copy_code
from research.comparing.cluster import Engine, engine
from research.comparing.comparison import lock_comparison
from research.comparing.evidence import Outcome, read_outcome
from research.comparing.pairs import last_words
from research.comparing.question import Arm
from research.comparing.trainings import Task
from research.data.dataset import TEST
from research.errors import InputError, StorageError, one_line
from research.files import (
    read_sealed_json,
    replaced_atomically,
    storage_errors,
    write_sealed_json,
)
from research.recording.code import library_sha256
from research.recording.run_directory import CODE
from research.screen import Screen
from research.signals import StopRequest

from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

STUDY = "study.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Trainings that belong together.

    Attributes:
        directory: holds study.json, ``code/`` (the copy of the code that all trainings run), and
            for each training a run directory and a text file with what it printed.
        experiment: the experiment's file.
        trainings: each training's options, by the name of its run directory.
        data: the SHA-256 of the data.
        split: the split on which the trainings end: ``test``, or ``holdout``.
        threads: number of threads of each training.
    """

    directory: Path
    experiment: Path
    trainings: Mapping[str, Sequence[str]]
    data: str
    split: str = TEST
    threads: int = 1

    def outcomes(self) -> dict[str, Outcome]:
        """What the trainings have come to that have ended.

        Raises:
            InputError: if the files of a finished run have been changed.
        """
        found = {name: read_outcome(self.directory / name, self.split) for name in self.trainings}
        return {name: outcome for name, outcome in found.items() if outcome is not None}


def whole(study: Study) -> Study:
    """The study with all the trainings that its directory has been asked for so far.

    Without a study.json that can be read, these are the study's own.
    """
    there: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # ``train`` refuses such a directory
        there = read_sealed_json(study.directory / STUDY)["trainings"]
    return dataclasses.replace(study, trainings={**study.trainings} | there)


def train(
    study: Study, screen: Screen, workers: int | None = None, scheduler: str | None = None
) -> int:
    """Runs the trainings that are missing, in their order, and resumes those that were killed.

    A training that became non-finite has ended, too.

    Args:
        study: what to train; more trainings may be added to a study that has begun.
        screen: shows a line for each training, and a progress bar on a terminal.
        workers: number of trainings at a time; None takes as many as there is room for.
        scheduler: the address of a Dask scheduler whose workers train; None trains here.

    Returns:
        The exit status: 0 if all trainings have ended; 128 plus a signal's number if a signal
        stopped them. The same call then goes on.

    Raises:
        InputError: if the directory holds something else, or another process is at work on it.
        StorageError: if a training fails, or a file can't be written.
    """
    _declare(study)  # refuses before anything is created
    with storage_errors(study.directory):
        study.directory.mkdir(parents=True, exist_ok=True)
    lock = lock_comparison(study.directory, screen.say)
    try:
        # Another process may have added trainings while this one waited.
        write_sealed_json(study.directory / STUDY, _declare(study))
        root, file = _copied_code(study)
        done = study.outcomes()
        tasks = iter(
            Task(name, name, root, file, options, study.directory / name)
            for name, options in study.trainings.items()
            if name not in done
        )
        with engine(
            scheduler, workers, study.threads, study.directory, lock, screen.say
        ) as trainers:
            return _train(study, tasks, len(done), trainers, screen)
    finally:
        os.close(lock)


def _train(study: Study, tasks: Iterator[Task], done: int, trainers: Engine, screen: Screen) -> int:
    total = len(study.trainings)
    screen.say(f"{done} of {total} trainings are done; the others go to {study.directory}")
    with StopRequest() as stop, progress_bar(screen) as progress:
        bar = progress.add_task("trainings", total=total, completed=done)
        while done < total and not stop.is_set():
            while trainers.has_room() and (task := next(tasks, None)) is not None:
                trainers.start(task)
            for ended in trainers.wait(1):
                outcome = read_outcome(ended.task.run, study.split)
                if outcome is None:
                    why = f"{last_words(ended)}; see {ended.task.output}"
                    raise StorageError(f"{why}, then give the command again")
                done += 1
                progress.update(bar, completed=done)
                said = f"{_result(outcome)}  {ended.seconds:.0f} s"
                screen.say(f"{done:>{len(str(total))}}/{total}  {ended.task.name}  {said}")
    if stop.is_set():
        screen.say(f"Stopped by {stop} after {done} of {total}; the same command goes on.")
        return stop.exit_status
    return 0


def _declare(study: Study) -> dict[str, Any]:
    """The content of study.json, from the study and from the trainings that are there already.

    Raises:
        InputError: if the directory holds something else than this study.
    """
    file, directory = study.experiment.resolve(), study.directory
    fields: dict[str, Any] = {
        "experiment": file.name,
        "code": code_sha256(file.parent, [file.name]),
        "library": library_sha256(PROJECT),
        "data": study.data,
        "threads": study.threads,
        "trainings": {name: list(options) for name, options in study.trainings.items()},
    }
    elsewhere = "name another --directory"
    try:
        there = read_sealed_json(directory / STUDY)
    except FileNotFoundError:
        if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
            raise InputError(f"{directory}: it is no study; {elsewhere}") from None
        return fields
    except (OSError, ValueError) as error:
        reason = f"its {STUDY} can't be read ({one_line(error)[:100]})"
        raise InputError(f"{directory}: {reason}; {elsewhere}") from error
    before, now = there.pop("trainings"), fields["trainings"]
    changed = [f"another {k}" for k in fields.keys() - {"trainings"} if there.get(k) != fields[k]]
    changed += [f"other options of {k}" for k, v in before.items() if now.get(k, v) != v]
    if changed:
        reason = f"it was begun with {min(changed)}"
        raise InputError(f"{directory}: {reason}; put that back, or {elsewhere}")
    return fields | {"trainings": before | now}


def _copied_code(study: Study) -> tuple[Path, Path]:
    """The copy of the project that the trainings run, and the experiment's file in it."""
    arm, place = Arm(study.experiment.name, None, study.experiment, ()), study.directory / CODE
    with storage_errors(place):
        if not place.is_dir():
            with replaced_atomically(place) as partial:
                copy_code([arm], [None], partial)
        (code,) = copy_code([arm], [None], place)  # where it is; the copy itself stays
    return code.root, code.file


def _result(outcome: Outcome) -> str:
    if outcome.figures is None:
        return "non-finite"
    return f"error {100 * (1 - outcome.figures['accuracy']):.2f}%"


def progress_bar(screen: Screen) -> Progress:
    """A bar that counts, with the time so far; on a terminal only."""
    return Progress(
        *Progress.get_default_columns(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=screen.console,
        disable=not screen.console.is_terminal,
        transient=True,
    )
