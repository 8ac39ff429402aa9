"""metrics.jsonl: everything that was measured, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from research.files import storage_errors

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends lines to metrics.jsonl; each is there for readers as soon as it is written.

    Args:
        run: the run directory.

    Attributes:
        size: number of bytes in the file.

    Raises:
        StorageError: here and by its methods, if there is no room.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
        with storage_errors(self._path):
            content = self._path.read_bytes() if self._path.exists() else b""
            self._digest, self.size = hashlib.sha256(content), len(content)
            # Unbuffered, so that nothing is left to be written, and to fail, when it is closed.
            self._file = self._path.open("ab", buffering=0)

    @property
    def sha256(self) -> str:
        """The digest of all that has been written, in hexadecimal."""
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
        """Has the lines so far survive a crash of the machine."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
