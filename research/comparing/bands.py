"""Bands for TensorBoard: each arm's mean and standard deviation over the seeds, step by step."""

from __future__ import annotations

import contextlib
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.comparison import QUESTION, Comparison
from research.comparing.question import is_number
from research.files import json_lines, remove_partial_files, storage_errors
from research.recording.metrics import NAME as METRICS
from research.recording.tensorboard import TRAIN, VALIDATION, write_events

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

FOLDER = "bands"
_EVENTS = "events.out.tfevents.0.bands"
_CATEGORY = "Bands: mean ± standard deviation over the seeds of each arm"
# Training has more figures, but few that are read beside those of validation.
_OF_TRAINING = ("loss", "accuracy")
_ABOUT = {"split", "step", "seconds"}  # what a line of metrics.jsonl has beside its figures

# The lines of all seeds with the same step and split, in the order of steps; see ``points``.
Points = Mapping[tuple[int, str], Sequence[Mapping[str, Any]]]


def write_bands(comparison: Comparison, found: Mapping[str, Any]) -> Path | None:
    """Writes each arm's bands for TensorBoard's Custom Scalars, in place of earlier ones.

    A band is the mean over the seeds ± one standard deviation, n - 1 in the denominator, of every
    figure of validation and of the loss and accuracy of training. The seeds are those whose pairs
    the verdict counts. A training that became non-finite is left out, as in the verdict's table. A
    band has the steps that all of its seeds have: where arms or seeds train for different lengths,
    each band ends with the arm's shortest training. An arm with fewer than two seeds has no band.

    The folder of an arm's bands names the number of seeds: TensorBoard never reads a file again, so
    that one that is open would show the old bands in a folder of the same name. It drops a folder
    that is gone.

    Args:
        comparison: the comparison, locked.
        found: its verdict (``research.comparing.report.verdict``).

    Returns:
        The folder of all bands, or None if there are none.

    Raises:
        StorageError: if a file can't be written.
    """
    folder = comparison.path / FOLDER
    arms: dict[Path, tuple[str, Points]] = {}
    for number, (about, result) in enumerate(zip(comparison.arms, found["results"], strict=True)):
        runs = [
            comparison.run(number, pair["seed"])
            for pair in found["pairs"][: result["n"] + result["failed"]]
            if pair["outcomes"][number]["figures"] is not None
        ]
        if len(runs) > 1 and (there := points(runs)):
            place = folder / f"{about['folder']}-{len(runs)}-seeds"
            arms[place] = (f"{len(runs)} seeds of {about['name']}", there)
    # All arms have the same layout: TensorBoard merges equal ones, and loses charts of others.
    layout = _layout(list(dict.fromkeys(n for _, there in arms.values() for n in _names(there))))
    began = (comparison.path / QUESTION).stat().st_mtime
    for place, (seeds, there) in arms.items():
        with storage_errors(place, tf.errors.OpError):
            place.mkdir(parents=True, exist_ok=True)
            events = _events(there, seeds, began)
            write_events(place / _EVENTS, [_event(began, 0, layout), *events])
    _remove_others(folder, arms)
    return folder if arms else None


def points(runs: Sequence[Path]) -> Points:
    """The lines of the runs' metrics.jsonl by step and split, where all runs have one."""
    found = defaultdict(list)
    for run in runs:
        for line in json_lines(run / METRICS):
            if line.keys() >= _ABOUT and line["split"] in (TRAIN, VALIDATION):
                found[line["step"], line["split"]].append(line)
    return {point: found[point] for point in sorted(found) if len(found[point]) == len(runs)}


def _figures(split: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The values of all seeds by the figure's name, of figures that all of them have."""
    names = _OF_TRAINING if split == TRAIN else [name for name in lines[0] if name not in _ABOUT]
    return {
        f"{split}/{name}": [line[name] for line in lines]
        for name in names
        if all(is_number(line.get(name)) for line in lines)
    }


def _names(there: Points) -> list[str]:
    """The figures at any point, validation first."""
    names = dict.fromkeys(n for (_, split), lines in there.items() for n in _figures(split, lines))
    return sorted(names, key=lambda name: not name.startswith(VALIDATION))


def _events(there: Points, seeds: str, began: float) -> Iterator[Event]:
    """An event for each point, with three scalars for each figure."""
    ends = ("Mean", "Mean minus one standard deviation", "Mean plus one standard deviation")
    for (step, split), lines in there.items():
        scalars = []
        for name, values in _figures(split, lines).items():
            mean, sd = statistics.fmean(values), statistics.stdev(values)
            for tag, value, end in zip(
                _tags(name), (mean, mean - sd, mean + sd), ends, strict=True
            ):
                scalars.append(scalar_pb(tag, value, f"{end} over {seeds}"))
        after = statistics.fmean(line["seconds"] for line in lines)
        yield _event(began + after, step, *scalars)


def _event(wall_time: float, step: int, *summaries: Summary) -> Event:
    event = Event(wall_time=wall_time, step=step)
    for summary in summaries:
        event.summary.MergeFromString(summary.SerializeToString())
    return event


def _tags(name: str) -> tuple[str, str, str]:
    """The tags of a figure's mean and of both ends of its band."""
    first = f"{FOLDER}/{name}"
    return f"{first}/mean", f"{first}/mean_minus_sd", f"{first}/mean_plus_sd"


def _layout(names: Sequence[str]) -> Summary:
    layout = layout_pb2.Layout()
    category = layout.category.add(title=_CATEGORY)
    for name in reversed(names):  # TensorBoard 2.20 draws margin charts last one first
        value, lower, upper = _tags(name)
        chart = category.chart.add(title=f"{name.replace('/', ' ', 1)}, mean ± sd")
        chart.margin.series.add(value=value, lower=lower, upper=upper)
    return custom_scalar.pb(layout)


def _remove_others(folder: Path, arms: Mapping[Path, Any]) -> None:
    """Removes bands of another number of seeds, and files of a process that was killed."""
    remove_partial_files(folder)
    with storage_errors(folder):
        for path in folder.glob(f"*/{_EVENTS}"):
            if path.parent not in arms:
                path.unlink()
                with contextlib.suppress(OSError):  # somebody's own file is in it
                    path.parent.rmdir()
