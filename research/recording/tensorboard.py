"""Writes TensorBoard's event files. No other module does."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import struct
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from research.data.dataset import NUM_CLASSES, Split
from research.files import (
    is_regular,
    move_aside,
    replaced_atomically,
    storage_errors,
    sync,
)
from research.printable import printable
from research.recording import figures
from research.recording.tags import description
from research.results.evaluation import Validation, calibration_bins

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import summary as hparams
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.pr_curve import summary as pr_curve
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.util.tensor_util import make_tensor_proto

Array = npt.NDArray[Any]
Status = Literal["success", "failure", "unknown"]

# The folders of a run, each with one writer. RUN is the run directory itself.
RUN, TRAIN, VALIDATION, TEST = "", "train", "validation", "test"
# The folders written during training, which a resumed run reads back.
LOGGED = (TRAIN, VALIDATION)
PROJECTOR_FILES = ("embedding.bytes", "labels.tsv", "digits.png", "projector_config.pbtxt")
# The number of images shown: of a batch or a step's images, and in the projector.
SHOWN, EMBEDDED = 30, 2000
# Pending drawings, at most: this bounds memory and the time until a run stops.
MOST_PENDING = 2
HISTOGRAM_BUCKETS = 50
PR_THRESHOLDS = 101

# The step's images as the step itself returns them, if it changes them.
BATCH = "pictures/batch"
# Scalars that repeat others at another scale; metrics.jsonl has no line of them.
RESCALED = "rescaled/"

# The layout of the Custom Scalars dashboard: category, chart, tag.
LAYOUT = {
    "Training and validation": {
        "loss, decimal logarithm (train and validation)": "rescaled/log10_loss",
        "accuracy (train and validation)": "accuracy",
    },
    "Validation alone": {
        "validation loss": "rescaled/validation_loss",
        "validation accuracy": "rescaled/validation_accuracy",
        "generalization gap": "quality/generalization_gap",
        "calibration error": "quality/calibration_error",
    },
    "Updates": {
        "learning rate": "optimizer/learning_rate",
        "gradient norm": "optimizer/gradient_norm",
        "update to weight, by layer": "update_ratio/.*",
    },
    "Wall time: five shares that add up to 1": {
        activity: f"time/{activity}"
        for activity in ("training", "input", "validation", "logging", "checkpointing")
    },
    "Speed": {"examples per second": "speed/examples_per_second"},
}


# The metrics in the HParams dashboard: column, folder and tag.
COLUMNS = {
    "failed": (RUN, "run/failed"),
    "validation accuracy": (VALIDATION, "accuracy"),
    "validation loss": (VALIDATION, "loss"),
    "finished": (RUN, "run/finished"),
    "steps": (RUN, "run/steps"),
    "calibration error": (VALIDATION, "quality/calibration_error"),
    "generalization gap": (VALIDATION, "quality/generalization_gap"),
}


@dataclasses.dataclass(frozen=True)
class Description:
    """What a run is, for TensorBoard.

    Attributes:
        options: by name, for the HParams dashboard; options of None are left out.
        group: the name of the run's configuration; HParams shows the seeds of one as one row.
        text: Markdown, for the Text dashboard.
        step: number of steps done when the run starts or is resumed.
    """

    options: Mapping[str, Any]
    group: str
    text: str
    step: int = 0


class TensorBoardWriter:
    """Writes a run's measurements and description for TensorBoard's dashboards.

    A quantity has the same tag in ``train/``, ``validation/`` and ``test/``, so that TensorBoard
    draws the curves in one chart. The first event of a tag carries its line of the glossary. The
    run's description is in the run directory itself. An event can be read as soon as it is written.
    Another thread draws pictures and counts histograms, in the order of the calls; with
    ``MOST_PENDING`` drawings pending, the next call waits.

    Args:
        folder: the run directory; its folders are created when first written to.

    Attributes:
        events: how many events have been written into each folder; complete after ``sync``.

    Raises:
        StorageError: by all methods, if a file can't be written. An error of the other thread is
            raised by the next call of ``training``, ``evaluation`` or ``sync``. After an error the
            writer loses events; make a new one.
    """

    def __init__(self, folder: Path) -> None:
        self.events: dict[str, int] = {}
        self._run = folder
        self._writers: dict[str, tf.summary.SummaryWriter] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, "tensorboard")
        self._pending: list[Future[None]] = []
        self._explained: set[tuple[str, str]] = set()
        self._described = False

    def describe(self, about: Description) -> None:
        """Writes the run's description, in place of an earlier one."""
        with self._errors(RUN):
            for path in event_files(self._run):
                path.unlink() if is_regular(path) else move_aside(path)
        known = {
            name: value if isinstance(value, bool | int | float) else _words(value)
            for name, value in about.options.items()
            if value is not None
        }
        self._write(
            *(RUN, about.step),
            *(hparams.session_start_pb(known, group_name=about.group), custom_scalar.pb(_layout())),
            text_pb("about/run", about.text),
            *_outcome(None, about.step),
        )
        self._described = True

    def graph(self, graph: tf.compat.v1.GraphDef) -> None:
        """Writes a ``GraphDef``, for the Graphs dashboard."""
        with self._errors(RUN), self._writer(RUN).as_default():
            tf.summary.graph(graph)

    def ended(self, status: Status, step: int, result: str) -> None:
        """Writes how the run ended; without this, HParams shows it as running.

        Args:
            status: for HParams.
            step: number of steps that have been recorded.
            result: Markdown, for the Text dashboard.
        """
        if self._described:
            number = api_pb2.Status.Value(f"STATUS_{status.upper()}")
            end, text = hparams.session_end_pb(number), text_pb("about/result", result)
            self._write(RUN, step, end, text, *_outcome(status, step))
            self._described = False

    def scalars(self, folder: str, step: int, values: Mapping[str, float]) -> None:
        """Writes each value under its name, at a step; the loss and accuracy also rescaled."""
        self._write(folder, step, scalars(folder, values))

    def training(
        self,
        step: int,
        weights: Mapping[str, tf.Tensor],
        returned: Mapping[str, tf.Tensor],
        batch: Callable[[], tuple[Array, Array]],
    ) -> None:
        """Writes a step's batch, the images and vectors that it returned, and the weights.

        Args:
            step: number of steps done.
            weights: by name; the filters of the first convolution are also drawn.
            returned: images and vectors, see ``research.training.train.train``.
            batch: returns the step's images, float32 [B, 28, 28, 1], and one-hot labels [B, 10].
        """

        def draw() -> list[Summary]:
            values = {name: np.asarray(value) for name, value in weights.items()}
            images, labels = batch()
            captions = [str(label) for label in np.argmax(labels[:SHOWN], 1)]
            summaries = []
            if BATCH not in returned:
                drawn = figures.gallery(np.asarray(images[:SHOWN]), captions)
                summaries.append(_image(BATCH, drawn))
            kernels = {name: value for name, value in values.items() if value.ndim == 4}
            for name, kernel in list(kernels.items())[:1]:
                layer = name.rpartition("/")[0] or name
                summaries.append(_image(f"pictures/filters_{layer}", figures.filters(kernel)))
            summaries += _shown(returned)
            summaries += [_histogram(f"weights/{name}", value) for name, value in values.items()]
            return summaries

        self._later(TRAIN, step, draw)

    def evaluation(self, folder: str, step: int, found: Validation, data: Split) -> None:
        """Draws the confusion matrix, the reliability diagram, PR curves and the worst mistakes.

        The images and vectors that the experiment's ``figures`` returned are drawn, too.

        Args:
            folder: the one to write into.
            step: number of steps done.
            found: the model's evaluation on ``data``.
            data: the evaluated examples.
        """
        probabilities, evaluation = found.probabilities, found.evaluation

        def draw() -> list[Summary]:
            bins = calibration_bins(
                probabilities.max(1).astype(np.float64), probabilities.argmax(1) == data.labels
            )
            reliability = figures.reliability(bins, evaluation.calibration_error)
            summaries = [
                _image("pictures/confusion", figures.confusion(evaluation.confusion)),
                _image("pictures/reliability", reliability),
                _image("pictures/mistakes", figures.mistakes(evaluation.most_wrong, data.images)),
            ]
            for digit in range(NUM_CLASSES):
                # clip: a softmax may round to 1 + 1e-7.
                of_digit = np.clip(probabilities[:, digit], 0, 1)
                curve = pr_curve.pb(
                    f"digits/{digit}", data.labels == digit, of_digit, PR_THRESHOLDS
                )
                summaries.append(curve)
            return summaries + _shown(found.shown)

        self._later(folder, step, draw)

    def embedding(self, folder: str, vectors: Array, probabilities: Array, data: Split) -> None:
        """Writes the Projector's files.

        Args:
            folder: the one to write into.
            vectors: float32 [N, units], the inputs of the last layer for the first N examples.
            probabilities: [N or more, 10], the model's probabilities for ``data``.
            data: at least N examples.
        """
        path, count = self._run / folder, len(vectors)
        config = ProjectorConfig()
        told = config.embeddings.add(
            tensor_name="penultimate layer",
            tensor_path="embedding.bytes",
            tensor_shape=vectors.shape,
            metadata_path="labels.tsv",
        )
        told.sprite.image_path = "digits.png"
        told.sprite.single_image_dim.extend(data.images.shape[1:3])
        rows = ["label\tpredicted\tcorrect\tconfidence"]
        guesses = zip(data.labels, probabilities.argmax(1), probabilities.max(1), strict=False)
        rows += [f"{a}\t{b}\t{_yes(a == b)}\t{confidence:.4f}" for a, b, confidence in guesses]
        sprite, side = io.BytesIO(), -(-(count**0.5) // 1)
        _sprite(data.images[:count, ..., 0], int(side)).save(sprite, "png")
        contents = (
            vectors.astype("<f4").tobytes(),
            ("\n".join(rows[: count + 1]) + "\n").encode(),
            sprite.getvalue(),
            text_format.MessageToString(config).encode(),
        )
        with storage_errors(path):
            path.mkdir(exist_ok=True)
            for name, content in zip(PROJECTOR_FILES, contents, strict=True):
                with replaced_atomically(path / name) as partial:
                    partial.write_bytes(content)

    def sync(self) -> None:
        """Flushes all events to the disk, so that they survive a crash of the machine."""
        self._wait()
        for folder, writer in self._writers.items():
            with self._errors(folder):
                writer.flush()
                for path in event_files(self._run / folder):
                    sync(path)

    def close(self) -> None:
        """Closes the event files; events that can't be written are lost."""
        self._worker.shutdown()
        for writer in self._writers.values():
            try:
                writer.close()
            except tf.errors.OpError:
                continue

    def _later(self, folder: str, step: int, draw: Callable[[], list[Summary]]) -> None:
        """Lets the other thread draw summaries and write them."""
        self._pending = [future for future in self._pending if not _done(future)]
        while len(self._pending) >= MOST_PENDING:
            self._pending.pop(0).result()

        def write() -> None:
            with self._errors(folder):  # Matplotlib opens files, too
                self._write(folder, step, *draw())

        self._pending.append(self._worker.submit(write))

    def _wait(self) -> None:
        while self._pending:
            self._pending.pop(0).result()

    def _write(self, folder: str, step: int, *summaries: Summary) -> None:
        """Writes summaries as one event."""
        merged = Summary()
        for summary in summaries:
            merged.MergeFromString(summary.SerializeToString())
        for value in merged.value:
            if (folder, value.tag) not in self._explained:
                self._explained.add((folder, value.tag))
                explain(value)
        with self._errors(folder), self._writer(folder).as_default():
            tf.summary.experimental.write_raw_pb(merged.SerializeToString(), step=step)
        with self._lock:
            self.events[folder] = self.events.get(folder, 0) + 1

    def _errors(self, folder: str) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self._run / folder, tf.errors.OpError)

    def _writer(self, folder: str) -> tf.summary.SummaryWriter:
        with self._lock:  # both threads write, and a folder has one writer
            if folder not in self._writers:
                self._writers[folder] = tf.summary.create_file_writer(str(self._run / folder))
            return self._writers[folder]


def _done(future: Future[None]) -> bool:
    """Whether a drawing is done; raises its error, if it failed."""
    return future.done() and future.result() is None


def _words(value: Any) -> str:
    return printable(" ".join(map(str, value)) if isinstance(value, list | tuple) else value)


def _layout() -> layout_pb2.Layout:
    layout = layout_pb2.Layout()
    for category, charts in LAYOUT.items():
        added = layout.category.add(title=category)
        for title, tag in charts.items():
            added.chart.add(title=title).multiline.tag.append(f"^{tag}$")
    return layout


def _outcome(status: Status | None, step: int) -> list[Summary]:
    """Scalars on how a run ended, of which HParams makes columns; None for a run at work."""
    finished, failed = float(status == "success"), float(status == "failure")
    values = {"run/finished": finished, "run/failed": failed, "run/steps": float(step)}
    return [scalar_pb(name, value) for name, value in values.items()]


def scalars(folder: str, values: Mapping[str, float]) -> Summary:
    """The values under their names, and loss and accuracy again under ``RESCALED``."""
    drawn, loss = dict(values), values.get("loss", 0.0)
    if loss > 0:
        drawn[f"{RESCALED}log10_loss"] = math.log10(loss)
    for name in ("loss", "accuracy"):
        if folder == VALIDATION and name in values:
            drawn[f"{RESCALED}validation_{name}"] = values[name]
    merged = Summary()
    for name, value in drawn.items():
        merged.MergeFromString(scalar_pb(name, value).SerializeToString())
    return merged


def explain(value: Summary.Value) -> None:
    """Gives a value its tag's line of the glossary, which TensorBoard shows beside the tag."""
    if text := description(value.tag):
        value.metadata.summary_description = text


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _image(tag: str, png: bytes) -> Summary:
    size = struct.unpack(">II", png[16:24])  # width and height stand in a PNG's first chunk
    strings = [*(str(side).encode() for side in size), png]
    metadata = image_metadata.create_summary_metadata(None, None, converted_to_tensor=True)
    tensor = make_tensor_proto(strings, dtype=np.object_, shape=[len(strings)])
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _shown(returned: Mapping[str, tf.Tensor]) -> list[Summary]:
    """Summaries by name: a gallery of images [N, height, width, channels], a vector's histogram."""
    found = []
    for name, tensor in returned.items():
        value = np.asarray(tensor[:SHOWN] if tensor.shape.rank == 4 else tensor)
        image = value.ndim == 4
        found.append(_image(name, figures.gallery(value)) if image else _histogram(name, value))
    return found


def _histogram(tag: str, values: Array) -> Summary:
    """Counts in buckets of equal width: [buckets, 3], left edge, right edge, count."""
    # float64: in float32 too few numbers may lie between the values for all edges.
    finite = values[np.isfinite(values)].astype(np.float64)
    buckets = np.zeros([HISTOGRAM_BUCKETS, 3])
    if finite.size:
        counts, edges = np.histogram(finite, HISTOGRAM_BUCKETS)
        buckets = np.stack([edges[:-1], edges[1:], counts], 1)
    metadata = histogram_metadata.create_summary_metadata(None, None)
    tensor = make_tensor_proto(buckets, dtype=np.float64)
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _sprite(images: Array, side: int) -> Image.Image:
    """One image of all the images, uint8 [N, height, width], ``side`` in a row."""
    height, width = images.shape[1:]
    tiles = np.zeros([side * side, height, width], np.uint8)
    tiles[: len(images)] = images
    rows = tiles.reshape(side, side, height, width).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(side * height, side * width))


def write_columns(folder: Path, options: Mapping[str, Collection[Any]]) -> None:
    """Writes which columns the HParams dashboard has for all runs in a folder.

    Args:
        folder: the directory that TensorBoard reads.
        options: the different values of each option. Columns of a single value are hidden until
            they are asked for.
    """
    columns = []
    for name, values in options.items():
        given = [value for value in values if value is not None]
        column = api_pb2.HParamInfo(name=name, differs=len(values) > 1)
        if not given:
            continue
        if all(isinstance(value, bool) for value in given):
            column.type = api_pb2.DATA_TYPE_BOOL
            column.domain_discrete.extend(given)
        elif all(isinstance(value, int | float) for value in given):
            column.type = api_pb2.DATA_TYPE_FLOAT64
            column.domain_interval.min_value = min(given)
            column.domain_interval.max_value = max(given)
        else:
            column.type = api_pb2.DATA_TYPE_STRING
            column.domain_discrete.extend(sorted(map(_words, given)))
        columns.append(column)
    metrics = [
        api_pb2.MetricInfo(
            name=api_pb2.MetricName(group=group, tag=tag),
            display_name=shown,
            description=description(tag),
        )
        for shown, (group, tag) in COLUMNS.items()
    ]
    experiment = hparams.experiment_pb(columns, metrics)
    with tf.summary.create_file_writer(str(folder)).as_default():
        tf.summary.experimental.write_raw_pb(experiment.SerializeToString(), step=0)


def event_files(folder: Path) -> list[Path]:
    """TensorBoard's files in a folder."""
    return list(folder.glob("events.out.tfevents.*"))


def write_events(path: Path, events: Sequence[Event]) -> None:
    """Writes events, one or more, as one of TensorBoard's files, atomically.

    Raises:
        OSError, tf.errors.OpError: if the file can't be written.
    """
    version = Event(wall_time=events[0].wall_time, file_version="brain.Event:2")
    with replaced_atomically(path) as partial, tf.io.TFRecordWriter(str(partial)) as file:
        for event in (version, *events):
            file.write(event.SerializeToString())
        file.flush()
