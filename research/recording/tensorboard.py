"""The one place that writes what TensorBoard shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.files import replaced_atomically, storage_errors, sync

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

# A writer hands on what it has after so long, and when it is flushed.
FLUSH_MILLISECONDS = 5000


class TensorBoardWriter:
    """Writes scalars into one sub-folder for each split.

    The same quantity has the same tag in each, so that TensorBoard lays training and validation
    over one another. Events are on the disk within five seconds.

    Args:
        folder: the run directory; ``train/`` and ``validation/`` are created in it when first
            written to.

    Raises:
        StorageError: by its methods, if there is no room. What a writer is given after that is
            lost; open a new one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Writes each value under its name, at a step."""
        failure = storage_errors(self._folder / split, tf.errors.OpError)
        with failure, self._writer(split).as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def text(self, split: str, step: int, name: str, markdown: str) -> None:
        """Writes a text, at a step."""
        failure = storage_errors(self._folder / split, tf.errors.OpError)
        with failure, self._writer(split).as_default(step=step):
            tf.summary.text(name, markdown)

    def sync(self) -> None:
        """Has everything so far survive a crash of the machine."""
        for split, writer in self._writers.items():
            with storage_errors(self._folder / split, tf.errors.OpError):
                writer.flush()
                for path in (self._folder / split).glob("events.out.tfevents.*"):
                    sync(path)

    def close(self) -> None:
        """Closes the event files; what can't be written any more is lost."""
        for writer in self._writers.values():
            try:
                writer.close()
            except tf.errors.OpError:
                continue

    def _writer(self, split: str) -> Any:
        if split not in self._writers:
            self._writers[split] = tf.summary.create_file_writer(
                str(self._folder / split), flush_millis=FLUSH_MILLISECONDS
            )
        return self._writers[split]


def cut_events(source: Path, run: Path, last_step: int) -> None:
    """Gives a run the events of a run, perhaps its own, up to and including those of a step.

    TensorBoard has no way to take back what a file says: a resumed run would show twice the
    steps that it repeats. So the files are rewritten, each at one stroke.
    """
    for path in sorted(source.glob("*/events.out.tfevents.*")):
        target = run / path.relative_to(source)
        with storage_errors(target, tf.errors.OpError):
            target.parent.mkdir(exist_ok=True)
            with replaced_atomically(target) as partial, tf.io.TFRecordWriter(str(partial)) as file:
                for record in _records(path):
                    event = Event.FromString(record)
                    if not event.HasField("summary") or event.step <= last_step:
                        file.write(record)
                file.flush()


def _records(path: Path) -> Iterator[bytes]:
    """The records of an event file, up to where a crash has left one incomplete."""
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            yield record.numpy()
    except tf.errors.DataLossError:
        return
