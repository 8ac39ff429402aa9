"""The output of ``evaluate``, read as a person reads it."""

from __future__ import annotations

import json
from pathlib import Path

from research.data.corruptions import CORRUPTIONS
from research.results.evaluation import Evaluation, evaluate_probabilities
from research.screen import Screen
from research.tools.evaluate import pictures, tables
from research.tools.evaluate_corrupted import table

import numpy as np
import pytest
from conftest import RunHere, make_split
from PIL import Image
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
    probabilities[1] = [*[1e-6] * 3, 1 - 9e-6, *[1e-6] * 6]
    found = evaluate_probabilities(probabilities, split.labels)
    monkeypatch.setenv("COLUMNS", str(columns))
    with Screen() as screen:
        screen.console.print(pictures(found, split.images), soft_wrap=False)
    shown = capfd.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    for mistake in found.most_wrong:
        assert f" test image {mistake.index} " in shown
        # A confidence that would round to 1 has more digits.
        confidence = "0.99999 " if mistake.index == 1 else "0.9100 "
        assert f"{mistake.label} taken for 3, {confidence}" in shown


def test_evaluate_shows_the_figures_of_the_run(finished_run: Path, run_here: RunHere) -> None:
    result = run_here("research", "evaluate", finished_run, columns=80)
    assert (result.status, result.stderr) == (0, "")
    recorded = json.loads((finished_run / "evaluation.json").read_text())["test"]
    known = {k: v for k, v in recorded.items() if k in Evaluation.__dataclass_fields__}
    assert printed_tables(result.stdout, 80) == expected_tables(Evaluation(**known))


def test_examples_are_the_first_ones(finished_run: Path, run_here: RunHere) -> None:
    result = run_here("research", "evaluate", finished_run, "--examples", "30", "--json")
    assert (result.status, json.loads(result.stdout)["examples"]) == (0, 30)


def test_corrupted_shows_every_accuracy(
    finished_run: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = ("research", "evaluate", finished_run, "--corrupted", "--picture", "seen.png")
    result = run_here(*command, "--examples", "40", "--json")
    assert (result.status, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    with Image.open(tmp_path / "seen.png") as picture:
        assert (picture.format, picture.width) == ("PNG", 1000)
    corruptions = found["corruptions"]
    assert list(corruptions) == list(CORRUPTIONS)
    assert found["mean"] == pytest.approx(np.mean([of["mean"] for of in corruptions.values()]))
    rows = [["corruption", "1", "2", "3", "4", "5", "mean", "fall"]]
    for name, of in corruptions.items():
        values = (*of["accuracy"], np.mean(of["accuracy"]), found["clean"] - of["mean"])
        rows.append([name.replace("_", " "), *(f"{value:.3f}" for value in values)])
    for columns in (60, 80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        with Screen() as screen:
            screen.console.print(table(found))
        assert printed_tables(capfd.readouterr().out, columns) == [rows]


@pytest.mark.parametrize(
    "columns", [80, *(pytest.param(n, marks=pytest.mark.slow) for n in (60, 120))]
)
def test_corrupted_at_one_severity_fits_and_names_the_worst(
    columns: int, finished_run: Path, run_here: RunHere
) -> None:
    command = ("research", "evaluate", finished_run, "--corrupted", "--severity", "4")
    result = run_here(*command, "--examples", "20", "--picture", "seen.png", columns=columns)
    assert (result.status, result.stderr) == (0, "")
    for words in ("300 predictions", "Clean accuracy: ", "Mean under corruption: ", " read as "):
        assert words in result.stdout
    (printed,) = printed_tables(result.stdout, columns)
    assert printed[0] == ["corruption", "accuracy", "95% interval", "fall"]
    worst = min(printed[1:], key=lambda row: float(row[1]))
    assert f"\nWorst: {worst[0]}, {worst[1]}" in result.stdout
    assert f" {worst[0]} ─" in result.stdout
    drawn = result.stdout.partition("Worst: ")[2].splitlines()[1:-1]
    assert max(map(len, drawn)) <= columns
    assert result.stdout.endswith("\nSaved picture: seen.png\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--severity", "3"], "--severity 3: give 1 to 5, and --corrupted"),
        (["--corrupted", "--severity", "6"], "--severity 6: give 1 to 5"),
        (["--seed", "1"], "--seed 1: give 0 or more, and --corrupted"),
        (["--picture", "x.png"], "--picture x.png: name a .png file, and give --corrupted"),
        (["--corrupted", "--picture", "x.pdf"], "--picture x.pdf: name a .png file"),
        (["--corrupted", "--picture", "no/x.png"], "--picture no/x.png: nothing can be written"),
        (["--corrupted", "--picture", "old.png"], "--picture old.png: it exists already; remove"),
        (["--examples", "0"], "--examples 0: give at least 1"),
    ],
)
def test_what_corrupted_can_not_do_is_refused(
    options: list[str], words: str, finished_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    result = run_here("research", "evaluate", finished_run, *options)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {words}")
    assert result.stderr.count("\n") == 1
