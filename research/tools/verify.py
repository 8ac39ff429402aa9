"""The verb ``verify``: proves that an experiment's step is sound."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from research.config import Config, parse, require
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.printable import printable
from research.screen import Screen
from research.stderr import show_error
from research.tools.check import Check
from research.tools.load_experiment import load_experiment
from research.tools.verify_kills import killed_and_resumed
from research.tools.verify_step import step_is_sound
from research.verbs import Verify

from rich.table import Table
from rich.text import Text


def run(asked: Verify, screen: Screen) -> bool:
    """Prints each check and whether it holds; returns whether all hold."""
    say = (lambda line: None) if asked.json else screen.say
    config_type = load_experiment(asked.experiment).config
    given = [*(("--data", str(asked.data)) if asked.data else ()), *asked.options]
    config = parse(config_type, given)
    for name in ("resume", "fork", "run_dir"):
        value = getattr(config, name)
        require(name, value, value is None, "verify starts runs of its own; leave this out")
    data = load_mnist(say) if config.data is None else read_dataset(config.data)
    checks: list[Check] = []
    if not asked.only_kills:
        small = with_options(given, smaller(config, batch_size=16))
        say("Checks within one process, about a minute:")
        with ended_if_it_hangs(asked.minutes):
            checks += step_is_sound(asked.experiment, small, data.train, say)
    if asked.kills + asked.stops and all(check.holds for check in checks):
        arguments = _to_be_killed(asked, config, given)
        with tempfile.TemporaryDirectory(prefix="research-verify-") as folder:
            checks += killed_and_resumed(
                asked.experiment,
                arguments,
                parse(config_type, arguments),
                kills=asked.kills,
                stops=asked.stops,
                seed=asked.seed,
                folder=Path(folder),
                say=say,
                seconds=60 * asked.minutes,
            )
    if asked.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        table = Table(title=Text(printable(asked.experiment)), title_justify="left")
        for heading in ("check", "holds", "what was seen, or the likely cause"):
            table.add_column(heading, overflow="fold")
        for check in checks:
            style = "green" if check.holds else "bold red"
            holds = Text("yes" if check.holds else "no", style=style)
            table.add_row(Text(check.name), holds, Text(check.found))
        screen.console.print(table)
    return all(check.holds for check in checks)


@contextlib.contextmanager
def ended_if_it_hangs(minutes: float) -> Iterator[None]:
    """Ends the process with status 1 if the block takes longer.

    A step that hangs in TensorFlow heeds no exception and no signal handler.
    """

    def end() -> None:
        show_error(
            f"error: a check hangs: it was ended after {minutes:g} minutes; mend the step, or give "
            "more with --minutes"
        )
        os._exit(1)

    timer = threading.Timer(60 * minutes, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _to_be_killed(asked: Verify, config: Config, given: list[str]) -> list[str]:
    """Arguments for a run with many events within a few seconds, or for one at full size."""
    if asked.full:
        small = {"examples": 5000.0 + config.holdout}
        return with_options(given, small | shorter(config, epochs=1))
    small = smaller(config, batch_size=32) | {"log_every": 4, "checkpoint_every": 5}
    return with_options(given, small | shorter(config, epochs=3))


def smaller(config: Config, batch_size: int) -> dict[str, float]:
    """Options for an experiment of seconds: 200 examples, and a narrow dense layer."""
    options = {"examples": 200.0 + config.holdout, "batch_size": float(batch_size)}
    return options | ({"dense_width": 16.0} if hasattr(config, "dense_width") else {})


def shorter(config: Config, epochs: float) -> dict[str, float]:
    """Options for ``epochs`` epochs, with other options that count epochs scaled likewise.

    A warm-up, for instance, may not be longer than the training.
    """
    scaled = {
        field.name: getattr(config, field.name) * epochs / config.epochs
        for field in dataclasses.fields(config)
        if field.name.endswith("_epochs") and field.type in ("float", float)
    }
    return {"epochs": epochs} | scaled


def with_options(given: list[str], options: dict[str, float]) -> list[str]:
    """The given arguments, and the options that they do not name.

    A given --batch-size 64, for instance, stays. If --epochs is given, options that count epochs
    are not scaled.
    """
    named = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in given}
    words = [*given]
    for name, value in options.items():
        scaled = name.endswith("_epochs") and "epochs" not in named
        if scaled or (name not in named and not name.endswith("_epochs")):
            words += [f"--{name.replace('_', '-')}", f"{value:g}"]
    return words
