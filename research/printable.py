"""Text for people: untrusted text made safe for a terminal, and numbers with their nouns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def printable(text: object) -> str:
    """``str(text)`` with its unprintable characters as Python escapes.

    They are control characters, such as line breaks and escape sequences, and the bytes of a file's
    name that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def counted(number: int, noun: str) -> str:
    """A number and its noun: "1 kill", "2 kills"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def number(value: float) -> str:
    """A number as a user would type it, exactly: 2 for 2.0, 1e-07, 0.3333333333333333."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def below_one(probability: float) -> str:
    """A probability with the digits that tell it from 1: 0.9998, 0.999999."""
    digits = next((n for n in range(4, 9) if round(probability, n) < 1), 4)
    return f"{probability:.{digits}f}"


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def folded(parts: Iterable[str], columns: int | None, taken: int = 0, gap: str = "  ") -> list[str]:
    """Parts of a text in lines, broken between two parts only.

    Args:
        parts: the parts, such as words. One that is wider than a line has a line of its own.
        columns: the columns of the terminal; None for a single line.
        taken: the columns of every line that something else takes.
        gap: stands between two parts of a line.
    """
    lines: list[str] = []
    for part in parts:
        if lines and (columns is None or taken + len(lines[-1] + gap + part) <= columns):
            lines[-1] += gap + part
        else:
            lines.append(part)
    return lines


def path_as_typed(path: Path | str) -> str:
    """A path as a word of a command line, where a dash in front would make it an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)
