"""Standard error: keeps TensorFlow's start-up chatter off the screen, and in the log.

TensorFlow's C++ parts write to the file descriptor of standard error, past Python. So the
descriptor itself is pointed at a file; what is no chatter, such as the output of ``tf.print``
in a step, is read back from the file and shown.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# Lines of TensorFlow's and absl's loggers, below the severity "fatal", and lines that go on
# from one of them.
_CHATTER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:\d\d"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|(INFO|WARNING):(absl|tensorflow)"
    rb"|WARNING: All log messages before absl"
    rb"|To enable the following instructions"
    rb"|\s+\[\[\{\{(function_)?node "
)
_SECONDS_BETWEEN_LOOKS = 0.2
_imported_with = b""


def occupy_standard_descriptors() -> None:
    """Opens the null device as each of the descriptors 0 to 2 that is closed.

    The next file to be opened would otherwise get that number, and with it what is meant for the
    screen.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def show_error(message: str) -> None:
    """Writes a message to standard error, past Python's streams; does nothing where that fails."""
    _write_all(2, message.encode("utf-8", "backslashreplace") + b"\n")


class DivertedStderr:
    """While entered, standard error goes to a file, and to the screen only what is no chatter.

    At first the file is a temporary one; ``continue_in`` moves on to a lasting one. Should the
    process crash, TensorFlow's last words are in the file and Python's on the screen.

    Args:
        show: what to do with a line that is no chatter; None writes it where standard error
            went before.
    """

    def __init__(self, show: Callable[[bytes], None] | None = None) -> None:
        self._show = show or (lambda line: _write_all(self._screen, line))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._pending = b""

    def __enter__(self) -> DivertedStderr:
        _flush()
        self._screen = os.dup(2)
        with tempfile.NamedTemporaryFile(prefix="research-") as file:  # which outlasts its name
            self._open(Path(file.name), _imported_with)
        os.dup2(self._file.fileno(), 2)
        self._reports_crashes = not faulthandler.is_enabled()
        if self._reports_crashes:
            faulthandler.enable(self._screen)
        self._thread = threading.Thread(target=self._show_until_closing, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        _flush()
        os.dup2(self._screen, 2)
        self._closing.set()
        self._thread.join()
        self._show_new(final=True)
        if self._reports_crashes:
            faulthandler.disable()
        self._close()
        os.close(self._screen)

    def continue_in(self, path: Path) -> None:
        """Takes everything so far over into a new file at ``path``, and goes on there."""
        _flush()
        with self._lock:
            self._read()
            file, own, reader = self._file, self._own, self._reader
            reader.seek(0)
            self._open(path, reader.read())
            os.dup2(self._file.fileno(), 2)
            late = reader.read()  # what has been written since it was copied
            self._pending += late
            self._write_own(late)
            for old in (file, own, reader):
                old.close()

    def write(self, line: str) -> None:
        """Adds a line to the file alone."""
        with self._lock:
            self._write_own(line.encode("utf-8", "backslashreplace") + b"\n")

    def _open(self, path: Path, content: bytes) -> None:
        """Opens a file for standard error, for our own lines, and for reading both back."""
        self._file = path.open("ab", buffering=0)
        # A description of its own, whose position after a write tells where the line stands.
        self._own = path.open("ab", buffering=0)
        self._reader = path.open("rb", buffering=0)
        self._position = self._reader.seek(0, os.SEEK_END)  # a resumed run has a log already
        self._own_ranges: list[tuple[int, int]] = []
        self._write_own(content)

    def _close(self) -> None:
        for file in (self._file, self._own, self._reader):
            file.close()

    def _write_own(self, content: bytes) -> None:
        written = 0
        with contextlib.suppress(OSError):  # without room the log has gaps; the screen has it all
            written = self._own.write(content)
        end = self._own.tell()
        self._own_ranges.append((end - written, end))

    def _read(self) -> None:
        """Reads what has come since, without our own lines."""
        new = self._reader.read() or b""
        start = self._position
        self._position += len(new)
        for begin, end in reversed(self._own_ranges):
            new = new[: begin - start] + new[end - start :]
        self._own_ranges.clear()
        self._pending += new

    def _show_new(self, final: bool = False) -> None:
        with self._lock:
            self._read()
            whole = len(self._pending) if final else self._pending.rfind(b"\n") + 1
            lines = self._pending[:whole].splitlines(keepends=True)
            self._pending = self._pending[whole:]
        for line in lines:
            if not _CHATTER.match(line):
                self._show(line)

    def _show_until_closing(self) -> None:
        while not self._closing.wait(_SECONDS_BETWEEN_LOOKS):
            self._show_new()


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow; what it writes meanwhile waits for the first ``DivertedStderr``."""
    global _imported_with  # noqa: PLW0603
    if "tensorflow" in sys.modules:
        return
    _flush()
    with tempfile.TemporaryFile("w+b") as file:
        screen = os.dup(2)
        os.dup2(file.fileno(), 2)
        # Keras would import it, in a sixth of the time, for keras.visualization's galleries; those
        # now say that it is missing.
        without_pyplot = "matplotlib.pyplot" not in sys.modules
        if without_pyplot:
            sys.modules["matplotlib.pyplot"] = None  # type: ignore[assignment]
        try:
            import tensorflow  # noqa: F401
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            if without_pyplot:
                del sys.modules["matplotlib.pyplot"]
            _flush()
            os.dup2(screen, 2)
            os.close(screen)
            file.seek(0)
            _imported_with = file.read()


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Loses what is written to the descriptor of standard error, whoever writes it."""
    _flush()
    before = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
            yield
    finally:
        _flush()
        os.dup2(before, 2)
        os.close(before)


def _write_all(descriptor: int, content: bytes) -> None:
    # Where the reader of standard error is gone, the log still has it.
    with contextlib.suppress(OSError):
        os.write(descriptor, content)


def _flush() -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # what can't be shown must not end what is trained
            sys.stderr.flush()
