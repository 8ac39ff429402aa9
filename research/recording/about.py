"""Describes a run to people, for TensorBoard's Text and HParams dashboards."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.config import config_as_json, decisive_options, defaults_as_json
from research.data.dataset import Split
from research.files import is_regular
from research.recording.start import Start
from research.recording.tensorboard import Description
from research.results.evaluation import Validation
from research.training.state import State

# The page shows this many bytes of the commands and of the uncommitted changes.
MOST_SHOWN = 20_000
# Options that say where a run is or what it shows, and not what it does.
_PLACES = ("run_dir", "fork", "at_step")
# Options in which the seeds of one configuration differ.
_SEEDS = ("seed", "holdout_seed")
_SIZES = ("epochs", "examples")


def describe_run(run: Path, start: Start, state: State) -> Description:
    """The description of a run that starts or is resumed.

    Args:
        run: the run directory.
        start: what the run starts from.
        state: the state that is trained.
    """
    config, name = start.config, start.experiment.stem
    options = {
        "experiment": name,
        "epochs": config.epochs,
        "data": config.data and config.data.name,
    }
    options |= {"patience": config.patience, "at_step": config.at_step}
    options |= decisive_options(config)
    defaults = defaults_as_json(type(config))
    changed = {
        option: value
        for option, value in config_as_json(config).items()
        if value != defaults.get(option) and option not in _PLACES
    }
    named = {k: f"{k}={shown(v)}" for k, v in options.items() if k in changed and k not in _SEEDS}
    # HParams cuts long names off, so the options that tell little come last.
    sizes = [named.pop(option) for option in _SIZES if option in named]
    group = [*named.values(), name, *sizes]
    if config.fork is not None:
        group.append(f"forked at {config.at_step}")
    text = _page(run, start, state, changed)
    return Description(options, " ".join(group), text, start.at.step)


def figures_of(found: Mapping[Split, Validation], step: int, exported: int) -> str:
    """The result of a finished run, in Markdown.

    Args:
        found: the exported model's evaluation on each split.
        step: number of steps done.
        exported: the step whose weights have been exported.
    """
    best = f"; the weights after step {exported} are exported" if exported != step else ""
    names = list(dict.fromkeys(name for one in found.values() for name in one.figures))
    rows = [[name, *(f"{v.figures.get(name, ''):.5}" for v in found.values())] for name in names]
    heading = ["figure", *(f"{split.name}, {len(split):,} examples" for split in found)]
    return f"Finished after {step:,} steps{best}.\n\n" + _table([heading, *rows])


def shown(value: Any) -> str:
    """The value of an option, in few characters."""
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else Path(str(value)).name


def _page(run: Path, start: Start, state: State, changed: Mapping[str, Any]) -> str:
    """The page about the run, in Markdown."""
    environment = start.environment
    docstring = ast.get_docstring(ast.parse(start.experiment.read_bytes())) or ""
    options = [["option", "value"], *([name, f"`{value}`"] for name, value in changed.items())]
    lineage = f"Forked from `{start.config.fork}`, step {start.config.at_step}."
    patch = _beginning(run / "uncommitted.diff")
    summary: list[str] = []
    state.model.summary(print_fn=lambda line, **_: summary.append(line), line_length=80)
    git = environment.get("git")
    commit = git.get("commit") if isinstance(git, dict) else None
    parts = [
        f"## {start.experiment.stem}",
        docstring,
        f"Run directory: `{run.resolve()}`",
        lineage if start.config.fork is not None else "",
        "## Options that differ from the experiment's defaults",
        _table(options) if changed else "none",
        "## Commands",
        _block(_beginning(run / "command.txt")),
        "## Code",
        f"commit `{commit}`" + (", with these uncommitted changes:" if patch else ""),
        _block(patch),
        "## Environment",
        _table([["what", "value"], *_environment(environment)]),
        "## Network",
        _block("\n".join(summary)),
    ]
    return "\n\n".join(part for part in parts if part)


def _environment(environment: Mapping[str, Any]) -> list[list[str]]:
    """Rows on the software and hardware; a part of parts has a row for each."""
    rows = []
    for part in ("python", "packages", "platform", "cpu", "cores", "devices", "threads", "flags"):
        value = environment.get(part)
        several = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[f"{part} {name}".strip(), f"`{one}`"] for name, one in several]
    data = environment.get("data")
    return rows + [
        [f"data {k}", f"`{v}`"] for k, v in (data if isinstance(data, dict) else {}).items()
    ]


def _table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its heading."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]])


def _beginning(path: Path) -> str:
    if not is_regular(path):
        return ""
    with path.open("rb") as file:
        return file.read(MOST_SHOWN).decode(errors="replace")


def _block(text: str) -> str:
    """A text as a Markdown code block."""
    return "\n".join(f"    {line}" for line in text.splitlines())
