"""The text of ``--help``: what a program does and its options in groups, at any width."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import itertools
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, Suppress

# Where explanations begin. That of a longer option, or on a narrower screen, is on the next line.
EXPLANATION_COLUMN = 28
NARROW = 70

# Marks a field as an option that is parsed and that --help does not show.
INTERNAL = "internal"


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of a dataclass as the command line shows it.

    Attributes:
        field: the field's name.
        words: the option and the kind of its value, "--epochs FLOAT", or an argument, "IMAGES...",
            in brackets if it may be left out.
        explanation: the field's docstring, its choices and its default.
        positional: whether it is an argument, and not an option.
    """

    field: str
    words: str
    explanation: str
    positional: bool


def options_of(kind: type, named: object = None) -> list[Option]:
    """The options of a dataclass in the order of its fields, without suppressed and internal ones.

    Args:
        kind: the dataclass, which tyro parses.
        named: an object whose attributes replace the fields' defaults.
    """
    hints, texts = typing.get_type_hints(kind, include_extras=True), explanations(kind)
    options = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        marks = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
        if Suppress in marks or INTERNAL in marks:
            continue
        value, choices = _value(hint)
        text = texts.get(field.name, "")
        if choices:
            text += f" One of {', '.join(choices)}."
        default = _default(field) if named is None else getattr(named, field.name)
        if (shown := _as_typed(default)) and "Default:" not in text:
            text += f" Default: {shown}."
        words = f"--{field.name.replace('_', '-')} {value}".rstrip()
        if Positional in marks:
            words = field.name.upper() + "..." * value.endswith("...")
            words = words if _is_required(field) else f"[{words}]"
        options.append(Option(field.name, words, text, Positional in marks))
    return options


def explanations(kind: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, by name; none of a class without readable source."""
    found: dict[str, str] = {}
    for base in kind.__mro__[:-1]:
        with contextlib.suppress(OSError, TypeError, SyntaxError):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
            for field, text in itertools.pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    words = " ".join(ast.literal_eval(text.value).split())
                    found.setdefault(ast.unparse(field.target), words)
    return found


def _value(hint: Any) -> tuple[str, tuple[str, ...]]:
    """What stands behind an option, "INT INT" for instance, and the choices if it has some."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _value(inner[0])
    if origin in (types.UnionType, typing.Union):
        return _value(next(one for one in inner if one is not types.NoneType))
    if origin is Literal:
        return "CHOICE", tuple(map(str, inner))
    if origin is tuple and inner[-1] is Ellipsis:
        value, choices = _value(inner[0])
        return f"{value}...", choices
    if origin is tuple:
        return " ".join(_value(one)[0] for one in inner), ()
    return "" if hint is bool else hint.__name__.upper(), ()


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if _is_required(field) else field.default


def _as_typed(value: Any) -> str:
    """A default as a user would type it; "" for None, False and ()."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None or value is False else str(value)


def show_help(
    usage: str, about: str, groups: Mapping[str, Sequence[tuple[str, str]]], note: str = ""
) -> None:
    """Prints help, wrapped at the width of the terminal.

    Args:
        usage: the form of the command line.
        about: what the program does, see ``wrapped``.
        groups: words and their explanation, below the title of their group; an empty group is
            left out.
        note: a last paragraph.
    """
    console = Console(highlight=False, emoji=False, soft_wrap=True, file=sys.stdout)
    width = console.width
    lines = wrapped(f"usage: {usage}\n\n{about}".strip(), width)
    console.print(Text("\n".join(lines)))
    groups = {title: rows for title, rows in groups.items() if rows}
    longest = max((len(words) for rows in groups.values() for words, _ in rows), default=0)
    margin = 6 if width < NARROW else min(2 + longest + 2, EXPLANATION_COLUMN)
    for title, rows in groups.items():
        console.print(Text(f"\n{title}", style="bold"))
        for words, explanation in rows:
            gap = " " * (margin - len(words) - 2)
            below = "\n" + " " * margin
            row = Text("  ").append(words, style="cyan").append(gap if len(gap) > 1 else below)
            console.print(row.append(below.join(wrapped(explanation, width - margin))))
    if note:
        console.print(Text("\n".join(["", *wrapped(note, width)])))


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a docstring at another width.

    A line that begins with "- " stays the beginning of a line. A line that is indented by four
    spaces is an example and stays as it is.
    """
    blocks: list[str] = []
    for line in text.splitlines():
        ends = not line or line.startswith(("- ", "    "))
        if ends or not blocks or not blocks[-1] or blocks[-1].startswith("    "):
            blocks.append(line)
        else:
            blocks[-1] += f" {line.strip()}"
    lines: list[str] = []
    for block in blocks:
        indent = "  " if block.startswith("- ") else ""
        wrap = textwrap.TextWrapper(
            width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [block] if block.startswith("    ") else wrap.wrap(block) or [""]
    return lines
