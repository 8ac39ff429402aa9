"""A sweep that has begun: its directory, its trainings, and what they have come to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.checkout import PROJECT, code_sha256
from research.comparing.comparison import describe_machine, files_sha256
from research.comparing.evidence import Outcome, read_outcome
from research.comparing.planning import Plan, free_directory
from research.comparing.question import Metric
from research.comparing.trainings import Task
from research.errors import InputError, one_line
from research.files import read_sealed_json, storage_errors
from research.printable import path_as_typed
from research.recording.code import library_sha256
from research.recording.run_directory import CODE
from research.sweeping.space import Dimension, Setting, words_of

SWEEPS = Path("runs") / "sweep"
DECLARED, RESULTS = "sweep.json", "results.json"
# The directory of the comparison in the end.
VERDICT = "verdict"
# The seed that decides which examples no trial sees.
RESERVE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """What a user declares before the first trial. The same declaration is the same sweep.

    Attributes:
        experiment: the experiment's file.
        over: the options to try, as texts.
        options: the options of all trainings.
        sampler, sampler_seed: what draws settings, and its seed.
        seeds: trainings of each setting.
        metric: the figure that judges.
        reserve: number of training examples that no trial sees.
        prune: whether a trial may be given up.
        threads: number of threads of each training.
        data: the SHA-256 of the data.
    """

    experiment: Path
    over: tuple[str, ...]
    options: tuple[str, ...]
    sampler: str
    sampler_seed: int
    seeds: int
    metric: Metric
    reserve: int
    prune: bool
    threads: int
    data: str

    def as_json(self) -> dict[str, Any]:
        """As sweep.json has it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {"over": list(self.over), "options": list(self.options)}
        texts = {"experiment": str(self.experiment), "metric": str(self.metric)}
        return fields | lists | texts | describe_machine()


class Sweep:
    """A sweep that exists, in a directory of its own.

    Args:
        path: its directory.
        fields: the fields of sweep.json.
        space: the options that it tries.
    """

    def __init__(self, path: Path, fields: Mapping[str, Any], space: Sequence[Dimension]) -> None:
        self.path, self.fields, self.space = path, fields, space
        self.metric = Metric.parse(fields["metric"])
        self.seeds = range(fields["seeds"])
        self._known: dict[Path, Outcome] = {}

    def run(self, trial: int, seed: int) -> Path:
        """The run directory of a training."""
        return self.path / f"trial-{trial:03}" / f"seed-{seed}"

    def task(self, trial: int, setting: Setting, seed: int) -> Task:
        """The training of a setting with a seed, to run or to resume."""
        run, code = self.run(trial, seed), self.path / CODE
        with storage_errors(run.parent):
            run.parent.mkdir(exist_ok=True)
        words = [*self.fields["options"], *words_of(self.space, setting), "--seed", str(seed)]
        root, file = (code / self.fields[name] for name in ("root", "file"))
        return Task((trial, seed), f"trial {trial}, seed {seed}", root, file, words, run)

    def outcome(self, trial: int, seed: int) -> Outcome | None:
        """What a training has come to; None as long as it has not ended.

        Raises:
            InputError: if its files have been changed.
        """
        run = self.run(trial, seed)
        if run not in self._known and (outcome := read_outcome(run)) is not None:
            self._known[run] = outcome
        return self._known.get(run)

    def figures(self, trial: int) -> list[float | None] | None:
        """The figure of each seed, None for a non-finite one; None until all have ended."""
        outcomes = [self.outcome(trial, seed) for seed in self.seeds]
        there = [outcome for outcome in outcomes if outcome is not None]
        if len(there) < len(outcomes):
            return None
        return [None if o.figures is None else self.metric.of(o.figures) for o in there]


def find(declared: Declared, space: Sequence[Dimension], directory: Path | None) -> Sweep | None:
    """The sweep that this declaration began, if all that it depends on is as it was then.

    Raises:
        InputError: if the directory holds something else.
    """
    if directory is None:
        for path in sorted(SWEEPS.glob(f"*/{DECLARED}"), reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError):
                fields = read_sealed_json(path)
                if not _differences(path.parent, fields, declared):
                    return Sweep(path.parent, fields, space)
        return None
    if not os.path.lexists(directory):
        return None
    try:
        fields = read_sealed_json(directory / DECLARED)
        different = _differences(directory, fields, declared)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--directory {directory}: no sweep, its {DECLARED} can't be read "
            f"({one_line(error)[:100]}); name a new directory, or that of a sweep"
        ) from error
    if different:
        raise InputError(
            f"--directory {directory}: it is another sweep ({'; '.join(different)}); name a new "
            "directory, or leave it out"
        )
    return Sweep(directory, fields, space)


def _differences(path: Path, there: Mapping[str, Any], declared: Declared) -> list[str]:
    """What makes a declaration another sweep than the one that is there."""
    found = []
    for name, now in declared.as_json().items():
        if there[name] != now:
            shown = name.replace("_", "-")
            short = isinstance(now, str | int) and len(str(now)) < 40
            found.append(f"{shown} {there[name]} there, {now} now" if short else f"other {shown}")
    names, copied = list(there["code"]), path / CODE / there["file"]
    if code_sha256(declared.experiment.resolve().parent, names) != there["code"]:
        found.append(f"{declared.experiment} or what it imports has been edited")
    if library_sha256(PROJECT) != there["library"]:
        found.append("the library has been edited")
    if code_sha256(copied.parent, names) != there["code"]:
        found.append("its copy of the code has been edited")
    if files_sha256(there["files"]) != there["files"]:
        found.append("a file that an option names has changed")
    return found


def create(
    declared: Declared, space: Sequence[Dimension], plan: Plan, directory: Path | None
) -> Sweep:
    """Creates a sweep's directory, atomically, with the code that the plan has copied.

    Raises:
        InputError: if it can't be created.
        StorageError: if a file can't be written.
    """
    code, trial = plan.codes[0], plan.trials[0]
    texts = [value for value in trial.config.values() if isinstance(value, str)]
    fields = declared.as_json() | {
        "code": trial.code,
        "library": library_sha256(code.root),
        "files": files_sha256(texts),
        "root": code.root.relative_to(plan.folder).as_posix(),
        "file": code.file.relative_to(plan.folder).as_posix(),
        "commit": code.commit,
    }
    directory = directory or free_directory(SWEEPS, declared.experiment.stem)
    return Sweep(plan.create_directory(directory, DECLARED, fields), fields, space)


def command(
    fields: Mapping[str, Any], trials: int | None = None, directory: Path | None = None
) -> str:
    """The command that does a sweep with these fields again, or goes on with it."""
    experiment = path_as_typed(fields["experiment"])
    words = ["python", "-m", "research", "sweep", experiment, "--over", *fields["over"]]
    words += ["--sampler", fields["sampler"], "--sampler-seed", str(fields["sampler_seed"])]
    words += [] if trials is None else ["--trials", str(trials)]
    words += ["--seeds", str(fields["seeds"]), "--metric", fields["metric"]]
    words += ["--reserve", str(fields["reserve"])]
    words += ["--prune"] if fields["prune"] else []
    words += ["--threads", str(fields["threads"])] if fields["threads"] != 1 else []
    words += [] if directory is None else ["--directory", path_as_typed(directory)]
    return shlex.join([*words, "--", *fields["options"][:-3]])  # --reserve stands in front
