"""Reads back the tables that a program prints."""

from __future__ import annotations

import re

from rich.cells import cell_len


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
