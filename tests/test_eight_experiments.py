"""Eight experiments, each a file of its own with no edit of the library, and the seam they use."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.data.dataset import Dataset
from research.experiment import Experiment
from research.recording.screen import TrainingProgress
from research.results import evaluation
from research.signals import SIGNALS
from research.tools.verify_kills import left_by

import pytest
from conftest import EXPERIMENTS, REPOSITORY, RunHere, make_split
from PIL import Image

EIGHT = REPOSITORY / "tests" / "experiments"
SMALL = ("--epochs", "2", "--batch-size", "32", "--log-every", "4", "--holdout", "50")
NARROW = ("--dense-width", "8")
# What each of the eight is given beside SMALL.
OPTIONS: dict[str, tuple[str, ...]] = {
    "residual": (),
    "averaged": NARROW,
    "more_figures": NARROW,
    "early_stopping": (*NARROW, "--patience", "1", "--epochs", "9"),
    "momentum": (*NARROW, "--learning-rate", "0.1"),
    "restarts": (*NARROW, "--cycle-epochs", "0.5"),
    "own_loop": (*NARROW, "--target", "0.12", "--log-every", "5"),
    "forgetting": NARROW,
}


class Killed(BaseException):
    """Ends a run as SIGKILL does: no checkpoint is saved."""


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Does something when so many steps are reported to be done."""
    show = TrainingProgress.show

    def showing(progress: TrainingProgress, report: Any) -> None:
        show(progress, report)
        if report.step == number:
            act()

    monkeypatch.setattr(TrainingProgress, "show", showing)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_killed_and_resumed_it_ends_as_uninterrupted(
    name: str,
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = EIGHT / f"{name}.py"
    options = ("--data", data_file, *SMALL, *OPTIONS[name], "--checkpoint-every", "3")
    whole = run_here(file, *options, "--run-dir", "whole")
    assert (whole.status, whole.stderr) == (0, "")
    with monkeypatch.context() as patch:
        at_step(patch, 6, stop)
        stopped = run_here(file, *options, "--run-dir", "run", "--steps-per-call", "1")
    assert (stopped.status, stopped.stderr) == (128 + signal.SIGTERM, "")
    with monkeypatch.context() as patch:
        at_step(patch, 9, kill)
        with pytest.raises(Killed):
            run_here(file, "--resume", "run")
    resumed = run_here(file, "--resume", "run")
    assert (resumed.status, resumed.stderr) == (0, "")
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    again = run_here("research", "evaluate", "whole", "--json")
    assert (again.status, again.stderr) == (0, "")
    Image.fromarray(make_split(1).images[0, ..., 0]).save("digit.png")
    shown = run_here("research", "predict", "whole", "digit.png", "--json")
    assert (shown.status, shown.stderr) == (0, "")


def stop_in_validation(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Stops a run in the midst of the validation after so many steps."""
    predict = evaluation.predict_probabilities
    validate = Experiment.validate

    def validating(experiment: Experiment, state: Any, *splits: Any) -> Any:
        with monkeypatch.context() as patch:
            if state.step.numpy() == number:
                patch.setattr(evaluation, "predict_probabilities", predicting)
            return validate(experiment, state, *splits)

    def predicting(model: Any, images: Any) -> Any:
        found = predict(model, images)
        stop()
        return found

    monkeypatch.setattr(Experiment, "validate", validating)


@pytest.mark.parametrize(
    ("name", "options", "number", "ended"),
    [
        ("own_loop", ("--target", "0.2", "--log-every", "5"), 10, "its loop ended it"),
        ("early_stopping", ("--patience", "1", "--select-by", "highest loss"), 16, "no better"),
    ],
)
def test_a_stop_in_the_deciding_validation_changes_nothing_and_the_end_is_recorded(
    name: str,
    options: tuple[str, ...],
    number: int,
    ended: str,
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = EIGHT / f"{name}.py"
    options = ("--data", str(data_file), *SMALL, *NARROW, "--epochs", "4", *options)
    assert run_here(file, *options, "--run-dir", "whole").status == 0
    assert json.loads(Path("whole", "evaluation.json").read_text())["steps"] == number
    with monkeypatch.context() as patch:
        stop_in_validation(patch, number)
        assert run_here(file, *options, "--run-dir", "run").status == 128 + signal.SIGTERM
        assert run_here(file, "--resume", "run").status == 128 + signal.SIGTERM
    with monkeypatch.context() as patch:
        # The training is over, and its end has been recorded.
        patch.setattr("research.experiment.finish", lambda *_: stop())
        assert run_here(file, "--resume", "run").status == 128 + signal.SIGTERM
    assert run_here(file, "--resume", "run").status == 0
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    again = run_here(file, "--resume", "run")
    assert (again.status, again.stderr) == (0, "")
    assert f"run ended after {number} of 32 steps: " in again.stdout
    assert ended in again.stdout


def changed(folder: Path, *changes: tuple[str, str]) -> Path:
    """The reference experiment with some texts replaced."""
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "changed.py"
    path.write_text(text)
    return path


EXPERIMENT = "experiment = Experiment(config=Config, build=build, step=step)"
MODEL = "MnistCNN(config.dense_width,"


def with_figures(returned: str) -> tuple[str, str]:
    figures = f"def figures(state, split, probabilities):\n    return {returned}\n\n\n"
    return (EXPERIMENT, figures + EXPERIMENT.replace("step=step", "step=step, figures=figures"))


def with_indices(returned: str) -> tuple[str, str]:
    indices = f"def indices(state, plan):\n    return {returned}\n\n\n"
    return (EXPERIMENT, indices + EXPERIMENT.replace("step=step", "step=step, indices=indices"))


def with_network(method: str) -> tuple[str, str]:
    network = f"\n\nclass Network(MnistCNN):\n    {method}\n\n\ndef build("
    return ("\n\ndef build(", network)


REFUSED: dict[str, tuple[int, list[tuple[str, str]], str]] = {
    "no twin": (
        2,
        [with_network("stock_twin = None"), (MODEL, MODEL.replace("MnistCNN", "Network"))],
        "the network mnist_cnn has no stock_twin()",
    ),
    "another twin": (
        2,
        [
            with_network("logits = lambda self, *a, **k: 2 * MnistCNN.logits(self, *a, **k)"),
            (MODEL, MODEL.replace("MnistCNN", "Network")),
        ],
        "its stock twin predicts other probabilities",
    ),
    "a figure of a reserved name": (1, [with_figures("{'split': 1.0}")], "'split', which is taken"),
    "a figure of the project's": (1, [with_figures("{'accuracy': 1.0}")], "'accuracy', which is"),
    "a figure of evaluation.json": (
        1,
        [with_figures("{'precision': 1.0}")],
        "figures returned the key 'precision', which is taken",
    ),
    "a matrix": (1, [with_figures("{'f1': tf.zeros([2, 3])}")], "'f1' with shape (2, 3)"),
    "a number without a name": (1, [with_figures("0.5")], "figures returned 0.5"),
    "no figures": (1, [with_figures("None")], "figures returned None"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_contract_rules_out_is_refused_before_anything_is_written(
    kind: str, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    status, changes, words = REFUSED[kind]
    file = changed(tmp_path, *changes)
    result = run_here(file, "--data", data_file, *SMALL, *NARROW, "--run-dir", "run")
    assert result.status == status
    assert words in result.stderr.partition("Traceback")[0] or words in result.stderr
    assert status == 1 or result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["changed.py"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_figures("{'f1': tf.constant(float('nan'))}"), "f1 became nan in a validation"),
        (with_indices("tf.zeros([4])"), "indices returned shape (4,) and dtype float32"),
        (with_indices("tf.zeros([4, 1], tf.int64)"), "indices returned shape (4, 1)"),
    ],
)
def test_what_training_shows_to_be_wrong_ends_it_in_one_line(
    change: tuple[str, str], words: str, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    file = changed(tmp_path, change)
    result = run_here(file, "--data", data_file, *SMALL, *NARROW, "--run-dir", "run")
    assert result.status == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_figure_that_nobody_evaluates_cannot_be_selected_by(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    command = (EIGHT / "more_figures.py", "--data", data_file, *SMALL, *NARROW, "--run-dir", "run")
    result = run_here(*command, "--select-by", "highest robustness")
    assert result.status == 2
    assert result.stderr == (
        "error: --select-by robustness: no such figure is evaluated; there are accuracy, loss, "
        "macro_f1, quality/calibration_error, quality/generalization_gap, robust_accuracy\n"
    )
    assert not list(tmp_path.iterdir())


def test_with_holdout_the_test_set_is_read_only_if_that_is_asked_for(
    dataset: Dataset,
    data_file: Path,
    tmp_path: Path,
    finished_run: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict = evaluation.predict_probabilities

    def predicting(model: Any, images: Any, *arguments: Any) -> Any:
        test = {image.tobytes() for image in dataset.test.images}
        assert not any(image.tobytes() in test for image in images)
        return predict(model, images, *arguments)

    for module in ("evaluation", "export"):
        monkeypatch.setattr(f"research.results.{module}.predict_probabilities", predicting)
    file = changed(tmp_path, with_figures("{'own': 0.5}"))
    result = run_here(file, "--data", data_file, *SMALL, *NARROW, "--run-dir", "run")
    assert (result.status, result.stderr) == (0, "")
    found = json.loads(Path("run", "evaluation.json").read_text())
    assert "test" not in found
    assert found["holdout"]["own"] == 0.5
    assert "Test accuracy" not in result.stdout
    assert not Path("run", "test").exists()
    both = json.loads((finished_run / "evaluation.json").read_text())
    assert (both["holdout"]["examples"], both["test"]["examples"]) == (50, 100)
