"""The experiments and verbs as a user runs them."""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from pathlib import Path

from research.data.batches import Plan
from research.data.dataset import Dataset
from research.network.initialization import set_decorrelating_filters
from research.network.mnist_cnn import MnistCNN
from research.results.evaluation import evaluate
from research.results.export import load_h5
from research.tools.load_experiment import load_experiment
from research.training.train import train

import numpy as np
import pytest
from conftest import EXPERIMENTS, RunHere, make_split, run_python, skip_if_onednn_aborts
from PIL import Image


def test_the_screen_shows_what_the_seed_prints_and_nothing_else(finished_run: Path) -> None:
    folder = finished_run.parents[2]
    assert (folder / "stderr").read_text() == ""
    stdout = (folder / "stdout").read_text()
    for line in (
        r"train images \(250, 28, 28, 1\), labels \(250,\)",
        r"holdout images \(50, 28, 28, 1\), labels \(50,\)",
        r"test images \(100, 28, 28, 1\), labels \(100,\)",
        r"Ready to train after [\d.]+ s \(importing [\d.]+, data [\d.]+, .*tracing [\d.]+\)",
        r"network    MnistCNN, \d+,\d+ parameters",
        r"processor  .+, \d+ cores?, float32",
        r"seed       0",
        r"options    --epochs 3 --batch-size 32 --data \S+ --holdout 50 --test --log-every 4 .*",
        r"epoch 3/3  loss 0\.\d{4}  accuracy 0\.\d{4}  validation loss 0\.\d{4}  accuracy .*",
        r"Best: epoch 3/3, highest accuracy [01]\.\d{4}; its weights are saved",
        r"Training finished successfully\.",
        r"Test loss: \d\.\d{4}",
        r"Test accuracy: \d\.\d{4} \(95% interval \d\.\d{4} to \d\.\d{4}\)",
        r"Saved model: runs/mnist_cnn/\d{8}-\d{6}-0/mnist\.h5",
        r"Watch metrics: python -m research board",
    ):
        assert re.search(rf"^{line}$", stdout, re.MULTILINE), line
    log = (finished_run / "log.txt").read_text()
    assert set(stdout.splitlines()) <= set(log.splitlines())


def test_evaluate_gives_the_figures_of_the_run(finished_run: Path, run_here: RunHere) -> None:
    result = run_here("research", "evaluate", finished_run, "--json")
    assert (result.status, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    recorded = json.loads((finished_run / "evaluation.json").read_text())["test"]
    for key in ("loss", "accuracy", "accuracy_interval", "confusion", "calibration_error"):
        assert found[key] == recorded[key]
    shown = run_here("research", "evaluate", finished_run / "mnist.h5")
    assert shown.status == 0, shown.stderr
    for words in ("test accuracy", "95% interval", "calibration error", "Confusion", "taken for"):
        assert words in shown.stdout


def test_predict_says_the_digit_of_an_image(finished_run: Path, run_here: RunHere) -> None:
    pixels = make_split(1).images[0, ..., 0]
    folder = finished_run.parents[2]
    files = (folder / "light.png", folder / "dark.png")
    Image.fromarray(pixels).save(files[0])
    Image.fromarray(255 - pixels).save(files[1])
    command = ("research", "predict", finished_run / "mnist.h5", *files)
    light, dark = json.loads(run_here(*command, "--json").stdout)
    assert (light["inverted"], dark["inverted"]) == (False, True)
    assert light["probabilities"] == dark["probabilities"]
    assert light["digit"] == int(np.argmax(light["probabilities"]))
    assert sum(light["probabilities"]) == pytest.approx(1, abs=1e-4)
    shown = run_here(*command)
    assert shown.status == 0, shown.stderr
    assert "dark.png: dark on light, inverted" in shown.stdout


@pytest.mark.parametrize("name", ["label_smoothing", "mixup"])
def test_a_variant_runs_and_its_diff_shows_only_the_idea(
    name: str, data_file: Path, run_here: RunHere
) -> None:
    reference, variant = (
        (EXPERIMENTS / file).read_text().splitlines() for file in ("mnist_cnn.py", f"{name}.py")
    )
    diff = list(difflib.ndiff(reference, variant))
    assert len([line for line in diff if line.startswith("- ")]) <= 9
    assert len([line for line in diff if line.startswith("+ ")]) <= 30
    small = ("--data", data_file, "--epochs", "1", "--dense-width", "8")
    result = run_here(EXPERIMENTS / f"{name}.py", *small)
    assert (result.status, result.stderr) == (0, "")
    assert "Training finished successfully." in result.stdout


@pytest.mark.parametrize("name", ["speedrun", "best"])
def test_an_experiment_runs_and_learns(name: str, data_file: Path, run_here: RunHere) -> None:
    options = ("--data", data_file, "--batch-size", "32", "--dense-width", "32", "--epochs", "3")
    result = run_here(EXPERIMENTS / f"{name}.py", *options, "--run-dir", "run")
    assert (result.status, result.stderr) == (0, "")
    assert re.search(r"Training steps took \d+\.\d s; training ended after epoch ", result.stdout)
    rows = [json.loads(row) for row in Path("run", "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "validation"]
    assert losses[-1] < 2.2
    # The filters of a frozen layer are drawn, too.
    (events,) = Path("run", "train").glob("events.*")
    assert b"pictures/filters_conv1" in events.read_bytes()


@pytest.mark.parametrize("name", ["speedrun", "best"])
def test_a_first_layer_that_is_not_trained_stays_as_it_is(name: str, dataset: Dataset) -> None:
    experiment = load_experiment(EXPERIMENTS / f"{name}.py")
    state = experiment.build(experiment.config(batch_size=32), Plan(300, 32, 1))
    set_decorrelating_filters(alike := MnistCNN(8).conv1, 0)
    before = [variable.numpy() for variable in alike.variables]
    list(train(state, experiment.step, dataset.train, epochs=1, batch_size=32))
    for variable, value in zip(state.model.conv1.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_what_a_step_prints_is_seen(data_file: Path, tmp_path: Path, run_here: RunHere) -> None:
    changed = tmp_path / "changed.py"
    text = (EXPERIMENTS / "mnist_cnn.py").read_text()
    changed.write_text(
        text.replace(
            "    gradients = ", '    tf.print("| seen within", state.step)\n    gradients = '
        )
    )
    result = run_here(changed, "--data", data_file, "--epochs", "1", "--dense-width", "8")
    assert result.status == 0, result.stdout + result.stderr
    assert result.stderr.splitlines() == [f"| seen within {step}" for step in range(3)]


@pytest.mark.slow  # training/test_train.py tries both in small
@pytest.mark.parametrize("options", [("--strategy", "mirrored"), ("--precision", "mixed_float16")])
def test_other_ways_to_run(
    options: tuple[str, str], dataset: Dataset, data_file: Path, tmp_path: Path
) -> None:
    skip_if_onednn_aborts(options[1])
    # In a process of its own: in one process TensorFlow confuses the reductions of two mirrored
    # strategies whose networks differ in size.
    command = (EXPERIMENTS / "mnist_cnn.py", "--data", data_file, "--epochs", "1", *options)
    result = run_python(*command, "--dense-width", "8", "--run-dir", "run", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    recorded = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    saved = evaluate(load_h5(tmp_path / "run" / "mnist.h5"), dataset.test)
    assert recorded["test"]["loss"] == saved.loss  # the figures are the exported file's, in float32


@pytest.mark.parametrize("in_hardware", [True, False])
def test_it_says_where_bfloat16_is_emulated(
    in_hardware: bool, data_file: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_if_onednn_aborts("mixed_bfloat16")
    monkeypatch.setattr("research.training.strategy.has_bfloat16", lambda: in_hardware)
    small = ("--epochs", "1", "--examples", "50", "--dense-width", "8", "--data", data_file)
    result = run_here(EXPERIMENTS / "mnist_cnn.py", *small, "--precision", "mixed_bfloat16")
    assert (result.status, result.stderr) == (0, "")
    assert ("no hardware for bfloat16" in result.stdout) == (not in_hardware)


@pytest.mark.parametrize("log_every", [pytest.param("1", marks=pytest.mark.slow), "20"])
def test_a_training_that_diverges_says_so_in_one_line(
    log_every: str, data_file: Path, run_here: RunHere
) -> None:
    options = (
        "--epochs",
        "1",
        "--dense-width",
        "8",
        "--learning-rate",
        "1e30",
        "--data",
        data_file,
    )
    result = run_here(EXPERIMENTS / "mnist_cnn.py", *options, "--log-every", log_every)
    assert result.status == 1
    assert re.fullmatch(r"error: .* became (nan|inf)\b.*\n", result.stderr)


@pytest.mark.slow  # test_screen.py tries it within one process
def test_a_reader_that_goes_away_does_not_end_the_training(data_file: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} {EXPERIMENTS / 'mnist_cnn.py'} --data {data_file} --epochs 1"
    shell = f"{command} --dense-width 8 --run-dir run | head -1"
    shown = subprocess.run(shell, shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert shown.stderr == b""  # not even a BrokenPipeError at exit
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["steps"] == 3


@pytest.mark.slow
def test_one_epoch_of_real_mnist_reaches_97_percent(tmp_path: Path) -> None:
    result = run_python(
        EXPERIMENTS / "mnist_cnn.py", "--epochs", "1", "--run-dir", "run", cwd=tmp_path, timeout=900
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "train images (60000, 28, 28, 1), labels (60000,)" in result.stdout
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["test"]["examples"] == 10_000
    assert evaluation["test"]["accuracy"] > 0.97


@pytest.mark.slow
def test_bench_measures_each_loop_and_its_operations(tmp_path: Path) -> None:
    command = ("-m", "research", "bench", "--blocks", "2", "--steps", "3")
    loops = ("ours-float32", "ours-bfloat16", "products-float32", "fit-float32", "fit-bfloat16")
    result = run_python(*command, "--loops", *loops, "--json", cwd=tmp_path, timeout=400)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    times = found["milliseconds_per_step"]
    assert tuple(times) == loops
    assert all(len(of_loop) == 2 and min(of_loop) > 0 for of_loop in times.values())
    # Computed by hand: 3x3 kernels at 26x26 and 24x24 places, and two dense layers; 128 images.
    forward = [9 * 32 * 26**2, 9 * 32 * 64 * 24**2, 9216 * 256, 256 * 10]
    expected = 2 * 128 * (3 * sum(forward) - forward[0])
    assert found["gigaflop_per_step"] == pytest.approx(expected / 1e9)
    assert set(found["peak_memory_mib"]) == set(loops) - {"products-float32"}
    assert min(found["peak_memory_mib"].values()) > 100
    operations = found["operations_milliseconds"]["ours-float32"]
    assert any(re.fullmatch(r"conv2\S* \S*Conv2D", name) for name in operations)
    assert 0 < max(operations.values()) < 10 * max(times["ours-float32"])


@pytest.mark.slow
def test_bench_shows_tables_and_says_which_loop_fails(tmp_path: Path) -> None:
    command = ("-m", "research", "bench", "--blocks", "2", "--steps", "2")
    shown = run_python(*command, "--loops", "ours-float32", "products-float32", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for words in ("time over floor", "ours-float32: operation", "n = 2", "Floor: the 10.1 GFLOP"):
        assert words in shown.stdout
    # Keras is imported here before the variable is set, which thus affects other processes only.
    code = "import os; from research.__main__ import main; import keras; "
    code += "os.environ['KERAS_BACKEND'] = 'none'; main()"
    failed = run_python(
        *("-c", code, "bench", "--blocks", "2", "--steps", "2", "--loops", "fit-float32"),
        cwd=tmp_path,
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: fit-float32: its process gave no answer: ...")


@pytest.mark.slow
def test_what_recording_costs_is_measured_epoch_by_epoch(tmp_path: Path) -> None:
    result = run_python(
        *("-m", "research", "bench", "--recording", "--examples", "300", "--blocks", "2", "--json"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["seconds"]) == len(found["throughput_ratio"]) == 2
    for (recorded, without), ratio in zip(found["seconds"], found["throughput_ratio"], strict=True):
        assert ratio == pytest.approx(without / recorded)


@pytest.mark.slow
def test_whole_trainings_are_those_of_the_experiment_and_compared_with_fit(tmp_path: Path) -> None:
    experiment = EXPERIMENTS / "speedrun.py"
    options = ("--examples", "600", "--trainings", "2", "--steps", "2", "--json")
    result = run_python("-m", "research", "bench", experiment, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["trainings"]
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert row["fit_over_ours"] == pytest.approx(row["fit_seconds"] / row["seconds"])
        assert 0 < row["seconds"] < 60
    own = run_python(
        *(experiment, "--examples", "600", "--seed", "1", "--run-dir", "run"), cwd=tmp_path
    )
    assert own.returncode == 0, own.stderr
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["test"]["accuracy"] == rows[1]["accuracy"]
    assert evaluation["test"]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-5)


def test_importing_the_package_leaves_out_what_takes_long_and_is_not_needed(tmp_path: Path) -> None:
    code = "import sys, research.experiment; assert 'matplotlib.pyplot' not in sys.modules; "
    code += "import matplotlib.pyplot"  # it can be imported
    result = run_python("-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
