"""Every command in README.md does what the page says of it."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

README = (REPOSITORY / "README.md").read_text()

# What is added to each command so that it takes seconds, on made-up data, and a line of its answer.
JUDGE = "python -m research compare experiments/mnist_cnn.py experiments/harder_half.py"
SMALL = "--data made-up.npz --batch-size 32 --dense-width 8 --run-dir new"
COMMANDS = {
    "python experiments/mnist_cnn.py --resume RUN": ("", "finished"),
    "python experiments/harder_half.py --examples 2000 --epochs 2": (SMALL, "Test accuracy:"),
    "diff experiments/mnist_cnn.py experiments/harder_half.py": ("", "> .*top_k"),
    "python -m research evaluate RUN": ("", "Confusion"),
    "python -m research predict RUN IMAGE...": ("", r"one\.png\W+\d"),
    "python -m research board": ("--port 0", "TensorBoard is at http"),
    "python -m research runs": ("", "finished"),
    "python -m research diff RUN RUN": ("", "same"),
    "python -m research rerun RUN": ("", "same"),
    "python -m research verify experiments/harder_half.py": (
        "--data made-up.npz --kills 1 --stops 0",
        "yes",
    ),
    "python -m research replay RUN/replay-step-00000042": ("", "first .* not finite"),
    f"{JUDGE} -- --epochs 1": (
        "--data made-up.npz --holdout 50 --batch-size 32 --dense-width 8",
        "better|worse|undecided",
    ),
    "python -m research bench": ("--blocks 2 --steps 2 --loops ours-float32", "milliseconds"),
}
# These need the network, or are about the code as it is committed: .ci/run has them. It trains on a
# tenth of MNIST only.
IN_CI = {
    "pip install -e . && python experiments/mnist_cnn.py --examples 6000 --epochs 2",
    "pip install -e . && python experiments/mnist_cnn.py",
    'pip install -e ".[test]" && pytest',
    'pip install -e ".[dev]"',
    "ruff format . && ruff check . && mypy",
}


def commands() -> list[str]:
    """The indented lines outside of blocks of code, without their comments."""
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    return [line.partition("  #")[0].strip() for line in re.findall(r"^    (\S.*)$", text, re.M)]


def test_every_command_is_tried() -> None:
    assert sorted(commands()) == sorted(COMMANDS.keys() | IN_CI)
    ci = (REPOSITORY / ".ci" / "run").read_text()
    for command in IN_CI:
        for part in command.split(" && "):
            assert part.removesuffix(" format .") in ci


@pytest.fixture(scope="module")
def clone(data_file: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the root of a clone is after some runs, with made-up data."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "experiments").symlink_to(REPOSITORY / "experiments")
    shutil.copy(data_file, folder / "made-up.npz")
    run = folder / "runs" / "mnist_cnn" / finished_run.name
    shutil.copytree(finished_run, run)
    broken = [sys.executable, "experiments/mnist_cnn.py", *SMALL.split(), "--learning-rate", "1e30"]
    subprocess.run([*broken, "--run-dir", "broken"], cwd=folder, capture_output=True, check=False)
    (bundle,) = (folder / "broken").glob("replay-step-*")
    shutil.copytree(bundle, run / "replay-step-00000042")
    pixels = np.zeros([28, 28], np.uint8)
    pixels[4:24, 12:16] = 255
    Image.fromarray(pixels).save(folder / "one.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_what_the_readme_says(command: str, clone: Path, finished_run: Path) -> None:
    added, expected = COMMANDS[command]
    run = Path("runs", "mnist_cnn", finished_run.name)
    words = shlex.split(command.replace("IMAGE...", "one.png").replace("RUN", str(run)))
    words = [sys.executable if word == "python" else word for word in words] + added.split()
    if "--" in words:  # an undecided comparison could take all of 40 pairs
        words.insert(words.index("--"), "--most-pairs=2")
    shutil.rmtree(clone / "new", ignore_errors=True)
    status = {1} if words[0] == "diff" else {0}
    with subprocess.Popen(words, cwd=clone, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if "board" in words:  # it serves until it is interrupted
            printed = process.stdout.readline()
            process.terminate()
            status.add(-signal.SIGTERM)  # so early that no handler is there yet
        else:
            printed = process.stdout.read()
    assert re.search(expected, printed), printed
    assert process.returncode in status
