"""Standard error: keeps TensorFlow's log messages off the screen and writes them to the log.

TensorFlow's C++ code writes to the file descriptor of standard error, past Python's streams. So the
descriptor is redirected to a file. Other lines, such as the output of ``tf.print`` in a step, are
read back from the file and shown.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.abc
import importlib.util
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# The beginnings of lines by TensorFlow's and absl's loggers, below the severity "fatal", and of
# their continuation lines.
_CHATTER = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:\d\d"
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|(INFO|WARNING):(absl|tensorflow)"
    rb"|WARNING: All log messages before absl"
    rb"|To enable the following instructions"
    rb"|\s+\[\[\{\{(function_)?node "
    rb"|Additional GRPC error information|:UNKNOWN:Error received from peer|RPC: /tensorflow\."
    rb"|The error could be from a previous operation|/job:worker/replica:|The tasks have crashed\."
    rb"|# of tasks that reached the barrier|The first task at the barrier|Original error:"
    rb"|This is usually caused by an earlier error| \[type\.googleapis\.com"
)
_SECONDS_BETWEEN_LOOKS = 0.2
# What TensorFlow's import wrote, until a DivertedStderr takes it; and the one that is entered.
_imported_with = b""
_diverted: DivertedStderr | None = None


def occupy_standard_descriptors() -> None:
    """Opens the null device as each of the descriptors 0 to 2 that is closed.

    Otherwise the next opened file would get the number of a standard stream, and the stream's
    output.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def show_error(message: str) -> None:
    """Writes a message to standard error, past Python's streams; ignores a failure."""
    _write_all(2, message.encode("utf-8", "backslashreplace") + b"\n")


class DivertedStderr:
    """While entered, standard error goes to a file; lines other than log messages are also shown.

    The file is temporary until ``continue_in`` names another. If the process crashes, TensorFlow's
    last messages are in the file and Python's are on the screen.

    Args:
        show: is called with each line to show; None writes it to the former standard error.

    Attributes:
        screen: the descriptor of the former standard error.
    """

    def __init__(self, show: Callable[[bytes], None] | None = None) -> None:
        self._show = show or (lambda line: _write_all(self.screen, line))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._pending = b""
        self._in_chatter = False

    def __enter__(self) -> DivertedStderr:
        global _diverted  # noqa: PLW0603
        _flush()
        self.screen = os.dup(2)
        with tempfile.NamedTemporaryFile(prefix="research-") as file:  # stays open without a name
            self._open(Path(file.name), _imported_with)
        os.dup2(self._file.fileno(), 2)
        self._reports_crashes = not faulthandler.is_enabled()
        if self._reports_crashes:
            faulthandler.enable(self.screen)
        self._thread = threading.Thread(target=self._show_until_closing, daemon=True)
        self._thread.start()
        _diverted = self
        return self

    def __exit__(self, *error: object) -> None:
        global _diverted  # noqa: PLW0603
        _diverted = None
        _flush()
        os.dup2(self.screen, 2)
        self._closing.set()
        self._thread.join()
        self._show_new(final=True)
        if self._reports_crashes:
            faulthandler.disable()
        self._close()
        os.close(self.screen)

    def continue_in(self, path: Path) -> None:
        """Copies the content so far to ``path`` and continues there."""
        _flush()
        with self._lock:
            self._read()
            file, own, reader = self._file, self._own, self._reader
            reader.seek(0)
            self._open(path, reader.read())
            os.dup2(self._file.fileno(), 2)
            late = reader.read()  # lines written since the copy
            self._pending += late
            self._write_own(late)
            for old in (file, own, reader):
                old.close()

    def write(self, line: str) -> None:
        """Writes a line to the file, not to the screen."""
        self.keep(line.encode("utf-8", "backslashreplace") + b"\n")

    def keep(self, content: bytes) -> None:
        """Writes content to the file, not to the screen."""
        with self._lock:
            self._write_own(content)

    def _open(self, path: Path, content: bytes) -> None:
        """Opens a file for standard error, for our own lines, and for reading both back."""
        self._file = path.open("ab", buffering=0)
        # Opened separately: its position after a write is the place of our line in the file.
        self._own = path.open("ab", buffering=0)
        self._reader = path.open("rb", buffering=0)
        self._position = self._reader.seek(0, os.SEEK_END)  # a resumed run's log has content
        self._own_ranges: list[tuple[int, int]] = []
        self._write_own(content)

    def _close(self) -> None:
        for file in (self._file, self._own, self._reader):
            file.close()

    def _write_own(self, content: bytes) -> None:
        written = 0
        with contextlib.suppress(OSError):  # on a full disk the log has gaps
            written = self._own.write(content)
        end = self._own.tell()
        self._own_ranges.append((end - written, end))

    def _read(self) -> None:
        """Reads the lines since the last call, without our own."""
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
            # An empty line belongs to what is before it.
            if line.strip():
                self._in_chatter = _CHATTER.match(line) is not None
            if not self._in_chatter:
                self._show(line)

    def _show_until_closing(self) -> None:
        while not self._closing.wait(_SECONDS_BETWEEN_LOOKS):
            self._show_new()


class QuietTensorFlow(importlib.abc.MetaPathFinder):
    """On ``sys.meta_path``: keeps the messages of TensorFlow's import off the screen.

    The first ``DivertedStderr`` gets them, or the one that is entered during the import. TensorFlow
    itself is imported when a module first asks for it, since that takes seconds.
    """

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds TensorFlow, once, with a loader that imports it quietly."""
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_quietly(module: ModuleType) -> None:
                with _keeping_messages():
                    execute(module)

            spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _keeping_messages() -> Iterator[None]:
    """Keeps what TensorFlow's import writes to standard error for the log."""
    global _imported_with  # noqa: PLW0603
    _flush()
    with tempfile.TemporaryFile("w+b") as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        # Keras imports matplotlib.pyplot for the galleries of keras.visualization, which takes a
        # sixth of the time. Without it these galleries report it as missing.
        without_pyplot = "matplotlib.pyplot" not in sys.modules
        if without_pyplot:
            sys.modules["matplotlib.pyplot"] = None  # type: ignore[assignment]
        try:
            yield
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            if without_pyplot:
                del sys.modules["matplotlib.pyplot"]
            _flush()
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            if _diverted is None:
                _imported_with = file.read()
            else:
                _diverted.keep(file.read())


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discards everything that is written to the descriptor of standard error."""
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
    # If standard error can't be written, the log still has the content.
    with contextlib.suppress(OSError):
        os.write(descriptor, content)


def _flush() -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a failure to show must not end a training
            sys.stderr.flush()
