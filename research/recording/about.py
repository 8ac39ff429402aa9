"""Describes a run to people, for TensorBoard's Text and HParams dashboards."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.config import config_as_json, decisive_options, defaults_as_json
from research.data.dataset import Split
from research.files import as_object, is_regular, read_source, sha256
from research.printable import counted, number
from research.recording.environment import DECISIVE
from research.recording.run_directory import CODE
from research.recording.start import Start
from research.recording.tensorboard import Description
from research.results.evaluation import Evaluation, Validation
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
    group.append(_configuration(run, start))
    text = _page(run, start, state, changed)
    return Description(options, " ".join(group), text, start.at.step)


def _configuration(run: Path, start: Start) -> str:
    """A few hexadecimal digits that runs have in common if they differ in nothing but the seed."""
    config = start.config
    options = {k: v for k, v in decisive_options(config).items() if k not in _SEEDS}
    code = [sha256(path) for path in sorted((run / CODE).rglob("*.py")) if is_regular(path)]
    source = config.fork and str(config.fork.resolve())
    facts = [options, config.epochs, config.patience, source, config.at_step, code]
    facts += [start.identity["data_sha256"], start.environment.get("files")]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:6]


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
    finished = f"Finished after {step:,} steps{best}."
    first = next(iter(found.values())).evaluation
    failure = "" if first.has_learned else f"**{learned(first)}**\n\n"
    return f"{finished}\n\n{failure}{_table([heading, *rows])}"


def learned(found: Evaluation) -> str:
    """Whether training was successful; if not, what to try.

    It was not if the accuracy is within the 95% interval of that of always giving the same answer.
    """
    if found.has_learned:
        return "Training finished successfully."
    answer, accuracy = found.always
    return (
        f"Training ended, but on {counted(found.examples, 'example')} the network is no better "
        f"than always answering {answer} (accuracy {accuracy:.4f}): try a lower --learning-rate, "
        "or more --epochs"
    )


def shown(value: Any) -> str:
    """The value of an option, in few characters; of a path the name alone."""
    if isinstance(value, list | tuple):
        return ",".join(number(one) if isinstance(one, float) else str(one) for one in value)
    if isinstance(value, float):
        return number(value)
    return Path(value).name if isinstance(value, str) and value.startswith("/") else str(value)


def _page(run: Path, start: Start, state: State, changed: Mapping[str, Any]) -> str:
    """The page about the run, in Markdown."""
    environment = start.environment
    options = [["option", "value"], *([name, f"`{value}`"] for name, value in changed.items())]
    patch = _beginning(run / "uncommitted.diff")
    lineage = f"Forked from `{start.config.fork}`, step {start.config.at_step}."
    summary: list[str] = []
    state.model.summary(print_fn=lambda line, **_: summary.append(line), line_length=80)
    commit = as_object(environment.get("git")).get("commit")
    code = f"commit `{commit}`" if commit else f"no git commit; the run has it in `{CODE}/`"
    parts = [
        f"## {start.experiment.stem}",
        _docstring(run / CODE / start.experiment.name),
        f"Run directory: `{run.resolve()}`",
        lineage if start.config.fork is not None else "",
        "## Options that differ from the experiment's defaults",
        _table(options) if changed else "none",
        "## Commands",
        _block(_beginning(run / "command.txt")),
        "## Code",
        code + (", with these uncommitted changes:" if patch else ""),
        _block(patch),
        "## Environment",
        _table([["what", "value"], *_environment(environment)]),
        "## Network",
        _block("\n".join(summary)),
    ]
    return "\n\n".join(part for part in parts if part)


def _docstring(file: Path) -> str:
    """The docstring of a Python file; empty without one, or if the file can't be parsed."""
    with contextlib.suppress(OSError, ValueError, SyntaxError):  # a user may be editing it
        return ast.get_docstring(ast.parse(read_source(file))) or ""
    return ""


def _environment(environment: Mapping[str, Any]) -> list[list[str]]:
    """Rows on the software and hardware; a part of parts has a row for each."""
    rows = []
    for part in (*DECISIVE, "platform"):
        value = environment.get(part)
        if isinstance(value, list):
            value = " ".join(map(str, value))
        several = value.items() if isinstance(value, dict) else [("", value)]
        rows += [[f"{part} {name}".strip(), _code(one)] for name, one in several]
    data = as_object(environment.get("data"))
    return rows + [[f"data {k}", _code(v)] for k, v in data.items()]


def _code(value: Any) -> str:
    return "unknown" if value is None else f"`{value}`"


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
