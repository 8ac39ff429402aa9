"""A replay bundle: what is needed to run one step again, the one that spoiled a training."""

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
from research.training.state import State
from research.training.train import Indices, Step, go_to_non_finite, indices_of_next_step

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
    """Goes back to the last checkpoint, and on to the step that makes something non-finite.

    What is needed to run that step again is left in a directory: the state before it, the
    batch, the configuration with the seed, and the experiment's code.

    Args:
        run: whose last checkpoint it is.
        state: is left as it was before that step.
        step, indices: of the experiment.
        split, plan: what is trained on, and how.
        reason: what was found to be non-finite.

    Returns:
        The directory; None if everything stayed finite this time.
    """
    until = int(state.step.numpy())
    last = run.checkpoints.newest(state)
    if last is None:
        return None
    state.assign(last.variables.values())
    if not go_to_non_finite(
        state, step, split, batch_size=plan.batch_size, until=until, indices=indices
    ):
        return None
    done, file = int(state.step.numpy()), run.start.experiment
    folder = run.path / f"replay-step-{done + 1:08d}"
    with storage_errors(folder), replaced_atomically(folder) as partial:
        partial.mkdir()
        write_checkpoint(Checkpoint(last.run, state.values()), partial / "state.safetensors")
        used = indices_of_next_step(state, plan, indices)
        images, labels = take_batch(split.images, split.labels, used)
        np.savez(partial / "batch.npz", images=images, labels=labels, indices=used)
        copy_code(file, partial / "code")
        about: dict[str, Any] = {"experiment": file.name, "reason": reason}
        about |= {"plan": dataclasses.asdict(plan), "config": config_as_json(run.start.config)}
        write_json(partial / "bundle.json", about)
    return folder
