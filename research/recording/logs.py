"""Reads back the logs of a run and mends damage: each of the two logs can mend the other.

metrics.jsonl and TensorBoard's files both hold every scalar. A checkpoint holds how much had been
recorded in each, so that a resumed run finds lines that are missing or have been changed since.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import InputError
from research.files import is_regular, move_aside, replaced_atomically, storage_errors
from research.printable import counted
from research.recording.metrics import NAME as METRICS
from research.recording.metrics import parsed
from research.recording.tensorboard import LOGGED as FOLDERS
from research.recording.tensorboard import RESCALED, event_files, explain, write_events
from research.recording.tensorboard import scalars as scalar_summary

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util.tensor_util import make_ndarray

# The keys of a line that are not measured values.
_ABOUT = ("split", "step", "seconds")
_EMPTY = hashlib.sha256().hexdigest()

Point = tuple[str, int]  # split and step of one line, or of one event of scalars


@dataclasses.dataclass(frozen=True)
class Logged:
    """How much had been recorded when a checkpoint was saved.

    Attributes:
        size: bytes of metrics.jsonl.
        sha256: the SHA-256 of these bytes, in hexadecimal.
        lines: number of lines for each split.
        events: number of events in TensorBoard's files for each split: one event of scalars for
            each line, and further events of pictures, histograms and curves.
    """

    size: int = 0
    sha256: str = _EMPTY
    lines: Mapping[str, int] = dataclasses.field(default_factory=dict)
    events: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Logs:
    """The logs up to a checkpoint, with damage mended.

    Attributes:
        lines: the lines of metrics.jsonl, as bytes, in the order of writing.
        events: the events in TensorBoard's files for each split, in the order of their steps.
        damage: messages on what was damaged, mended and lost, one line each.
        aside: damaged files, which ``write_logs`` keeps under another name.
    """

    lines: list[bytes] = dataclasses.field(default_factory=list)
    events: dict[str, list[Event]] = dataclasses.field(default_factory=dict)
    damage: list[str] = dataclasses.field(default_factory=list)
    aside: list[Path] = dataclasses.field(default_factory=list)

    def parsed(self) -> list[dict[str, Any]]:
        """The lines as dictionaries: ``split``, ``step``, ``seconds``, and the measured values."""
        return [json.loads(line) for line in self.lines]

    def of(self, split: str) -> list[dict[str, Any]]:
        """The lines of one split, as dictionaries."""
        return [line for line in self.parsed() if line["split"] == split]

    def logged(self) -> Logged:
        """How much these logs hold."""
        content = b"".join(self.lines)
        return Logged(
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            lines=dict(collections.Counter(line["split"] for line in self.parsed())),
            events={split: len(events) for split, events in self.events.items()},
        )


def read_logs(run: Path, logged: Logged) -> Logs:
    """Reads the logs of a run up to a checkpoint; changes no file.

    If metrics.jsonl does not match the checkpoint, its lines are compared with TensorBoard's
    events, which have checksums. Lines that differ or are missing are made from the events, with
    float32 precision. Scalars that TensorBoard's files lack are made from the lines.

    Args:
        run: the run directory.
        logged: how much had been recorded, from the checkpoint.

    Raises:
        InputError: if a file can't be read for another reason than damage, such as permissions.
    """
    damage: list[str] = []
    aside: list[Path] = []
    events: dict[str, list[Event]] = {}
    for split in FOLDERS:
        events[split], bad = _events(run / split)
        aside += bad
    scalars = {
        (split, event.step): event
        for split, of_split in events.items()
        for event in reversed(of_split)
        if _is_scalars(event)
    }
    content = _content(run / METRICS)
    prefix = content[: logged.size]
    began = _began(content, scalars)
    strange = os.path.lexists(run / METRICS) and not is_regular(run / METRICS)
    if hashlib.sha256(prefix).hexdigest() == logged.sha256 and not strange:
        lines = prefix.splitlines(keepends=True)
    else:
        lines, told = _mended_lines(content, scalars, logged, began)
        damage.append(f"{run / METRICS}: damaged; {told}")
        if os.path.lexists(run / METRICS):
            aside.append(run / METRICS)
    steps: dict[str, dict[int, bytes]] = {split: {} for split in FOLDERS}
    for line in lines:
        values = json.loads(line)
        steps[values["split"]][values["step"]] = line
    for split in FOLDERS:
        expected = logged.events.get(split, 0)
        kept, told = _mended_events(events[split], steps[split], expected, began)
        events[split] = kept
        if told or any(run / split in (path, path.parent) for path in aside):
            told = told or "nothing is lost"
            damage.append(f"{run / split}: TensorBoard's files are damaged; {told}")
            aside += [path for path in event_files(run / split) if path not in aside]
    return Logs(lines, events, damage, aside)


def write_logs(logs: Logs, run: Path) -> None:
    """Replaces the logs of a run directory by these, each file atomically.

    TensorBoard can't take back events: without a rewrite, a resumed run would show repeated steps
    twice. Damaged files are kept under another name.

    Raises:
        StorageError: if a file can't be written.
    """
    for path in logs.aside:
        if path.is_relative_to(run):
            move_aside(path, keep=True)
    with storage_errors(run / METRICS), replaced_atomically(run / METRICS) as partial:
        partial.write_bytes(b"".join(logs.lines))
    for split, events in logs.events.items():
        files = event_files(run / split)
        with storage_errors(run / split, tf.errors.OpError):
            if events:
                (run / split).mkdir(exist_ok=True)
                # TensorBoard reads in the order of names; this name precedes those of writers.
                first = f"events.out.tfevents.{int(events[0].wall_time):010d}.0"
                target = min([run / split / first, *files])
                write_events(target, events)
                files = [path for path in files if path != target]
            for path in files:
                path.unlink()


def _mended_lines(
    content: bytes, scalars: Mapping[Point, Event], logged: Logged, began: float
) -> tuple[list[bytes], str]:
    """The lines of a damaged metrics.jsonl, as far as possible, and a message on the repair."""
    found: dict[Point, bytes] = {}
    for line in content.splitlines():
        values = parsed(line)
        if values is None:
            continue
        point = (values["split"], values["step"])
        event = scalars.get(point)
        if event is None or _measured(values) == _values(event):
            found.setdefault(point, line + b"\n")
    unchecked = found.keys() - scalars.keys()
    made = scalars.keys() - found.keys()
    for split, step in made:
        event = scalars[split, step]
        about = {"split": split, "step": step, "seconds": round(event.wall_time - began, 3)}
        # The shortest decimal number that float32 rounds to the value.
        values = {tag: float(str(value)) for tag, value in _values(event).items()}
        found[split, step] = json.dumps(about | values, allow_nan=False).encode() + b"\n"
    counts: collections.Counter[str] = collections.Counter()
    lines, points = [], []
    for point in sorted(found, key=lambda point: (point[1], FOLDERS.index(point[0]))):
        counts[point[0]] += 1
        if counts[point[0]] <= logged.lines.get(point[0], 0):
            lines.append(found[point])
            points.append(point)
    total = sum(logged.lines.values())
    told = f"{len(made & set(points))} of {total} lines made from TensorBoard's files"
    if left := len(unchecked & set(points)):
        told += f", {left} could not be compared with them"
    if lost := total - len(lines):
        told += f", {lost} lost"
    return lines, told


def _mended_events(
    events: list[Event], lines: Mapping[int, bytes], logged: int, began: float
) -> tuple[list[Event], str]:
    """The events of one split that match its lines, by step, and a message on the repair."""
    kept: dict[tuple[int, bool, tuple[str, ...]], Event] = {}
    for event in events:
        if event.step not in lines:
            continue  # recorded after the checkpoint was saved: the run will record it again
        if _is_scalars(event) and _values(event) != _measured(json.loads(lines[event.step])):
            continue
        tags = tuple(value.tag for value in event.summary.value)
        kept.setdefault((event.step, not _is_scalars(event), tags), event)
    with_scalars = {step for step, pictures, _ in kept if not pictures}
    missing = lines.keys() - with_scalars
    pictures = len(kept) - len(with_scalars)
    for step in missing:
        kept[step, False, ()] = _scalars_event(json.loads(lines[step]), began)
    told = f"{len(missing)} of {len(lines)} points made from {METRICS}" if missing else ""
    if (lost := logged - len(lines) - pictures) > 0:
        told += f"{', ' if told else ''}{counted(lost, 'set')} of pictures and histograms lost"
    return [kept[key] for key in sorted(kept)], told


def _events(folder: Path) -> tuple[list[Event], list[Path]]:
    """The events with a summary in a folder's files, and the paths of damaged files."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        return [], [folder]
    events, bad = [], []
    for path in sorted(event_files(folder)):
        try:
            if not is_regular(path):
                raise DecodeError("not a file")
            for record in tf.data.TFRecordDataset(str(path)):
                event = Event.FromString(record.numpy())
                if event.HasField("summary"):
                    events.append(event)
        except tf.errors.DataLossError:
            continue  # a kill may have cut off the last event
        except DecodeError:
            bad.append(path)
        except (OSError, tf.errors.OpError) as error:
            raise InputError(f"{path}: can't be read; restore it, or move it away") from error
    return events, bad


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes() if is_regular(path) else b""
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error


def _began(content: bytes, scalars: Mapping[Point, Event]) -> float:
    """An estimate of the wall time at which the run began, from which lines count seconds."""
    lines = [values for line in content.splitlines() if (values := parsed(line))]
    offsets = [
        event.wall_time - values["seconds"]
        for values in lines
        if (event := scalars.get((values["split"], values["step"])))
    ]
    first = min((event.wall_time for event in scalars.values()), default=time.time())
    return min(offsets, default=first - max((v["seconds"] for v in lines[:1]), default=0.0))


def _measured(line: Mapping[str, Any]) -> dict[str, np.float32]:
    """The measured values of a line, in TensorBoard's precision."""
    with np.errstate(over="ignore"):
        return {name: np.float32(value) for name, value in line.items() if name not in _ABOUT}


def _values(event: Event) -> dict[str, np.float32]:
    """The scalars of an event by tag, without those that repeat others at another scale."""
    return {
        v.tag: np.float32(make_ndarray(v.tensor).item())
        for v in event.summary.value
        if not v.tag.startswith(RESCALED)
    }


def _is_scalars(event: Event) -> bool:
    plugins = {value.metadata.plugin_data.plugin_name for value in event.summary.value}
    return plugins == {"scalars"}


def _scalars_event(line: Mapping[str, Any], began: float) -> Event:
    """An event with the measured values of a line."""
    measured = {name: value for name, value in line.items() if name not in _ABOUT}
    summary = scalar_summary(line["split"], measured)
    for value in summary.value:
        explain(value)
    return Event(wall_time=began + line["seconds"], step=line["step"], summary=summary)
