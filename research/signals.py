"""Turns signals that would end the program into a request to stop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# In order: Ctrl-C; schedulers and shutdowns; schedulers' warnings; a lost terminal or connection; a
# limit on CPU time.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU)


class _GiveUp(BaseException):
    """Leaves the context ``StopRequest.leaving``."""


class StopRequest:
    """While entered, a signal only sets ``signal``; further signals change nothing.

    Python handles a signal between two calls into TensorFlow. The training loop checks ``signal``
    after each call and stops where nothing is lost. Work that can be repeated, such as an
    evaluation, runs in the context ``leaving``, which a signal ends at once. If SIGHUP is ignored,
    as under ``nohup``, it stays ignored.

    Args:
        say: whether to say on standard output that a signal came.

    Attributes:
        signal: the first signal that came, or None.
        place: where it came, for people, if that was another process.
    """

    def __init__(self, say: bool = True) -> None:
        self._say = say
        self.signal: signal.Signals | None = None
        self.place = ""
        self._leaving = False

    def __str__(self) -> str:
        return "no signal" if self.signal is None else f"{self.signal.name}{self.place}"

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """The exit status by the convention of shells: 128 plus the signal's number."""
        return 128 + (self.signal or 0)

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """A context that ends as soon as a signal comes, at any point of its body.

        The body must be repeatable and must not leave a partly written file.
        """
        self._leaving = self.signal is None
        try:
            yield
        except BaseException:
            # Not only _GiveUp: a library may have replaced it by an error of its own.
            if self.signal is None:
                raise
        finally:
            self._leaving = False

    def __enter__(self) -> StopRequest:
        self._before: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._on_signal)
            for number in SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # After a request to stop, ignore further signals until the interpreter ends.
            signal.signal(number, handler if self.signal is None else signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            # os.write, not print: Python's streams may be in use at this instant.
            with contextlib.suppress(OSError):
                os.write(1, f"\nStopping after {self.signal.name}.\n".encode() * self._say)
        if self._leaving:
            self._leaving = False
            raise _GiveUp
