"""The verb ``evaluate``: the figures of a trained model, as tables or as JSON."""

from __future__ import annotations

import dataclasses
import json

from research.data.dataset import NUM_CLASSES
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.printable import below_one, printable
from research.results.evaluation import Evaluation, evaluate
from research.results.export import load_h5
from research.screen import Screen
from research.tools.evaluate_corrupted import evaluate_corrupted, refuse_picture
from research.tools.in_characters import drawn
from research.tools.trained_model import find_model
from research.verbs import Evaluate

import numpy as np
import numpy.typing as npt
from rich.columns import Columns
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text


def run(asked: Evaluate, screen: Screen) -> None:
    """Evaluates and prints.

    Raises:
        InputError: if the model or the data can't be read.
    """
    model = find_model(asked.run_or_h5)
    if asked.picture is not None:
        refuse_picture(asked.picture)
    # The run's --examples apply to the run's own data only.
    data, examples = (asked.data, None) if asked.data else (model.data, model.examples)
    loaded = load_h5(model.h5)
    say = (lambda line: None) if asked.json else screen.say
    dataset = load_mnist(say) if data is None else read_dataset(data)
    test = dataset.first(examples).first(asked.examples).test
    facts = {"model": str(model.h5), "data": dataset.source}
    examples_of = "example of" if len(test) == 1 else "examples of"
    say(printable(f"{model.h5} on {len(test):,} test {examples_of} {dataset.source}"))
    if asked.corrupted:
        evaluate_corrupted(loaded, test, asked, facts, screen)
        return
    evaluation = evaluate(loaded, test)
    if asked.json:
        print(json.dumps(facts | dataclasses.asdict(evaluation), indent=2))
    else:
        for table in tables(evaluation):
            screen.console.print(table)
        screen.console.print(pictures(evaluation, test.images), soft_wrap=False)


def tables(evaluation: Evaluation) -> list[Table]:
    """The figures of an evaluation as tables for the terminal."""
    low, high = evaluation.accuracy_interval
    summary = Table("figure", "value", title="Summary", title_justify="left")
    summary.add_row("test loss", f"{evaluation.loss:.4f}")
    summary.add_row("test accuracy", f"{evaluation.accuracy:.4f}")
    summary.add_row("95% interval", f"{low:.4f} to {high:.4f}")
    summary.add_row("calibration error", f"{evaluation.calibration_error:.4f}")
    summary.add_row("examples", f"{evaluation.examples:,}")

    classes = Table("digit", title="Classes", title_justify="left")
    for heading in ("precision", "recall", "examples"):
        classes.add_column(heading, justify="right")
    for digit in range(NUM_CLASSES):
        classes.add_row(
            str(digit),
            f"{evaluation.precision[digit]:.4f}",
            f"{evaluation.recall[digit]:.4f}",
            f"{evaluation.support[digit]:,}",
        )

    # Without padding the counts of 10,000 examples fit into 60 columns. "fold" keeps rich from
    # cutting wider cells.
    predicted = [Column(str(n), justify="right", overflow="fold") for n in range(NUM_CLASSES)]
    title = "Confusion: true digits down, predicted digits across"
    confusion = Table("true", *predicted, title=title, title_justify="left", padding=0)
    for digit, row in enumerate(evaluation.confusion):
        cells = [str(n) if n else "." for n in row]
        cells[digit] = f"[bold]{row[digit]}[/bold]"
        confusion.add_row(str(digit), *cells)
    return [summary, classes, confusion]


def pictures(evaluation: Evaluation, images: npt.NDArray[np.uint8]) -> Columns:
    """The most confidently wrong examples, drawn in characters.

    Args:
        evaluation: of the split that ``images`` belong to.
        images: uint8 [N, 28, 28, 1].
    """
    panels = []
    for mistake in evaluation.most_wrong:
        picture = drawn(images[mistake.index, 3:25, 3:25, 0])
        told = f"\n{mistake.label} taken for {mistake.predicted}, {below_one(mistake.confidence)}"
        title = f"test image {mistake.index}"
        panels.append(Panel(Text(picture + told), title=title, expand=False))
    return Columns(panels, title="Most confidently wrong")
