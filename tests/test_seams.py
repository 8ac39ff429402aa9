"""Experiments that change more than the step, and the seams of the library that they use."""

from __future__ import annotations

import difflib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config import parse
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.experiment import Experiment
from research.recording.checkpoints import checkpoint_paths
from research.recording.progress import TrainingProgress
from research.recording.tensorboard import TensorBoardWriter
from research.results import evaluation
from research.tools.load_experiment import load_experiment
from research.tools.verify_kills import Program, left_by

import numpy as np
import pytest
from conftest import EXPERIMENTS, REPOSITORY, RunHere, make_split, skip_if_onednn_aborts
from PIL import Image
from safetensors import safe_open

EXAMPLES = REPOSITORY / "tests" / "experiments"
SMALL = ("--epochs", "2", "--batch-size", "32", "--log-every", "4", "--holdout", "50")
NARROW = ("--dense-width", "8")
# What each experiment is given beside SMALL. The first ones are ideas with a file in experiments/.
IDEAS: dict[str, tuple[str, ...]] = {
    "residual": (),
    "averaged_weights": NARROW,
    "hard_examples": (*NARROW, "--usual-epochs", "1"),
    "sam": NARROW,
    "pgd": (*NARROW, "--attack-steps", "2", "--ramp-steps", "10", "--robust-steps", "2"),
    "restarts": (*NARROW, "--cycle-epochs", "0.5"),
    "zeiler_2012": (),
}
OPTIONS = IDEAS | {
    "more_figures": NARROW,
    "early_stopping": (*NARROW, "--patience", "1", "--epochs", "9"),
    "momentum": (*NARROW, "--learning-rate", "0.1"),
    "own_loop": (*NARROW, "--target", "0.12", "--log-every", "5"),
}


def file_of(name: str) -> Path:
    return (EXPERIMENTS if name in IDEAS else EXAMPLES) / f"{name}.py"


pytestmark = pytest.mark.usefixtures("handlers_as_before")


class Killed(BaseException):
    """Ends a run as SIGKILL does: no checkpoint is saved."""


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


# It has variables of its own in the state, and chooses its examples; the others are slow.
FAST = "hard_examples"


@pytest.mark.parametrize(
    "name", [FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in OPTIONS if n != FAST)]
)
def test_stopped_killed_and_resumed_it_ends_as_uninterrupted(
    name: str,
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = file_of(name)
    options = ("--data", data_file, *SMALL, *OPTIONS[name], "--checkpoint-every", "3")
    whole = run_here(file, *options, "--run-dir", "whole")
    assert (whole.status, whole.stderr) == (0, "")
    with monkeypatch.context() as patch:
        at_step(patch, 6, stop)
        stopped = run_here(file, *options, "--run-dir", "run", "--steps-per-call", "1")
    assert (stopped.status, stopped.stderr) == (128 + signal.SIGTERM, "")
    if name != FAST:
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
        pytest.param(
            *("own_loop", ("--target", "0.2", "--log-every", "5"), 10, "its loop ended it"),
            marks=pytest.mark.slow,
        ),
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
    file = file_of(name)
    options = ("--data", str(data_file), *SMALL, *NARROW, "--epochs", "4", *options)
    assert run_here(file, *options, "--run-dir", "whole").status == 0
    found = json.loads(Path("whole", "evaluation.json").read_text())
    assert found["steps"] == number
    # With --patience the weights of the best validation are saved: the one after the first epoch.
    exported = 8 if name == "early_stopping" else number
    rows = [json.loads(row) for row in Path("whole", "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["split"] == "validation"}
    assert found["exported_step"] == exported
    assert found["holdout"]["loss"] == losses[exported]
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
    assert f"run ended after step {number} of 32: " in again.stdout
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
    command = (file_of("more_figures"), "--data", data_file, *SMALL, *NARROW, "--run-dir", "run")
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


def test_pictures_and_replay_bundles_show_the_examples_that_were_drawn(
    data_file: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = file_of("hard_examples").read_text()
    end = '    return {"loss"'
    assert end in text
    seen, spoiled = tmp_path / "seen.py", tmp_path / "spoiled.py"
    seen.write_text(text.replace(end, '    measured["seen"] = images\n' + end))
    loss = "loss += tf.where(state.step == 7, float('inf'), 0.0)"
    spoiled.write_text(text.replace(end, f"    {loss}\n{end}"))
    shown: dict[int, Any] = {}

    def training(self: Any, step: int, weights: Any, returned: Any, batch: Any) -> None:
        shown[step] = batch()[0].numpy()
        np.testing.assert_allclose(shown[step], returned["seen"], atol=1e-6)

    options = ("--data", data_file, *SMALL, *IDEAS["hard_examples"])
    with monkeypatch.context() as patch:
        patch.setattr(TensorBoardWriter, "training", training)
        result = run_here(seen, *options, "--run-dir", "seen")
    assert (result.status, result.stderr) == (0, "")
    assert list(shown) == [4, 8, 16]
    result = run_here(spoiled, *options, "--run-dir", "spoiled")
    assert result.status == 1
    (bundle,) = Path("spoiled").glob("replay-step-*")
    assert bundle.name == "replay-step-00000008"
    np.testing.assert_allclose(np.load(bundle / "batch.npz")["images"], shown[8], atol=1e-6)
    assert run_here("research", "replay", bundle).status == 0


@pytest.mark.parametrize(("cycle", "status"), [("0.5", 128 + signal.SIGTERM), ("None", 2)])
def test_more_epochs_are_refused_where_the_schedule_would_have_had_another_past(
    cycle: str,
    status: int,
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--data", data_file, *SMALL, *NARROW, "--cycle-epochs", cycle, "--run-dir", "run")
    at_step(monkeypatch, 4, stop)
    assert run_here(file_of("restarts"), *options).status == 128 + signal.SIGTERM
    at_step(monkeypatch, 8, stop)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = run_here(file_of("restarts"), "--resume", "run", "--epochs", "4")
    assert result.status == status
    if status == 2:
        assert "--epochs 4: the learning rate depends on the number of epochs" in result.stderr
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_fork_with_another_network_is_refused(
    data_file: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 4, stop)
    file = changed(tmp_path)
    options = ("--data", data_file, *SMALL, "--run-dir", "run", *NARROW)
    assert run_here(file, *options).status == 128 + signal.SIGTERM
    text = file.read_text()
    file.write_text(text.replace("MnistCNN(config.dense_width", "MnistCNN(config.dense_width + 1"))
    before = sorted(tmp_path.rglob("*"))
    result = run_here(file, "--fork", "run", "--run-dir", "fork")
    assert result.status == 2
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "mixed_bfloat16") for name in ("averaged_weights", "residual", "sam", "pgd")),
        *((name, "mixed_float16") for name in ("residual", "sam")),
    ],
)
@pytest.mark.slow
def test_in_half_precision_it_is_trained_resumed_and_exported(
    name: str,
    precision: str,
    data_file: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_if_onednn_aborts(precision)
    options = ("--data", data_file, *SMALL, "--epochs", "1", *OPTIONS[name])
    options += ("--precision", precision)
    file = file_of(name)
    assert run_here(file, *options, "--run-dir", "whole").status == 0
    with monkeypatch.context() as patch:
        at_step(patch, 4, stop)
        assert run_here(file, *options, "--run-dir", "run").status == 128 + signal.SIGTERM
    assert run_here(file, "--resume", "run").status == 0
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


@pytest.mark.parametrize(
    "name", ["residual", "averaged_weights", "sam", "momentum", "hard_examples"]
)
@pytest.mark.slow
def test_two_replicas_train_as_one_does_but_for_rounding(
    name: str, data_file: Path, tmp_path: Path
) -> None:
    """A variable changes by what one replica changes it, within 5% of the change's norm.

    Rounding moves single weights further: within four steps a max-pool picks another winner.
    """
    # One step of SAM: in a step uphill, rounding decides which unit wins a max-pool sooner.
    epochs = "0.1" if name == "sam" else "0.5"
    options = ["--data", str(data_file), *SMALL, "--epochs", epochs, *OPTIONS[name]]
    # In processes of their own, see test_experiments.test_other_ways_to_run.
    program, ends = Program(file_of(name), tmp_path), list[dict[str, Any]]()
    for strategy in ("default", "mirrored"):
        program.uninterrupted([*options, "--strategy", strategy], tmp_path / strategy)
        newest = checkpoint_paths(tmp_path / strategy / "checkpoints")[0]
        with safe_open(newest, "numpy") as file:
            ends.append({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    experiment = load_experiment(file_of(name))
    config = parse(experiment.config, options)
    state = experiment.build(config, Plan(250, config.batch_size, config.epochs))
    compared = 0
    for key, before in state.values().items():
        if key.startswith(("model/", "extra/")) and before.dtype == np.float32:
            one, two = (end[key] - before for end in ends)
            apart, changed = np.linalg.norm(two - one), np.linalg.norm(one)
            assert apart <= 0.05 * changed, f"{key}: changed by {changed}, {apart} apart"
            compared += int(changed > 0)
    assert compared >= 8


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.slow
def test_verify_passes(name: str, data_file: Path, run_here: RunHere) -> None:
    own = {"early_stopping": ("--holdout", "60"), "own_loop": ("--holdout", "60")}.get(name, ())
    # It is killed in test_stopped_killed_and_resumed_it_ends_as_uninterrupted.
    command = ("verify", file_of(name), "--data", data_file, "--kills", "0", "--stops", "0")
    result = run_here("research", *command, "--json", "--", *own)
    assert result.status == 0, result.stdout + result.stderr
    assert all(check["holds"] for check in json.loads(result.stdout))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in IDEAS])
def test_its_diff_shows_only_the_idea(name: str) -> None:
    files = (EXPERIMENTS / "mnist_cnn.py", file_of(name))
    reference, variant = (file.read_text().splitlines() for file in files)
    diff = list(difflib.ndiff(reference, variant))
    assert len([line for line in diff if line[0] in "+-"]) <= 50
