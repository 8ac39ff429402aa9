"""Text from elsewhere, such as the name of a file, as a terminal can show it."""

from __future__ import annotations


def printable(text: object) -> str:
    """``str(text)`` with what a terminal would obey, or can't encode, in Python's notation.

    That is line breaks, escape sequences, and the bytes of a file's name that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
