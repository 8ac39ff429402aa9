"""An experiment from its file, for the verbs that run one."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path

from research.config import Config
from research.errors import InputError, one_line
from research.training.state import State
from research.training.train import Step

# Beside the package: the project is installed in place.
EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load_experiment(file: Path) -> tuple[type[Config], Callable[[Config, int], State], Step]:
    """An experiment's Config, ``build`` and ``step``. Its main program is not run.

    Raises:
        InputError: if the file is missing or defines something else.
    """
    if not os.path.isfile(file):
        raise InputError(f"{file}: no such file; name an experiment, such as mnist_cnn.py")
    try:
        names = runpy.run_path(str(file), run_name=file.stem)
        return names["Config"], names["build"], names["step"]
    except KeyError as error:
        raise InputError(
            f"{file}: it defines no {error.args[0]}; an experiment has Config, build and step"
        ) from error
    except Exception as error:  # it may fail in any way
        raise InputError(
            f"{file}: not a program that Python can load ({one_line(error)[:200]})"
        ) from error
