"""The arithmetic of ``bench``; ``test_experiments.py`` runs the verb itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from research.data.batches import Plan
from research.screen import Screen
from research.tools.bench_loops import floating_point_operations
from research.tools.bench_trainings import compare_trainings
from research.tools.load_experiment import load_experiment

import pytest
from conftest import EXPERIMENTS


@pytest.mark.parametrize(
    ("name", "per_place"),
    [("mnist_cnn", (2, 3, 3, 3)), ("speedrun", (1, 2, 3, 3))],  # forward, kernel, input
)
def test_the_floor_counts_what_a_step_has_to_compute(name: str, per_place: tuple[int, ...]) -> None:
    experiment = load_experiment(EXPERIMENTS / f"{name}.py")
    model = experiment.build(experiment.config(), Plan(60_000, 128, 1)).model
    # Computed by hand: 3x3 kernels at 26x26 and 24x24 places, and two dense layers.
    forward = [9 * 32 * 26**2, 9 * 32 * 64 * 24**2, 9216 * 256, 256 * 10]
    expected = sum(2 * 100 * n * times for n, times in zip(forward, per_place, strict=True))
    assert floating_point_operations(model, 100) == expected


def test_the_time_of_fit_is_that_of_twelve_epochs() -> None:
    asked = []

    def ask_ours(seed: str) -> dict[str, Any]:
        asked.append(f"seed {seed}")
        return {"seconds": 5.0, "accuracy": 0.9, "loss": 0.3}

    def ask_fit(line: str) -> dict[str, Any]:
        asked.append("fit")
        return {"seconds": 2.0}

    options: Any = {"trainings": 3, "steps": 4, "examples": 1000, "experiment": Path("e.py")}
    with Screen() as screen:
        found = compare_trainings(ask_ours, ask_fit, screen=screen, **options)
    assert (found["experiment"], found["examples"]) == ("e.py", 1000)
    # 12 epochs have 8 steps of 128 examples each; 4 steps take 2 seconds.
    assert [row["fit_seconds"] for row in found["trainings"]] == [48.0] * 3
    assert [row["fit_over_ours"] for row in found["trainings"]] == [9.6] * 3
    # The first warms up; then the order alternates.
    assert asked == ["fit", "seed 0", "fit", "fit", "seed 1", "seed 2", "fit"]
