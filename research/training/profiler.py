"""Profiling some of the steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from research.files import storage_errors

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Profile:
    """Which steps to profile, counted from 1, and the directory to leave the profile in."""

    first: int
    last: int
    folder: Path


class Profiler:
    """Starts TensorFlow's profiler before the first of some steps, and stops it after the last.

    Each of them must be run alone, and is marked, so that TensorBoard tells them apart. See
    https://www.tensorflow.org/guide/profiler. Use it as a context: what has been started when
    that is left, is stopped.

    Args:
        profile: which steps; None for none.

    Raises:
        StorageError: by its methods, if the profile can't be written.
    """

    def __init__(self, profile: Profile | None) -> None:
        self._profile = profile
        self._running = False

    def at_most(self, done: int) -> int:
        """How many steps may be run in one call, when ``done`` have been."""
        if self._profile is None or done >= self._profile.last:
            return 2**31 - 1
        return max(1, self._profile.first - 1 - done)

    @contextlib.contextmanager
    def around(self, done: int) -> Iterator[None]:
        """Surrounds the call that follows ``done`` steps."""
        profile = self._profile
        if profile is None or not profile.first <= done + 1 <= profile.last:
            yield
            return
        if not self._running:
            with storage_errors(profile.folder, tf.errors.OpError):
                tf.profiler.experimental.start(str(profile.folder))
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
        if self._running and self._profile is not None:
            self._running = False
            with storage_errors(self._profile.folder, tf.errors.OpError):
                tf.profiler.experimental.stop()
