"""metrics.jsonl: everything that was measured, one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from research.files import replaced_atomically, storage_errors

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends lines to metrics.jsonl; each is there for readers as soon as it is written.

    Args:
        run: the run directory.

    Raises:
        StorageError: here and by its methods, if there is no room.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
        with storage_errors(self._path):
            # Unbuffered, so that nothing is left to be written, and to fail, when it is closed.
            self._file = self._path.open("ab", buffering=0)

    @staticmethod
    def holds_lines(run: Path) -> bool:
        """Whether anything has been recorded in a run directory."""
        path = run / NAME
        return path.exists() and path.stat().st_size > 0

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line. NaN and infinity are refused."""
        with storage_errors(self._path):
            content = json.dumps(line, allow_nan=False).encode() + b"\n"
            while content:
                content = content[self._file.write(content) :]

    def sync(self) -> None:
        """Has the lines so far survive a crash of the machine."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def cut_metrics(source: Path, run: Path, last_step: int, last_validation: int) -> None:
    """Gives a run the lines of a run, perhaps its own, up to and including those of a step.

    A line that a crash has left incomplete is dropped.
    """
    kept, path = [], source / NAME
    with storage_errors(run / NAME):
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                values = json.loads(line)
                last = last_validation if values["split"] == "validation" else last_step
                if values["step"] <= last:
                    kept.append(line + b"\n")
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
        with replaced_atomically(run / NAME) as partial:
            partial.write_bytes(b"".join(kept))
