"""Before the first pair: what a comparison will cost, and whether its arms can be trained."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.checkout import Code, code_sha256, copy_code
from research.comparing.comparison import (
    COMPARISONS,
    QUESTION,
    Comparison,
    describe_machine,
    files_sha256,
    step_milliseconds,
)
from research.comparing.evidence import numbers
from research.comparing.pairs import last_words
from research.comparing.question import (
    Arm,
    Declared,
    Metric,
    folder_name,
    names_of,
    option_names,
    option_number,
    option_value,
)
from research.comparing.trainings import Ended, Task, Trainers
from research.data.dataset import HOLDOUT, Dataset
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.errors import InputError, one_line
from research.files import (
    is_regular,
    json_lines,
    read_json,
    read_sealed_json,
    storage_errors,
    write_sealed_json,
)
from research.printable import counted
from research.recording.code import library_sha256
from research.recording.environment import cpu_name
from research.recording.run_directory import CODE, FINISHED, NON_FINITE, create_directory

# A trial trains on so few examples, and holds out so few, to learn what a training will cost.
_TRIAL_EXAMPLES, _TRIAL_HELD_OUT = 512, 1000


# The options that a trial has otherwise than the trainings, or that a comparison checks apart.
_OF_THE_TRIAL = frozenset(
    {
        *("experiment", "run", "data_sha256", "data", "examples", "holdout", "holdout_seed"),
        *("log_every", "seed", "run_dir", "reserve"),
    }
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a short training of an arm has told before the first pair.

    Attributes:
        code: the SHA-256 of the experiment's files, by name.
        figures: the names of the numbers that it evaluates.
        config: its options.
        seconds_per_step, seconds_per_validation, seconds_besides: what a training takes:
            per step, per validation of all held-out examples, and once.
    """

    code: dict[str, str]
    figures: tuple[str, ...]
    config: dict[str, Any]
    seconds_per_step: float
    seconds_per_validation: float
    seconds_besides: float

    def seconds(self, examples: int, epochs: float | None = None) -> float:
        """An estimate of the time of a whole training.

        Args:
            examples: number of training examples.
            epochs: None takes the arm's own.
        """
        epochs = self.config["epochs"] if epochs is None else epochs
        steps = epochs * examples / (self.config["batch_size"] * self.config.get("accumulate", 1))
        validations = self.seconds_per_validation * (max(1, round(epochs)) + 1)
        return self.seconds_besides + steps * self.seconds_per_step + validations


@dataclasses.dataclass(frozen=True)
class Plan:
    """A comparison that has not begun: the result of the trials.

    Attributes:
        declared: what was declared.
        codes: the copies of the arms' code, in a temporary folder.
        folder: that folder.
        trials: a trial for each arm.
        held_out: number of held-out examples.
        examples: number of training examples.
        data_sha256: identifies the data.
    """

    declared: Declared
    codes: list[Code]
    folder: Path
    trials: list[Trial]
    held_out: int
    examples: int
    data_sha256: str

    @property
    def question(self) -> dict[str, Any]:
        """What is declared, as comparison.json will have it."""
        return self.declared.as_json() | {"held_out": self.held_out}

    def create(self, directory: Path | None) -> Comparison:
        """Creates the comparison's directory, atomically.

        Raises:
            InputError: if it can't be created.
            StorageError: if a file can't be written.
        """
        fields = self._fields()
        if directory is None:
            stems = dict.fromkeys(arm.file.stem for arm in self.declared.arms)
            directory = free_directory(COMPARISONS, "-".join(stems))
        return Comparison(self.create_directory(directory, QUESTION, fields), fields)

    def create_directory(self, directory: Path, declared: str, fields: Mapping[str, Any]) -> Path:
        """Creates a directory, atomically, with the code that the trainings run; returns its path.

        Args:
            directory: what to create.
            declared: the name of its file of ``fields``.
            fields: what is declared.

        Raises:
            InputError: if it can't be created.
            StorageError: if a file can't be written.
        """

        def fill(folder: Path) -> None:
            with storage_errors(folder):
                shutil.copytree(self.folder, folder / CODE, symlinks=True)
            write_sealed_json(folder / declared, fields)

        with create_directory(directory, directory.name, 0, fill) as made:
            return made.path

    def _fields(self) -> dict[str, Any]:
        arms, config = self.declared.arms, self.trials[0].config
        abouts: list[dict[str, Any]] = []
        for number, (arm, code, trial, name) in enumerate(
            zip(arms, self.codes, self.trials, names_of(arms), strict=True)
        ):
            abouts.append(
                {
                    "name": name,
                    "folder": folder_name(number, name),
                    "root": code.root.relative_to(self.folder).as_posix(),
                    "file": code.file.relative_to(self.folder).as_posix(),
                    "revision": arm.revision,
                    "commit": code.commit,
                    "options": list(arm.options),
                    "code": trial.code,
                    "config": {k: v for k, v in trial.config.items() if k not in _OF_THE_TRIAL},
                    "seconds": round(trial.seconds(self.examples), 1),
                }
            )
        libraries = {code.root.name: library_sha256(code.root) for code in self.codes}
        machine = describe_machine()
        facts = self.question | machine
        named = [
            [value for value in trial.config.values() if isinstance(value, str)]
            for trial in self.trials
        ]
        facts["files"] = files_sha256(itertools.chain(*named))
        examples = option_number(self.declared.options, "examples")
        evaluated_on = [self.data_sha256, examples, self.held_out, config["holdout_seed"]]
        baseline = {
            "code": abouts[0]["code"],
            "library": libraries[self.codes[0].root.name],
            "options": [*self.declared.options, *abouts[0]["options"]],
            "evaluated_on": evaluated_on,
            "files": files_sha256(named[0]),
            "file": Path(abouts[0]["file"]).name,
            "threads": self.declared.threads,
            "machine": machine,
        }
        digest = hashlib.sha256(json.dumps(baseline, sort_keys=True).encode()).hexdigest()
        return facts | {
            "about_arms": abouts,
            "libraries": libraries,
            "evaluated_on": evaluated_on,
            "training_examples": self.examples,
            "baseline": digest,
            "processor_name": cpu_name(),
        }


def read_data(declared: Declared, say: Callable[[str], None]) -> Dataset:
    """The data that all arms train on and are judged by.

    Raises:
        InputError: if they can't be read, or no examples are held out or left to train on.
    """
    path = option_value(declared.options, "data")
    data = load_mnist(say) if path is None else read_dataset(Path(path))
    data = data.first(option_number(declared.options, "examples"))
    held_out = option_number(declared.options, "holdout") or 0
    if not 0 < held_out < len(data.train):
        raise InputError(
            f"--holdout {held_out}: there are {len(data.train)} training examples; hold out "
            "some of them to compare on, and leave some to train on"
        )
    return data


def free_directory(parent: Path, stem: str) -> Path:
    """A path that is free: the time, and the stem as far as it suits a file name."""
    name = re.sub(r"[^\w.]+", "-", stem, flags=re.ASCII)[:60]
    first = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    further = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    return next(path for path in itertools.chain([first], further) if not os.path.lexists(path))


@contextlib.contextmanager
def plan(
    declared: Declared,
    commits: Sequence[str | None],
    training_examples: int,
    data_sha256: str,
    workers: int,
    say: Callable[[str], None],
) -> Iterator[Plan]:
    """Tries every arm for a few steps, in a temporary folder, before anything is written.

    Args:
        declared: what is to be compared.
        commits: the commit that each arm names, see ``commit_named``.
        training_examples: number of examples in the training split, with those to hold out.
        data_sha256: identifies the data.
        workers: number of trainings at a time.
        say: is called with a line about what is being done.

    Raises:
        InputError: if an arm can't be trained or does not evaluate the figure.
    """
    arms = declared.arms
    held_out = option_number(declared.options, "holdout") or 0
    with tempfile.TemporaryDirectory(prefix="research-compare-") as temporary:
        folder = Path(temporary) / CODE
        folder.mkdir()
        with storage_errors(folder):
            codes = copy_code(arms, commits, folder)
        say(f"Trying {counted(len(arms), 'arm')} for a few steps ...")
        names = names_of(arms)
        trials = _try(declared, codes, Path(temporary), workers, held_out, names)
        for arm, trial in zip(arms, trials, strict=True):
            _require_figure(arm, trial, declared.metric)
            _require_comparable(arm, trial.config, trials[0].config)
        examples = training_examples - held_out
        yield Plan(declared, codes, folder, trials, held_out, examples, data_sha256)


def _require_comparable(arm: Arm, config: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Refuses an arm whose experiment has other examples, or another selection, by default."""
    for name in ("data_sha256", "holdout_seed", "patience", "select_by"):
        if config.get(name) != first.get(name):
            raise InputError(
                f"{arm.text}: its {name} is {config.get(name)}, the baseline's is "
                f"{first.get(name)}; give the option behind --, for all arms"
            )
    if config.get("test"):
        raise InputError(f"{arm.text}: it evaluates on the test set, which no comparison reads")


def _require_figure(arm: Arm, trial: Trial, metric: Metric) -> None:
    there = dict.fromkeys(trial.figures, 0.0)
    if metric.of(there | {"accuracy": 0.0}) is None or metric.name not in (*there, "error"):
        names = ", ".join(sorted(there))
        raise InputError(
            f"--metric {metric}: {arm.text} does not evaluate {metric.name}; give error or one of "
            f"{names}"
        )


def _try(
    declared: Declared,
    codes: Sequence[Code],
    folder: Path,
    workers: int,
    held_out: int,
    names: Sequence[str],
) -> list[Trial]:
    """Trains each arm for a few steps. One that diverges costs what the baseline does."""
    few = min(_TRIAL_HELD_OUT, held_out)
    small = ["--examples", str(few + _TRIAL_EXAMPLES), "--holdout", str(few), "--log-every", "4"]
    small += ["--seed", str(declared.first_seed)]
    if "reserve" in option_names(declared.options):
        small += ["--reserve", "None"]
    tasks = [
        Task(
            key=number,
            name=name,
            root=code.root,
            file=code.file,
            arguments=[*declared.options, *arm.options, *small],
            run=folder / f"run-{number}",
        )
        for number, (arm, code, name) in enumerate(zip(declared.arms, codes, names, strict=True))
    ]
    ended: dict[int, Ended] = {}
    diverged: set[int] = set()
    with Trainers(workers, declared.threads, folder) as trainers:
        waiting = list(tasks)
        while len(ended) < len(tasks):
            while trainers.has_room() and waiting:
                trainers.start(waiting.pop(0))
            for each in trainers.wait(1):
                number = each.task.key
                ended[number] = each
                if is_regular(each.task.run / NON_FINITE) and number:
                    diverged.add(number)
                elif not is_regular(each.task.run / FINISHED):
                    raise InputError(last_words(each).replace(f"{folder}/", ""))
    trials: list[Trial] = []
    for number, task in enumerate(tasks):
        try:
            if number in diverged:
                config = read_sealed_json(task.run / "config.json")
                code = code_sha256(task.run / CODE) or {}
                trials.append(dataclasses.replace(trials[0], code=code, config=config))
            else:
                trials.append(_read_trial(task.run, ended[number].seconds, held_out / few))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{task.name}: its code leaves other files than a comparison can read "
                f"({one_line(error)[:100]}); name a later commit"
            ) from error
    return trials


def _read_trial(run: Path, seconds: float, scale: float) -> Trial:
    config, facts = read_sealed_json(run / "config.json"), read_json(run / "evaluation.json")
    steps = facts["steps"]
    step = (step_milliseconds(run) or 0.0) / 1000
    validating = _validation_seconds(run)
    besides = max(0.0, seconds - steps * step - sum(validating))
    one = scale * min(validating, default=0.0)
    figures = tuple(numbers(facts[HOLDOUT]))
    return Trial(code_sha256(run / CODE) or {}, figures, config, step, one, besides)


def _validation_seconds(run: Path) -> list[float]:
    """How long each validation took."""
    found, before = [], 0.0
    for line in json_lines(run / "metrics.jsonl"):
        if line["split"] == "validation":
            found.append(line["seconds"] - before)
        before = line["seconds"]
    return found
