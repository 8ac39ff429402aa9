"""What two runs have in common and in what they differ, as plain data.

Where values are compared, a pair is the value in the one run and in the other; None stands for a
value that a run does not have.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.comparing.checkout import PROJECT
from research.comparing.evidence import weights_sha256
from research.files import open_regular, read_json
from research.recording.code import NOT_TRAINED_WITH, difference
from research.recording.environment import different_values
from research.recording.metrics import NAME as METRICS
from research.recording.metrics import Line, common_lines, first_difference, parsed
from research.recording.run_directory import CODE
from research.recording.source import files_at
from research.recording.summary import Summary

from safetensors import SafetensorError, safe_open

Pairs = dict[str, list[Any]]

SPLITS = ("validation", "test")
# What environment.json says, by the word for it.
ENVIRONMENT = {
    "versions": ("python", "packages"),
    "hardware": ("cpu", "cores", "devices"),
    "threads": ("threads",),
    "flags": ("flags",),
}


def compared(one: Summary, other: Summary) -> dict[str, Any]:
    """Compares two runs.

    Returns:
        ``runs``: the path, experiment and status of each.
        ``same``, ``unknown``: the subjects that are the same, and of which that is unknown.
        ``different``: for each other subject, the pairs by name.
        ``figures``: for each split, the pairs by name.
        ``other_examples``: the splits in which the runs were evaluated on different examples.
        ``metrics``: see ``compared_metrics``.
        ``weights``: see ``compared_weights``.
    """
    both = (one, other)
    environments = [_read(each.run / "environment.json") for each in both]
    subjects: dict[str, Pairs | None] = {
        "experiment": _pairs({"name": one.experiment}, {"name": other.experiment}),
        "options": _pairs(one.options, other.options),
        "code": _code(one, other),
        "library": _library(both, environments),
        "data": _pairs(*({"sha256": each.data} for each in both)),
    }
    for subject, parts in ENVIRONMENT.items():
        values = different_values(environments[0], environments[1], parts)
        known = all(part in about for part in parts for about in environments)
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


def code_files(one: Summary, other: Summary) -> list[tuple[Path, Path]]:
    """The files of both experiments' code: the experiments themselves, then those they import."""
    folders = [each.run / CODE for each in (one, other)]
    mains = [f"{each.experiment}.py" for each in (one, other)]
    beside = {
        str(path.relative_to(folder)) for folder in folders for path in folder.rglob("*.py")
    } - {*mains}
    names = [tuple(mains), *((name, name) for name in sorted(beside))]
    return [(folders[0] / before, folders[1] / after) for before, after in names]


def _code(one: Summary, other: Summary) -> Pairs:
    """Of each file that differs: how many lines only the one run has, and only the other."""
    found: Pairs = {}
    for before, after in code_files(one, other):
        if lines := difference([(before, after)], 0)[2:]:  # without the names of the files
            found[after.name] = [sum(line[0] == sign for line in lines) for sign in "-+"]
    return found


def _library(both: tuple[Summary, Summary], environments: list[dict[str, Any]]) -> Pairs | None:
    """Commits, digests and differing files of the library if it differs; None if it is unknown."""
    digests = [about.get("library") for about in environments]
    files = [_library_of(each.run, about) for each, about in zip(both, environments, strict=True)]
    changed = {} if None in files else _pairs(*(each or {} for each in files))
    if None in digests:
        return None if None in files else changed
    if digests[0] == digests[1]:
        return {}
    commits = [(about.get("git") or {}).get("commit") for about in environments]
    found = {"digest": digests} | ({"commit": commits} if commits[0] != commits[1] else {})
    return found | changed


def _library_of(run: Path, environment: Mapping[str, Any]) -> dict[str, str] | None:
    """The library's files that trainings import, by their digests, as far as git knows them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
        commit, uncommitted = environment["git"]["commit"], environment["git"]["uncommitted"]
        patch = (run / "uncommitted.diff").read_bytes() if uncommitted else b""
        if commit is not None and not patch.startswith(b"# What is not committed is unknown"):
            files = files_at(PROJECT, commit, patch)
            package = [f"research/{name}" for name in NOT_TRAINED_WITH]
            return {
                name: digest
                for name, digest in files.items()
                if name.startswith("research/") and not name.startswith(tuple(package))
            }
    return None


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
    names = [{path.name for path in (run / "checkpoints").glob("step-*")} for run in (one, other)]
    for name in sorted(names[0] & names[1], reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
            digests = [_arrays_sha256(run / "checkpoints" / name) for run in (one, other)]
            return {"of": name, "same": digests[0] == digests[1]}
    return {"of": None, "same": None}


def _arrays_sha256(checkpoint: Path) -> dict[str, str]:
    with safe_open(checkpoint, "numpy") as file:
        about = json.loads(file.metadata()["about"])
    return {name: about["sha256"][name] for name in about["variables"]}


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> Pairs:
    """The values that differ."""
    names = {**one, **other}
    return {k: [one.get(k), other.get(k)] for k in names if one.get(k) != other.get(k)}


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    return {}
