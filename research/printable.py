"""Makes untrusted text, such as the name of a file, safe for a terminal."""

from __future__ import annotations


def printable(text: object) -> str:
    """``str(text)`` with its unprintable characters as Python escapes.

    They are control characters, such as line breaks and escape sequences, and the bytes of a file's
    name that are not UTF-8.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
