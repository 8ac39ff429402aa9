"""A comparison that has begun: its directory, its trainings, and what they took."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.checkout import PROJECT, code_sha256
from research.comparing.evidence import Outcome, Pair, read_outcome
from research.comparing.question import Declared, Metric
from research.comparing.rule import rule_of
from research.comparing.trainings import Ended, Task
from research.errors import InputError, StorageError, one_line
from research.files import json_lines, read_sealed_json, sha256, storage_errors
from research.processor import vector_extensions
from research.recording.code import library_sha256
from research.recording.environment import PACKAGES, version
from research.recording.run_directory import CODE, lock

COMPARISONS = Path("runs") / "compare"
QUESTION = "comparison.json"
TRAININGS = "trainings.jsonl"
_SECONDS_FOR_OTHERS = 45


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a training took.

    Attributes:
        seconds: from its start to its end.
        step_milliseconds: median over its reports, or None.
        peak_memory: in bytes.
        here: whether this comparison ran it, and not another one.
    """

    seconds: float
    step_milliseconds: float | None
    peak_memory: int
    here: bool


def describe_machine() -> dict[str, Any]:
    """What decides the bits of a training, besides its code, its options and the data."""
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if re.match("TF_(?!CPP|CLI|NUM)|XLA_|ONEDNN_|KERAS_|CUDA_VISIBLE", name)
    }
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "processor": vector_extensions(),
        "variables": variables,
    }


def files_sha256(paths: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of those of the paths that are files."""
    return {path: sha256(Path(path)) for path in sorted(set(paths)) if os.path.isfile(path)}


class Comparison:
    """A comparison that exists, in a directory of its own.

    Args:
        path: its directory.
        fields: the fields of comparison.json.
    """

    def __init__(self, path: Path, fields: Mapping[str, Any]) -> None:
        self.path, self.fields = path, fields
        self.metric = Metric.parse(fields["metric"])
        self.arms: list[dict[str, Any]] = fields["about_arms"]
        self.rule = rule_of(fields)
        self._known: dict[Path, Outcome] = {}
        self._steps: dict[Path, float | None] = {}
        self._reusable: list[Comparison] | None = None

    @property
    def names(self) -> list[str]:
        """The arms' names."""
        return [arm["name"] for arm in self.arms]

    @property
    def begun(self) -> bool:
        """Whether a training has begun here."""
        return any((self.path / arm["folder"]).is_dir() for arm in self.arms)

    def run(self, arm: int, seed: int) -> Path:
        """The run directory of a training: this comparison's own, or one that is reused."""
        own = self.path / self.arms[arm]["folder"] / f"seed-{seed}"
        if arm == 0 and self._finished(own, 0) is None:
            for other in self._others():
                run = other.path / other.arms[0]["folder"] / f"seed-{seed}"
                with contextlib.suppress(InputError):
                    if self._finished(run, 0) is not None:
                        return run
        return own

    def reused(self, seed: int) -> Path | None:
        """The baseline's training with this seed, if it is another comparison's."""
        run = self.run(0, seed)
        return None if run.is_relative_to(self.path) else run

    def outcome(self, arm: int, seed: int) -> Outcome | None:
        """What a training has come to; None as long as it has not ended.

        Raises:
            InputError: if it can't be judged, or was evaluated on other examples than its pair.
        """
        return self._finished(self.run(arm, seed), arm)

    def _finished(self, run: Path, arm: int) -> Outcome | None:
        if run not in self._known and (outcome := read_outcome(run)) is not None:
            self._require_declared(run, arm)
            self._known[run] = outcome
        return self._known.get(run)

    def _require_declared(self, run: Path, arm: int) -> None:
        """Refuses a training with other data, held-out examples or options than declared."""
        try:
            config = read_sealed_json(run / "config.json")
            names = ("data_sha256", "examples", "holdout", "holdout_seed")
            there = [config[name] for name in names]
            seed = f"seed-{config['seed']}"
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{run}: can't be judged ({one_line(error)}); delete the directory, and the "
                "training is repeated"
            ) from error
        if there != self.fields["evaluated_on"]:
            raise InputError(
                f"{run}: evaluated on other examples (data, --examples, --holdout, --holdout-seed "
                f"are {there}, not {self.fields['evaluated_on']}); arms can be compared on the "
                "same examples only"
            )
        options = self.arms[arm]["config"]
        other = [name for name, value in options.items() if config.get(name) != value]
        if other or seed != run.name:
            raise InputError(
                f"{run}: trained with other options ({', '.join(other) or seed}); delete the "
                "directory, and the training is repeated"
            )

    def pairs(self) -> list[Pair]:
        """The pairs so far, in the order of their seeds, until one of which nothing is there."""
        found: list[Pair] = []
        while True:
            seed = self.fields["first_seed"] + len(found)
            outcomes = tuple(self.outcome(arm, seed) for arm in range(len(self.arms)))
            if not any(outcomes):
                return found
            found.append(Pair(seed, outcomes))

    def order(self, seed: int) -> list[int]:
        """The arms in the order in which they are trained; each comes first equally often."""
        arms, turn = list(range(len(self.arms))), seed % len(self.arms)
        return arms[turn:] + arms[:turn]

    def task(self, arm: int, seed: int) -> Task:
        """The training to run, or to resume if it was killed.

        Raises:
            InputError: if a file that its options name has changed.
        """
        about, files = self.arms[arm], self.fields["files"]
        if files_sha256(files) != files:
            raise InputError(
                f"{', '.join(files)}: changed since the comparison began; put it back, or give the "
                "command again for a new comparison"
            )
        run = self.path / about["folder"] / f"seed-{seed}"
        with storage_errors(run.parent):
            run.parent.mkdir(exist_ok=True)
        return Task(
            key=(arm, seed),
            name=f"{about['name']}, seed {seed}",
            root=self.path / CODE / about["root"],
            file=self.path / CODE / about["file"],
            arguments=[*self.fields["options"], *about["options"], "--seed", str(seed)],
            run=run,
        )

    def record(self, ended: Ended) -> None:
        """Records what a training took, if it ran in one go."""
        arm, seed = ended.task.key
        facts = {"arm": arm, "seed": seed, "whole": ended.whole}
        facts |= {"seconds": round(ended.seconds, 3), "peak_memory": ended.peak_memory}
        path = self.path / TRAININGS
        with storage_errors(path), path.open("a") as file:
            file.write(f"\n{json.dumps(facts)}\n")  # a line that was cut off ends here

    def costs(self) -> dict[tuple[int, int], Cost]:
        """What the trainings took, by arm and seed, as far as they ran in one go."""
        found = {}
        for there in [*self._others(), self]:
            for line in json_lines(there.path / TRAININGS):
                with contextlib.suppress(KeyError, TypeError, IndexError):
                    arm, seed = line["arm"], line["seed"]
                    run = there.path / there.arms[arm]["folder"] / f"seed-{seed}"
                    mine = there is self or arm == 0
                    if mine and line["whole"] and run == self.run(arm, seed):
                        if run not in self._steps:
                            self._steps[run] = step_milliseconds(run)
                        facts = (self._steps[run], line["peak_memory"], there is self)
                        found[arm, seed] = Cost(line["seconds"], *facts)
        return found

    def _others(self) -> list[Comparison]:
        """Other comparisons with the same baseline."""
        if self._reusable is None:
            folders = dict.fromkeys([COMPARISONS.absolute(), self.path.absolute().parent])
            self._reusable = [
                other
                for folder in folders
                for other in comparisons_in(folder)
                if other.path != self.path.absolute()
                and other.fields["baseline"] == self.fields["baseline"]
            ]
        return self._reusable


def comparisons_in(folder: Path) -> Iterator[Comparison]:
    """The comparisons in a folder, oldest first; what can't be read is left out."""
    for path in sorted(folder.glob(f"*/{QUESTION}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, InputError):
            yield Comparison(path.parent, read_sealed_json(path))


def open_comparison(path: Path) -> Comparison:
    """The comparison in a directory.

    Raises:
        InputError: if there is none.
    """
    try:
        return Comparison(path, read_sealed_json(path / QUESTION))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--directory {path}: no comparison, its {QUESTION} can't be read "
            f"({one_line(error)[:100]}); name a new directory, or that of a comparison"
        ) from error


def find(
    declared: Declared, commits: Sequence[str | None], directory: Path | None, data: str
) -> Comparison | None:
    """The comparison that this declaration began, if all that it depends on is as it was then.

    Args:
        declared: what is to be compared.
        commits: the commit that each arm names, see ``commit_named``.
        directory: where to look; None looks at all comparisons.
        data: the SHA-256 of the data.

    Raises:
        InputError: if the directory holds something else.
    """
    if directory is None:
        there = list(comparisons_in(COMPARISONS))
        good = [each for each in there if not _differences(each, declared, commits, data)]
        return good[-1] if good else None
    if not os.path.lexists(directory):
        return None
    found = open_comparison(directory)
    if different := _differences(found, declared, commits, data):
        raise InputError(
            f"--directory {directory}: it is another comparison ({'; '.join(different)}); name "
            "a new directory, or leave it out"
        )
    return found


def _differences(
    there: Comparison, declared: Declared, commits: Sequence[str | None], data: str
) -> list[str]:
    """What makes a declaration another comparison than the one that is there."""
    found, fields = [], there.fields
    for name, now in declared.as_json().items():
        if fields[name] != now:
            found.append(f"{name} {_shown(fields[name])} there, {_shown(now)} now")
    if found:
        return found
    machine = describe_machine()
    found += [f"another {name}" for name in machine if machine[name] != fields[name]]
    for arm, about, commit in zip(declared.arms, there.arms, commits, strict=True):
        names = list(about["code"])
        if commit is not None:
            if commit != about["commit"]:
                found.append(f"{arm.revision} is commit {commit[:12]} now")
        elif code_sha256(arm.file.resolve().parent, names) != about["code"]:
            found.append(f"{arm.file} or what it imports has been edited")
        copied = (there.path / CODE / about["file"]).parent
        library = fields["libraries"][about["root"]]
        if code_sha256(copied, names) != about["code"] or (
            library_sha256(there.path / CODE / about["root"]) != library
        ):
            found.append(f"its copy of the code, {there.path / CODE}, has been edited")
        if commit is None and library_sha256(PROJECT) != library:
            found.append("the library has been edited")
    if fields["evaluated_on"][0] != data:
        found.append("the data have changed")
    if files_sha256(fields["files"]) != fields["files"]:
        found.append("a file that an option names has changed")
    return found


def _shown(value: Any) -> str:
    return shlex.join(value) if isinstance(value, list) else str(value)


def lock_comparison(path: Path, say: Callable[[str], None]) -> int:
    """Locks a comparison; waits a little for trainings of one that was killed to stop.

    Raises:
        InputError: if another process is at work on it.
        StorageError: if it can't be locked.
    """
    until, told = time.monotonic() + _SECONDS_FOR_OTHERS, False
    while True:
        try:
            return lock(path)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"{path}: another process is at work on it; wait for it, or stop it"
                ) from error
        except OSError as error:
            raise StorageError(f"{path}: can't be locked ({error.strerror})") from error
        if not told:
            say(f"Waiting for another process to let go of {path} ...")
            told = True
        time.sleep(0.2)


def step_milliseconds(run: Path) -> float | None:
    """The median time of a training step."""
    try:
        config = read_sealed_json(run / "config.json")
        batch = config["batch_size"] * config.get("accumulate", 1)
    except (OSError, ValueError, KeyError):
        return None
    speeds = [
        1000 * batch / line["speed/examples_per_second"]
        for line in json_lines(run / "metrics.jsonl")
        if line.get("speed/examples_per_second")
    ]
    return statistics.median(speeds) if speeds else None
