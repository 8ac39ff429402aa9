"""What a comparison asks: its arms, its figure, and the options that hold for all arms."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from research.errors import InputError

# The options that a comparison or a sweep gives its trainings itself, and what it does instead.
NOT_OWN_OPTIONS = {
    "seed": "seeds count upwards, in compare from --first-seed",
    "run_dir": "each training gets a directory",
    "resume": "trainings are resumed anyway",
    "fork": "all train from the start",
    "at_step": "all train from the start",
    "test": "the test set is not read",
}
# The options that hold for all arms or for none, and what they would do otherwise.
_OTHERWISE = "would evaluate the arms on other examples"
_SELECTS = "would select, for one arm, on the examples that judge it"
SHARED_OPTIONS = {
    **dict.fromkeys(("data", "examples", "holdout", "holdout_seed", "reserve"), _OTHERWISE),
    **dict.fromkeys(("patience", "select_by"), _SELECTS),
}
DEFAULT_HOLDOUT = 10_000
# The figure that is 1 - accuracy, as a fraction.
ERROR = "error"
_DIRECTIONS = {ERROR: "lowest", "loss": "lowest", "accuracy": "highest"}


@dataclasses.dataclass(frozen=True)
class Metric:
    """The figure by which a comparison decides.

    Attributes:
        name: a figure that the experiments evaluate, or ``error``.
        direction: ``highest`` or ``lowest``: which value is best.
    """

    name: str
    direction: str

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Reads "lowest NAME", "highest NAME", or the name of a figure that everybody knows.

        Raises:
            InputError: if the text is neither.
        """
        if text in _DIRECTIONS:
            return cls(text, _DIRECTIONS[text])
        if match := re.fullmatch(r"(highest|lowest) (\S+)", text):
            if (best := _DIRECTIONS.get(match[2], match[1])) != match[1]:
                raise InputError(
                    f'--metric {text}: the best is the {best}; give "{best} {match[2]}"'
                )
            return cls(match[2], match[1])
        raise InputError(
            f"--metric {text}: say which value is best and the name of a figure, such as "
            '"lowest loss" or "highest accuracy"'
        )

    def __str__(self) -> str:
        return f"{self.direction} {self.name}"

    @property
    def worst(self) -> float | None:
        """The worst possible value; None for a figure that has none."""
        return {ERROR: 1.0, "accuracy": 0.0}.get(self.name)

    @property
    def worse(self) -> int:
        """The sign of a difference between challenger and baseline if the challenger is worse."""
        return 1 if self.direction == "lowest" else -1

    @property
    def is_share(self) -> bool:
        """Whether the figure is a fraction of the examples, and is shown in percent."""
        return self.worst is not None

    def of(self, figures: dict[str, Any]) -> float | None:
        """This figure among those of a split in evaluation.json; None if it is not there."""
        value = 1 - figures["accuracy"] if self.name == ERROR else figures.get(self.name)
        return float(value) if is_number(value) else None


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from JSON is a finite number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def parse_margin(text: str | None, metric: Metric) -> float | None:
    """The margin in units of the figure: "0.0005", or "0.05%" of all examples.

    Raises:
        InputError: if it is neither.
    """
    if text is None:
        return None
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if percent and not metric.is_share:
        raise InputError(f"--margin {text}: {metric.name} is no share; give a number, such as 0.01")
    if not (math.isfinite(value) and 0 < value < (1 if metric.is_share else math.inf)):
        example = "0.05% (of the examples) or 0.0005" if metric.is_share else "0.01"
        range_of = "between 0 and 1" if metric.is_share else "above 0"
        raise InputError(f"--margin {text}: give a number {range_of}, such as {example}")
    return value


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
        text: the arm as it was given.
        revision: the git revision in front of the file, or None for the files as they are.
        file: the experiment's file; with a revision, its path from the project's root.
        options: the arm's own options.
    """

    text: str
    revision: str | None
    file: Path
    options: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Arm:
        """Reads "FILE", "FILE OPTIONS" or "REVISION:FILE OPTIONS".

        Raises:
            InputError: if the text names no file, or an option that arms can't have.
        """
        try:
            words = [text] if os.path.isfile(text) else shlex.split(text)
        except ValueError as error:
            raise InputError(f"{text}: {error}; close the quotes") from error
        if not words:
            raise InputError('"": an arm is empty; name an experiment, such as mnist_cnn.py')
        revision, colon, path = words[0].rpartition(":")
        if os.path.isfile(words[0]) or not colon:
            revision, path = "", words[0]
        if not revision and not os.path.isfile(path):
            raise InputError(
                f"{words[0]}: no such file; name an experiment, such as experiments/mnist_cnn.py"
            )
        for name in option_names(words[1:]):
            if name in NOT_OWN_OPTIONS:
                raise InputError(
                    f"{text}: --{_dashes(name)} can't be given; {NOT_OWN_OPTIONS[name]}"
                )
            if name in SHARED_OPTIONS:
                reason = SHARED_OPTIONS[name]
                raise InputError(
                    f"{text}: --{_dashes(name)} {reason}; give it behind --, for all arms"
                )
        return cls(text, revision or None, Path(path), tuple(words[1:]))


def parse_arms(texts: Sequence[str], options: Sequence[str]) -> list[Arm]:
    """Reads the arms, and refuses options for all that clash with them.

    Raises:
        InputError: if there are fewer than two arms, one can't be read, or options clash.
    """
    if len(texts) < 2:
        raise InputError(
            f"{shlex.join(texts) or 'no arms'}: give two experiments or more, the first one the "
            "baseline"
        )
    arms = [Arm.parse(text) for text in texts]
    refuse_own_options(options)
    for name in option_names(options):
        for arm in arms:
            if name in option_names(arm.options):
                raise InputError(
                    f"{arm.text}: --{_dashes(name)} is given behind -- too; give it in one place"
                )
    return arms


def option_names(words: Sequence[str]) -> list[str]:
    """The names of the options among the words of a command line, as fields of a Config."""
    named = [word.partition("=")[0] for word in words if re.match(r"--\w", word)]
    return [name.lstrip("-").replace("-", "_") for name in named]


def with_held_out(options: Sequence[str]) -> tuple[str, ...]:
    """The options for all arms, with held-out examples to evaluate on."""
    ours = () if "holdout" in option_names(options) else ("--holdout", str(DEFAULT_HOLDOUT))
    return (*options, *ours)


def names_of(arms: Sequence[Arm]) -> list[str]:
    """A short name for each arm: the file's, and what distinguishes arms with the same file."""
    stems = [arm.file.stem for arm in arms]
    names = []
    for arm, stem in zip(arms, stems, strict=True):
        name = stem
        if stems.count(stem) > 1 or arm.options:
            name = " ".join([f"{arm.revision}:{stem}" if arm.revision else stem, *arm.options])
        names.append(name)
    repeated = {name for name in names if names.count(name) > 1}
    counts: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in repeated:
            counts[name] = counts.get(name, 0) + 1
            names[number] = f"{name} ({counts[name]})"
    return names


def folder_name(number: int, name: str) -> str:
    """The name of the directory for an arm's trainings."""
    return f"{number}-" + re.sub(r"[^\w.=]+", "-", name, flags=re.ASCII).strip("-")[:60]


def refuse_own_options(options: Sequence[str]) -> None:
    """Refuses options behind -- that each training is given anyway.

    Raises:
        InputError: with the option, and what is done instead.
    """
    for name in option_names(options):
        if name in NOT_OWN_OPTIONS:
            raise InputError(f"-- --{_dashes(name)} can't be given; {NOT_OWN_OPTIONS[name]}")


def _dashes(name: str) -> str:
    return name.replace("_", "-")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """What a user declares before the first pair. The same declaration is the same comparison.

    Attributes:
        arms: two or more; the first one is the baseline.
        options: the options for all arms.
        metric: the figure that decides.
        margin: differences up to this, in units of the figure, are too small to matter, or None.
        alpha: the probability of a false verdict.
        first_seed: the seed of the first pair.
        threads: number of threads of each training.
    """

    arms: tuple[Arm, ...]
    options: tuple[str, ...]
    metric: Metric
    margin: float | None
    alpha: float
    first_seed: int
    threads: int

    def as_json(self) -> dict[str, Any]:
        """As comparison.json has it."""
        return {
            "arms": [arm.text for arm in self.arms],
            "options": list(self.options),
            "metric": str(self.metric),
            "margin": self.margin,
            "alpha": self.alpha,
            "first_seed": self.first_seed,
            "threads": self.threads,
        }


def option_value(options: Sequence[str], name: str) -> str | None:
    """The value of an option among the words of a command line."""
    found = None
    for position, word in enumerate(options):
        if option_names([word]) == [name]:
            _, equals, value = word.partition("=")
            found = value if equals else "".join(options[position + 1 : position + 2])
    return found


def option_number(options: Sequence[str], name: str) -> int | None:
    """The value of an option that is a whole number, among the words of a command line.

    Raises:
        InputError: if it is none.
    """
    word = option_value(options, name)
    try:
        return None if word is None or word == "None" else int(word)
    except ValueError as error:
        raise InputError(f"--{name} {word}: give a whole number") from error
