"""The MNIST tables of Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012), cell by cell.

Trains every cell of the tables in arXiv 1212.5701 with several seeds, where the paper has one, and
leaves tables.md and tables.png: the published errors beside the measured ones. zeiler_2012.py has
the network. Ctrl-C stops; the same command goes on. Words behind -- are options for each training.

- Command: python experiments/zeiler_2012_tables.py
- Duration: about 40 minutes on 2 CPU cores
- Expect: the tables in experiments/README.md, "ADADELTA's own tables"
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from research.comparing.evidence import Outcome
from research.config import parse_errors_in_one_line, require
from research.errors import InputError
from research.files import replaced_atomically, storage_errors
from research.screen import Screen
from research.study import Study, main, train

import tyro

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class Table:
    """One of the paper's tables: test errors in %, by the values of two options.

    Attributes:
        title: what the table is about.
        row, column: the options, without dashes.
        columns: the values of the option ``column``.
        published: for each value of the option ``row`` the errors in the order of ``columns``.
    """

    title: str
    row: str
    column: str
    columns: tuple[str, ...]
    published: Mapping[str, tuple[float, ...]]

    def cell(self, row: str, column: str) -> str:
        """The name of a cell; the names of its trainings begin with it."""
        return f"{self.column}-{column}-{self.row}-{row}"


TABLES = (
    Table(
        title="Table 2: ADADELTA",
        row="epsilon",
        column="rho",
        columns=("0.9", "0.95", "0.99"),
        published={
            "1e-2": (2.59, 2.58, 2.32),
            "1e-4": (2.05, 1.99, 2.28),
            "1e-6": (1.90, 1.83, 2.05),
            "1e-8": (2.29, 2.13, 2.00),
        },
    ),
    Table(
        title="Table 1: the other optimizers",
        row="learning-rate",
        column="optimizer",
        columns=("sgd", "momentum", "adagrad"),
        published={
            "1e0": (2.26, 89.68, 43.76),
            "1e-1": (2.51, 2.03, 2.82),
            "1e-2": (7.02, 2.68, 1.79),
            "1e-3": (17.01, 6.98, 5.21),
            "1e-4": (58.10, 16.98, 12.59),
        },
    ),
    Table(
        title="The comparison in the text: ADADELTA with rho 0.95",
        row="epsilon",
        column="activation",
        columns=("tanh",),
        published={"1e-6": (2.00,)},
    ),
)
# A cell agrees if its mean error is within so many points of the published one.
WITHIN = 0.3
# The error in % of a network that became non-finite: it calls every digit a 0.
NON_FINITE = 90.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Trains every cell of the tables, and writes tables.md and tables.png."""

    directory: Path = Path("runs/zeiler_2012")
    """The study's directory, which is created, or gone on with."""
    seeds: int = 5
    """Trainings of each cell, with seeds from 0; more may be asked for later."""
    only: str = ""
    """Train only the cells whose names contain this, such as rho-0.95 or sgd."""
    workers: int | None = None
    """Trainings at a time, of one thread each. Default: as many as there are cores."""

    def __post_init__(self) -> None:
        require("seeds", self.seeds, self.seeds >= 1, "give a whole number of at least 1")
        valid = self.workers is None or self.workers >= 1
        require("workers", self.workers, valid, "give a whole number of at least 1")


def trainings(asked: Asked, options: Sequence[str]) -> dict[str, list[str]]:
    """The options of each training by its name: a table after the other, in it seed by seed."""
    found = {}
    for table in TABLES:
        cells = [(row, column) for row in table.published for column in table.columns]
        for seed in range(asked.seeds):
            for row, column in cells:
                if asked.only in (name := table.cell(row, column)):
                    own = [f"--{table.column}", column, f"--{table.row}", row]
                    found[f"{name}-seed-{seed}"] = [*options, *own, "--seed", str(seed)]
    if not found:
        raise InputError(f"--only {asked.only}: no cell's name contains it; one is {name}")
    return found


def errors(found: Mapping[str, Outcome], cell: str) -> list[float]:
    """The test errors in % of a cell's trainings."""
    there = [found[name].figures for name in sorted(found) if name.startswith(f"{cell}-seed-")]
    return [NON_FINITE if f is None else 100 * (1 - f["accuracy"]) for f in there]


def as_markdown(table: Table, found: Mapping[str, Outcome]) -> str:
    """A table with the published errors and, in brackets, the measured ones; then what agrees."""
    lines = [
        f"{table.title}. Error in %: published (measured, mean ± sd, n).\n",
        " | ".join(["|", table.row, *(f"{table.column} {c}" for c in table.columns), "|"]).strip(),
        "| --- " * (1 + len(table.columns)) + "|",
    ]
    for row, published in table.published.items():
        cells = []
        for column, error in zip(table.columns, published, strict=True):
            measured = errors(found, table.cell(row, column))
            said = "not yet"
            if measured:
                spread = f" ± {statistics.stdev(measured):.2f}" if len(measured) > 1 else ""
                said = f"{statistics.fmean(measured):.2f}{spread}, {len(measured)}"
            cells.append(f"{error:.2f} ({said})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", agreement(table, found)])


def agreement(table: Table, found: Mapping[str, Outcome]) -> str:
    """How many cells agree, and the best row of each column, published and measured."""
    near, there, best = 0, 0, []
    for number, column in enumerate(table.columns):
        published = {row: values[number] for row, values in table.published.items()}
        measured = {row: errors(found, table.cell(row, column)) for row in published}
        means = {row: statistics.fmean(values) for row, values in measured.items() if values}
        there += len(means)
        near += sum(abs(mean - published[row]) <= WITHIN for row, mean in means.items())
        if len(means) == len(published) > 1:
            ours, theirs = (
                min(means, key=means.__getitem__),
                min(published, key=published.__getitem__),
            )
            best.append(f"{column}: {theirs} ({ours})")
    text = f"{near} of {there} cells are within {WITHIN} points."
    return f"{text} Best {table.row}, published (measured): {', '.join(best)}." if best else text


def draw(found: Mapping[str, Outcome], path: Path) -> None:
    """Draws the tables with more than one cell: error by row, a line for each column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=110, layout="constrained")
    shown = [table for table in TABLES if len(table.published) > 1]
    for table, axes in zip(shown, figure.subplots(1, len(shown)), strict=True):
        _panel(table, found, axes)
    with storage_errors(path), replaced_atomically(path) as partial:
        figure.savefig(partial)


def _panel(table: Table, found: Mapping[str, Outcome], axes: Axes) -> None:
    rows = list(table.published)
    for number, column in enumerate(table.columns):
        colour = f"C{number}"
        published = [table.published[row][number] for row in rows]
        measured = {n: errors(found, table.cell(row, column)) for n, row in enumerate(rows)}
        places = [n for n, values in measured.items() if values]
        means = [statistics.fmean(measured[n]) for n in places]
        sds = [statistics.stdev(v) if len(v := measured[n]) > 1 else 0.0 for n in places]
        aside = 0.12 * (number - 1)
        axes.errorbar(
            *([n + aside for n in places], means, sds), fmt="-o", color=colour, capsize=3,
            label=f"{table.column} {column}",
        )  # fmt: skip
        axes.plot(
            *([n + aside for n in range(len(rows))], published, "D"), color=colour,
            markerfacecolor="white", label="published" if number == 0 else None,
        )  # fmt: skip
    axes.set(title=table.title, xlabel=table.row, ylabel="test error in %", yscale="log")
    axes.set_xticks(range(len(rows)), rows)
    axes.legend()


def run(screen: Screen) -> int:
    """Trains what is missing and leaves the tables; returns the exit status."""
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    with parse_errors_in_one_line():
        asked = tyro.cli(Asked, args=words[:place], description=__doc__)
    study = Study(
        directory=asked.directory,
        experiment=Path(__file__).with_name("zeiler_2012.py"),
        trainings=trainings(asked, words[place + 1 :]),
    )
    status = train(study, screen, asked.workers)
    found = study.outcomes()
    text = "\n\n".join(as_markdown(table, found) for table in TABLES)
    path = asked.directory / "tables.md"
    with storage_errors(path), replaced_atomically(path) as partial:
        partial.write_text(f"{text}\n")
    draw(found, path.with_suffix(".png"))
    screen.say(f"{text}\n\nSaved: {path} and {path.with_suffix('.png')}")
    return status


if __name__ == "__main__":
    main(run)
