"""What two runs have in common and in what they differ, as plain data.

Where values are compared, a pair is the value in the one run and in the other; None stands for a
value that a run does not have.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.comparing.evidence import weights_sha256
from research.files import as_object, open_regular, read_object, read_source
from research.recording.code import trained_with, unified
from research.recording.environment import different_values
from research.recording.metrics import NAME as METRICS
from research.recording.metrics import Line, common_lines, first_difference, parsed
from research.recording.run_directory import CODE, read_code
from research.recording.summary import Summary
from research.tools.rerun_results import checkpoints, variables_sha256

from safetensors import SafetensorError

Pairs = dict[str, list[Any]]
# The files of the one and of the other run, by name and content; a missing one is empty.
Files = list[tuple[tuple[str, bytes], tuple[str, bytes]]]

SPLITS = ("validation", "test")
# What environment.json says, by the word for it.
ENVIRONMENT = {
    "versions": ("python", "packages"),
    "hardware": ("cpu", "extensions", "cores", "devices"),
    "threads": ("threads",),
    "flags": ("flags",),
}
# Earlier versions have not recorded it.
OPTIONAL = "extensions"


def compared(one: Summary, other: Summary) -> dict[str, Any]:
    """Compares two runs.

    Returns:
        ``runs``: the path, experiment and status of each.
        ``same``, ``unknown``: the subjects that are the same, and that can't be compared.
        ``different``: for each other subject, the pairs by name. In code and library, the pair of a
        file is the number of lines that only the one run has, and only the other.
        ``figures``: for each split, the pairs by name.
        ``other_examples``: the splits in which the runs were evaluated on different examples.
        ``metrics``: see ``compared_metrics``.
        ``weights``: see ``compared_weights``.
    """
    both = (one, other)
    environments = [read_object(each.run / "environment.json") for each in both]
    files = code_files(one, other)
    subjects: dict[str, Pairs | None] = {
        "experiment": _pairs({"name": one.experiment}, {"name": other.experiment}),
        "options": _pairs(one.options, other.options),
        "code": None if files is None else _lines_apart(files),
        "library": _library(both, environments),
        "data": _pairs(*({"sha256": each.data} for each in both)),
    }
    for subject, parts in ENVIRONMENT.items():
        values = different_values(environments[0], environments[1], parts)
        known = all(part in about for part in parts if part != OPTIONAL for about in environments)
        subjects[subject] = {k: list(pair) for k, pair in values.items()} if known else None
    return {
        "runs": [
            {"run": str(each.run), "experiment": each.experiment, "status": each.status}
            for each in both
        ],
        "same": [subject for subject, pairs in subjects.items() if pairs == {}],
        "unknown": [subject for subject, pairs in subjects.items() if pairs is None],
        "different": {subject: pairs for subject, pairs in subjects.items() if pairs},
        "figures": {
            split: pairs
            for split in SPLITS
            if (pairs := _figures(getattr(one, split), getattr(other, split)))
        },
        "other_examples": [split for split in SPLITS if len({*_examples(both, split)}) > 1],
        "metrics": compared_metrics(one.run, other.run),
        "weights": compared_weights(one.run, other.run),
    }


def code_files(one: Summary, other: Summary) -> Files | None:
    """Both experiments' files, then what they import; None if a run keeps no such file."""
    try:
        ours, theirs = (
            {
                path.relative_to(folder).as_posix(): read_source(path)
                for path in folder.rglob("*.py")
            }
            for folder in (one.run / CODE, other.run / CODE)
        )
    except OSError:
        return None
    mains = [f"{each.experiment}.py" for each in (one, other)]
    if mains[0] not in ours or mains[1] not in theirs:
        return None
    beside = sorted((ours.keys() | theirs.keys()) - {*mains})
    return [
        ((before, ours.get(before, b"")), (after, theirs.get(after, b"")))
        for before, after in [tuple(mains), *zip(beside, beside, strict=True)]
    ]


def library_files(one: Summary, other: Summary) -> Files | None:
    """The files of both libraries that trainings import; None if a run keeps no library."""
    try:
        ours, theirs = (read_code(each.run) for each in (one, other))
    except (OSError, ValueError):
        return None
    names = sorted(filter(trained_with, ours.keys() | theirs.keys()))
    return [((name, ours.get(name, b"")), (name, theirs.get(name, b""))) for name in names]


def _lines_apart(files: Files) -> Pairs:
    """Of each file that differs: how many lines only the one run has, and only the other."""
    found: Pairs = {}
    for before, after in files:
        if before[1] != after[1]:
            lines = unified(before, after, 0)[2:]  # without the names of the files
            found[after[0]] = [sum(line[0] == sign for line in lines) for sign in "-+"]
    return found


def _library(both: tuple[Summary, Summary], environments: list[dict[str, Any]]) -> Pairs | None:
    """Commits and differing files of the library, or its digests; None if it is unknown."""
    files = library_files(*both)
    if files is None:  # as in runs of earlier versions
        found = _pairs(*({"digest": about.get("library")} for about in environments))
        if None in (about.get("library") for about in environments):
            return None
    else:
        found = _lines_apart(files)
    commits = [{"commit": as_object(about.get("git")).get("commit")} for about in environments]
    return found and _pairs(*commits) | found


def _examples(both: tuple[Summary, Summary], split: str) -> list[tuple[Any, ...]]:
    """What decides on which examples each run was evaluated."""
    found = []
    for each in both:
        options = each.options
        facts = [each.data, options.get("examples")]
        if split == "validation":
            seed = options.get("holdout_seed")
            facts += [options.get("holdout"), each.seed if seed is None else seed]
        found.append(tuple(facts))
    return found


def _figures(ours: Mapping[str, float] | None, theirs: Mapping[str, float] | None) -> Pairs:
    # calibration_error stands in evaluation.json twice.
    names = {**(ours or {}), **(theirs or {})}.keys() - {"examples", "calibration_error"}
    return {
        name: [(ours or {}).get(name), (theirs or {}).get(name)]
        for name in sorted(names, key=lambda name: (name not in ("accuracy", "loss"), name))
    }


def compared_metrics(one: Path, other: Path) -> dict[str, Any]:
    """Compares the lines of metrics.jsonl, without times.

    Returns:
        ``lines``: how many each run has.
        ``common``: how many are about the same steps, see ``common_lines``.
        ``same``: how many of these are the same, before the first one that differs.
        ``first_difference``: its ``split``, ``step``, ``name`` and the pair ``values``; or None.
        ``measured_by_one``: the names of values that only the one run measures, and only the other.
    """
    ours, theirs = _metrics(one), _metrics(other)
    common, first = common_lines(ours, theirs), first_difference(ours, theirs)
    same = len(common)
    if first is not None:
        places = [(line["split"], line["step"]) for line, _ in common]
        same = places.index((first.split, first.step))
    names = [{name for line in lines for name in line} for lines in (ours, theirs)]
    return {
        "lines": [len(ours), len(theirs)],
        "common": len(common),
        "same": same,
        "first_difference": first and dataclasses.asdict(first),
        "measured_by_one": [sorted(names[0] - names[1]), sorted(names[1] - names[0])],
    }


def _metrics(run: Path) -> list[Line]:
    """The lines of metrics.jsonl; damaged ones are left out."""
    with contextlib.suppress(OSError), open_regular(run / METRICS) as file:
        return [line for each in file if (line := parsed(each)) is not None]
    return []


def compared_weights(one: Path, other: Path) -> dict[str, Any]:
    """Compares the trained networks, or the newest checkpoints that both runs have.

    Returns:
        ``of``: what was compared, None if there is nothing; ``same``: whether it has the same bits.
    """
    h5 = [run / "mnist.h5" for run in (one, other)]
    with contextlib.suppress(OSError, ValueError, KeyError):
        return {"of": "mnist.h5", "same": weights_sha256(h5[0]) == weights_sha256(h5[1])}
    ours, theirs = checkpoints(one), checkpoints(other)
    for step in sorted(ours.keys() & theirs.keys(), reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
            digests = [variables_sha256(each) for each in (ours[step], theirs[step])]
            return {"of": ours[step].name, "same": digests[0] == digests[1]}
    return {"of": None, "same": None}


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pairs:
    """The values that differ."""
    names = {**one, **other}
    return {k: [one.get(k), other.get(k)] for k in names if one.get(k) != other.get(k)}
