"""``evaluate --corrupted``: the accuracy under each corruption, as a table, JSON and a picture."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from research.data.dataset import Split
from research.errors import InputError
from research.files import replaced_atomically, storage_errors
from research.printable import duration, printable
from research.results.corrupted import correct_under, mean_interval
from research.results.evaluation import predict_probabilities, wilson_interval
from research.screen import Screen
from research.tools.corrupted_picture import draw
from research.tools.in_characters import drawn
from research.verbs import Evaluate

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from rich.columns import Columns
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

# The time is estimated from so many examples under each corruption.
_TRIED = 300
# So many of the worst corruptions are drawn in the terminal.
_DRAWN = 3


def refuse_picture(path: Path) -> None:
    """Refuses the path of a picture that can't be written, before minutes are spent on it.

    Raises:
        InputError: if the file exists, or its folder can't be written to.
    """
    if os.path.lexists(path):
        raise InputError(f"--picture {path}: it exists already; remove it, or give another name")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"--picture {path}: nothing can be written to {path.parent}; name another folder"
        )


def evaluate_corrupted(
    model: tf.keras.Model, test: Split, asked: Evaluate, facts: Mapping[str, str], screen: Screen
) -> None:
    """Evaluates under each corruption, and prints.

    Args:
        model: see ``research.results.evaluation.evaluate``.
        test: at least one example.
        asked: its ``severity``, ``seed``, ``picture`` and ``json`` count here.
        facts: ``model`` and ``data`` in words.
        screen: where to print.
    """
    severities = SEVERITIES if asked.severity is None else (asked.severity,)
    if not asked.json:
        _say_how_long(model, test, len(severities), screen)
    clean = predict_probabilities(model, test.images).argmax(1) == test.labels
    correct = {}
    shown = not asked.json and screen.console.is_terminal
    with Progress(console=screen.console, disable=not shown, transient=True) as progress:
        for name in progress.track(CORRUPTIONS, description="corruptions"):
            rows = [correct_under(model, test, name, k, asked.seed) for k in severities]
            correct[name] = np.stack(rows)
    found = summary(clean, correct, severities)
    if asked.json:
        print(json.dumps({**facts, "seed": asked.seed, **found}, indent=2))
    else:
        screen.console.print(table(found))
        for line in conclusion(found):
            screen.say(line)
        worst = _worst_drawn(model, test.first(1), found, asked.seed)
        screen.console.print(worst, soft_wrap=False)
    if asked.picture is not None:
        picture = draw(found, test.images[:1], asked.seed)
        with storage_errors(asked.picture), replaced_atomically(asked.picture) as partial:
            partial.write_bytes(picture)
        if not asked.json:
            screen.say(printable(f"Saved picture: {asked.picture}"))


def _say_how_long(model: tf.keras.Model, test: Split, severities: int, screen: Screen) -> None:
    """Prints the number of predictions and an estimate of the time, measured on a few examples."""
    few, line = test.first(_TRIED), f"{len(CORRUPTIONS) * severities * len(test):,} predictions"
    if len(test) > _TRIED:
        predict_probabilities(model, few.images)  # traces
        began = time.monotonic()
        for name in CORRUPTIONS:
            correct_under(model, few, name, 3)
        seconds = (time.monotonic() - began) * severities * len(test) / _TRIED
        line += f" in about {duration(seconds)}; --severity or --examples shorten it"
    screen.say(line)


def summary(
    clean: npt.NDArray[np.bool_],
    correct: Mapping[str, npt.NDArray[np.bool_]],
    severities: Sequence[int],
) -> dict[str, Any]:
    """The accuracies, each with its 95% interval, as ``--json`` prints them.

    Args:
        clean: [N], whether each example is classified correctly as it is.
        correct: for each corruption [severities, N].
        severities: the severities.
    """
    corruptions = {
        name: {
            "amounts": [CORRUPTIONS[name].amounts[severity - 1] for severity in severities],
            "unit": CORRUPTIONS[name].unit,
            "accuracy": rows.mean(1).tolist(),
            "intervals": [wilson_interval(int(row.sum()), len(row)) for row in rows],
            "mean": float(rows.mean()),
            "mean_interval": mean_interval(rows),
        }
        for name, rows in correct.items()
    }
    every = np.stack(list(correct.values()))
    return {
        "examples": len(clean),
        "severities": list(severities),
        "clean": float(clean.mean()),
        "clean_interval": wilson_interval(int(clean.sum()), len(clean)),
        "mean": float(every.mean()),
        "mean_interval": mean_interval(every),
        "corruptions": corruptions,
    }


def table(found: Mapping[str, Any]) -> Table:
    """The accuracies of a ``summary``; bold for the worst corruption."""
    severities, clean, worst = found["severities"], found["clean"], _by_accuracy(found)[0]
    one = len(severities) == 1
    headings = ["accuracy", "95% interval", "fall"] if one else [*severities, "mean", "fall"]
    columns = [Column(str(heading), justify="right") for heading in headings]
    title = "Accuracy at severity " + (str(severities[0]) if one else "1 (mildest) to 5")
    # Without padding five severities fit into 60 columns.
    shown = Table("corruption", *columns, title=title, title_justify="left", padding=0)
    for name, of in found["corruptions"].items():
        low, high = of["intervals"][0]
        middle = [f"{low:.3f} to {high:.3f}"] if one else [f"{of['mean']:.3f}"]
        cells = [*(f"{a:.3f}" for a in of["accuracy"]), *middle, f"{clean - of['mean']:.3f}"]
        style = "bold" if name == worst else ""
        shown.add_row(name.replace("_", " "), *cells, style=style)
    return shown


def conclusion(found: Mapping[str, Any]) -> list[str]:
    """Lines with the clean accuracy, the mean over the corruptions, and the worst of them."""
    worst = _by_accuracy(found)[0]
    means = (("Clean accuracy", "clean"), ("Mean under corruption", "mean"))
    intervals = [(words, found[key], *found[f"{key}_interval"]) for words, key in means]
    return [
        *(
            f"{words}: {a:.4f} (95% interval {low:.4f} to {high:.4f})"
            for words, a, low, high in intervals
        ),
        f"Worst: {worst.replace('_', ' ')}, {found['corruptions'][worst]['mean']:.4f}",
    ]


def _by_accuracy(found: Mapping[str, Any]) -> list[str]:
    """The corruptions, the worst first."""
    corruptions = found["corruptions"]
    return sorted(corruptions, key=lambda name: corruptions[name]["mean"])


def _worst_drawn(model: tf.keras.Model, one: Split, found: Mapping[str, Any], seed: int) -> Columns:
    """The worst corruptions of an example, at the highest severity, and what the model reads."""
    severity, panels = found["severities"][-1], []
    for name in _by_accuracy(found)[:_DRAWN]:
        images = corrupt(one.images, name, severity, seed)
        read = predict_probabilities(model, images).argmax(1)[0]
        text = f"{drawn(images[0, 3:25, 3:25, 0])}\n{one.labels[0]} read as {read}"
        panels.append(Panel(Text(text), title=name.replace("_", " "), expand=False))
    return Columns(panels, title=f"Test image 0 at severity {severity}")
