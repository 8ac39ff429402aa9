"""Profiles a range of steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from research.files import storage_errors

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Profile:
    """Steps ``first`` to ``last``, counted from 1, and the directory for their profile.

    Of several workers only the chief has a directory; the others only make the same calls.
    """

    first: int
    last: int
    folder: Path | None


class Profiler:
    """Starts TensorFlow's profiler before the first profiled step and stops it after the last.

    Each profiled step needs a call of its own; ``around`` marks it, so that TensorBoard shows the
    steps apart. See https://www.tensorflow.org/guide/profiler. Leaving the context stops a running
    profiler.

    Args:
        profile: which steps to profile; None for none.

    Raises:
        StorageError: by all methods, if the profile can't be written.
    """

    def __init__(self, profile: Profile | None) -> None:
        self._profile = profile
        self._running = False

    def at_most(self, done: int) -> int:
        """The largest number of steps that the call after ``done`` steps may run."""
        if self._profile is None or done >= self._profile.last:
            return 2**31 - 1
        return max(1, self._profile.first - 1 - done)

    @contextlib.contextmanager
    def around(self, done: int) -> Iterator[None]:
        """A context for the call after ``done`` steps; profiles the call if it is in range."""
        profile = self._profile
        folder = None if profile is None else profile.folder
        if profile is None or folder is None or not profile.first <= done + 1 <= profile.last:
            yield
            return
        if not self._running:
            with storage_errors(folder, tf.errors.OpError):
                tf.profiler.experimental.start(str(folder))
            self._running = True
        with tf.profiler.experimental.Trace("train", step_num=done + 1, _r=1):
            yield
        if done + 1 == profile.last:
            self._stop()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._running and self._profile is not None and self._profile.folder is not None:
            self._running = False
            with storage_errors(self._profile.folder, tf.errors.OpError):
                tf.profiler.experimental.stop()
