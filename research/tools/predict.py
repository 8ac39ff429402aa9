"""The verb ``predict``: which digit an image file shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from research.errors import InputError
from research.printable import printable
from research.results.evaluation import predict_probabilities
from research.results.export import load_h5
from research.results.images import Digit, read_digit
from research.screen import Screen
from research.tools.trained_model import find_model
from research.verbs import Predict

import numpy as np
from rich.table import Column, Table
from rich.text import Text


def run(asked: Predict, screen: Screen) -> bool:
    """Predicts and prints; returns whether every image could be read.

    Raises:
        InputError: if the model, or every image, can't be read.
    """
    model = load_h5(find_model(asked.run_or_h5).h5)
    digits = _read(asked)
    rows = predict_probabilities(model, np.stack([digit.pixels for _, digit in digits]))
    if asked.json:
        facts = [
            {
                "image": str(path),
                "digit": int(row.argmax()),
                "probabilities": [round(float(p), 6) for p in row],
                "inverted": digit.inverted,
            }
            for (path, digit), row in zip(digits, rows, strict=True)
        ]
        print(json.dumps(facts, indent=2))
    else:
        # "fold" keeps rich from cutting long names, and the cells beside them.
        table = Table(Column("image", overflow="fold"), "digit", "confidence", "runner-up")
        for (path, digit), row in zip(digits, rows, strict=True):
            if digit.inverted:
                screen.say(f"{printable(path)}: dark on light, inverted")
            first, second = np.argsort(-row, kind="stable")[:2]
            runner_up = f"{second} ({row[second]:.4f})"
            table.add_row(Text(printable(path)), str(first), f"{row[first]:.4f}", runner_up)
        screen.console.print(table)
    return len(digits) == len(asked.images)


def _read(asked: Predict) -> list[tuple[Path, Digit]]:
    """Reads the images; names each unreadable one on standard error.

    Raises:
        InputError: if no image can be read.
    """
    digits: list[tuple[Path, Digit]] = []
    errors: list[InputError] = []
    for path in asked.images:
        try:
            digits.append((path, read_digit(path)))
        except InputError as error:
            errors.append(error)
    if not digits and len(errors) == 1:
        raise errors[0]
    for refused in errors:
        print(f"error: {printable(refused)}", file=sys.stderr)
    if not digits:
        raise InputError(f"none of the {len(errors)} images can be read; give one that can")
    return digits
