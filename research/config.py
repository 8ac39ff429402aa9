"""The typed configuration of an experiment, which becomes its command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import os
import re
import shlex
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from research.errors import InputError, one_line
from research.files import read_sealed_json
from research.help import options_of, show_help
from research.printable import number

import tyro

# The groups of options in --help, by the first field of each.
GROUPS = {"epochs": "training", "data": "data", "run_dir": "recording", "resume": "going on"}

# How a resumed or forked run is told that an option no longer holds.
TAKEN_BACK = (
    "With --resume or --fork: --no-eager switches --eager off, and --clip-norm None removes the "
    "limit."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The options that every experiment has. An experiment's own Config adds to them.

    Raises:
        InputError: on construction, if a value or a combination of values is impossible.
    """

    epochs: float = 12
    """Passes over the training set, fractions allowed."""
    batch_size: int = 128
    """Examples in a batch, over all replicas."""
    accumulate: int = 1
    """Batches in a step, whose gradients are added: the step of a batch so many times as large."""
    learning_rate: float = 1.0
    """Learning rate of Adadelta; with a schedule, the highest."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: constant, or falling to zero at the end."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly at the start, fractions allowed."""
    clip_norm: float | None = None
    """Scale gradients with a larger global norm down to this norm."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Number format of the arithmetic; weights stay float32."""
    strategy: Literal["default", "mirrored", "multi_worker"] = "default"
    """One replica; one on each GPU (without a GPU, mirrored splits the CPU into two); or those of
    several processes or machines, see runs/README.md."""
    seed: int = 0
    """Decides initial weights, batches, dropout, and what is held out."""
    steps_per_call: int = 10
    """Steps in one call of the compiled function; changes speed, never the result."""
    eager: bool = False
    """Run the step eagerly, for a debugger; slower."""
    data: Path | None = None
    """A Keras-style .npz or a folder of IDX files, gzipped or not. Default: MNIST."""
    examples: int | None = None
    """Quick mode: number of first examples to train and evaluate on."""
    holdout: int = 0
    """Number of training examples to hold out and validate on, instead of the test set."""
    holdout_seed: int | None = None
    """Decides which examples are held out. Default: the seed."""
    reserve: tuple[int, int] | None = None
    """A number N and a seed S: the run never sees the examples that --holdout N --holdout-seed S
    would hold out, so that they can judge what was selected among runs."""
    test: bool = False
    """With held-out examples: evaluate at the end on the test set, too."""
    select_by: str = "highest accuracy"
    """With held-out examples: the best validation has the highest or lowest value of a figure."""
    patience: int | None = None
    """With held-out examples: end after so many validations without a new best; export the best."""
    run_dir: Path | None = None
    """The directory to create for this run. Default: runs/EXPERIMENT/TIME-SEED."""
    log_every: int = 20
    """Steps between two records of the metrics and updates of the progress bar."""
    checkpoint_every: str = "60s"
    """Steps (500), seconds (60s), minutes (5m), or two of them (500,5m) between checkpoints."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep; with held-out examples, the best one is kept, too."""
    profile: tuple[int, int] | None = None
    """First and last step to profile (100 120), for TensorBoard's Profile dashboard."""
    resume: Path | None = None
    """Resume the run in this directory, with its own options, as if it had never stopped."""
    fork: Path | None = None
    """Start a new run from a checkpoint of the run in this directory, with its options."""
    at_step: int | None = None
    """With --fork: the step of the checkpoint. Default: the newest."""

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "steps_per_call", "log_every", "keep_checkpoints")
        for name in counts:
            value = getattr(self, name)
            require(name, value, 1 <= value < 2**31, "give a whole number of at least 1")
        epochs, positive = f"{self.epochs:g}", 0 < self.epochs < 2**31
        require("epochs", epochs, positive, "give a number above 0, such as 12 or 1.5")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            # Outside this range, products of these values become 0 or infinity in float32.
            valid = value is None or 1e-20 <= value <= 1e30
            require(name, value, valid, "give a number above 0, from 1e-20 to 1e30")
        for name in ("seed", "holdout_seed"):
            value = getattr(self, name)
            require(name, value, value is None or 0 <= value < 2**31, "give 0 to 2147483647")
        warmup = self.warmup_epochs
        within = f"give at least 0 and at most the {epochs} of --epochs"
        require("warmup_epochs", warmup, 0 <= warmup <= self.epochs, within)
        require("holdout", self.holdout, self.holdout >= 0, "give 0 for none, or more")
        form = 'give highest or lowest and the name of a figure, such as "lowest loss"'
        valid = re.fullmatch(r"(highest|lowest) \S+", self.select_by) is not None
        require("select_by", self.select_by, valid, form)
        if (patience := self.patience) is not None:
            require("patience", patience, patience >= 1, "give a whole number of at least 1")
            held_out = "it needs examples to select on: give it together with --holdout"
            require("patience", patience, self.holdout > 0, held_out)
        if (examples := self.examples) is not None:
            valid = 1 <= examples < 2**31
            require("examples", examples, valid, "give a whole number of at least 1")
            left = f"--examples {examples} would leave nothing to train on; hold out fewer"
            require("holdout", self.holdout, self.holdout < examples, left)
        if self.reserve is not None:
            shown = f"{self.reserve[0]} {self.reserve[1]}"
            valid = self.reserve[0] >= 1 and 0 <= self.reserve[1] < 2**31
            require(
                "reserve", shown, valid, "give a number of examples and a seed, such as 10000 0"
            )
        if self.profile is not None:
            shown = f"{self.profile[0]} {self.profile[1]}"
            valid = 1 <= self.profile[0] <= self.profile[1]
            require("profile", shown, valid, "give the first and the last step, such as 100 120")
        form = "give steps (500), seconds (60s) or minutes (5m), or two of them (500,5m)"
        require("checkpoint_every", self.checkpoint_every, self._intervals() is not None, form)
        together = "give it together with --fork"
        require("at_step", self.at_step, self.at_step is None or self.fork is not None, together)

    @property
    def examples_per_step(self) -> int:
        """Examples in a step: in a batch, or in several whose gradients are added."""
        return self.batch_size * self.accumulate

    @property
    def holding_out_seed(self) -> int:
        """The seed that decides which examples are held out."""
        return self.seed if self.holdout_seed is None else self.holdout_seed

    @property
    def selection(self) -> tuple[str, int]:
        """The figure that makes a validation best; 1 if by its highest value, -1 by its lowest."""
        highest_or_lowest, _, figure = self.select_by.partition(" ")
        return figure, 1 if highest_or_lowest == "highest" else -1

    @property
    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """Steps and seconds between two checkpoints; None for a unit that is not given."""
        found = self._intervals() or {}
        minutes, seconds = found.get("m"), found.get("s")
        if minutes is not None:
            seconds = 60 * minutes
        return found.get(""), seconds

    def _intervals(self) -> dict[str, int] | None:
        matches = [
            re.fullmatch(r"([1-9]\d{0,8})([sm]?)", part)
            for part in self.checkpoint_every.split(",")
        ]
        units = {match[2]: int(match[1]) for match in matches if match}
        return units if len(units) == len(matches) and not units.keys() >= {"s", "m"} else None


def require(field: str, value: object, holds: bool, remedy: str) -> None:
    """Refuses the value of a Config's field unless ``holds``.

    Raises:
        InputError: with the option, its value and the remedy.
    """
    if not holds:
        raise InputError(f"--{field.replace('_', '-')} {value}: {remedy}")


AnyConfig = TypeVar("AnyConfig", bound=Config)

# The options that a resumed run may change. They decide how long, how fast or how visibly the run
# goes on, and none of the results so far.
_FREE_ON_RESUME = frozenset(
    {
        *("epochs", "steps_per_call", "log_every", "checkpoint_every", "keep_checkpoints"),
        *("patience", "test", "profile", "eager", "strategy"),
        "data",  # the path may change; the digest of the data may not
    }
)


def parse(
    config_type: type[AnyConfig],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
    experiment: str | None = None,
) -> AnyConfig:
    """Parses the command line.

    With ``--resume`` or ``--fork``, options that are not given have the values of the named run.

    Args:
        config_type: a frozen dataclass; each field is an option, each field's docstring its help.
        arguments: the words after the program's name; None takes those of this process.
        description: the text above the options in ``--help``.
        experiment: the experiment's name; a resumed or forked run must be a run of it.

    Raises:
        InputError: for an unknown option or an impossible value.
        SystemExit: with status 0, after ``--help`` has been printed.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    before: Any = _of_named_run(config_type, arguments, experiment)
    if asks_for_help(arguments):
        # Without its own program, the experiment's options stand behind those of a verb.
        program = "... --" if experiment is None else f"python {sys.argv[0]}"
        show_help(
            f"{program} [OPTIONS]", description or "", _groups(config_type, before), TAKEN_BACK
        )
        raise SystemExit(0)
    refuse_unknown_options(config_type, arguments)
    with parse_errors_in_one_line():
        config: AnyConfig = tyro.cli(config_type, default=before, args=arguments)
    require_working_directory()
    _refuse_paths_that_are_not_utf8(config)
    if config.resume is not None and before is not None:
        _refuse_changes(before, config)
    return config


Options = TypeVar("Options")


def parse_options(kind: type[Options], description: str) -> Options:
    """Parses the command line of a program that is no experiment, such as a study.

    Args:
        kind: a frozen dataclass; each field is an option, each field's docstring its help.
        description: the text above the options in ``--help``.

    Raises:
        InputError: for an unknown option or an impossible value.
        SystemExit: with status 0, after ``--help`` has been printed.
    """
    if asks_for_help(sys.argv[1:]):
        rows = [(option.words, option.explanation) for option in options_of(kind)]
        show_help(f"python {sys.argv[0]} [OPTIONS]", description, {"options": rows})
        raise SystemExit(0)
    refuse_unknown_options(kind, sys.argv[1:])
    with parse_errors_in_one_line():
        return tyro.cli(kind)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether an option is -h or --help."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def refuse_unknown_options(kind: type, arguments: Sequence[str], hint: str = "") -> None:
    """Refuses options that are no field of a dataclass.

    Raises:
        InputError: with the option that was probably meant, or with the hint.
    """
    known = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    for word in arguments:
        option = re.match(r"--?([A-Za-z][^=]*)", word)
        name = option[1].replace("_", "-") if option else known[0]
        if name.removeprefix("no-") not in [*known, "h", "help"]:
            similar = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean --{similar[0]}?" if similar else hint and f"; {hint}"
            raise InputError(
                f"{word.partition('=')[0]}: no such option{meant} (--help explains the options)"
            )


def _groups(config_type: type[Config], before: Config | None) -> dict[str, list[tuple[str, str]]]:
    """The options for ``--help``; first those that not every experiment has."""
    groups: dict[str, list[tuple[str, str]]] = {"this experiment": []}
    options = {option.field: option for option in options_of(config_type, before)}
    rows = groups["this experiment"]
    for field in dataclasses.fields(Config):
        if field.name in GROUPS:
            rows = groups.setdefault(GROUPS[field.name], [])
        if (option := options.pop(field.name, None)) is not None:  # it may be suppressed
            rows.append((option.words, option.explanation))
    groups["this experiment"] += [(own.words, own.explanation) for own in options.values()]
    return groups


def require_working_directory() -> None:
    """Refuses to work if the working directory has been deleted.

    Raises:
        InputError: if it can't be used.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise InputError(
            f"the working directory can't be used ({error.strerror}); change to another one"
        ) from error


def _refuse_paths_that_are_not_utf8(config: Config) -> None:
    """Refuses paths that are not UTF-8: TensorFlow would use others, or fail."""
    fields = {f"--{k.replace('_', '-')}": v for k, v in vars(config).items()}
    for name, path in (fields | {"the working directory": Path.cwd()}).items():
        try:
            valid = not isinstance(path, Path) or os.fsencode(path) == str(path).encode()
        except UnicodeEncodeError:
            valid = False
        if not valid:
            raise InputError(
                f"{name} {path}: its name is not UTF-8, or the locale is not; rename it, or set "
                "LC_ALL=C.UTF-8"
            )


def config_as_json(config: Config) -> dict[str, Any]:
    """The fields of a configuration as JSON values; paths become absolute."""
    fields = dataclasses.asdict(config)
    del fields["resume"]  # a resumed run stays the same run
    return _as_json(fields)


def defaults_as_json(config_type: type[Config]) -> dict[str, Any]:
    """The defaults of the options as JSON values; an option without a default is left out."""
    return _as_json(_defaults(config_type))


def _as_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in fields.items()}


def _defaults(config_type: type[Config]) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(config_type):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
    return found


def decisive_options(config: Config) -> dict[str, Any]:
    """The options that decide the results of a run; a resumed run can't change them."""
    fields = config_as_json(config)
    for name in (*_FREE_ON_RESUME, "run_dir", "fork", "at_step"):
        del fields[name]
    return fields


def options_that_differ(config: Config) -> list[str]:
    """The options without their default values, each as on a command line.

    The seed and the directories of runs are left out.
    """
    defaults, apart = _defaults(type(config)), ("seed", "run_dir", "resume", "fork", "at_step")
    return [
        option_as_typed(name, value)
        for name, value in vars(config).items()
        if name not in apart and (name not in defaults or value != defaults[name])
    ]


def option_as_typed(name: str, value: Any) -> str:
    """A field and its value as a user would type them on a command line: 2 for 2.0."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    values = value if isinstance(value, tuple | list) else [value]
    words = (number(one) if isinstance(one, float) else str(one) for one in values)
    return shlex.join([f"--{option}", *words])


def config_from_json(config_type: type[AnyConfig], fields: Mapping[str, Any]) -> AnyConfig:
    """The configuration that ``config_as_json`` has written.

    Raises:
        TypeError, ValueError: if it is not one of this type.
    """
    hints, known = typing.get_type_hints(config_type), {}
    for name in fields.keys() - {"experiment", "run", "data_sha256"}:
        known[name] = _typed(fields[name], hints[name])
    return config_type(**known)


def _typed(value: Any, hint: Any) -> Any:
    """Converts a value from JSON to the type of a field.

    Raises:
        ValueError: if the value has another type.
    """
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal and value in arguments:
        return value
    if kind is tuple and isinstance(value, list) and len(value) == len(arguments):
        return tuple(map(_typed, value, arguments))
    if kind in (types.UnionType, typing.Union):
        for one in arguments:
            with contextlib.suppress(ValueError):
                return _typed(value, one)
    if hint is Path and isinstance(value, str) and "\0" not in value:
        os.fsencode(value)  # raises if no file can have this name
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, bool, str, types.NoneType) and type(value) is hint:
        return value
    raise ValueError(f"{value!r} is not {hint}")


def _of_named_run(
    config_type: type[AnyConfig], arguments: Sequence[str], experiment: str | None
) -> AnyConfig | None:
    """The configuration of the run that ``--resume`` or ``--fork`` names, or None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("--resume", "--fork"):
        parser.add_argument(option, type=Path, nargs="?")
    named = {k: v for k, v in vars(parser.parse_known_args(arguments)[0]).items() if v}
    if not named:
        return None
    if len(named) > 1:
        raise InputError("--resume and --fork: give one of them; a fork is a run of its own")
    ((option, run),) = named.items()
    try:
        fields = read_sealed_json(run / "config.json")
        theirs = fields["experiment"]
        if theirs != experiment and experiment is not None:
            raise InputError(
                f"--{option} {run}: it is a run of {theirs}.py, and not of {experiment}.py"
            )
        config = config_from_json(config_type, fields)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--{option} {run}: not a run of this experiment, its config.json can't be read "
            f"({one_line(error)[:100]}); name a directory under runs/"
        ) from error
    if option == "fork":
        return dataclasses.replace(config, run_dir=None, fork=run, at_step=None)
    return dataclasses.replace(config, resume=run)


def _refuse_changes(before: Config, config: Config) -> None:
    """Refuses changes of options that a resumed run must keep."""
    for field in dataclasses.fields(config):
        old, new = getattr(before, field.name), getattr(config, field.name)
        if isinstance(old, Path) and isinstance(new, Path):
            old, new = old.resolve(), new.resolve()
        option = f"--{field.name.replace('_', '-')} {new}"
        fork = f"--fork {config.resume} makes it a new run"
        if old != new and field.name not in _FREE_ON_RESUME:
            raise InputError(
                f"{option}: the run has {old}, and one that is resumed goes on as it was; {fork}"
            )
        if old != new and field.name == "epochs" and old % 1:
            raise InputError(
                f"{option}: the run reports and validates after {old:g} epochs, which one of other "
                f"epochs would not; {fork}"
            )


@contextlib.contextmanager
def parse_errors_in_one_line() -> Iterator[None]:
    """Turns tyro's boxed error message and exit into an InputError of one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_unboxed(box.getvalue())) from None


def _unboxed(box: str) -> str:
    # tyro draws the box with lines, or with | and - if the encoding has no lines.
    lines = [line.strip("│| ") for line in box.splitlines() if line[:1] in ("│", "|")]
    message = re.split(r" ?(?:─{3,}|-{3,}) ?", " ".join(lines))[0]
    message = re.sub(r"^Error parsing (?:[A-Z]\w*: )?", "", message).rstrip(". ")
    return f"{message} (--help explains the options)"
