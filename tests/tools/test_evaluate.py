"""The output of ``evaluate``, read as a person reads it."""

from __future__ import annotations

import json
from pathlib import Path

from research.results.evaluation import Evaluation, evaluate_probabilities
from research.screen import Screen
from research.tools.evaluate import pictures, tables

import numpy as np
import pytest
from conftest import RunHere, make_split
from printed import printed_tables


def expected_tables(found: Evaluation) -> list[list[list[str]]]:
    low, high = found.accuracy_interval
    by_digit = zip(found.precision, found.recall, found.support, strict=True)
    return [
        [
            ["figure", "value"],
            ["test loss", f"{found.loss:.4f}"],
            ["test accuracy", f"{found.accuracy:.4f}"],
            ["95% interval", f"{low:.4f} to {high:.4f}"],
            ["calibration error", f"{found.calibration_error:.4f}"],
            ["examples", f"{found.examples:,}"],
        ],
        [
            ["digit", "precision", "recall", "examples"],
            *(
                [str(digit), f"{precision:.4f}", f"{recall:.4f}", f"{count:,}"]
                for digit, (precision, recall, count) in enumerate(by_digit)
            ),
        ],
        [
            ["true", *map(str, range(10))],
            *(
                [str(digit), *(str(n) if n or digit == m else "." for m, n in enumerate(row))]
                for digit, row in enumerate(found.confusion)
            ),
        ],
    ]


@pytest.mark.parametrize(
    ("columns", "examples"), [(60, 10_000), (80, 10_000), (80, 100_000), (120, 1)]
)
def test_the_tables_hold_every_figure(
    columns: int,
    examples: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, examples)
    found = evaluate_probabilities(rng.dirichlet(np.ones(10), examples), labels)
    monkeypatch.setenv("COLUMNS", str(columns))
    with Screen() as screen:
        for table in tables(found):
            screen.console.print(table)
    assert printed_tables(capfd.readouterr().out, columns) == expected_tables(found)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_each_mistake_is_drawn_beside_its_answer(
    columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    split = make_split(20)
    probabilities = np.full((20, 10), 0.01)
    probabilities[:, 3] = 0.91
    found = evaluate_probabilities(probabilities, split.labels)
    monkeypatch.setenv("COLUMNS", str(columns))
    with Screen() as screen:
        screen.console.print(pictures(found, split.images), soft_wrap=False)
    shown = capfd.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    for mistake in found.most_wrong:
        assert f" test image {mistake.index} " in shown
        assert f"{mistake.label} taken for 3, 0.9100 " in shown


def test_evaluate_shows_the_figures_of_the_run(finished_run: Path, run_here: RunHere) -> None:
    result = run_here("research", "evaluate", finished_run, columns=80)
    assert (result.status, result.stderr) == (0, "")
    recorded = json.loads((finished_run / "evaluation.json").read_text())["test"]
    known = {k: v for k, v in recorded.items() if k in Evaluation.__dataclass_fields__}
    assert printed_tables(result.stdout, 80) == expected_tables(Evaluation(**known))
