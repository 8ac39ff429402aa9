"""The verb ``diff``: what two runs have in common, and in what they differ, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import InputError
from research.printable import counted, printable
from research.recording.code import unified
from research.recording.metrics import NAME as METRICS
from research.recording.summary import Summary, summarize
from research.screen import Screen
from research.tools.diff_facts import Pairs, code_files, compared, library_files
from research.verbs import Diff

from rich.table import Table
from rich.text import Text

# A digest is shown by its first characters.
DIGITS = 12


def run(asked: Diff, screen: Screen) -> None:
    """Compares and prints.

    Raises:
        InputError: if a directory is no run.
    """
    one, other = _summary(asked.one), _summary(asked.other)
    found = compared(one, other)
    code = _difference_of_code(one, other) if asked.code else ""
    if asked.json:
        print(json.dumps(found | ({"difference_of_code": code} if asked.code else {}), indent=2))
        return
    for name, each in (("A", one), ("B", other)):
        screen.say(printable(f"{name}: {each.run} ({each.experiment}, {each.status})"))
    others = ["all other options"] if "options" in found["different"] else []
    if same := [*found["same"], *others]:
        screen.say(f"The same: {', '.join(same)}")
    if found["unknown"]:
        screen.say(f"Unknown, since not recorded: {', '.join(found['unknown'])}")
    if found["different"]:
        screen.console.print(difference_table(found["different"]))
    if asked.code:
        said = "\n".join(map(printable, code.removesuffix("\n").split("\n")))
        if not code:
            known = {"code", "library"} <= set(found["same"])
            said = "The code is the same." if known else "No difference of code is known."
        screen.say(said)
    if found["figures"]:
        screen.console.print(figure_table(found["figures"], found["other_examples"]))
    screen.say(metrics_in_words(found["metrics"]))
    if (of := found["weights"]["of"]) is not None:
        bits = "are the same, bit for bit" if found["weights"]["same"] else "differ"
        screen.say(f"The weights in {of} {bits}.")


def _summary(path: Path) -> Summary:
    found = summarize(path)
    if not found.experiment:
        raise InputError(f"{path}: no run ({found.reason}); name a run directory")
    return found


def _difference_of_code(one: Summary, other: Summary) -> str:
    """The unified diff of the code that trainings import, as far as both runs keep it."""
    files = [*(code_files(one, other) or []), *(library_files(one, other) or [])]
    return "".join(line for pair in files for line in unified(*pair))


def difference_table(different: Mapping[str, Pairs]) -> Table:
    """The subjects that differ, and the values of both runs."""
    table = Table(title="Different", title_justify="left", padding=0)
    for heading in ("subject", "name", "A", "B"):
        table.add_column(heading, overflow="fold")
    for subject, pairs in different.items():
        for number, (name, values) in enumerate(pairs.items()):
            cells = ["" if number else subject, name, *map(_shown, values)]
            if subject == "options":
                cells[1] = f"--{name.replace('_', '-')}"
            elif all(type(value) is int for value in values) and subject in ("code", "library"):
                cells[2:] = [f"{counted(lines, 'line')} only here" for lines in values]
            table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    text = "" if value is None else str(value)
    digest = len(text) in (40, 64) and set(text) <= set("0123456789abcdef")
    return text[:DIGITS] if digest else text


def figure_table(figures: Mapping[str, Pairs], others: Sequence[str]) -> Table:
    """The figures of both runs and their differences, for each split."""
    table = Table(title="Figures", title_justify="left", padding=0)
    table.add_column("figure", overflow="fold")
    for heading in ("A", "B", "B - A"):
        table.add_column(heading, justify="right", no_wrap=True)
    for split, pairs in figures.items():
        title = {"validation": "best validation", "test": "test"}[split]
        table.add_row(Text(title + (", on other examples" if split in others else ""), "bold"))
        for name, (one, other) in pairs.items():
            both = one is not None and other is not None
            form = "{:+d}" if isinstance(one, int) and isinstance(other, int) else "{:+.4f}"
            cells = [_number(one), _number(other), form.format(other - one) if both else ""]
            table.add_row(Text(printable(f"  {name}")), *cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


def metrics_in_words(found: Mapping[str, Any]) -> str:
    """Where the metrics of two runs first differ."""
    common, lines = found["common"], found["lines"]
    if not common:
        return f"{METRICS}: no lines about the same steps ({lines[0]} in A, {lines[1]} in B)"
    rest = "" if lines == [common] * 2 else f"; A has {lines[0]} lines, B has {lines[1]}"
    for name, measured in zip("AB", found["measured_by_one"], strict=True):
        rest += f"; only {name} measures {printable(', '.join(measured))}" if measured else ""
    if (first := found["first_difference"]) is None:
        return f"{METRICS}: all {counted(common, 'common line')} are the same{rest}"
    one, other = (f"{value:.4f}" for value in first["values"])
    if one == other:
        one, other = map(str, first["values"])
    same = found["same"]
    after = f"after {counted(same, 'common line')} the same" if same else "in the first common line"
    return (
        f"{METRICS}: first differs at step {first['step']} ({first['split']}), {after}: "
        f"{first['name']} {one} against {other}{rest}"
    )
