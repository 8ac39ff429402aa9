"""On a full disk every write ends in one clear error and leaves earlier files intact."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.errors import StorageError
from research.files import write_json
from research.network.mnist_cnn import MnistCNN
from research.recording.checkpoints import Checkpoint, checkpoint_path, write_checkpoint
from research.recording.logs import Logged, read_logs, write_logs
from research.recording.metrics import MetricsFile
from research.recording.tensorboard import TensorBoardWriter
from research.results.export import export_h5, load_h5

import pytest
from conftest import make_split, make_state
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def export(folder: Path) -> None:
    export_h5(MnistCNN(8), folder / "mnist.h5", make_split(20).images)


def checkpoint(folder: Path) -> None:
    write_checkpoint(Checkpoint("me", make_state().values()), checkpoint_path(folder, 0))


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (export, "mnist.h5"),
        (checkpoint, "step-00000000.safetensors"),
        (lambda folder: write_json(folder / "x.json", ["x" * 50_000]), "x.json"),
    ],
)
def test_a_file_that_does_not_fit_leaves_the_one_before_as_it_was(
    write: Callable[[Path], Any], name: str, tmp_path: Path
) -> None:
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        largest_file(20_000),
        pytest.raises(
            StorageError, match=rf"{name}: can't be written \(.*\); make room$"
        ) as caught,
    ):
        write(tmp_path)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    if name == "mnist.h5":
        load_h5(tmp_path / name)


def test_logs_can_be_read_and_continued_after_there_is_room_again(tmp_path: Path) -> None:
    metrics, board = MetricsFile(tmp_path), TensorBoardWriter(tmp_path)

    def record(step: int) -> None:
        metrics.write({"split": "train", "step": step, "seconds": step, "loss": 1 / step})
        board.scalars("train", step, {"loss": 1 / step})
        board.sync()

    for step in range(1, 51):
        record(step)
    logged = Logged(metrics.size, metrics.sha256, {"train": 50}, dict(board.events))
    for of, message in ((MetricsFile, r"metrics\.jsonl"), (TensorBoardWriter, "train")):
        with largest_file(20_000), pytest.raises(StorageError, match=f"{message}: can't be"):
            for step in range(51, 10_000):
                if of is MetricsFile:
                    metrics.write({"split": "train", "step": step, "seconds": step, "loss": 0.5})
                else:
                    board.scalars("train", step, {"loss": 1 / step})
                    board.sync()
    metrics.close()
    board.close()
    logs = read_logs(tmp_path, logged)
    assert not logs.damage
    write_logs(logs, tmp_path)
    metrics, board = MetricsFile(tmp_path), TensorBoardWriter(tmp_path)
    for step in range(51, 61):
        record(step)
    metrics.close()
    board.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    events = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0})
    events.Reload()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 61))
    assert [event.step for event in events.Tensors("loss")] == list(range(1, 61))
