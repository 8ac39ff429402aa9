"""Ctrl-C as a request to stop soon, rather than an exception anywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def stop_request() -> Iterator[threading.Event]:
    """Yields an event that the first Ctrl-C sets; a second one raises KeyboardInterrupt."""
    requested = threading.Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        # Python's own streams may be in use at this instant.
        with contextlib.suppress(OSError):
            os.write(1, b"\nStopping. Press Ctrl-C again to stop at once and save nothing.\n")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, before)
