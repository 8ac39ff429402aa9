"""The verb ``predict``: which digit an image file shows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from research.errors import InputError
from research.recording.screen import Screen
from research.results.evaluation import predict_probabilities
from research.results.export import load_h5
from research.results.images import read_digit

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Predict:
    """Say which digit each image file shows. Any size and mode; dark on light is inverted."""

    h5: Annotated[Path, tyro.conf.Positional]
    """An mnist.h5 that an experiment has saved."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Image files."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no image: name one or more image files after the mnist.h5")

    def run(self, screen: Screen) -> None:
        """Predicts and prints; all files are read before anything is printed.

        Raises:
            InputError: if the model or an image can't be read.
        """
        digits = [read_digit(path) for path in self.images]
        model = load_h5(self.h5)
        rows = predict_probabilities(model, np.stack([digit.pixels for digit in digits]))
        found = [
            {
                "image": str(path),
                "digit": int(row.argmax()),
                "probabilities": [round(float(p), 6) for p in row],
                "inverted": digit.inverted,
            }
            for path, digit, row in zip(self.images, digits, rows, strict=True)
        ]
        if self.json:
            print(json.dumps(found, indent=2))
            return
        table = Table("image", "digit", *(f"P({n})" for n in range(10)))
        for path, digit, row in zip(self.images, digits, rows, strict=True):
            if digit.inverted:
                screen.say(f"{path}: dark on light, inverted")
            best = int(row.argmax())
            chances = [
                Text(f"{p:.2f}", style="bold" if n == best else "dim") for n, p in enumerate(row)
            ]
            table.add_row(Text(path.name), str(best), *chances)
        screen.console.print(table)
