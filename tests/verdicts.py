"""Makes up what verdict.json holds, for tests of the page and of the picture."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from research.comparing.evidence import Outcome, Pair
from research.comparing.question import Metric
from research.comparing.report import judged
from research.comparing.rule import rule_of

# Errors of a baseline, as fractions, and differences that decide after as few pairs as can be.
BASELINE = [0.0081, 0.0079, 0.0085, 0.0074, 0.0080, 0.0083, 0.0077, 0.0082]
WORSE = [0.0009, 0.0011, 0.0008, 0.0010, 0.0009, 0.0012, 0.0008, 0.0011]


def plus(values: Sequence[float], differences: Sequence[float]) -> list[float]:
    """The values of an arm that differs from a baseline with ``values`` by ``differences``."""
    return [value + difference for value, difference in zip(values, differences, strict=False)]


def made_up(
    arms: Mapping[str, Sequence[float]],
    metric: str = "lowest error",
    failed: Collection[tuple[str, int]] = (),
    same_bits: bool = False,
    **question: Any,
) -> dict[str, Any]:
    """A verdict on arms whose trainings ended with these figures, seeds from 0.

    Args:
        arms: a value of the figure for each seed by name, the baseline first.
        metric: the figure that decides.
        failed: arms and seeds of trainings that became non-finite.
        same_bits: whether all arms ended with the same weights.
        question: fields of the question that differ.
    """
    names = list(arms)
    about: list[dict[str, Any]] = [
        {
            "name": name,
            "revision": None,
            "commit": "0fb154c" + "0" * 33,
            "options": [],
            "file": f"now/experiments/{name}.py",
            "command": f"python experiments/{name}.py --epochs 1.5 --holdout 10000 --seed 0",
        }
        for name in names
    ]
    asked: dict[str, Any] = {
        "arms": about,
        "options": ["--epochs", "1.5", "--holdout", "10000"],
        "metric": metric,
        "margin": None,
        "alpha": 0.05,
        "first_seed": 0,
        "threads": 1,
        "python": "3.11.7",
        "packages": {"tensorflow": "2.21.0", "torch": None},
        "processor": ["avx", "avx2", "avx512f", "avx512_bf16", "sse4_2"],
        "variables": {},
        "evaluated_on": ["5eed" * 16, None, 10_000, None],
        "held_out": 10_000,
        "training_examples": 50_000,
        "processor_name": "A Processor",
        "most_pairs": 40,
    } | question
    declared = Metric.parse(metric)

    def outcome(name: str, seed: int) -> Outcome:
        if (name, seed) in failed:
            return Outcome(None, None)
        value = arms[name][seed]
        figures = {"accuracy": 1 - value} if declared.name == "error" else {declared.name: value}
        return Outcome(figures, "same" if same_bits else f"{name}-{seed}")

    pairs = [
        Pair(seed, tuple(outcome(name, seed) if seed < len(arms[name]) else None for name in names))
        for seed in range(max(map(len, arms.values())))
    ]
    row = {
        "seconds": [18.0, 0.5],
        "step_milliseconds": [21.3, 0.41],
        "peak_memory": [2.0**30, 2.0**20],
        "side_by_side": True,
        "ratio_of_seconds": [1.02, 0.03, 8],
        "ratio_of_step_milliseconds": [1.1, 0.02, 8],
        "ratio_of_peak_memory": [1.0, 0.001, 8],
    }
    found = {
        "question": asked,
        **judged(pairs, declared, rule_of(asked), names, asked["most_pairs"]),
        "differences_of_code": ["-x = 1\n+x = 2\n"] * (len(names) - 1),
        "reused_baseline_seeds": [],
        "cost": {
            "workers": 2,
            "cores": 2,
            "arms": [dict(row) for _ in names],
            "training_seconds": 288.0,
        },
    }
    return json.loads(json.dumps(found))
