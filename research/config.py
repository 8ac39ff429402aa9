"""The typed configuration of an experiment, which becomes its command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from research.errors import InputError
from research.training.schedules import Decay

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options that every experiment has. An experiment's own Config adds to them.

    Raises:
        InputError: on construction, if a value or a combination of values is impossible.
    """

    epochs: int = 12
    """Passes over the training set."""
    batch_size: int = 128
    """Examples per step, over all replicas."""
    learning_rate: float = 1.0
    """Learning rate of Adadelta; with a schedule, the highest."""
    decay: Decay = "constant"
    """How the learning rate goes on after the warm-up: as it is, or down to zero at the end."""
    warmup_epochs: float = 0.0
    """The learning rate rises linearly for so many epochs, fractions allowed."""
    clip_norm: float | None = None
    """Scale gradients with a larger global norm down to this norm."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Number format of the arithmetic; weights stay float32."""
    strategy: Literal["default", "mirrored"] = "default"
    """One replica, or one on each GPU; without a GPU, mirrored splits the CPU into two."""
    dense_width: int = 256
    """Units of the network's hidden dense layer."""
    dropout: tuple[float, float] = (0.25, 0.5)
    """Fraction dropped after pooling, and after the hidden dense layer."""
    seed: int = 0
    """Decides initial weights, batches, dropout, and what is held out."""
    steps_per_call: int = 10
    """Steps in one call of the compiled function; changes speed, never the result."""
    log_every: int = 20
    """Write metrics and update the progress bar every so many steps."""
    eager: bool = False
    """Run the step eagerly, for a debugger; slower."""
    data: Path | None = None
    """A Keras-style .npz or a folder of IDX files, gzipped or not. Default: MNIST."""
    holdout: int = 0
    """Hold out so many training examples and validate on them instead of the test set."""
    examples: int | None = None
    """Quick mode: train and evaluate on the first so many examples."""
    run_dir: Path | None = None
    """The directory to create for this run. Default: runs/EXPERIMENT/TIME-SEED."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "steps_per_call", "log_every", "dense_width"):
            value = getattr(self, name)
            require(name, value, 1 <= value < 2**31, "give a whole number of at least 1")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            # Smaller or larger ones are 0 or infinity in float32.
            valid = value is None or 1e-37 < value < 1e38
            require(name, value, valid, "give a number above 0 that float32 can hold")
        for rate in self.dropout:
            require("dropout", rate, 0 <= rate < 1, "give two rates of at least 0 and below 1")
        require("seed", self.seed, 0 <= self.seed < 2**31, "give 0 to 2147483647")
        warmup = self.warmup_epochs
        within = f"give at least 0 and at most the {self.epochs} of --epochs"
        require("warmup_epochs", warmup, 0 <= warmup <= self.epochs, within)
        require("holdout", self.holdout, self.holdout >= 0, "give 0 for none, or more")
        if (examples := self.examples) is not None:
            valid = 1 <= examples < 2**31
            require("examples", examples, valid, "give a whole number of at least 1")
            left = f"--examples {examples} would leave nothing to train on; hold out fewer"
            require("holdout", self.holdout, self.holdout < examples, left)


def require(field: str, value: object, holds: bool, remedy: str) -> None:
    """Refuses the value of a field of a Config.

    Raises:
        InputError: naming the option and its value, unless ``holds``.
    """
    if not holds:
        raise InputError(f"--{field.replace('_', '-')} {value}: {remedy}")


AnyConfig = TypeVar("AnyConfig", bound=Config)


def parse(
    config_type: type[AnyConfig],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
) -> AnyConfig:
    """The configuration that the command line gives.

    Args:
        config_type: a frozen dataclass; each field is an option, each field's docstring its help.
        arguments: the words after the program's name; None takes those of this process.
        description: stands above the options in the text of ``--help``.

    Raises:
        InputError: for an unknown option or an impossible value.
        SystemExit: with status 0, after ``--help`` has been printed.
    """
    with parse_errors_in_one_line():
        return tyro.cli(config_type, args=arguments, description=description)


@contextlib.contextmanager
def parse_errors_in_one_line() -> Iterator[None]:
    """Turns what tyro prints in a box before it exits into an InputError of one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(_unboxed(box.getvalue())) from None


def _unboxed(box: str) -> str:
    # The box is drawn with lines, or where the terminal's encoding has none, with | and -.
    lines = [line.strip("│| ") for line in box.splitlines() if line[:1] in ("│", "|")]
    message, *rest = re.split(r" ?(?:─{3,}|-{3,}) ?", " ".join(lines))
    message = re.sub(r"^Error parsing (?:[A-Z]\w*: )?", "", message).rstrip(". ")
    similar = re.match(r"Perhaps you meant: (\S+)", rest[0]) if rest else None
    hint = f"did you mean {similar[1]}? " if similar else ""
    return f"{message} ({hint}--help explains the options)"
