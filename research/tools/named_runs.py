"""Finds runs and gives them names that tell them apart, for TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.recording.about import shown

# What config.json says beyond the options that decide results.
_NOT_DECISIVE = frozenset(
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
        """The options that can explain differences between results, without seeds."""
        options = {k: v for k, v in self.config.items() if k not in _NOT_DECISIVE}
        data = options.get("data")
        return options | {"data": data and Path(data).name}

    @property
    def kind(self) -> str:
        """The experiment, or the arm of a comparison."""
        name = str(self.config["experiment"])
        return self.below.parent.name if name in self.below.parent.name else name


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


def name_of(run: Found, runs: Sequence[Found]) -> str:
    """A name that begins with what is special: ``learning_rate=0.5 seed=1 mnist_cnn``.

    Args:
        run: a run; the name of another directory is its place.
        runs: the runs that are shown; an option is named if the run's value is not the most
            frequent one of its experiment.
    """
    if not run.config:
        return str(run.below)
    alike = [one.options for one in runs if one.config and one.kind == run.kind]
    named = []
    for name, value in run.options.items():
        values = [shown(options.get(name)) for options in alike]
        if shown(value) != max(values, key=values.count):
            named.append(f"{name}={shown(value)}")
    # A slash would begin another folder.
    return " ".join([*named, f"seed={run.config.get('seed')}", run.kind]).replace("/", "|")


def _config(run: Path) -> dict[str, Any]:
    try:
        config = json.loads((run / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}  # it is being written, or is somebody else's
    return config if isinstance(config, dict) and "experiment" in config else {}
