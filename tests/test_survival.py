"""A run goes on as if nothing had happened: after kills, signals, NaN, damage, a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from research.recording.checkpoints import checkpoint_paths
from research.tools.verify import left_by

import pytest
from conftest import EXPERIMENTS, RunHere, run_python

EXPERIMENT = EXPERIMENTS / "mnist_cnn.py"
# Those of the finished run.
OPTIONS = [
    *("--epochs", "3", "--batch-size", "32", "--log-every", "4"),
    *("--holdout", "50", "--dense-width", "16"),
]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def cut_off(run: Path) -> Path:
    """Makes a finished run one that was killed after its last checkpoint but one."""
    for name in ("mnist.h5", "mnist.h5.sha256", "evaluation.json"):
        (run / name).unlink()
    checkpoint_paths(run / "checkpoints")[0].unlink()
    return run


def test_killed_at_random_moments_it_ends_as_if_uninterrupted(
    data_file: Path, tmp_path: Path
) -> None:
    verify = ("-m", "research", "verify", "--only-kills", "--json", "--data", data_file)
    result = run_python(*verify, "--kills", "10", "--stops", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (check,) = json.loads(result.stdout)
    assert check["holds"], check
    assert check["found"].startswith("10 killed, 3 stopped")


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
    assert len((run / "command.txt").read_text().splitlines()) == 3


def test_a_damaged_checkpoint_is_named_and_the_newest_good_one_is_used(
    run: Path, run_here: RunHere, finished_run: Path
) -> None:
    newest, good, *_ = checkpoint_paths(run / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1])
    (run / "mnist.h5").unlink()
    result = run_here(EXPERIMENT, "--resume", run)
    assert (result.status, result.stderr) == (0, "")
    assert re.search(rf"{newest}: not a good checkpoint \(.*\); moved aside", result.stdout)
    assert f"Resuming {run} after step {int(good.stem[5:])}" in result.stdout
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
    assert len(checkpoint_paths(run / "checkpoints")) in (3, 4)  # and perhaps the best


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
        ("mnist_cnn.py --resume schedule --epochs 4", ["--epochs 4", "learning rate falls"]),
        ("mnist_cnn.py --resume other_data", ["no longer what it was trained on"]),
        ("mnist_cnn.py --resume no_environment", ["environment.json"]),
        ("mnist_cnn.py --resume bad_config", ["config.json can't be read"]),
        ("mnist_cnn.py --resume taken", ["another process is at work"]),
    ],
)
def test_what_may_not_be_changed_is_refused_with_the_reason(
    options: str, words: list[str], run: Path, run_here: RunHere
) -> None:
    before = left_by(run)
    name, *arguments = options.split()
    for word in ("schedule", "other_data", "no_environment", "bad_config", "taken"):
        if word in arguments:
            copy = shutil.copytree(run, run.parent / word)
            config = json.loads((copy / "config.json").read_text())
            environment = json.loads((copy / "environment.json").read_text())
            config |= {"decay": "cosine"} if word == "schedule" else {}
            config |= {"epochs": "many"} if word == "bad_config" else {}
            environment["data"]["sha256"] = (
                "0" if word == "other_data" else (environment["data"]["sha256"])
            )
            (copy / "config.json").write_text(json.dumps(config))
            (copy / "environment.json").write_text(json.dumps(environment))
            if word == "no_environment":
                (copy / "environment.json").unlink()
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
    assert left_by(run) == before


def test_what_may_end_bit_exactness_is_said_in_one_line(run: Path, run_here: RunHere) -> None:
    environment = json.loads((run / "environment.json").read_text())
    environment["packages"]["tensorflow"] = "2.20.0"
    environment["cores"] = 64
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "mnist_cnn.py").write_text("# another")
    result = run_here(EXPERIMENT, "--resume", run)
    (line,) = [line for line in result.stdout.splitlines() if "bit for bit" in line]
    for words in ("tensorflow 2.20.0 is now 2.", "cores 64 is now", "mnist_cnn.py has been edited"):
        assert words in line


def test_a_fork_goes_on_from_a_checkpoint_of_another_run(
    run: Path, run_here: RunHere, finished_run: Path, tmp_path: Path
) -> None:
    before = left_by(run)
    second = checkpoint_paths(run / "checkpoints")[1]
    at = int(second.stem[5:])
    same = ("--fork", run, "--at-step", str(at), "--run-dir", "same")
    result = run_here(EXPERIMENT, *same)
    assert (result.status, result.stderr) == (0, "")
    assert f"Forked from {run} after step {at}" in result.stdout
    found, expected = left_by(tmp_path / "same"), left_by(finished_run)
    assert found["TensorBoard"]["train"].pop("lineage") == [at]
    assert found == expected  # nothing was overridden, so it ends as the other did
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert (config["fork"], config["at_step"]) == (str(run), at)
    other = run_here(EXPERIMENT, "--fork", run, "--learning-rate", "0.5", "--epochs", "4")
    assert other.status == 0, other.stderr
    assert "Training for 8 steps" in other.stdout
    assert left_by(run) == before


# A step that, told so, spoils the second convolution within one step.
SPOILED = """
    spoiled = int(os.environ.get("SPOIL", "-1"))
    if spoiled >= 0:
        kernel = state.model.conv2.kernel
        kernel.assign(tf.where(state.step == spoiled, float("nan"), 1.0) * kernel)
    with tf.GradientTape() as tape:"""


def spoiling(folder: Path) -> Path:
    text = EXPERIMENT.read_text().replace("\n    with tf.GradientTape() as tape:", SPOILED)
    path = folder / "mnist_cnn.py"
    path.write_text(text.replace("from typing", "import os\nfrom typing", 1))
    return path


def recovers_from_nan(
    at: int, run: Path, data_file: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = spoiling(run.parent)
    monkeypatch.setenv("SPOIL", str(at))
    options = (*OPTIONS, "--checkpoint-every", "3", "--data", data_file, "--run-dir", run)
    result = run_here(experiment, *options)
    assert result.status == 1
    message = re.fullmatch(
        rf"error: loss became nan at step {at + 1}; .* python -m research replay (\S+)\n",
        result.stderr,
    )
    assert message, result.stderr
    newest = int(checkpoint_paths(run / "checkpoints")[0].stem[5:])
    assert newest <= at
    found = json.loads(run_here("research", "replay", message[1], "--json").stdout)
    assert found["step"] == at + 1
    assert found["first_non_finite"] == "output of conv2"
    monkeypatch.delenv("SPOIL")
    assert run_here(experiment, "--resume", run).status == 0


def test_nan_stops_a_run_which_recovers_and_replay_names_the_layer(
    data_file: Path,
    finished_run: Path,
    tmp_path: Path,
    run_here: RunHere,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "nan"
    recovers_from_nan(13, run, data_file, run_here, monkeypatch)
    assert left_by(run) == left_by(finished_run)
    (bundle,) = run.glob("replay-*")
    monkeypatch.setenv("SPOIL", "13")
    shown = run_here("research", "replay", bundle)
    assert (shown.status, shown.stderr) == (0, "")
    assert "The first that is not finite: output of conv2" in shown.stdout
    assert re.search(r"The first operation that makes it so: \w+ in .*, line \d+", shown.stdout)
    (bundle / "batch.npz").write_bytes(b"damaged")
    assert "not a replay bundle" in run_here("research", "replay", bundle).stderr
    assert "not a replay bundle" in run_here("research", "replay", run).stderr


def test_a_limit_on_file_sizes_ends_a_run_in_one_line_and_it_goes_on_without_it(
    data_file: Path, tmp_path: Path, finished_run: Path, run_here: RunHere
) -> None:
    result = subprocess.run(
        [sys.executable, EXPERIMENT, *OPTIONS, "--data", data_file, "--run-dir", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)),
    )
    assert result.returncode == 1, result.stderr
    assert re.fullmatch(
        r"error: run/checkpoints/\S+: can't be written \(File too large\); make room, .*\n",
        result.stderr,
    )
    assert run_here(EXPERIMENT, "--resume", "run").status == 0
    assert left_by(tmp_path / "run") == left_by(finished_run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes, where this machine lets us have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
