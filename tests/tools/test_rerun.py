"""``rerun``: the same bits from a run's directory alone, or why not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.config import config_as_json, parse
from research.files import read_sealed_json, write_sealed_json
from research.network.mnist_cnn import Config
from research.recording.run_directory import lock, read_code
from research.tools.rerun_past import Past, arguments
from research.tools.verify_kills import Program

import pytest
from conftest import EXPERIMENTS, RunHere, contents, edit_library
from safetensors import safe_open
from safetensors.numpy import save_file

SAME = "Every bit is the same: "


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run in a directory of its own."""
    return Path(shutil.copytree(finished_run, tmp_path / "a run"))


def change(path: Path, **fields: Any) -> None:
    """Changes fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_config(run: Path, **fields: Any) -> None:
    config = read_sealed_json(run / "config.json")
    write_sealed_json(run / "config.json", config | fields)


def test_a_run_is_done_again_in_the_library_of_then(run: Path, run_here: RunHere) -> None:
    for name in ("research/loop.py", "research/verbs.py"):  # no training imports the latter
        edit_library(run, name, lambda text: f"{text}# as it was\n")
    before = contents(run)
    result = run_here("research", "rerun", "a run", "--run-dir", "again")
    assert (result.status, result.stderr) == (0, "")
    assert "\nresearch/loop.py has changed since; the rerun uses the run's own" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"{SAME}9 lines of metrics, all 26 variables after step 24")
    assert last.endswith("mnist.h5, evaluation.json")
    assert contents(run) == before
    again = run.with_name("again")
    assert read_code(again) == read_code(run)
    assert "a run/code/mnist_cnn.py' --epochs=3.0" in (again / "command.txt").read_text()


def test_another_bit_is_found_and_explained(run: Path, run_here: RunHere) -> None:
    again = shutil.copytree(run, run.with_name("again"))
    lines = (again / "metrics.jsonl").read_text().splitlines()
    *_, name = (n for n, line in enumerate(lines) if '"validation"' in line)
    line = json.loads(lines[name])
    was, line["loss"] = line["loss"], 0.25
    lines[name] = json.dumps(line)
    (again / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    words = ("research", "rerun", run.name, "--run-dir", "again")

    result = run_here(*words)
    assert result.status == 1
    told = f"Not the same: validation loss at step {line['step']} is 0.25, and was {was}; the same:"
    assert told in result.stdout
    assert "Nothing that was recorded explains it" in result.stdout

    change(again / "environment.json", python="2.7", cores=64)
    found = json.loads(run_here(*words, "--json").stdout)
    assert not found["same"]
    assert found["first_difference"]["values"] == [was, 0.25]
    assert found["equal"][1:] == ["mnist.h5", "evaluation.json"]
    assert any(reason.endswith("is now 2.7") for reason in found["reasons"])

    (again / "environment.json").write_text("[]")
    result = run_here(*words)
    assert result.status == 1
    assert "Perhaps because again/environment.json can't be read" in result.stdout


def without_first_line(lines: list[dict[str, Any]]) -> None:
    del lines[0]


def without_accuracy(lines: list[dict[str, Any]]) -> None:
    for line in lines[::2]:
        del line["accuracy"]


def with_another_figure(lines: list[dict[str, Any]]) -> None:
    lines[2]["extra"] = 1.0


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (without_first_line, "2 lines of metrics only in the run (the first is train at step 4)"),
        (without_accuracy, "accuracy measured only by the run; the same:"),
        (with_another_figure, "extra measured only by the rerun; the same:"),
    ],
)
def test_results_that_are_missing_are_different(
    edit: Callable[[list[dict[str, Any]]], None], told: str, run: Path, run_here: RunHere
) -> None:
    again = shutil.copytree(run, run.with_name("again"))
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    edit(lines)
    (again / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = run_here("research", "rerun", run.name, "--run-dir", "again")
    assert result.status == 1
    assert told in result.stdout


def test_names_that_keras_has_numbered_are_no_difference(run: Path, run_here: RunHere) -> None:
    again = shutil.copytree(run, run.with_name("again"))
    for path in (again / "checkpoints").iterdir():
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["about"])
            arrays = {name: file.get_tensor(name) for name in about["sha256"]}
        # So Keras names the optimizer of the second run in a process.
        renamed = {name: name.replace("adadelta", "adadelta_1") for name in arrays}
        about["variables"] = [renamed[name] for name in about["variables"]]
        about["sha256"] = {renamed[name]: sha for name, sha in about["sha256"].items()}
        text = json.dumps(about)
        header = {"about": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        save_file({renamed[name]: array for name, array in arrays.items()}, path, header)
        assert any(name != new for name, new in renamed.items())
    result = run_here("research", "rerun", run.name, "--run-dir", "again")
    assert result.status == 0
    assert "all 26 variables after step 24" in result.stdout


def test_lines_before_a_resumption_with_another_log_every_may_be_others(
    run: Path, run_here: RunHere
) -> None:
    again = shutil.copytree(run, run.with_name("again"))
    lines = (again / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text("".join(lines[1:]))
    resumed = {"command": ["python", "x.py", "--resume", "run", "--log-every=4"], "step": 4}
    change(run / "environment.json", resumed=[resumed])
    result = run_here("research", "rerun", run.name, "--run-dir", "again")
    assert result.status == 0
    assert f"{SAME}7 of 9 lines of metrics" in result.stdout


def test_a_line_that_the_kill_of_a_run_has_cut_is_left_out(run: Path, run_here: RunHere) -> None:
    again = shutil.copytree(run, run.with_name("again"))
    (run / "finished.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    result = run_here("research", "rerun", run.name, "--run-dir", "again")
    assert result.status == 0, result.stderr
    assert f"{SAME}9 lines of metrics" in result.stdout
    # A rerun that has come as far as the run needs no command to go on.
    (again / "finished.json").unlink()
    words = ["python", "a run/code/mnist_cnn.py"]
    change(again / "environment.json", command=words, working_directory=str(run.parent))
    (each,) = json.loads(run_here("research", "runs", "again", "--json").stdout)["runs"]
    assert each["go_on"] is None
    for path in (again / "checkpoints").glob("*-00000024.safetensors"):
        path.unlink()
    (each,) = json.loads(run_here("research", "runs", "again", "--json").stdout)["runs"]
    assert each["go_on"] == "python -m research rerun 'a run' --run-dir again"


def test_what_may_change_bits_is_said_before_training(run: Path, run_here: RunHere) -> None:
    shutil.copytree(run, run.with_name("again"))
    change(run / "environment.json", cpu="an older one", files={"/gone/teacher.h5": "0"})
    mine = run / "code" / "mnist_cnn.py"
    mine.write_text(mine.read_text() + "# edited\n")
    shutil.copy(mine, run.with_name("again") / "code")
    result = run_here("research", "rerun", run.name, "--run-dir", "again")
    assert result.status == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Perhaps not")]
    assert "cpu an older one is now" in line
    assert "a run/code/mnist_cnn.py has been edited" in line
    assert "/gone/teacher.h5 is not what it was" in line
    assert ", although cpu an older one" in result.stdout


def no_run(run: Path) -> None:
    shutil.rmtree(run)


def damaged_config(run: Path) -> None:
    (run / "config.json").write_bytes((run / "config.json").read_bytes()[:-30])


def no_library(run: Path) -> None:
    (run / "library.zip").unlink()


def damaged_library(run: Path) -> None:
    content = bytearray((run / "library.zip").read_bytes())
    content[2000] ^= 1
    (run / "library.zip").write_bytes(content)


def no_experiment(run: Path) -> None:
    (run / "code" / "mnist_cnn.py").unlink()


def no_data(run: Path) -> None:
    change_config(run, data="/gone/data.npz")


def other_data(run: Path) -> None:
    change_config(run, data_sha256="0")


def no_checkpoint(run: Path) -> None:
    (run / "finished.json").unlink()
    shutil.rmtree(run / "checkpoints")


def no_fork(run: Path) -> None:
    change_config(run, fork="/gone/source", at_step=7)


def damaged_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text("{")


def no_metric(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"a": 1}\n')


def something_else(run: Path) -> None:
    run.with_name("again").mkdir()


def other_options(run: Path) -> None:
    again = shutil.copytree(run, run.with_name("again"))
    change_config(again, seed=9)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_run, "a run: not a run directory (No such file"),
        (damaged_config, "its config.json can't be read"),
        (no_library, "it keeps no library.zip"),
        (damaged_library, "library.zip is damaged"),
        (no_experiment, "the code of then can't be read"),
        (no_data, "its data, /gone/data.npz, are gone; say where they are with --data"),
        (other_data, "not the data that a run was trained on"),
        (no_checkpoint, "nothing to compare; --resume it first"),
        (no_fork, "a fork of /gone/source after step 7, and neither keeps that checkpoint"),
        (damaged_metrics, "its results can't be read"),
        (no_metric, "line 1 of metrics.jsonl is damaged"),
        (something_else, "--run-dir again: it exists, and is no rerun of a run"),
        (other_options, "--run-dir again: it exists, and is no rerun of a run"),
    ],
)
def test_what_can_not_be_done_again_is_refused(
    spoil: Callable[[Path], None], reason: str, run: Path, run_here: RunHere
) -> None:
    spoil(run)
    result = run_here("research", "rerun", run.name, "--run-dir", "again")
    assert (result.status, result.stdout) == (2, "")
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_at_work_and_the_run_itself_are_refused(run: Path, run_here: RunHere) -> None:
    result = run_here("research", "rerun", run.name, "--run-dir", run.name)
    assert result.status == 2
    assert "is no rerun of a run" in result.stderr
    descriptor = lock(run)
    result = run_here("research", "rerun", run.name)
    os.close(descriptor)
    assert result.status == 2
    assert "another process is at work on it; wait for it, or stop it" in result.stderr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Odd(Config):
    """Options that are hard to write on a command line."""

    shift: tuple[float, float] = (0.0, 1.0)
    label: str = "usual"
    teacher: Path | None = Path("teacher.h5")
    loud: bool = True
    rate: float | None = 0.5


@pytest.mark.parametrize(
    "odd",
    [
        Odd(shift=(-1e-05, -2.0), label="--seed 'two' $x", teacher=None, loud=False, rate=None),
        Odd(label="", teacher=Path("/a b/-c.h5"), epochs=0.1 + 0.2, clip_norm=1e-20, eager=True),
    ],
)
def test_every_option_is_given_as_it_was(odd: Odd, tmp_path: Path) -> None:
    config = json.loads(json.dumps(config_as_json(odd)))
    past = Past(tmp_path, {"experiment": "odd", **config}, {}, {}, "finished", 10)
    words = arguments(past, tmp_path / "again", None)
    assert parse(Odd, words) == dataclasses.replace(odd, run_dir=tmp_path / "again")


SMALL = ("--batch-size", "32", "--dense-width", "8", "--epochs", "2")
# Other experiments, precisions and options.
OTHERS = {
    "mixup": "--alpha 0.3 --precision mixed_bfloat16 --seed 3",
    "harder_half": "--strategy mirrored --decay cosine",
    "speedrun": "--eager",
    "label_smoothing": "--holdout 100 --patience 1 --epochs 6 --test",
    "best": "--accumulate 2 --holdout 50 --holdout-seed 5 --warmup-epochs 0.5 --clip-norm 1",
    "averaged_weights": "--steps-per-call 3 --log-every 2 --profile 2 4",
    "restarts": "--cycle-epochs None --epochs 1.5",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_runs_with_other_options_end_with_the_same_bits(
    name: str, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    # Trained in processes of their own: this one has two devices, which a run records.
    copy = Path(shutil.copy(EXPERIMENTS / f"{name}.py", tmp_path / f"{name}.py"))
    words = [*SMALL, "--data", str(data_file), *OTHERS[name].split()]
    Program(copy, tmp_path).uninterrupted(words, tmp_path / "a run")
    copy.unlink()
    result = run_here("research", "rerun", "a run")
    assert result.status == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith(SAME)


@pytest.mark.slow
def test_forks_resumed_runs_and_those_that_became_non_finite_end_with_the_same_bits(
    data_file: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, data = Program(EXPERIMENTS / "mnist_cnn.py", tmp_path), str(data_file)
    for status, words in (
        (0, [*SMALL, "--data", data, "--run-dir", "source"]),
        (0, ["--resume", "source", "--epochs", "3"]),
        (0, ["--fork", "source", "--learning-rate", "0.3", "--epochs", "4", "--run-dir", "fork"]),
        (1, [*SMALL, "--data", data, "--run-dir", "nan", "--learning-rate", "1e30"]),
    ):
        process = program.start(words)
        process.join()
        assert process.exitcode == status, program.output()
    for name in ("source", "fork", "nan"):
        result = run_here("research", "rerun", name)
        assert result.status == 0, result.stdout + result.stderr
        assert SAME in result.stdout


@pytest.mark.slow
def test_an_edit_of_the_library_of_then_is_found(run: Path, run_here: RunHere) -> None:
    environment = (run / "environment.json").read_bytes()
    edit_library(run, "research/seeds.py", lambda text: text.replace("name.encode()", "b'other'"))
    (run / "environment.json").write_bytes(environment)
    result = run_here("research", "rerun", run.name)
    assert result.status == 1
    assert "Not the same: train loss at step 4 is" in result.stdout
    assert "Perhaps because a run/library.zip has been edited" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_rerun_that_is_stopped_goes_on(
    number: signal.Signals, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    words = [*SMALL, "--epochs", "8", "--data", str(data_file)]
    Program(EXPERIMENTS / "mnist_cnn.py", tmp_path).uninterrupted(words, tmp_path / "run")
    command = [sys.executable, "-m", "research", "rerun", "run", "--run-dir", "again"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "again" / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        said = process.stdout.read() if process.stdout else ""
    assert process.returncode == 128 + number, said
    assert f"Stopped by {number.name}; go on, and compare: python -m research rerun run" in said
    assert not (tmp_path / "again" / "finished.json").exists()
    result = run_here(*command[2:])
    assert result.status == 0, result.stdout + result.stderr
    assert "Resuming again after step" in result.stdout


@pytest.mark.slow
def test_a_run_that_was_stopped_is_done_again_up_to_its_last_checkpoint(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    run = tmp_path / "run"
    words = [*SMALL, "--epochs", "40", "--data", str(data_file), "--run-dir", str(run)]
    words += ["--checkpoint-every", "30"]
    process = Program(EXPERIMENTS / "mnist_cnn.py", tmp_path).start(words)
    while not (run / "checkpoints" / "step-00000060.safetensors").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    result = run_here("research", "rerun", "run")
    assert result.status == 0, result.stdout + result.stderr
    assert "The run was stopped; the rerun stops at step" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(SAME)
