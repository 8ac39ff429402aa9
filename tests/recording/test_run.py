from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from research.config import Config
from research.data.dataset import Dataset, hold_out
from research.errors import InputError
from research.files import sha256
from research.recording.wall_time import WallTime
from research.results.evaluation import validate
from research.training.train import Step, train

import pytest
from conftest import EXPERIMENTS, begun, make_state

EXPERIMENT = EXPERIMENTS / "mnist_cnn.py"


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_can_be_understood_and_repeated_from_its_directory(finished_run: Path) -> None:
    config = json.loads((finished_run / "config.json").read_text())
    assert config["epochs"] == 3
    assert config["learning_rate"] == 1.0
    assert config["experiment"] == "mnist_cnn"
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment["packages"]["tensorflow"].startswith("2.21")
    assert set(environment) >= {"python", "cpu", "cores", "threads", "flags", "git", "data"}
    assert environment["working_directory"] == str(finished_run.parents[2])
    assert Path(config["data"]).is_absolute()
    assert " --epochs 3 " in (finished_run / "command.txt").read_text()
    assert (finished_run / "code" / "mnist_cnn.py").read_text() == EXPERIMENT.read_text()
    digest = (finished_run / "mnist.h5.sha256").read_text().split()[0]
    assert digest == sha256(finished_run / "mnist.h5")
    evaluation = json.loads((finished_run / "evaluation.json").read_text())
    assert evaluation["steps"] == 24
    assert evaluation["test"]["examples"] == 100
    assert evaluation["holdout"]["examples"] == 50


def test_metrics_cover_every_step_once(finished_run: Path) -> None:
    train = [line for line in lines(finished_run) if line["split"] == "train"]
    validation = [line for line in lines(finished_run) if line["split"] == "validation"]
    assert [line["step"] for line in train] == [4, 8, 12, 16, 20, 24]
    assert [line["step"] for line in validation] == [8, 16, 24]


def test_a_validation_that_no_checkpoint_knows_of_is_made_again(
    tmp_path: Path, dataset: Dataset, step: Step
) -> None:
    config = Config(epochs=2, batch_size=32, holdout=50, run_dir=tmp_path / "run")
    resumed = dataclasses.replace(config, run_dir=None, resume=config.run_dir)
    training, validation = hold_out(dataset.train, 50, 0)
    state = make_state()
    with begun(config, dataset, state) as record:
        report = next(train(state, step, training, epochs=2, batch_size=32))
        assert (report.step, report.epoch_ended) == (8, True)
        record.recorder.validation_due = True  # a signal interrupts it
        record.recorder.training(report, state, training, WallTime())
        record.checkpoints.save(state)
    for saved in (False, False, True):
        state = make_state()
        with begun(resumed, dataset, state) as record:
            assert record.start.at.step == 8
            assert record.recorder.validation_due
            assert [line["split"] for line in lines(tmp_path / "run")] == ["train"]
            found = validate(state.model, validation, training)
            record.recorder.validation(8, found, validation)
            assert record.checkpoints.due(8)
            if saved:
                record.checkpoints.save(state)
    with begun(resumed, dataset, make_state()) as record:
        assert not record.recorder.validation_due
        assert record.checkpoints.best_step == 8
    assert [line["split"] for line in lines(tmp_path / "run")] == ["train", "validation"]


def test_runs_started_in_the_same_second_have_directories_of_their_own(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(begun(Config(), dataset, make_state())) for _ in range(5)]
        assert len({run.path for run in runs}) == 5
        assert all(run.path.parent == Path("runs/mnist_cnn") for run in runs)


def test_an_existing_directory_is_never_written_to(tmp_path: Path, dataset: Dataset) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    message = "taken: it has just been created"
    with (
        pytest.raises(InputError, match=message),
        begun(Config(run_dir=taken), dataset, make_state()),
    ):
        pass
    assert [path.name for path in taken.iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("target", ["runs", "runs/mnist_cnn"])
def test_a_place_where_no_directory_can_be_is_refused(
    target: str, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(target).parent.mkdir(exist_ok=True)
    Path(target).symlink_to("/nowhere/to/be/found")
    with (
        pytest.raises(InputError, match="can't be created"),
        begun(Config(), dataset, make_state()),
    ):
        pass
