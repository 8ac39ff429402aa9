"""The verb ``predict``: which digit an image file shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from research.errors import InputError
from research.printable import below_one, printable
from research.results.evaluation import predict_probabilities
from research.results.export import load_h5
from research.results.images import Digit, read_digit
from research.screen import Screen
from research.tools.in_characters import drawn
from research.tools.trained_model import find_model
from research.verbs import Predict

import numpy as np
import numpy.typing as npt
from rich.columns import Columns
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

# The most images that are drawn in the terminal.
MOST_DRAWN = 12

UNSURE = "unsure: confidence below 0.5, or ink unlike MNIST's: too much, too little, grey, at rim"


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
                "unsure": is_unsure(digit.pixels, float(row.max())),
            }
            for (path, digit), row in zip(digits, rows, strict=True)
        ]
        print(json.dumps(facts, indent=2))
    else:
        # "fold" keeps rich from cutting long names, and the cells beside them.
        name = Column("image", overflow="fold")
        table = Table(name, "digit", "confidence", "runner-up", "sure?")
        unsure = False
        for (path, digit), row in zip(digits, rows, strict=True):
            if digit.inverted:
                screen.say(f"{printable(path)}: dark on light, inverted")
            first, second = np.argsort(-row, kind="stable")[:2]
            runner_up = f"{second} ({row[second]:.4f})"
            here = is_unsure(digit.pixels, float(row.max()))
            unsure |= here
            sure = Text("unsure", style="magenta") if here else Text("sure", style="green")
            cells = (str(first), below_one(float(row[first])), runner_up, sure)
            table.add_row(Text(printable(path)), *cells)
        screen.console.print(table)
        if unsure:
            screen.say(UNSURE)
        screen.console.print(pictures(digits[:MOST_DRAWN]), soft_wrap=False)
        if len(digits) > MOST_DRAWN:
            screen.say(f"Shown are the first {MOST_DRAWN} of {len(digits)} images.")
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


def is_unsure(pixels: npt.NDArray[np.uint8], confidence: float) -> bool:
    """Whether a prediction should not be trusted.

    It is unsure if its confidence is below 0.5, or if the image is unlike MNIST's: if less than
    2.5% or more than 35% of it is ink, more than 15% of the ink is within three pixels of the rim,
    or more than 75% of the inked pixels are half grey. The bounds were chosen on MNIST's training
    images. With the reference network after two epochs, 0.4% of MNIST's 10,000 test images were
    unsure, and 503 of 504 images of noise: uniform, Gaussian, salt, and blurred, of 28x28 and of
    300x400 pixels.

    Args:
        pixels: uint8 [28, 28, 1], light ink on a dark background.
        confidence: the probability of the predicted digit, 0 to 1.
    """
    ink = pixels[..., 0] / 255
    total = float(ink.sum())
    at_rim = total - float(ink[3:-3, 3:-3].sum())
    inked = ink[ink > 0.25]
    half_grey = float((inked < 0.75).mean()) if inked.size else 1.0
    usual = 0.025 <= total / ink.size <= 0.35 and at_rim <= 0.15 * total and half_grey <= 0.75
    return confidence < 0.5 or not usual


def pictures(digits: list[tuple[Path, Digit]]) -> Columns:
    """The images as the network saw them, 28x28 pixels, side by side."""
    panels = []
    for path, digit in digits:
        text = Text(f"{drawn(digit.pixels[..., 0])}\n{printable(path)}", overflow="fold")
        panels.append(Panel(text, width=30, padding=0))
    return Columns(panels, title="What the network saw")
