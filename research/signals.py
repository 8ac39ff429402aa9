"""Signals that would end a program, as a request to stop soon."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# Ctrl-C, schedulers and shutdowns, schedulers' warnings, a terminal or connection that is lost,
# and a limit on CPU time.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU)


class _GiveUp(BaseException):
    """Leaves what stands in ``StopRequest.leaving``."""


class StopRequest:
    """While entered, a signal does nothing but ask to stop; a second one asks for the same.

    Python hears a signal between two calls into TensorFlow. Whoever trains looks at ``signal``
    after each of these, and stops where nothing is lost. What can as well be done again later,
    such as an evaluation, stands in the context ``leaving`` and is left at once. Where SIGHUP is
    ignored, as under ``nohup``, it stays ignored.

    Attributes:
        signal: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._leaving = False

    def __str__(self) -> str:
        return "no signal" if self.signal is None else self.signal.name

    def is_set(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """What shells give a program that a signal has ended: 128 and its number."""
        return 128 + (self.signal or 0)

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Leaves this context as soon as a signal comes, wherever it is.

        It is for what changes nothing that matters; so it must leave no file half-written.
        """
        self._leaving = self.signal is None
        try:
            yield
        except BaseException:
            # Where it was left, libraries may have put an error of their own in the place of ours.
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
            # Whoever has asked to stop may ask again until the interpreter has ended.
            signal.signal(number, handler if self.signal is None else signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
            # Python's own streams may be in use at this instant.
            with contextlib.suppress(OSError):
                os.write(1, f"\nStopping after {self.signal.name}.\n".encode())
        if self._leaving:
            self._leaving = False
            raise _GiveUp
