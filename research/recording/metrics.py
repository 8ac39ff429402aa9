"""metrics.jsonl: every scalar of a run, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from research.files import storage_errors

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends lines to metrics.jsonl; readers see each line as soon as it is written.

    Args:
        run: the run directory.

    Attributes:
        size: number of bytes in the file.

    Raises:
        StorageError: by the constructor and by all methods, if the file can't be written.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
        with storage_errors(self._path):
            content = self._path.read_bytes() if self._path.exists() else b""
            self._digest, self.size = hashlib.sha256(content), len(content)
            # Unbuffered: closing the file then has nothing left to write, and can't fail.
            self._file = self._path.open("ab", buffering=0)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file's content, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line. NaN and infinity are refused."""
        with storage_errors(self._path):
            content = json.dumps(line, allow_nan=False).encode() + b"\n"
            self._digest.update(content)
            self.size += len(content)
            while content:
                content = content[self._file.write(content) :]

    def sync(self) -> None:
        """Flushes the lines to the disk, so that they survive a crash of the machine."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
