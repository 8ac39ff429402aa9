"""The options that a sweep tries, typed and checked by the experiment's own Config."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from research.comparing.question import NOT_OWN_OPTIONS, SHARED_OPTIONS, option_names
from research.config import Config, parse
from research.errors import InputError
from research.printable import number

import numpy as np

# A value of an option: a number from a range, or one of the texts that were given.
Value = float | int | str
Setting = Mapping[str, Value]

# At most so many combinations of the options' extreme values are checked.
_MOST_COMBINATIONS = 20_000


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One option that a sweep tries.

    Attributes:
        text: as it was given, "learning_rate=0.1..10:log".
        name: the Config's field.
        low, high: the ends of a range; 0 for listed values.
        log: whether the range is tried evenly on a logarithmic scale.
        whole: whether the range is one of whole numbers.
        values: the values one by one, as texts; empty for a range of all values between its ends.
        is_flag: whether the field is a bool.
    """

    text: str
    name: str
    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False
    values: tuple[str, ...] = ()
    is_flag: bool = False

    def words(self, value: Value) -> list[str]:
        """The option with a value, as words of a command line."""
        option = self.name.replace("_", "-")
        if self.is_flag:
            return [f"--{option}" if value == "True" else f"--no-{option}"]
        return [f"--{option}", *self.shown(value).split()]

    def shown(self, value: Value) -> str:
        """A value as a user would type it."""
        return number(value) if isinstance(value, float) else str(value)

    def rounded(self, value: Value) -> Value:
        """A number from a range with four digits, so that people can read and type it."""
        if not isinstance(value, float):
            return value
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    @property
    def extremes(self) -> list[str]:
        """The values that are checked before the first training: ends, or all that are listed."""
        ends: list[Value] = [int(v) if self.whole else v for v in (self.low, self.high)]
        return list(self.values) or [self.shown(end) for end in ends]


def parse_space(
    texts: Sequence[str], config_type: type[Config], options: Sequence[str], experiment: str
) -> list[Dimension]:
    """Reads what ``--over`` says, and refuses values that the experiment refuses.

    Args:
        texts: "NAME=LOW..HIGH", with ":log" and ":NUMBER_OF_VALUES" behind it, or "NAME=A,B,C".
        config_type: the experiment's options.
        options: the options that hold for all trainings.
        experiment: the experiment's name.

    Raises:
        InputError: if an option does not exist, can't be tried, or has an impossible value.
    """
    if not texts:
        raise InputError("no option to try: give --over, such as learning_rate=0.1..10:log")
    space = [_dimension(text, config_type) for text in texts]
    names = [dimension.name for dimension in space]
    for dimension, name in zip(space, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"--over {dimension.text}: {name} is there twice; give it once")
        if name in option_names(options):
            raise InputError(f"--over {dimension.text}: {name} stands behind -- too; give it once")
    base = parse(config_type, options, experiment=experiment)
    typed = []
    for each in space:
        row = []
        for value in each.extremes:
            try:
                found = parse(config_type, [*options, *each.words(value)], experiment=experiment)
            except InputError as error:
                raise InputError(f"--over {each.text}: {error}") from error
            row.append(getattr(found, each.name))
        typed.append(row)
    for values in itertools.islice(itertools.product(*typed), _MOST_COMBINATIONS):
        try:
            dataclasses.replace(base, **dict(zip(names, values, strict=True)))
        except InputError as error:
            raise InputError(f"--over {' '.join(texts)}: {error}") from error
    return space


def _dimension(text: str, config_type: type[Config]) -> Dimension:
    given, equals, values = text.partition("=")
    name = given.lstrip("-").replace("-", "_")
    known = [field.name for field in dataclasses.fields(config_type)]
    if not equals or not values:
        raise InputError(
            f"--over {text}: give the option and its values, such as learning_rate=0.1..10:log or "
            "decay=linear,cosine"
        )
    if name not in known:
        similar = difflib.get_close_matches(name, known, n=1)
        meant = f"did you mean {similar[0]}?" if similar else "--help of the experiment lists them"
        raise InputError(f"--over {text}: there is no such option; {meant}")
    if reason := NOT_OWN_OPTIONS.get(name):
        raise InputError(f"--over {text}: {given} can't be tried; {reason}")
    if name in SHARED_OPTIONS:
        raise InputError(f"--over {text}: {given} decides how trials are judged; give it behind --")
    hint: Any = typing.get_type_hints(config_type)[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    match = re.fullmatch(r"([^,:]+?)\.\.([^,:]+)((?::log)?)(?::(\d+))?", values)
    if match is None:
        listed = tuple(value.strip() for value in values.split(","))
        if len(set(listed)) < max(2, len(listed)) or "" in listed:
            raise InputError(f"--over {text}: give two values or more, each once")
        return Dimension(text, name, values=listed, is_flag=hint is bool)
    if hint not in (int, float):
        raise InputError(f"--over {text}: {given} is no number; list its values: {given}=A,B,C")
    return _range(Dimension(text, name, whole=hint is int), *match.groups())


def _range(of: Dimension, low: str, high: str, log: str, count: str | None) -> Dimension:
    try:
        ends = [float(end) for end in (low, high)]
    except ValueError:
        ends = [math.nan, math.nan]
    whole = not of.whole or all(end.is_integer() for end in ends if math.isfinite(end))
    if not (all(map(math.isfinite, ends)) and ends[0] < ends[1] and whole):
        kind = "two whole numbers" if of.whole else "two numbers"
        raise InputError(f"--over {of.text}: give {kind}, the lower one first, such as 1..10")
    if log and ends[0] <= 0:
        raise InputError(f"--over {of.text}: a logarithmic range begins above 0, such as 0.01..1")
    found = dataclasses.replace(of, low=ends[0], high=ends[1], log=bool(log))
    if count is None:
        return found
    if not 2 <= int(count) <= 1000:
        raise InputError(f"--over {of.text}: {count} values; give 2 to 1000")
    low_end, high_end = map(math.log, ends) if log else ends
    spaced = np.linspace(low_end, high_end, int(count))
    spaced = np.exp(spaced) if log else spaced
    values = [round(v) if of.whole else found.rounded(float(v)) for v in spaced]
    return dataclasses.replace(found, values=tuple(dict.fromkeys(map(found.shown, values))))


def grid(space: Sequence[Dimension]) -> list[dict[str, Value]]:
    """All settings of a grid, in order.

    Raises:
        InputError: if an option has a range of all values.
    """
    rows: list[Sequence[Value]] = []
    for each in space:
        if not each.values and not each.whole:
            raise InputError(
                f"--over {each.text}: a grid needs the number of its values; give {each.text}:5, "
                "or list them"
            )
        rows.append(each.values or range(int(each.low), int(each.high) + 1))
    names = [each.name for each in space]
    count = math.prod(len(row) for row in rows)
    if count > 10_000:
        raise InputError(f"--sampler grid: {count:,} settings; give fewer values, or --sampler tpe")
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*rows)]


def words_of(space: Sequence[Dimension], setting: Setting) -> list[str]:
    """A setting as words of a command line."""
    return [word for each in space for word in each.words(setting[each.name])]
