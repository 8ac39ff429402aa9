"""verdict.json: a comparison's question, pairs, findings and cost, as plain data."""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.comparing.comparison import Comparison, Cost
from research.comparing.evidence import (
    Finding,
    Outcome,
    Pair,
    consider,
    mean_and_sd,
    processors,
)
from research.comparing.question import Metric
from research.comparing.rule import Rule
from research.comparing.trainings import cores_here
from research.errors import InputError, one_line
from research.files import read_json
from research.recording.code import difference
from research.recording.run_directory import CODE

# The most of a difference between two arms' code that a report has, in lines.
MOST_LINES = 200


def verdict(comparison: Comparison, workers: int, most_pairs: int) -> dict[str, Any]:
    """Everything that is known about a comparison so far.

    Args:
        comparison: the comparison.
        workers: number of trainings at a time.
        most_pairs: number of pairs to train without a verdict; all that are there are judged.
    """
    fields, first = comparison.fields, comparison.fields["first_seed"]
    pairs = comparison.pairs()
    reused = [p.seed for p in pairs if comparison.reused(p.seed) is not None]
    found = judged(pairs, comparison.metric, comparison.rule, comparison.names, most_pairs)
    counted = max((finding["pairs"] for finding in found["findings"]), default=0)
    costs = {k: v for k, v in comparison.costs().items() if k[1] < first + counted}
    question = {k: v for k, v in fields.items() if k not in ("about_arms", "baseline")}
    arms = [
        {k: arm[k] for k in ("name", "revision", "commit", "options", "file")}
        | {"command": command(comparison, number)}
        for number, arm in enumerate(comparison.arms)
    ]
    runs = [
        comparison.run(arm, pair.seed)
        for pair in pairs[:counted]
        for arm, outcome in enumerate(pair.outcomes)
        if outcome is not None
    ]
    return {
        "question": question | {"arms": arms, "most_pairs": most_pairs},
        **found,
        "differences_of_code": [
            code_difference(comparison, number) for number in range(1, len(arms))
        ],
        "reused_baseline_seeds": reused,
        "processors": processors(runs),
        "cost": cost(costs, len(arms), workers),
    }


def judged(
    pairs: Sequence[Pair], metric: Metric, rule: Rule, names: Sequence[str], most_pairs: int
) -> dict[str, Any]:
    """The part of a verdict that follows from the figures alone: findings, arms, pairs."""
    findings = []
    for number in range(1, len(names)):
        finding = consider(pairs, number, metric, rule, most_pairs)
        findings.append({"challenger": names[number], **_plain(finding)})
    counted = max((finding["pairs"] for finding in findings), default=0)
    results = []
    for number, name in enumerate(names):
        n = counted if number == 0 else findings[number - 1]["pairs"]
        outcomes = [pair.outcomes[number] for pair in pairs[:n]]
        there = [o.figures for o in outcomes if o is not None and o.figures is not None]
        values = [value for f in there if (value := metric.of(f)) is not None]
        mean, sd = mean_and_sd(values)
        failed = sum(o is not None and o.figures is None for o in outcomes)
        results.append({"name": name, "n": len(values), "mean": mean, "sd": sd, "failed": failed})
    return {
        "findings": findings,
        "results": results,
        "pairs": [
            {"seed": p.seed, "outcomes": [o and dataclasses.asdict(o) for o in p.outcomes]}
            for p in pairs[:counted]
        ],
    }


def _plain(finding: Finding) -> dict[str, Any]:
    """A finding as JSON values; what is not a number yet is None."""
    fields = dataclasses.asdict(finding)
    return {
        k: None
        if isinstance(v, float) and math.isnan(v)
        else list(v)
        if isinstance(v, tuple)
        else v
        for k, v in fields.items()
    }


def cost(costs: Mapping[tuple[int, int], Cost], arms: int, workers: int) -> dict[str, Any]:
    """What the arms' trainings took, and the ratio to the baseline's, over whole pairs.

    The ratio is of trainings that this comparison ran side by side; if there are none, because all
    of the baseline's were reused, of those.
    """
    found: list[dict[str, Any]] = []
    for arm in range(arms):
        mine = [c for (a, _), c in sorted(costs.items()) if a == arm]
        row: dict[str, Any] = {}
        for name in ("seconds", "step_milliseconds", "peak_memory"):
            values = [v for c in mine if (v := getattr(c, name)) is not None]
            row[name] = mean_and_sd(values)
        pairs = [(costs[0, s], c) for (a, s), c in costs.items() if a == arm and (0, s) in costs]
        here = [(b, c) for b, c in pairs if b.here]
        row["side_by_side"] = bool(here)
        for name in ("seconds", "step_milliseconds", "peak_memory"):
            ratios = [
                getattr(c, name) / getattr(b, name)
                for b, c in here or pairs
                if getattr(b, name) and getattr(c, name)
            ]
            row[f"ratio_of_{name}"] = [*mean_and_sd(ratios), len(ratios)]
        found.append(row)
    seconds = [c.seconds for c in costs.values() if c.here]
    return {
        "workers": workers,
        "cores": cores_here(),
        "arms": found,
        "training_seconds": sum(seconds),
    }


def command(comparison: Comparison, arm: int) -> str:
    """The command line of an arm's training with the first seed, as a user would give it."""
    about = comparison.arms[arm]
    file = Path(about["file"]).relative_to(about["root"]) if _inside(about) else Path(about["file"])
    words = ["python", str(file), *comparison.fields["options"], *about["options"]]
    return shlex.join([*words, "--seed", str(comparison.fields["first_seed"])])


def _inside(about: Mapping[str, Any]) -> bool:
    return Path(about["file"]).is_relative_to(about["root"])


def again(comparison: Comparison, most_pairs: int, directory: Path | None = None) -> str:
    """The command that repeats a comparison, or goes on with it in a directory."""
    fields = comparison.fields
    words = ["python", "-m", "research", "compare", *fields["arms"]]
    words += ["--metric", fields["metric"]]
    words += [] if fields["margin"] is None else ["--margin", repr(fields["margin"])]
    words += [] if fields["alpha"] == 0.05 else ["--alpha", repr(fields["alpha"])]
    words += ["--first-seed", str(fields["first_seed"])] if fields["first_seed"] else []
    words += ["--threads", str(fields["threads"])] if fields["threads"] != 1 else []
    words += ["--most-pairs", str(most_pairs)]
    words += [] if directory is None else ["--directory", str(directory)]
    return shlex.join([*words, "--", *fields["options"]])


@functools.cache  # neither copy of the code changes
def code_difference(comparison: Comparison, challenger: int) -> str:
    """The difference of the experiments' files, and of the library if it is of another commit."""
    folder = comparison.path / CODE
    ours, theirs = comparison.arms[0], comparison.arms[challenger]
    files = [folder / arm["file"] for arm in (ours, theirs)]
    pairs = [(files[0], files[1])]
    beside = sorted((ours["code"].keys() | theirs["code"].keys()) - {file.name for file in files})
    pairs += [(files[0].parent / name, files[1].parent / name) for name in beside]
    if ours["root"] != theirs["root"]:
        roots = [folder / arm["root"] for arm in (ours, theirs)]
        names = {path.relative_to(root) for root in roots for path in root.glob("research/**/*.py")}
        pairs += [(roots[0] / name, roots[1] / name) for name in sorted(names)]
    lines = difference(pairs, context=1)
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"... and {len(lines) - MOST_LINES} more lines\n"]
    return "".join(lines)


def read_verdict(path: Path) -> dict[str, Any]:
    """Reads verdict.json, or that of a comparison's directory.

    Raises:
        InputError: if it is none.
    """
    try:
        file = path / "verdict.json" if path.is_dir() else path
        found = read_json(file)
        if not isinstance(found, dict) or not {"question", "pairs"} <= found.keys():
            raise ValueError("it has no pairs")
    except (OSError, ValueError) as error:
        raise InputError(
            f"--again {path}: no verdict ({one_line(error)[:100]}); name a verdict.json or the "
            "directory of a comparison"
        ) from error
    return found


def pairs_of(found: Mapping[str, Any]) -> list[Pair]:
    """The pairs in a verdict.json."""
    return [
        Pair(p["seed"], tuple(o and Outcome(o["figures"], o["weights"]) for o in p["outcomes"]))
        for p in found["pairs"]
    ]
