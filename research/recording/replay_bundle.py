"""A replay bundle: all that is needed to repeat the step that made a value non-finite."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from research.config import config_as_json
from research.data.batches import Plan, take_batch
from research.data.dataset import Split
from research.files import replaced_atomically, storage_errors, write_json
from research.recording.checkpoints import Checkpoint, write_checkpoint
from research.recording.code import copy_code
from research.recording.run import Run
from research.recording.run_directory import CODE
from research.training.state import State
from research.training.train import Indices, Step, go_to_non_finite

import numpy as np


def write_replay_bundle(
    run: Run,
    state: State,
    step: Step,
    indices: Indices | None,
    split: Split,
    plan: Plan,
    reason: str,
) -> Path | None:
    """Trains again from the last checkpoint, up to the step that makes a value non-finite.

    The bundle is a directory in the run directory. It holds the state before that step, its batch,
    the configuration with the seed, and the experiment's code.

    Args:
        run: the run that failed.
        state: ends with the values before that step.
        step, indices: the experiment's.
        split: the training examples.
        plan: the run's plan.
        reason: the message of the NonFiniteError.

    Returns:
        The bundle's directory; None without a checkpoint, or if all values stayed finite now.
    """
    until = int(state.step.numpy())
    last = run.checkpoints.newest(state)
    if last is None:
        return None
    state.assign(last.variables.values())
    used = go_to_non_finite(
        *(state, step, split),
        plan=plan,
        until=until,
        accumulate=run.start.config.accumulate,
        indices=indices,
    )
    if used is None:
        return None
    done, file = int(state.step.numpy()), run.start.experiment
    folder = run.path / f"replay-step-{done + 1:08d}"
    with storage_errors(folder), replaced_atomically(folder) as partial:
        partial.mkdir()
        write_checkpoint(Checkpoint(last.run, state.values()), partial / "state.safetensors")
        images, labels = take_batch(split.images, split.labels, used)
        np.savez(partial / "batch.npz", images=images, labels=labels, indices=used)
        copy_code(file, partial / CODE)
        about: dict[str, Any] = {"experiment": file.resolve().name, "reason": reason}
        about |= {"plan": dataclasses.asdict(plan), "config": config_as_json(run.start.config)}
        write_json(partial / "bundle.json", about)
    return folder
