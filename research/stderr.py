"""Keeps TensorFlow's start-up chatter off the screen, and in the log.

TensorFlow's C++ parts write to the file descriptor of standard error, past Python. So the
descriptor itself is pointed at a file; what is no chatter, such as the output of ``tf.print``
in a step, is read back from the file and shown. Should the process crash, the file has it all.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

# Lines of TensorFlow's and absl's loggers, below the severity "fatal", and lines that go on
# from one of them.
_CHATTER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:\d\d"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|(INFO|WARNING):(absl|tensorflow)"
    rb"|WARNING: All log messages before absl"
    rb"|To enable the following instructions"
)
_imported_with = b""


class DivertedStderr:
    """While entered, standard error goes to a file, and to the screen only what is no chatter.

    Without a path the file is a temporary one; ``continue_in`` moves on to a lasting one.
    """

    def __init__(self) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile("w+b", buffering=0)  # noqa: SIM115
        self._file.write(_imported_with)
        self._position = len(_imported_with)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._screen = -1

    def __enter__(self) -> DivertedStderr:
        _flush()
        self._screen = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        self._thread = threading.Thread(target=self._show_until_closing, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        _flush()
        os.dup2(self._screen, 2)
        self._closing.set()
        self._thread.join()
        self._show(final=True)
        os.close(self._screen)
        self._file.close()

    def continue_in(self, path: Path) -> None:
        """Takes everything so far over into a new file at ``path``, and goes on there."""
        with self._lock:
            _flush()
            lasting = path.open("a+b", buffering=0)
            self._file.seek(0)
            lasting.write(self._file.read())
            os.dup2(lasting.fileno(), 2)
            self._file.close()
            self._file = lasting

    def write(self, line: str) -> None:
        """Adds a line to the file alone."""
        self._file.write(_escaped(line))

    def _show_until_closing(self) -> None:
        while not self._closing.wait(0.2):
            self._show()

    def _show(self, final: bool = False) -> None:
        with self._lock:
            size = os.fstat(self._file.fileno()).st_size
            new = os.pread(self._file.fileno(), size - self._position, self._position)
            whole = len(new) if final else new.rfind(b"\n") + 1
            self._position += whole
            for line in new[:whole].splitlines(keepends=True):
                if not _CHATTER.match(line) and not line.startswith(_OWN):
                    os.write(self._screen, line)


# Marks lines of our own in the log, which have been on the screen already.
_OWN = b"| "


def _escaped(line: str) -> bytes:
    return b"".join(_OWN + part.encode() + b"\n" for part in line.splitlines())


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow; what it writes meanwhile waits for the first ``DivertedStderr``."""
    global _imported_with  # noqa: PLW0603
    if "tensorflow" in sys.modules:
        return
    _flush()
    with tempfile.TemporaryFile("w+b") as file:
        screen = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            _flush()
            os.dup2(screen, 2)
            os.close(screen)
            file.seek(0)
            _imported_with = file.read()
