"""Finds runs and gives them names that tell them apart, for TensorBoard."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.comparison import QUESTION
from research.files import read_json
from research.printable import printable
from research.recording.about import shown

# What config.json says beyond the options that tell configurations apart.
_APART = frozenset(
    {
        *("experiment", "run", "data_sha256", "sha256", "run_dir", "fork"),
        *("seed", "holdout_seed"),
        *("steps_per_call", "log_every", "checkpoint_every", "keep_checkpoints"),
        *("test", "profile", "eager"),
    }
)
# Directories that hold no events of their own, and many files.
_WITHOUT_EVENTS = ("checkpoints", "code", "plugins")


@dataclasses.dataclass(frozen=True)
class Found:
    """A run, or another directory with TensorBoard's files.

    Attributes:
        path: the directory.
        below: its place below the directory in which it was looked for, from its name on.
        config: the content of config.json; empty if it is no run.
    """

    path: Path
    below: Path
    config: Mapping[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The options that tell configurations apart: no seeds, and none about speed or files."""
        options = {k: v for k, v in self.config.items() if k not in _APART}
        data = options.get("data")
        return options | {"data": data and Path(str(data)).name}

    @property
    def kind(self) -> str:
        """The experiment, or the arm of a comparison."""
        arm = self.path.parent
        in_comparison = (arm.parent / QUESTION).exists()
        return arm.name if in_comparison else str(self.config["experiment"])


def find_runs(roots: Iterable[Path]) -> Iterator[Found]:
    """The runs in some directories, and other directories with TensorBoard's files; each once."""
    seen = set()
    for root in roots:
        for folder, folders, files in os.walk(root):
            path = Path(folder)
            config = _config(path) if "config.json" in files else {}
            folders[:] = sorted(
                name
                for name in folders
                if not config and name not in _WITHOUT_EVENTS and not name.startswith(".")
            )
            found = config or any(name.startswith("events.out.tfevents.") for name in files)
            if found and path.resolve() not in seen:
                seen.add(path.resolve())
                below = Path(root.resolve().name) / path.relative_to(root)
                yield Found(path.resolve(), below, config)


def different_values(runs: Iterable[Found]) -> dict[str, list[Any]]:
    """The different values of each option; None is that of runs without the option."""
    options = [run.options for run in runs if run.config]
    values: dict[str, list[Any]] = {
        name: [] for name in dict.fromkeys(k for o in options for k in o)
    }
    for name, found in values.items():
        for one in options:
            if (value := one.get(name)) not in found:
                found.append(value)
    return values


def names_of(runs: Sequence[Found]) -> list[str]:
    """Names that begin with what is special: ``learning_rate=0.5 seed=1 mnist_cnn``.

    An option is named if the run's value is not the most frequent one of its experiment. Runs that
    would have equal names are told apart by their directories. A directory that is no run has its
    place for a name.
    """
    kinds = [run.kind if run.config else "" for run in runs]
    options = [{name: shown(value) for name, value in run.options.items()} for run in runs]
    usual = {
        kind: _most_frequent([one for one, its in zip(options, kinds, strict=True) if its == kind])
        for kind in set(kinds)
    }
    parts = []
    for run, kind, own in zip(runs, kinds, options, strict=True):
        odd = [f"{name}={value}" for name, value in own.items() if value != usual[kind][name]]
        parts.append((" ".join(odd), f"seed={shown(run.config.get('seed'))}", kind))
    counts = Counter(parts)
    names = []
    for run, part in zip(runs, parts, strict=True):
        special, seed, kind = part
        place = run.path.name if counts[part] > 1 else ""
        pieces = ((special, 100), (seed, 30), (place, 40), (kind, 60))
        words = [cut(text, most) for text, most in pieces if text]
        names.append(" ".join(words) if run.config else str(run.below))
    return names


def _most_frequent(options: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The most frequent value of each option; a run without the option counts as None."""
    names, missing = dict.fromkeys(name for one in options for name in one), shown(None)
    counts = {name: Counter(one.get(name, missing) for one in options) for name in names}
    return {name: count.most_common(1)[0][0] for name, count in counts.items()}


def cut(text: str, most: int) -> str:
    """A text as part of a file's name, in at most so many bytes; a whole name may have 255."""
    valid = printable(text.replace("/", "|"))  # a slash would begin another folder
    whole = valid.encode()
    return valid if len(whole) <= most else whole[: most - 3].decode(errors="ignore") + "..."


def _config(run: Path) -> dict[str, Any]:
    try:
        config = read_json(run / "config.json")
        repr(config)  # raises RecursionError where another function would, too
    except (OSError, ValueError, RecursionError):
        return {}  # it is being written, or is somebody else's
    return config if isinstance(config, dict) and "experiment" in config else {}
