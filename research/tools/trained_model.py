"""Finds the trained model that a user names: a run directory, or an mnist.h5."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

from research.errors import InputError, one_line
from research.files import read_json
from research.verbs import EXPERIMENTS


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model's file, and the data of its run.

    Attributes:
        h5: the file, which ``load_h5`` reads.
        data: the ``--data`` of the run; None for MNIST.
        examples: the ``--examples`` of the run; None for all.
    """

    h5: Path
    data: Path | None = None
    examples: int | None = None


def find_model(run_or_h5: Path) -> TrainedModel:
    """Finds the model of a run directory, or takes an .h5 file, whose data are unknown.

    Raises:
        InputError: if a directory is not a run directory, or its run has not saved a model.
    """
    if not os.path.isdir(run_or_h5):
        return TrainedModel(run_or_h5)
    try:
        config = run_or_h5 / "config.json"
        if not os.path.isfile(config):  # opening a FIFO would wait for its writer
            raise ValueError("there is no such file")
        fields = read_json(config)
        experiment, data, examples = (fields[k] for k in ("experiment", "data", "examples"))
        if not (isinstance(experiment, str) and experiment.isprintable()):
            raise ValueError(f"the experiment is {experiment!r}")
        if data is not None and (not isinstance(data, str) or b"\0" in os.fsencode(data)):
            raise ValueError(f"the data are {data!r}")
        if examples is not None and not (type(examples) is int and examples > 0):
            raise ValueError(f"the examples are {examples!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{run_or_h5}: not a run directory, its config.json can't be read "
            f"({one_line(error)[:100]}); name a directory under runs/, or an mnist.h5"
        ) from error
    h5 = run_or_h5 / "mnist.h5"
    if not os.path.lexists(h5):
        folder = "experiments/" if os.path.isfile(EXPERIMENTS / f"{experiment}.py") else ""
        resume = shlex.join(["python", f"{folder}{experiment}.py", "--resume", str(run_or_h5)])
        raise InputError(
            f"{run_or_h5}: it has no mnist.h5, which a run saves when its training ends; go on "
            f"with it: {resume}"
        )
    return TrainedModel(h5, None if data is None else Path(data), examples)
