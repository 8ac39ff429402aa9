"""A run survives kills, signals, NaN, damaged files and a full disk, and ends as uninterrupted."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.config import Config, parse
from research.data.batches import Plan
from research.data.dataset import Dataset
from research.errors import InputError, StorageError
from research.files import read_sealed_json, write_sealed_json
from research.recording.checkpoints import checkpoint_paths, read_checkpoint, step_of
from research.results.evaluation import validate
from research.results.export import load_h5
from research.tools.load_experiment import load_experiment
from research.tools.verify_kills import Program, left_by
from research.training.schedules import LearningRate

import numpy as np
import pytest
from conftest import EXPERIMENTS, RunHere, begun, make_state

EXPERIMENT = EXPERIMENTS / "mnist_cnn.py"
# Those of the finished run.
OPTIONS = [
    *("--epochs", "3", "--batch-size", "32", "--log-every", "4"),
    *("--holdout", "50", "--dense-width", "16", "--test"),
]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def everything(run: Path) -> dict[Path, bytes]:
    """Every file and directory, and the content of the files."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in run.rglob("*")}


def change_sealed(path: Path, changes: dict[str, Any]) -> None:
    """Changes a sealed file and seals it again."""
    write_sealed_json(path, read_sealed_json(path) | changes)


def cut_off(run: Path) -> Path:
    """Turns a finished run into one that was killed after its last checkpoint but one."""
    for name in ("mnist.h5", "mnist.h5.sha256", "evaluation.json"):
        (run / name).unlink()
    checkpoint_paths(run / "checkpoints")[0].unlink()
    return run


def test_a_finished_run_says_so_and_can_be_given_more_epochs(
    run: Path, run_here: RunHere, finished_run: Path
) -> None:
    before = left_by(run)
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    assert "is finished; its test accuracy is" in result.stdout
    assert left_by(run) == before
    assert run_here(EXPERIMENT, "--resume", run, "--epochs", "4").status == 0
    after = left_by(run)
    assert after["evaluation.json"]["steps"] == 32
    assert after["metrics.jsonl"][: len(before["metrics.jsonl"])] == before["metrics.jsonl"]
    assert json.loads((run / "config.json").read_text())["epochs"] == 4
    assert len((run / "command.txt").read_text().splitlines()) == 2


def test_a_damaged_checkpoint_is_named_and_the_newest_good_one_is_used(
    run: Path, run_here: RunHere, finished_run: Path
) -> None:
    newest, good, *_ = checkpoint_paths(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1])
    (run / "mnist.h5").unlink()
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    assert re.search(rf"{newest}: not a good checkpoint \(.*\); moved aside", result.stdout)
    assert f"Resuming {run} after step {step_of(good)}" in result.stdout
    assert re.search(rf"Training steps took [\d.]+ s since step {step_of(good)}; ", result.stdout)
    assert left_by(run) == left_by(finished_run)
    for path in checkpoint_paths(run / "checkpoints"):
        path.write_bytes(b"")
    (run / "mnist.h5").unlink()
    result = run_here(EXPERIMENT, "--resume", run)
    assert result.status == 2
    assert "no other checkpoint is good" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_run_may_be_resumed_with_other_logging_and_ends_the_same(
    run: Path, run_here: RunHere, finished_run: Path
) -> None:
    options = ("--log-every", "3", "--steps-per-call", "1", "--checkpoint-every", "2")
    assert run_here(EXPERIMENT, "--resume", cut_off(run), *options).status == 0
    for what in ("the last checkpoint", "evaluation.json"):
        assert left_by(run)[what] == left_by(finished_run)[what]
    assert len(checkpoint_paths(run / "checkpoints")) in (3, 4)  # three, and perhaps the best


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("mnist_cnn.py --resume nowhere", ["--resume nowhere", "not a run"]),
        ("mixup.py --resume run", ["it is a run of mnist_cnn.py"]),
        ("mnist_cnn.py --resume run --learning-rate 3", ["--learning-rate 3", "--fork run"]),
        ("mnist_cnn.py --resume run --seed 3", ["--seed 3", "the run has 0"]),
        ("mnist_cnn.py --resume run --epochs 2", ["--epochs 2", "24"]),
        ("mnist_cnn.py --resume run --fork run", ["--resume", "--fork"]),
        ("mnist_cnn.py --resume", ["--resume"]),
        ("mnist_cnn.py --fork run --at-step 3", ["--at-step 3", "24"]),
        ("mnist_cnn.py --at-step 3", ["--at-step 3", "--fork"]),
        ("mnist_cnn.py --fork run --dense-width 8", ["dense1/kernel", "(9216, 16)"]),
        ("mnist_cnn.py --fork run --run-dir run", ["--run-dir run", "exists"]),
        ("mnist_cnn.py --checkpoint-every 1h", ["--checkpoint-every 1h"]),
        ("mnist_cnn.py --resume part --epochs 4", ["--epochs 4", "2.9 epochs", "--fork part"]),
        ("mnist_cnn.py --resume other_data", ["is not what it was trained on"]),
        ("mnist_cnn.py --resume bad_config", ["config.json can't be read"]),
        ("mnist_cnn.py --resume taken", ["another process is at work"]),
    ],
)
def test_what_may_not_be_changed_is_refused_with_the_reason(
    options: str, words: list[str], run: Path, run_here: RunHere
) -> None:
    before = everything(run)
    name, *arguments = options.split()
    changes: dict[str, dict[str, Any]] = {
        "part": {"epochs": 2.9},
        "bad_config": {"epochs": "many"},
        "other_data": {"data_sha256": "0"},
        "taken": {},
    }
    for word in changes.keys() & set(arguments):
        copy = shutil.copytree(run, run.parent / word)
        change_sealed(copy / "config.json", changes[word])
    holder = os.open(run.parent / "taken" if "taken" in arguments else run.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        result = run_here(EXPERIMENTS / name, *arguments)
    finally:
        os.close(holder)
    assert result.status == 2
    assert re.fullmatch(r"error: .*\n", result.stderr), result.stderr
    for word in words:
        assert word in result.stderr
    assert everything(run) == before


@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": None}, "not a good checkpoint .it belongs to another run"),
        ({"seed": 1}, "not a good checkpoint .it belongs to another run, or to other options"),
        ({"dropout": [0.1]}, "config.json can't be read"),
        ({"checkpoint_every": 5}, "config.json can't be read"),
        ({"precision": "float8"}, "config.json can't be read"),
        ({"data": "a\0b"}, "config.json can't be read"),
        ({"data": "\ud800"}, "config.json can't be read"),
        ({"dense_width": 2147483647}, "dense_width 2147483647: .* at most"),
    ],
)
def test_a_configuration_that_has_been_tampered_with_is_refused(
    change: dict[str, Any], words: str, seal: bool, run: Path, run_here: RunHere
) -> None:
    path = cut_off(run) / "config.json"
    if seal:
        change_sealed(path, change)
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        words = "it has been changed since it was written"
    before = everything(run)
    result = run_here(EXPERIMENT, "--resume", run)
    assert result.status == 2
    assert re.fullmatch(rf"error: .*({words}).*\n", result.stderr), result.stderr
    assert everything(run) == before


@pytest.mark.parametrize("content", [b"[" * 100_000, b"5", b'{"git": null, "resumed": 5}', None])
def test_an_environment_that_can_not_be_read_is_begun_afresh(
    content: bytes | None, run: Path, dataset: Dataset
) -> None:
    path = cut_off(run) / "environment.json"
    path.unlink() if content is None else path.write_bytes(content)
    words = ["--resume", str(run)]
    config = parse(load_experiment(EXPERIMENT).config, words, experiment="mnist_cnn")
    state = make_state(dense_width=16, learning_rate=LearningRate(1.0))
    with begun(config, dataset, state) as record:
        said = "\n".join(record.start.notes)
    assert "Perhaps not bit for bit from here on: environment.json can't be read" in said
    assert json.loads(path.read_text())["resumed"][0]["step"] == 16


@pytest.mark.parametrize(
    ("schedule", "refused"),
    [
        (("--decay", "cosine"), True),
        pytest.param(("--warmup-epochs", "0.5"), False, marks=pytest.mark.slow),
    ],
)
def test_more_epochs_are_refused_where_they_would_change_the_past(
    schedule: tuple[str, str], refused: bool, data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    small = ("--data", data_file, "--batch-size", "64", "--dense-width", "8", "--run-dir", "run")
    assert run_here(EXPERIMENT, *small, *schedule, "--epochs", "1").status == 0
    before = everything(tmp_path / "run")
    result = run_here(EXPERIMENT, "--resume", "run", "--epochs", "2")
    if refused:
        assert result.status == 2
        assert re.fullmatch(
            r"error: --epochs 2: the learning rate depends .*; --fork run makes it a new run\n",
            result.stderr,
        )
        assert everything(tmp_path / "run") == before
    else:
        assert (result.status, result.stderr) == (0, "")


def test_a_refusal_changes_nothing_so_that_what_was_missing_can_be_put_back(
    run: Path, run_here: RunHere, finished_run: Path
) -> None:
    missing = ("checkpoints", "environment.json")
    for name in missing:
        (cut_off(run) if name == "checkpoints" else run).joinpath(name).rename(run.parent / name)
    before = everything(run)
    assert "checkpoints are gone" in run_here(EXPERIMENT, "--resume", run).stderr
    (run / "checkpoints").touch()
    assert "can't be read" in run_here(EXPERIMENT, "--resume", run).stderr
    (run / "checkpoints").unlink()
    assert everything(run) == before
    for name in missing:
        (run.parent / name).rename(run / name)
    assert run_here(EXPERIMENT, "--resume", run).status == 0
    assert left_by(run) == left_by(finished_run)


def test_a_fork_goes_on_from_the_step_of_its_first_line_whatever_becomes_of_its_source(
    run: Path, run_here: RunHere, dataset: Dataset, tmp_path: Path
) -> None:
    arguments = ["--fork", str(run), "--run-dir", str(tmp_path / "fork"), "--epochs", "4"]
    config = parse(load_experiment(EXPERIMENT).config, arguments, experiment="mnist_cnn")
    state = make_state(dense_width=16, learning_rate=LearningRate(1.0))
    with begun(config, dataset, state):
        pass  # killed immediately
    assert json.loads((tmp_path / "fork" / "config.json").read_text())["at_step"] == 24
    shutil.rmtree(run)
    result = run_here(EXPERIMENT, "--resume", "fork")
    assert (result.status, result.stderr) == (0, "")
    assert "Resuming fork after step 24" in result.stdout
    assert [line["step"] for line in left_by(tmp_path / "fork")["metrics.jsonl"]][-2:] == [32, 32]


def test_what_only_build_can_refuse_leaves_no_directory(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    text = EXPERIMENT.read_text()
    missing = 'from pathlib import Path\n    Path("missing").read_bytes()'
    (tmp_path / "mine.py").write_text(
        text.replace('"""The model, the optimizer and the loss."""', missing)
    )
    with contextlib.suppress(FileNotFoundError):
        run_here("mine.py", "--data", data_file, "--run-dir", "new/run")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_run_whose_directory_is_replaced_writes_nothing_into_the_other(
    dataset: Dataset, tmp_path: Path
) -> None:
    path, state = tmp_path / "run", make_state()
    with begun(Config(run_dir=path), dataset, state) as record:
        path.rename(tmp_path / "moved")
        path.mkdir()
        validation = validate(state.model, dataset.test, dataset.train)
        with pytest.raises(StorageError, match="run: it has been moved or replaced"):
            record.recorder.validation(0, validation, dataset.test)
        state.step.assign(1)
        with pytest.raises(StorageError, match="run: it has been moved or replaced"):
            record.checkpoints.save(state)
    assert list(path.iterdir()) == []


def test_checkpoints_are_saved_when_due_and_files_of_others_are_let_alone(
    data_file: Path, tmp_path: Path, run_here: RunHere
) -> None:
    options = ("--data", data_file, "--epochs", "2", "--batch-size", "64", "--log-every", "1000")
    kept = ("--checkpoint-every", "4", "--keep-checkpoints", "99", "--run-dir", "run")
    assert run_here(EXPERIMENT, *options, *kept, "--dense-width", "8").status == 0
    folder = tmp_path / "run" / "checkpoints"
    assert [step_of(path) for path in checkpoint_paths(folder)] == [10, 8, 4, 0]
    (folder / "step-mine.safetensors").write_bytes(b"mine")
    more = ("--epochs", "3", "--keep-checkpoints", "1")
    assert run_here(EXPERIMENT, "--resume", "run", *more).status == 0
    assert sorted(os.listdir(folder)) == ["step-00000015.safetensors", "step-mine.safetensors"]  # noqa: PTH208


def test_what_may_end_bit_exactness_is_said_in_one_line(run: Path, run_here: RunHere) -> None:
    environment = json.loads((cut_off(run) / "environment.json").read_text())
    environment["packages"]["tensorflow"] = "2.20.0"
    environment["cores"] = 64
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "code" / "mnist_cnn.py").write_text("# another")
    result = run_here(EXPERIMENT, "--resume", run)
    (line,) = [line for line in result.stdout.splitlines() if "bit for bit" in line]
    for words in ("tensorflow 2.20.0 is now 2.", "cores 64 is now", "mnist_cnn.py has been edited"):
        assert words in line


def test_a_fork_goes_on_from_a_checkpoint_of_another_run(
    run: Path, run_here: RunHere, finished_run: Path, tmp_path: Path
) -> None:
    before = left_by(run)
    second = checkpoint_paths(run / "checkpoints")[1]
    at = step_of(second)
    same = ("--fork", run, "--at-step", str(at), "--run-dir", "same")
    result = run_here(EXPERIMENT, *same)
    assert (result.status, result.stderr) == (0, "")
    assert f"Forked from {run} after step {at}" in result.stdout
    found, expected = left_by(tmp_path / "same"), left_by(finished_run)
    assert found == expected  # without other options the fork ends like its source
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert (config["fork"], config["at_step"]) == (str(run), at)
    assert left_by(run) == before
    refused = run_here(EXPERIMENT, "--fork", run, "--at-step", "5", "--run-dir", "refused")
    assert refused.status == 2
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_a_fork_may_have_other_options_and_begins_at_the_newest_good_checkpoint(
    run: Path, run_here: RunHere
) -> None:
    before = left_by(run)
    other = run_here(EXPERIMENT, "--fork", run, "--learning-rate", "0.5", "--epochs", "4")
    assert other.status == 0, other.stderr
    assert "Training for 8 steps" in other.stdout
    assert left_by(run) == before
    newest = checkpoint_paths(run / "checkpoints")[0]
    newest.write_bytes(b"")
    fallen_back = run_here(EXPERIMENT, "--fork", run, "--run-dir", "fallen back")
    assert fallen_back.status == 0
    assert f"{newest}: not a good checkpoint" in fallen_back.stdout


# On request, this step makes the second convolution NaN within one step.
SPOILED = """
    spoiled = int(os.environ.get("SPOIL", "-1"))
    if spoiled >= 0:
        kernel = state.model.conv2.kernel
        kernel.assign(tf.where(state.step == spoiled, float("nan"), 1.0) * kernel)
    with tf.GradientTape() as tape:"""


def spoiling(folder: Path) -> Path:
    text = EXPERIMENT.read_text().replace("\n    with tf.GradientTape() as tape:", SPOILED)
    path = folder / "mnist_cnn.py"
    path.write_text(text.replace("import annotations", "import annotations\nimport os", 1))
    return path


@pytest.fixture
def recovered(
    data_file: Path,
    finished_run: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int], Path]:
    """A function (step) -> run that NaN stopped at this step and that then went on to its end."""

    def recover(at: int) -> Path:
        run = tmp_path / f"nan-{at}"
        shutil.rmtree(run, ignore_errors=True)
        recovers_from_nan(at, run, data_file, run_here, monkeypatch)
        assert left_by(run) == left_by(finished_run)
        return run

    return recover


def recovers_from_nan(
    at: int, run: Path, data_file: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = spoiling(run.parent)
    monkeypatch.setenv("SPOIL", str(at))
    options = (*OPTIONS, "--checkpoint-every", "3", "--data", data_file, "--run-dir", run)
    result = run_here(experiment, *options)
    assert result.status == 1
    message = re.fullmatch(
        rf"error: optimizer/gradient_norm became nan at step {at + 1}; "
        r".* python -m research replay (\S+)\n",
        result.stderr,
    )
    assert message, result.stderr
    newest = step_of(checkpoint_paths(run / "checkpoints")[0])
    assert newest <= at
    found = json.loads(run_here("research", "replay", message[1], "--json").stdout)
    assert found["step"] == at + 1
    assert found["first_non_finite"] == "output of conv2"
    monkeypatch.delenv("SPOIL")
    assert run_here(experiment, "--resume", run).status == 0


def test_nan_stops_a_run_which_recovers_and_replay_names_the_layer(
    recovered: Callable[[int], Path], run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = recovered(13)
    (bundle,) = run.glob("replay-*")
    monkeypatch.setenv("SPOIL", "13")
    shown = run_here("research", "replay", bundle)
    assert (shown.status, shown.stderr) == (0, "")
    assert "The first that is not finite: output of conv2" in shown.stdout
    assert re.search(r"The first operation that makes it so: \w+ in .*, line \d+", shown.stdout)
    (bundle / "batch.npz").write_bytes(b"damaged")
    assert "not a replay bundle" in run_here("research", "replay", bundle).stderr
    assert "not a replay bundle" in run_here("research", "replay", run).stderr


@pytest.mark.slow
def test_a_limit_on_file_sizes_ends_a_run_in_one_line_and_it_goes_on_without_it(
    data_file: Path, tmp_path: Path, finished_run: Path, run_here: RunHere
) -> None:
    def limited(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, EXPERIMENT, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
        )

    message = r"error: run/checkpoints/\S+: can't be written \(File too large\)"
    options = (*OPTIONS, "--data", data_file, "--run-dir", "run")
    result = limited(*options)
    assert result.returncode == 1, result.stderr
    assert re.fullmatch(rf"{message}.*\n", result.stderr), result.stderr
    assert list(tmp_path.iterdir()) == []
    assert run_here(EXPERIMENT, *options, "--epochs", "2").status == 0
    result = limited("--resume", "run", "--epochs", "3")
    assert result.returncode == 1, result.stderr
    assert re.fullmatch(rf"{message}; make room, then go on: .*\n", result.stderr), result.stderr
    assert run_here(EXPERIMENT, "--resume", "run").status == 0
    assert left_by(tmp_path / "run") == left_by(finished_run)


def test_five_runs_started_at_once_get_five_directories(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    together, state = multiprocessing.get_context("fork").Barrier(5), make_state()

    def start() -> None:
        together.wait()
        with begun(Config(), dataset, state) as run:
            (run.path / str(os.getpid())).touch()

    processes = [multiprocessing.get_context("fork").Process(target=start) for _ in range(5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    runs = list((tmp_path / "runs" / "mnist_cnn").iterdir())
    assert len(runs) == 5
    for process in processes:
        assert len(list(tmp_path.glob(f"runs/mnist_cnn/*/{process.pid}"))) == 1


# --- The same, many times -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1, 8, 15, 23])
def test_nan_at_the_first_the_last_and_other_steps(
    at: int, recovered: Callable[[int], Path]
) -> None:
    """Step 8 begins an epoch, after step 15 a checkpoint is due, and step 23 is the last."""
    recovered(at)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, if this machine allows to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_at_eight_moments(
    data_file: Path, finished_run: Path, tmp_path: Path, small_disk: Path
) -> None:
    program = Program(EXPERIMENT, tmp_path)
    options = [*OPTIONS, "--data", str(data_file), "--checkpoint-every", "5"]
    size = checkpoint_paths(finished_run / "checkpoints")[0].stat().st_size
    full, where = 0, set()
    # Room for some checkpoints and a little more, so that small files fail, too.
    for checkpoints, pages in itertools.product(range(4), (9, 15)):
        run, filler = small_disk / "run", small_disk / "filler"
        left = checkpoints * size + pages * 4096
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - left))
        process = program.start([*options, "--run-dir", str(run)])
        process.join()
        if process.exitcode != 0:
            full += 1
            assert process.exitcode == 1
            output = program.output()
            (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
            assert "Traceback" not in output
            named = re.match(r"error: disk/run(\S*): can't be written", error)
            assert named, error
            where.add(named[1].partition("-")[0].partition(".out.")[0])
        filler.unlink()
        if process.exitcode != 0 and (run / "config.json").exists():
            process = program.start(["--resume", str(run)])
            process.join()
            assert process.exitcode == 0, program.output()
            assert left_by(run) == left_by(finished_run)
        shutil.rmtree(run, ignore_errors=True)  # without room there may be none
    print(f"{full} of 8 were full, at {sorted(where)}; all went on")
    assert full == 8


@pytest.fixture
def another(data_file: Path, tmp_path: Path, run_here: RunHere) -> dict[str, bytes]:
    """The files of a run with another seed, to swap with the finished run's files."""
    options = ("--data", data_file, "--seed", "1", "--run-dir", "another")
    kept = ("--checkpoint-every", "1", "--keep-checkpoints", "99")
    assert run_here(EXPERIMENT, *OPTIONS, *options, *kept).status == 0
    files = (tmp_path / "another").rglob("*.*")
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def damage(path: Path, another: dict[str, bytes], rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    match rng.choice(["flip", "truncate", "zero", "delete", "swap", "empty"]):
        case "flip":
            content[start] ^= 1 << rng.randrange(8)
        case "truncate":
            del content[start:]
        case "zero":
            content[start : start + 512] = bytes(len(content[start : start + 512]))
        case "swap":
            content[:] = another[path.name]
        case "empty":
            content.clear()
        case "delete":
            path.unlink()
            return
    path.write_bytes(content)


@pytest.mark.slow
def test_models_damaged_100_times(run: Path, another: dict[str, bytes]) -> None:
    h5, digest = run / "mnist.h5", run / "mnist.h5.sha256"
    contents = {path: path.read_bytes() for path in (h5, digest)}
    expected = load_h5(h5).get_weights()
    rng, accepted = random.Random(0), 0
    for _ in range(100):
        for path, content in contents.items():
            path.write_bytes(content)
        target = rng.choice([h5, h5, digest])
        damage(target, another, rng)
        if rng.random() < 0.3 and target == h5:  # the file was moved without its digest
            digest.unlink()
            if h5.exists() and h5.read_bytes() == another["mnist.h5"]:
                continue  # a good file, and nothing shows that it is the wrong one
        try:
            loaded = load_h5(h5).get_weights()
        except InputError as error:
            assert "\n" not in str(error)
        else:
            accepted += 1
            assert all(map(np.array_equal, loaded, expected))
    print(f"{accepted} of 100 changed none of the weights, and were accepted")


@pytest.mark.slow
def test_checkpoints_damaged_100_times(
    run: Path, another: dict[str, bytes], data_file: Path, dataset: Dataset
) -> None:
    experiment = load_experiment(EXPERIMENT)
    config = parse(experiment.config, ["--resume", str(run)], experiment="mnist_cnn")
    state = experiment.build(config, Plan(250, 32, 3))
    paths = checkpoint_paths(run / "checkpoints")
    contents = {path: path.read_bytes() for path in paths}
    expected = {path: read_checkpoint(path, state).variables for path in paths}
    rng = random.Random(0)
    for _ in range(100):
        for path, content in contents.items():
            path.write_bytes(content)
        for path in paths[: rng.randrange(1, len(paths))]:
            damage(path, another, rng)
        newest = next(
            path for path in paths if path.exists() and path.read_bytes() == contents[path]
        )
        with begun(config, dataset, state) as record:
            at, said = record.start.at, record.start.notes
        assert at.step == step_of(newest)
        values = state.values().values()
        assert all(map(np.array_equal, values, expected[newest].values()))
        named = [line for line in said if "not a good checkpoint" in line]
        aside = list((run / "checkpoints").glob("*.damaged"))
        assert len(named) == len(aside)
        assert not any("\n" in line for line in said)
        for path in aside:
            assert any(str(path.with_suffix(".safetensors")) in line for line in named)
            path.unlink()
        assert checkpoint_paths(run / "checkpoints")[0] == newest


@pytest.mark.slow
def test_both_readers_of_tensorboard_show_every_step_once_after_kills(
    data_file: Path, tmp_path: Path
) -> None:
    program, run = Program(EXPERIMENT, tmp_path), tmp_path / "run"
    options = [*OPTIONS, "--data", str(data_file), "--checkpoint-every", "7"]
    for seconds in (2.4, 2.4, 2.4, 2.4, None):
        resume = ["--resume", str(run)] if (run / "config.json").exists() else None
        process = program.start(resume or [*options, "--run-dir", str(run)])
        process.join(seconds)
        process.kill()
        process.join()
    expected = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for fast in ("true", "false"):
        is_shown(expected, run, fast)


def is_shown(expected: list[dict[str, Any]], run: Path, fast: str) -> None:
    """Asserts that TensorBoard serves these lines; ``fast`` is its option --load_fast."""
    port = free_port()
    board = subprocess.Popen(
        [
            *(sys.executable, "-m", "tensorboard.main", "--logdir", str(run)),
            *("--load_fast", fast, "--port", str(port)),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        for split in ("train", "validation"):
            written = [line for line in expected if line["split"] == split]
            shown = points(port, split, "loss", len(written))
            assert [step for _, step, _ in shown] == [line["step"] for line in written]
            values = [value for _, _, value in shown]
            assert values == pytest.approx([line["loss"] for line in written], rel=1e-6)
    finally:
        board.terminate()
        board.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def points(port: int, run: str, tag: str, count: int) -> list[tuple[float, int, float]]:
    """Waits for TensorBoard to serve a tag; returns wall time, step and value of each point."""
    url = f"http://localhost:{port}/data/plugin/scalars/scalars?tag={tag}&run={run}"
    deadline, found = time.monotonic() + 60, list[Any]()
    while time.monotonic() < deadline and len(found) < count:
        time.sleep(0.5)
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as answer:
            found = json.load(answer)
    return [tuple(point) for point in found]
