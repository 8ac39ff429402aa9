"""The verb ``verify``: proves that an experiment's step is sound."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated

from research.config import Config, parse, require
from research.data.formats import read_dataset
from research.data.mnist import load_mnist
from research.recording.screen import Screen
from research.tools.check import Check
from research.tools.load_experiment import EXPERIMENTS, load_experiment
from research.tools.verify_kills import killed_and_resumed
from research.tools.verify_step import step_is_sound

import tyro
from rich.table import Table
from rich.text import Text


@dataclasses.dataclass(frozen=True)
class Verify:
    """Prove that an experiment's step is sound: compiled, reproducible, learning, resumable.

    Run it after changing a step. It trains the experiment for a few steps on a few examples. Then
    it runs the experiment in processes that it kills at random moments and resumes. Options behind
    -- go to the experiment: verify experiments/mixup.py -- --alpha 0.3
    """

    experiment: Annotated[Path, tyro.conf.Positional] = EXPERIMENTS / "mnist_cnn.py"
    """The file of the experiment."""
    kills: int = 3
    """Kill the experiment at so many random moments with SIGKILL. A tenth of the kills, and at
    least one of two, hit a fork."""
    stops: int = 2
    """Stop it at so many random moments by a signal that lets it save, such as SIGTERM."""
    full: bool = False
    """Kill the experiment at its own size, on 5,000 examples, instead of a small one."""
    only_kills: bool = False
    """Leave out the checks within one process."""
    seed: int = 0
    """Decides the random moments."""
    data: Path | None = None
    """A Keras-style .npz or a folder of IDX files. Default: MNIST."""
    json: bool = False
    """Print JSON instead of a table."""
    options: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The experiment's own options, behind --."""

    def __post_init__(self) -> None:
        for name in ("kills", "stops"):
            value = getattr(self, name)
            require(name, value, value >= 0, "give 0 for none, or more")

    def run(self, screen: Screen) -> bool:
        """Prints each check and whether it holds; returns whether all hold."""
        say = (lambda line: None) if self.json else screen.say
        config_type = load_experiment(self.experiment).config
        given = [*(("--data", str(self.data)) if self.data else ()), *self.options]
        config = parse(config_type, given)
        for name in ("resume", "fork", "run_dir"):
            value = getattr(config, name)
            require(name, value, value is None, "verify starts runs of its own; leave this out")
        data = load_mnist(say) if config.data is None else read_dataset(config.data)
        checks: list[Check] = []
        if not self.only_kills:
            small = with_options(given, smaller(config, batch_size=16))
            checks += step_is_sound(self.experiment, small, data.train, say)
        if self.kills + self.stops and all(check.holds for check in checks):
            arguments = self._to_be_killed(config, given)
            with tempfile.TemporaryDirectory(prefix="research-verify-") as folder:
                checks += killed_and_resumed(
                    self.experiment,
                    arguments,
                    parse(config_type, arguments),
                    kills=self.kills,
                    stops=self.stops,
                    seed=self.seed,
                    folder=Path(folder),
                    say=say,
                )
        if self.json:
            print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
        else:
            table = Table(title=str(self.experiment), title_justify="left")
            for heading in ("check", "holds", "found"):
                table.add_column(heading, overflow="fold")
            for check in checks:
                style = "green" if check.holds else "bold red"
                holds = Text("yes" if check.holds else "no", style=style)
                table.add_row(Text(check.name), holds, Text(check.found))
            screen.console.print(table)
        return all(check.holds for check in checks)

    def _to_be_killed(self, config: Config, given: list[str]) -> list[str]:
        """Arguments for a run with many events within a few seconds, or for one at full size."""
        if self.full:
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
