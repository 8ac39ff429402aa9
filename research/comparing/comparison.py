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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.checkout import NOW, PROJECT, code_sha256, commit_named, library_sha256
from research.comparing.evidence import Outcome, Pair, read_outcome
from research.comparing.question import Declared, Metric
from research.comparing.rule import rule_of
from research.comparing.trainings import Ended, Task, lock_file
from research.errors import InputError, one_line
from research.files import read_sealed_json, sha256, storage_errors
from research.processor import extensions
from research.recording.environment import PACKAGES, version
from research.recording.run_directory import CODE

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
        "processor": sorted(e for e in extensions() if re.match("sse|avx|amx|fma|asimd|sve", e)),
        "variables": variables,
    }


def files_named(declared: Declared, number: int | None = None) -> dict[str, str]:
    """The SHA-256 of files that options name, such as a teacher's network, by the option's word.

    Args:
        declared: what is to be compared.
        number: the arm; None takes all.
    """
    arms = declared.arms if number is None else declared.arms[number : number + 1]
    words = [*declared.options, *(word for arm in arms for word in arm.options)]
    return {word: sha256(Path(word)) for word in sorted(set(words)) if os.path.isfile(word)}


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
        self._reusable: list[Path] | None = None

    @property
    def names(self) -> list[str]:
        """The arms' names."""
        return [arm["name"] for arm in self.arms]

    def run(self, arm: int, seed: int) -> Path:
        """The run directory of a training: this comparison's own, or one that is reused."""
        own = self.path / self.arms[arm]["folder"] / f"seed-{seed}"
        if arm == 0 and self._finished(own) is None:
            for other in self._others():
                run = other / self.arms[0]["folder"] / f"seed-{seed}"
                with contextlib.suppress(InputError):
                    if self._finished(run) is not None:
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
        return self._finished(self.run(arm, seed))

    def _finished(self, run: Path) -> Outcome | None:
        if run not in self._known and (outcome := read_outcome(run)) is not None:
            self._require_same_examples(run)
            self._known[run] = outcome
        return self._known.get(run)

    def _require_same_examples(self, run: Path) -> None:
        """Refuses a training on other data, or with other held-out examples, than declared."""
        try:
            config = read_sealed_json(run / "config.json")
            data, seed = config["data_sha256"], config["holdout_seed"]
            there = (data, config["examples"], config["holdout"], seed)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{run}: can't be judged ({one_line(error)}); delete the directory, and the "
                "training is repeated"
            ) from error
        wanted = tuple(self.fields["evaluated_on"])
        if there != wanted:
            raise InputError(
                f"{run}: evaluated on other examples (data, --examples, --holdout, --holdout-seed "
                f"are {there}, not {wanted}); arms can be compared on the same examples only"
            )

    def pairs(self, most: int) -> list[Pair]:
        """The pairs so far, in the order of their seeds, at most so many."""
        first, found = self.fields["first_seed"], []
        for seed in range(first, first + most):
            outcomes = tuple(self.outcome(arm, seed) for arm in range(len(self.arms)))
            if outcomes[0] is None and not any(outcomes):
                break
            found.append(Pair(seed, outcomes))
        return found

    def order(self, seed: int) -> list[int]:
        """The arms in the order in which they are trained; each comes first equally often."""
        arms, turn = list(range(len(self.arms))), seed % len(self.arms)
        return arms[turn:] + arms[:turn]

    def task(self, arm: int, seed: int) -> Task:
        """The training to run, or to resume if it was killed."""
        about = self.arms[arm]
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
        for folder in [*self._others(), self.path]:
            own = folder == self.path
            for line in json_lines(folder / TRAININGS):
                arm, seed = line["arm"], line["seed"]
                run = folder / self.arms[arm]["folder"] / f"seed-{seed}"
                if (own or arm == 0) and line["whole"] and run == self.run(arm, seed):
                    if run not in self._steps:
                        self._steps[run] = step_milliseconds(run)
                    step = self._steps[run]
                    found[arm, seed] = Cost(line["seconds"], step, line["peak_memory"], own)
        return found

    def _others(self) -> list[Path]:
        """The directories of other comparisons with the same baseline."""
        if self._reusable is None:
            folders = dict.fromkeys([COMPARISONS.absolute(), self.path.absolute().parent])
            self._reusable = [
                other.path
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


def find(declared: Declared, directory: Path | None) -> Comparison | None:
    """The comparison that this declaration began, if code and machine are as they were then.

    Args:
        declared: what is to be compared.
        directory: where to look; None looks at all comparisons.

    Raises:
        InputError: if the directory holds something else.
    """
    commits = [commit_named(arm) for arm in declared.arms]
    if directory is None:
        there = list(comparisons_in(COMPARISONS))
        good = [each for each in there if not _differences(each, declared, commits)]
        return good[-1] if good else None
    if not os.path.lexists(directory):
        return None
    found = open_comparison(directory)
    if different := _differences(found, declared, commits):
        raise InputError(
            f"--directory {directory}: it is another comparison ({'; '.join(different)}); name "
            "a new directory, or leave it out"
        )
    return found


def _differences(there: Comparison, declared: Declared, commits: Sequence[str | None]) -> list[str]:
    """What makes a declaration another comparison than the one that is there."""
    found = []
    for name, now in declared.as_json().items():
        if there.fields[name] != now:
            found.append(f"{name} {_shown(there.fields[name])} there, {_shown(now)} now")
    if found:
        return found
    machine = describe_machine()
    found += [f"another {name}" for name in machine if machine[name] != there.fields[name]]
    for arm, about, commit in zip(declared.arms, there.arms, commits, strict=True):
        if commit is not None:
            if commit != about["commit"]:
                found.append(f"{arm.revision} is commit {commit[:12]} now")
        elif code_sha256(arm.file.resolve().parent, list(about["code"])) != about["code"]:
            found.append(f"{arm.file} or what it imports has been edited")
    if files_named(declared) != there.fields["files"]:
        found.append("a file that an option names has changed")
    if None in commits and library_sha256(PROJECT) != there.fields["libraries"][NOW]:
        found.append("the library has been edited")
    return found


def _shown(value: Any) -> str:
    return shlex.join(value) if isinstance(value, list) else str(value)


def lock_comparison(path: Path, say: Callable[[str], None]) -> int:
    """Locks a comparison; waits a little for trainings of one that was killed to stop.

    Raises:
        InputError: if another process is at work on it.
    """
    until, told = time.monotonic() + _SECONDS_FOR_OTHERS, False
    while (descriptor := lock_file(path)) is None:
        if time.monotonic() > until:
            raise InputError(f"{path}: another process is at work on it; wait for it, or stop it")
        if not told:
            say(f"Waiting for another process to let go of {path} ...")
            told = True
        time.sleep(0.2)
    return descriptor


def step_milliseconds(run: Path) -> float | None:
    """The median time of a training step."""
    try:
        batch = read_sealed_json(run / "config.json")["batch_size"]
    except (OSError, ValueError, KeyError):
        return None
    speeds = [
        1000 * batch / line["speed/examples_per_second"]
        for line in json_lines(run / "metrics.jsonl")
        if line.get("speed/examples_per_second")
    ]
    return statistics.median(speeds) if speeds else None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines; a line that was cut off is left out."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                yield found
