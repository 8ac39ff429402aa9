"""The verb ``runs``: every run as a row, and how to go on with those that have not finished."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from research.comparing.comparison import QUESTION
from research.comparing.summary import ComparisonSummary, summarize_comparison
from research.config import option_as_typed
from research.errors import InputError
from research.printable import counted, duration, folded, printable
from research.recording.summary import Summary, is_run, summarize
from research.screen import Screen
from research.stderr import show_error
from research.sweeping.summary import SweepSummary, summarize_sweep
from research.sweeping.sweep import DECLARED
from research.verbs import Runs, RunStatus

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

RUNS = Path("runs")
# From this width on a run's options have a column of their own.
WIDE = 110
Found = Summary | ComparisonSummary | SweepSummary
STYLES = {
    **{"running": "bold cyan", "finished": "green", "stopped": "magenta", "killed": "magenta"},
    **{"failed": "bold red", "damaged": "bold red"},
}


def run(asked: Runs, screen: Screen) -> None:
    """Finds, filters, sorts and prints.

    Raises:
        InputError: if a name is no folder and no experiment with runs.
    """
    paths = [_folder(name) for name in asked.where] or [RUNS]
    runs, comparisons, sweeps, unreadable = find(paths)
    for error in unreadable:
        show_error(f"{error.filename}: left out, it can't be read ({error.strerror})")
    found: list[Found] = [_summarize(path) for path in runs]
    found += [summarize_comparison(path) for path in comparisons]
    found += [summarize_sweep(path) for path in sweeps]
    # A run that is being created has another name a moment later.
    found = [each for each in found if os.path.isdir(_place(each))]
    shown = chosen(found, asked)
    of_runs = [each for each in shown if isinstance(each, Summary)]
    of_comparisons = [each for each in shown if isinstance(each, ComparisonSummary)]
    of_sweeps = [each for each in shown if isinstance(each, SweepSummary)]
    if asked.json:
        facts = {
            "runs": [_plain(each) for each in of_runs],
            "comparisons": [_plain(each) for each in of_comparisons],
            "sweeps": [_plain(each) for each in of_sweeps],
        }
        print(json.dumps(facts, indent=2))
        return
    if not found:
        places = " ".join(map(str, paths))
        screen.say(
            f"There is no run in {printable(places)} yet. Train one: "
            "python experiments/mnist_cnn.py --epochs 1"
        )
    elif not shown:
        screen.say(_no_match(found))
    if of_runs:
        screen.console.print(run_table(of_runs, screen.console.width))
    if of_comparisons:
        screen.console.print(comparison_table(of_comparisons, screen.console.width))
    if of_sweeps:
        screen.console.print(sweep_table(of_sweeps, screen.console.width))
    if waiting := [each for each in shown if each.go_on and each.status != "running"]:
        screen.say("To go on:")
        for each in waiting:
            how = ": " if each.status in ("failed", "damaged") else " "
            why = how.join(filter(None, [each.status, each.reason]))
            screen.say(printable(f"  {each.go_on}  # {why}"))


def _no_match(found: Sequence[Found]) -> str:
    """Says that no run is as asked, and what runs there are."""
    kinds = {"run": Summary, "comparison": ComparisonSummary, "sweep": SweepSummary}
    there = [(sum(isinstance(e, kind) for e in found), noun) for noun, kind in kinds.items()]
    numbers = " and ".join(counted(n, noun) for n, noun in there if n)
    names = ", ".join(sorted({name for each in found for name in _experiments(each)} - {""}))
    verb = "is" if len(found) == 1 else "are"
    return printable(f"No run matches; there {verb} {numbers}{names and f', of {names}'}.")


def _summarize(run: Path) -> Summary:
    """Summarizes a run; the command for a training of a comparison or sweep is that one's."""
    found = summarize(run)
    directory = run.absolute().parent.parent
    if found.go_on and (directory / QUESTION).is_file():
        comparison = summarize_comparison(Path(os.path.relpath(directory)))
        found = dataclasses.replace(found, go_on=comparison.go_on)
    if found.go_on and (directory / DECLARED).is_file():
        sweep = summarize_sweep(Path(os.path.relpath(directory)))
        found = dataclasses.replace(found, go_on=sweep.go_on)
    return found


def _folder(name: str) -> Path:
    for path in (Path(name), RUNS / name):
        if os.path.isdir(path):
            return path
    raise InputError(f"{name}: no such folder, and no runs/{name}; name one that has runs in it")


def find(
    paths: Sequence[Path],
) -> tuple[list[Path], list[Path], list[Path], list[OSError]]:
    """Finds runs in folders and in those that links lead to, each once.

    Returns:
        The run directories, the comparisons and the sweeps (of one that is named: its runs
        instead), and why folders can't be read.
    """
    runs: dict[Path, Path] = {}
    comparisons: dict[Path, Path] = {}
    sweeps: dict[Path, Path] = {}
    unreadable: list[OSError] = []
    for path in paths:
        seen = set()  # a link may lead back
        for place, folders, files in os.walk(path, onerror=unreadable.append, followlinks=True):
            folder = Path(place)
            names, real = {*folders, *files}, folder.resolve()
            folders.sort()
            if QUESTION in files and folder != path:
                comparisons.setdefault(real, folder)
            elif DECLARED in files and folder != path:
                sweeps.setdefault(real, folder)
            elif is_run(folder, names):
                runs.setdefault(real, folder)
            elif real not in seen:
                seen.add(real)
                continue
            folders.clear()
    return list(runs.values()), list(comparisons.values()), list(sweeps.values()), unreadable


def chosen(found: Sequence[Found], asked: Runs) -> list[Found]:
    """Those that were asked for, in the order that was asked for; what is unknown comes last."""
    wanted = [
        each
        for each in found
        if (not asked.status or each.status in asked.status)
        and (asked.experiment is None or asked.experiment in _experiments(each))
    ]
    newest = sorted(wanted, key=_moment, reverse=True)[: asked.last]

    def key(each: Found) -> tuple[bool, Any]:
        value: Any = {
            "when": None,  # they are in this order already
            "test": _accuracy(each, "test"),
            "validation": _accuracy(each, "validation"),
            "duration": each.seconds,
            "experiment": " ".join(_experiments(each)),
            "status": get_args(RunStatus).index(each.status),
        }[asked.sort]
        highest_first = asked.sort in ("test", "validation", "duration")
        return value is None, 0 if value is None else -value if highest_first else value

    return sorted(newest, key=key)


def _place(each: Found) -> Path:
    return each.run if isinstance(each, Summary) else each.directory


def _moment(each: Found) -> float:
    return 0.0 if each.began is None else datetime.datetime.fromisoformat(each.began).timestamp()


def _experiments(each: Found) -> list[str]:
    return [each.experiment] if isinstance(each, Summary) else each.experiments


def _accuracy(each: Found, split: str) -> float | None:
    figures: Mapping[str, float] | None = getattr(each, split, None)
    return None if figures is None else figures.get("accuracy")


def run_table(runs: Sequence[Summary], width: int) -> Table:
    """The runs as rows, within ``width``: directory, experiment and options, how they ended."""
    wide = width >= WIDE
    columns = {
        "status": [_status(each) for each in runs],
        "validation": [_validation(each) for each in runs],
        "test": [Text(_figure(each.test)) for each in runs],
        **_times(runs, wide),
    }
    columns = {heading: cells for heading, cells in columns.items() if any(map(str, cells))}
    room = _room(columns, width)
    paths = [_path(each.run, room) for each in runs]
    if wide:
        abouts = [_about(each, room - max(map(_width, paths)) - 1) for each in runs]
        columns = {"run": paths, "experiment and options": abouts, **columns}
    else:
        both = zip(paths, (_about(each, room) for each in runs), strict=True)
        columns = {"run": [Text("\n").join(pair) for pair in both], **columns}
    title = "Runs, with the accuracy of the best validation and of the test"
    return _table(title, columns, between=not wide)


def comparison_table(comparisons: Sequence[ComparisonSummary], width: int) -> Table:
    """The comparisons as rows: directory, verdicts and arms, status, pairs, time."""
    columns = {
        "status": [Text(each.status, STYLES[each.status]) for each in comparisons],
        "pairs": [Text(str(each.pairs)) for each in comparisons],
        **_times(comparisons, width >= WIDE),
    }
    room = _room(columns, width)
    cells = [
        Text("\n").join(
            [_path(each.directory, room), Text("\n".join(folded(_verdicts(each), room, gap=" ")))]
        )
        for each in comparisons
    ]
    return _table("Comparisons", {"comparison": cells, **columns}, between=True)


def sweep_table(sweeps: Sequence[SweepSummary], width: int) -> Table:
    """The sweeps as rows: directory, best setting and options, status, trials, when."""
    columns = {
        "status": [Text(each.status, STYLES[each.status]) for each in sweeps],
        "trials": [Text(f"{each.trials}/{each.of}" if each.of else "") for each in sweeps],
        "when": _times(sweeps, width >= WIDE)["when"],
    }
    room = _room(columns, width)
    cells = []
    for each in sweeps:
        setting, _, figure = each.best.rpartition(": ")
        parts = [f"{setting}:", f"{figure},"] if setting else []
        parts += [*each.experiments, *(["over", *each.over] if each.over else [each.reason])]
        about = "\n".join(folded(map(printable, parts), room, gap=" "))
        cells.append(Text("\n").join([_path(each.directory, room), Text(about)]))
    return _table("Sweeps", {"sweep": cells, **columns}, between=True)


def _table(title: str, columns: Mapping[str, Sequence[Text]], between: bool) -> Table:
    """A table of such columns, perhaps with lines between the rows."""
    table = Table(title=title, title_justify="left", padding=0, show_lines=between)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def _times(found: Sequence[Found], wide: bool) -> dict[str, list[Text]]:
    """When runs began, and how long they took."""
    return {
        "when": [Text(_when(each.began, " " if wide else "\n")) for each in found],
        "took": [Text("" if each.seconds is None else duration(each.seconds)) for each in found],
    }


def _room(columns: Mapping[str, Sequence[Text]], width: int) -> int:
    """What these columns leave of a width for a first one, without the lines between them."""
    used = [max(cell_len(heading), *map(_width, cells)) for heading, cells in columns.items()]
    return width - sum(used) - len(used) - 2


def _verdicts(each: ComparisonSummary) -> list[str]:
    """The challengers, each with its verdict if there is one, and the baseline."""
    if not each.arms:
        return [printable(each.reason)]
    baseline, *challengers = map(printable, each.arms)
    verdicts = each.verdicts or ["no pair yet"] * len(challengers)
    found = [f"{name}: {verdict}," for name, verdict in zip(challengers, verdicts, strict=False)]
    return [*found, f"against {baseline}"]


def _path(path: Path, room: int) -> Text:
    """A path, broken between folders if it is longer than ``room``."""
    *folders, name = printable(path).split("/")
    return Text(
        "\n".join(folded([*(f"{folder}/" for folder in folders), name], room, gap="")), "bold"
    )


def options_of(each: Summary) -> list[str]:
    """The options of a run that differ from the defaults, as on its command line."""
    seed = {} if each.seed is None else {"seed": each.seed}
    below = f"{Path.cwd()}/"  # such a path is shown relative to the working directory
    return [
        option_as_typed(name, value.removeprefix(below) if isinstance(value, str) else value)
        for name, value in (seed | each.changed).items()
    ]


def _about(each: Summary, room: int) -> Text:
    """The experiment and the options of a run, and what is damaged."""
    parts = [printable(part) for part in filter(None, [each.experiment, *options_of(each)])]
    text = Text("\n".join(folded(parts, room, gap=" ")))
    if each.status == "damaged" or not parts:
        text.append(f"{chr(10) if parts else ''}{printable(each.reason)}", STYLES[each.status])
    return text


def _width(text: Text) -> int:
    return max(map(cell_len, str(text).splitlines()), default=0)


def _status(each: Summary) -> Text:
    text = Text(each.status, STYLES[each.status])
    if each.status != "finished" and each.steps:
        text.append(f"\n{each.step}/{each.steps}", "default")
    return text


def _validation(each: Summary) -> Text:
    """The accuracy of the best validation, and the figure by which it is best."""
    text = Text(_figure(each.validation))
    figure = str(each.options.get("select_by", "")).partition(" ")[2]
    if each.validation and figure in each.validation and figure != "accuracy":
        text.append(f"\n{figure} {each.validation[figure]:.4f}")
    return text


def _figure(figures: Mapping[str, float] | None) -> str:
    return f"{figures['accuracy']:.4f}" if figures and "accuracy" in figures else ""


def _when(began: str | None, between: str) -> str:
    """A time for people: Nov 28 16:15, or with the year if that was long ago."""
    if began is None:
        return ""
    then = datetime.datetime.fromisoformat(began).astimezone()
    days = (datetime.datetime.now().astimezone() - then).days
    return then.strftime(f"%b %d{between}{'%H:%M' if days < 300 else '%Y'}")


def _plain(each: Found) -> dict[str, Any]:
    """What is known as JSON values."""
    fields = dataclasses.asdict(each)
    return {k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}
