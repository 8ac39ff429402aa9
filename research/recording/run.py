"""One directory for each run: what was run, with what, what it measured, what it produced."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.dataset import Dataset
from research.errors import InputError
from research.files import write_json
from research.recording.environment import describe_environment, uncommitted_changes
from research.recording.tensorboard import TensorBoardWriter


class Run:
    """A run directory, created exclusively.

    It holds ``config.json``, ``environment.json``, ``command.txt``, ``uncommitted.diff``, a copy
    of the experiment's file, ``metrics.jsonl``, TensorBoard's event files in ``train/`` and
    ``validation/``, ``log.txt``, and at the end ``mnist.h5``, ``mnist.h5.sha256`` and
    ``evaluation.json``. With them a run can be understood and repeated.

    Args:
        config: is written down, and names the directory where it has a ``run_dir``.
        experiment: the file of the experiment.
        data: is identified by its digest.

    Raises:
        InputError: if the ``run_dir`` asked for exists or can't be created.
    """

    def __init__(self, config: Config, experiment: Path, data: Dataset) -> None:
        self.path = _create_directory(config, experiment.stem)
        self._started = time.time()
        fields = dataclasses.asdict(config)
        write_json(
            self.path / "config.json",
            {"experiment": experiment.stem}
            | {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in fields.items()},
        )
        environment = describe_environment(experiment)
        environment["data"] = {"source": data.source, "sha256": data.sha256()}
        write_json(self.path / "environment.json", environment)
        command = shlex.join(environment["command"])
        (self.path / "command.txt").write_text(command + "\n", errors="backslashreplace")
        if patch := uncommitted_changes(experiment):
            (self.path / "uncommitted.diff").write_bytes(patch)
        shutil.copy(experiment, self.path)
        self._metrics = (self.path / "metrics.jsonl").open("x", buffering=1)
        self._tensorboard = TensorBoardWriter(self.path)

    def record(self, split: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes what was measured to metrics.jsonl and to TensorBoard.

        Args:
            split: ``"train"`` or ``"validation"``.
            step: number of steps done.
            metrics: finite values by name.
        """
        seconds = round(time.time() - self._started, 3)
        line = {"split": split, "step": step, "seconds": seconds, **metrics}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._tensorboard.scalars(split, step, metrics)

    def write_evaluation(self, evaluation: Any, **facts: Any) -> None:
        """Writes an evaluation, and facts to go with it, to evaluation.json."""
        write_json(self.path / "evaluation.json", facts | dataclasses.asdict(evaluation))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._metrics.close()
        self._tensorboard.close()


def refuse_existing(run_dir: Path | None) -> None:
    """Refuses a run directory that is there already, before anything else is done.

    Raises:
        InputError: if it exists.
    """
    if run_dir is not None and os.path.lexists(run_dir):
        raise InputError(
            f"--run-dir {run_dir}: it exists, and a run never writes into another's directory; "
            "name a new one, or leave the option out"
        )


def _create_directory(config: Config, experiment: str) -> Path:
    if config.run_dir is not None:
        refuse_existing(config.run_dir)
        candidates = iter([config.run_dir])
    else:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.seed}"
        folder = Path("runs") / experiment
        later = (folder / f"{name}-{n}" for n in itertools.count(2))
        candidates = itertools.chain([folder / name], later)
    for path in candidates:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError as error:
            if not os.path.lexists(path):  # it was the parent, which is no directory
                raise InputError(f"{path}: can't be created ({error.strerror})") from error
            continue
        except OSError as error:
            raise InputError(f"{path}: can't be created ({error.strerror})") from error
        return path
    raise InputError(f"--run-dir {config.run_dir}: it has just been created by another program")
