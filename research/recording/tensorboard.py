"""The one place that writes what TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf


class TensorBoardWriter:
    """Writes scalars into one sub-folder for each split.

    The same quantity has the same tag in each, so that TensorBoard lays training and validation
    over one another. Events are on the disk within five seconds.

    Args:
        folder: the run directory; ``train/`` and ``validation/`` are created in it when first
            written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes each value under its name, at a step."""
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(
                str(self._folder / split), flush_millis=5000
            )
        with self._writers[split].as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def close(self) -> None:
        """Flushes and closes the event files."""
        for writer in self._writers.values():
            writer.close()
