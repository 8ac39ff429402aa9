"""Reads back the lines and tables that a program prints."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator

import pytest
from rich.cells import cell_len

ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[A-Z])")


@contextlib.contextmanager
def terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, kind: str = "xterm-256color", **environment: str
) -> Iterator[list[str]]:
    """Makes the standard streams a terminal; afterwards the list holds what it was sent."""
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": kind, **environment}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = os.openpty()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    received, sent = [b""], list[str]()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while content := os.read(ours, 65536):
                received[0] += content

    reader = threading.Thread(target=read)
    reader.start()
    for descriptor in (1, 2):
        os.dup2(theirs, descriptor)
    os.close(theirs)
    try:
        yield sent
    finally:
        for descriptor, earlier in zip((1, 2), before, strict=True):
            os.dup2(earlier, descriptor)
            os.close(earlier)
        reader.join()
        os.close(ours)
        sent.append(received[0].decode())


def lines_of(sent: str) -> tuple[list[str], list[str]]:
    """The lines that a terminal was sent, and the lines that were overwritten later."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPE.sub("", sent))]
    lasting = [line for line in lines if line and not line.endswith(" left")]
    return lasting, [line for line in lines if line.endswith(" left")]


def printed_tables(text: str, columns: int, key: int = 0) -> list[list[list[str]]]:
    """The tables in a text, each as rows of cells, the headings first.

    A cell that was folded is put together again: where the cell in column ``key`` is empty, the
    line goes on with the row above it, and a line break stands between the two parts.

    Raises:
        AssertionError: if a table is wider than ``columns``, has a row of another length than its
            headings, or shows a cell that was cut.
    """
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        inside = inside or line.startswith("┏")
        if not inside:
            continue
        assert cell_len(line) <= columns, line
        assert "…" not in line, line
        if line.startswith("┏"):
            tables.append([])
        elif line.startswith("┃"):
            tables[-1] = [_joined(tables[-1][0], _cells(line)) if tables[-1] else _cells(line)]
        elif line.startswith("│"):
            cells, rows = _cells(line), tables[-1]
            assert len(cells) == len(rows[0]), line
            if cells[key]:
                rows.append(cells)
            else:
                rows[-1] = _joined(rows[-1], cells)
        inside = not line.startswith("└")
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]


def _joined(above: list[str], below: list[str]) -> list[str]:
    return [f"{a}\n{b}" if b else a for a, b in zip(above, below, strict=True)]
