"""The MNIST tables of Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012), cell by cell.

Trains every cell of the tables in arXiv 1212.5701 with several seeds, where the paper has one, and
leaves tables.md and tables.png: the published errors beside the measured ones. zeiler_2012.py is
the experiment of a cell. Ctrl-C stops; the same command goes on.

- Command: python experiments/zeiler_2012_tables.py
- Duration: about 40 minutes on 2 CPU cores; with --only rho --seeds 2, about 7
- Expect: the tables in experiments/README.md, "ADADELTA's own tables"
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from research.comparing.evidence import Outcome, processors
from research.comparing.page import mixture
from research.config import Config, parse_options, require
from research.errors import InputError
from research.experiment import load
from research.files import replaced_atomically, storage_errors
from research.recording.figures import GRID, INK
from research.screen import Screen, run_and_exit
from research.study import Study, train, whole

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
        title="In the text: ADADELTA with rho 0.95",
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
    """The options of this program."""

    directory: Path = Path("runs/zeiler_2012")
    """The study's directory, which is created, or gone on with."""
    seeds: int = 5
    """Trainings of each cell, with seeds from 0. Later, more may be asked for."""
    only: str = ""
    """Train only the cells with this part in their names, such as rho-0.95 or sgd."""
    workers: int | None = None
    """Trainings at a time, of one thread each. Default: one on each core."""
    scheduler: str | None = None
    """The address of a Dask scheduler, such as tcp://10.0.0.1:8786: its workers train."""
    epochs: float = 6
    """Passes over the training set; the paper has 6."""
    examples: int | None = None
    """Quick mode: number of first examples to train and evaluate on."""
    data: Path | None = None
    """A Keras-style .npz or a folder of IDX files. Default: MNIST."""

    def __post_init__(self) -> None:
        require("seeds", self.seeds, self.seeds >= 1, "give a whole number of at least 1")
        valid = self.workers is None or self.workers >= 1
        require("workers", self.workers, valid, "give a whole number of at least 1")
        names = [t.cell(row, column) for t in TABLES for row in t.published for column in t.columns]
        valid = any(is_part(self.only, name) for name in names)
        require("only", self.only, valid, f"no part of a cell's name; the first is {names[0]}")


def shared(asked: Asked) -> list[str]:
    """The first options of every training."""
    given = {"epochs": asked.epochs, "examples": asked.examples, "data": asked.data}
    return [w for k, v in given.items() if v is not None for w in (f"--{k}", str(v))]


def trainings(asked: Asked) -> dict[str, list[str]]:
    """The options of each training by its name: one table after another, and in each by seed."""
    return {
        f"{name}-seed-{seed}": [
            *(
                *shared(asked),
                f"--{table.column}",
                column,
                f"--{table.row}",
                row,
                "--seed",
                str(seed),
            )
        ]
        for table in TABLES
        for seed in range(asked.seeds)
        for row in table.published
        for column in table.columns
        if is_part(asked.only, name := table.cell(row, column))
    }


def is_part(only: str, name: str) -> bool:
    """Whether the text is a part of a cell's name, between hyphens; "" is part of every name."""
    return not only or f"-{only}-" in f"-{name}-"


def measured(table: Table, found: Mapping[str, Outcome]) -> dict[str, list[list[float]]]:
    """The test errors in % of the trainings that have ended: for each row, a list by column."""

    def of_cell(row: str, column: str) -> list[float]:
        start = f"{table.cell(row, column)}-seed-"
        there = [each.figures for name, each in found.items() if name.startswith(start)]
        return [NON_FINITE if f is None else 100 * (1 - f["accuracy"]) for f in there]

    return {row: [of_cell(row, column) for column in table.columns] for row in table.published}


def begun(table: Table, found: Mapping[str, Outcome]) -> bool:
    """Whether a training of the table has ended."""
    return any(map(any, measured(table, found).values()))


def as_markdown(table: Table, found: Mapping[str, Outcome]) -> str:
    """The table, with the measured errors in brackets, and what agrees."""
    headings = [table.row, *(f"{table.column} {column}" for column in table.columns)]
    lines = [
        f"{table.title}. Error in %, published (measured ± sd, n).\n",
        f"| {' | '.join(headings)} |",
        "| --- " * len(headings) + "|",
    ]
    for row, errors in measured(table, found).items():
        cells = map(_cell, table.published[row], errors)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", agreement(table, found)])


def _cell(published: float, errors: Sequence[float]) -> str:
    if not errors:
        return f"{published:.2f} (not yet)"
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return f"{published:.2f} ({statistics.fmean(errors):.2f}{spread}, {len(errors)})"


def agreement(table: Table, found: Mapping[str, Outcome]) -> str:
    """How many cells agree, and the best row of each column, published and measured."""
    near, there, best = 0, 0, []
    errors = measured(table, found)
    for number, column in enumerate(table.columns):
        published = {row: values[number] for row, values in table.published.items()}
        means = {row: statistics.fmean(e[number]) for row, e in errors.items() if e[number]}
        there += len(means)
        near += sum(abs(mean - published[row]) <= WITHIN for row, mean in means.items())
        if len(means) == len(published) > 1:
            theirs, ours = (min(each, key=each.__getitem__) for each in (published, means))
            best.append(f"{column}: {theirs} ({ours})")
    said = f"{near} of {there} cells are within {WITHIN} points."
    return f"{said} Best {table.row}, published (measured): {', '.join(best)}." if best else said


def draw(found: Mapping[str, Outcome], path: Path) -> None:
    """Draws those of the first two tables that have begun: the error by the row, by column."""
    from matplotlib.figure import Figure

    shown = [table for table in TABLES[:2] if begun(table, found)] or TABLES[:2]
    figure = Figure(figsize=(4.5 * len(shown), 4), dpi=110, layout="constrained")
    for table, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
        _panel(table, measured(table, found), axes)
    with storage_errors(path), replaced_atomically(path) as partial:
        figure.savefig(partial)


def _panel(table: Table, errors: Mapping[str, Sequence[Sequence[float]]], axes: Axes) -> None:
    for number, column in enumerate(table.columns):
        colour, aside = f"C{number}", 0.12 * (number - 1)
        own = {n: row[number] for n, row in enumerate(errors.values()) if row[number]}
        means = [statistics.fmean(values) for values in own.values()]
        sds = [statistics.stdev(values) if len(values) > 1 else 0 for values in own.values()]
        axes.errorbar(
            *([n + aside for n in own], means, sds), color=colour, fmt="-o", markersize=5,
            capsize=3, label=f"{table.column} {column}",
        )  # fmt: skip
        published = [values[number] for values in table.published.values()]
        places = [n + aside for n in range(len(published))]
        axes.plot(
            *(places, published, "D"), color=colour, markerfacecolor="none", markersize=8
        )  # fmt: skip
    axes.plot([], [], "D", color=INK, markerfacecolor="none", markersize=8, label="published")
    axes.set(title=table.title, xlabel=table.row, ylabel="test error in %")
    if max(map(max, table.published.values())) > 10:
        axes.set_yscale("log")
        axes.set_yticks([2, 5, 10, 20, 50, 100])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(range(len(table.published)), list(table.published))
    axes.grid(color=GRID, linewidth=0.5)
    axes.legend(frameon=False)


def run(screen: Screen) -> int:
    """Trains what is missing and leaves the tables; returns the exit status."""
    asked = parse_options(Asked, __doc__)
    config = Config(epochs=asked.epochs, examples=asked.examples, data=asked.data)
    data, _, _ = load(config, screen)
    study = Study(
        directory=asked.directory,
        experiment=Path(__file__).with_name("zeiler_2012.py"),
        trainings=trainings(asked),
        data=data.sha256(),
    )
    for name, options in whole(study).trainings.items():
        if list(options[: len(shared(asked))]) != shared(asked):
            reason = f"it was begun with other options of {name}"
            raise InputError(
                f"{study.directory}: {reason}; put that back, or name another --directory"
            )
    status = train(study, screen, asked.workers, asked.scheduler)
    found = whole(study).outcomes()  # this command may ask for a part of the cells only
    if not any(begun(table, found) for table in TABLES):
        return status
    parts = [as_markdown(table, found) for table in TABLES if begun(table, found)]
    parts += [mixture(processors(study.directory / name for name in found))]
    text = "\n\n".join(filter(None, parts))
    path, picture = asked.directory / "tables.md", asked.directory / "tables.png"
    with storage_errors(path), replaced_atomically(path) as partial:
        partial.write_text(f"{text}\n")
    draw(found, picture)
    screen.say(f"\n{text}\n\nSaved: {path}, {picture}")
    return status


if __name__ == "__main__":
    run_and_exit(run)
