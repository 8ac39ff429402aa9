"""Shared by the tests: small data that a network can learn, and one small finished run."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import runpy
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import research
from research.config import Config
from research.data.batches import Plan
from research.data.dataset import Dataset, Split
from research.network.mnist_cnn import MnistCNN
from research.processor import onednn_aborts
from research.recording import figures
from research.recording.run import Run, begin
from research.recording.run_directory import code_sha256, lock_directory, read_code
from research.recording.start import find_start
from research.signals import SIGNALS
from research.training.optimizer import Adadelta
from research.training.state import State

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

REPOSITORY = Path(research.__file__).parents[1]
EXPERIMENTS = REPOSITORY / "experiments"

# Two logical CPUs, for tests of several replicas; TensorFlow allows this before its first use only.
(_cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def make_split(count: int, name: str = "train", seed: int = 0) -> Split:
    """Images that a network learns quickly: each class has a bright block at its own place."""
    rng = np.random.default_rng([seed, count])
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = rng.integers(0, 60, (count, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 4)
        image[2 + 8 * row : 8 + 8 * row, 1 + 7 * column : 6 + 7 * column] += 180
    return Split(images, labels, name)


def save_npz(dataset: Dataset, path: Path) -> Path:
    """Writes a data set in the format in which Keras stores MNIST."""
    np.savez_compressed(
        path,
        x_train=dataset.train.images[..., 0],
        y_train=dataset.train.labels,
        x_test=dataset.test.images[..., 0],
        y_test=dataset.test.labels,
    )
    return path


def skip_if_onednn_aborts(precision: str) -> None:
    """Skips a test of a precision in which ONEDNN_MAX_CPU_ISA would make TensorFlow abort."""
    if onednn_aborts(precision.removeprefix("mixed_")):
        pytest.skip(f"with this ONEDNN_MAX_CPU_ISA TensorFlow would abort in {precision}")


def make_state(
    dropout_rates: tuple[float, float] = (0.25, 0.5),
    seed: int = 0,
    learning_rate: Any = 1.0,
    **options: Any,
) -> State:
    """A state with a small network and the reference's optimizer and loss."""
    precision = options.pop("precision", "float32")
    skip_if_onednn_aborts(precision)
    return State(
        model=MnistCNN(options.pop("dense_width", 8), dropout_rates, seed, precision),
        optimizer=Adadelta(learning_rate, rho=0.95, epsilon=1e-7),
        loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="none"),
        seed=seed,
        **options,
    )


def edit_library(run: Path, name: str, edit: Callable[[str], str]) -> None:
    """Makes a run one with another library, as if it had been so from the start."""
    code = {k: v for k, v in read_code(run).items() if k.startswith("research/")}
    with zipfile.ZipFile(run / "library.zip", "w") as file:
        for each, content in code.items():
            file.writestr(each, edit(content.decode()) if each == name else content)
    about = json.loads((run / "environment.json").read_text()) | {"code": code_sha256(run)}
    (run / "environment.json").write_text(json.dumps(about))


@contextlib.contextmanager
def begun(config: Config, dataset: Dataset, state: State, examples: int = 250) -> Iterator[Run]:
    """A run of the reference experiment at work; ``state`` has the values that it starts from."""
    experiment = EXPERIMENTS / "mnist_cnn.py"
    with contextlib.ExitStack() as stack:
        directory = None
        if config.resume is not None:
            directory = stack.enter_context(lock_directory(config.resume))
        plan = Plan(examples, config.batch_size, config.epochs)
        start = find_start(config, experiment, dataset, state, plan, lambda plan: state)
        state.assign(start.at.variables.values())
        yield stack.enter_context(begin(start, directory, state))


def run_python(
    *arguments: str | Path,
    cwd: Path,
    timeout: float = 200,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own and returns its output."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ | {"COLUMNS": "200"} | dict(variables),
    )


@dataclasses.dataclass(frozen=True)
class Result:
    """The exit status and the output of a program."""

    status: int
    stdout: str
    stderr: str


RunHere = Callable[..., Result]


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Each file, folder, link and FIFO: its kind, and the content of plain files."""
    found = {}
    for path in folder.rglob("*"):
        kind = path.lstat().st_mode
        found[path] = (kind, path.read_bytes() if stat.S_ISREG(kind) else b"")
    return found


@pytest.fixture
def handlers_as_before() -> Iterator[None]:
    """Gives signals back the handlers that they had before the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> RunHere:
    """Runs an experiment's file, or ``"research"``, in this process and in ``tmp_path``.

    Whatever ends with status 2 must have left everything there as it was. In this process,
    TensorFlow needs no further import, which takes seconds. Pictures for TensorBoard are one pixel
    each, unless they are asked for: Matplotlib takes a third of a small run's time.
    """
    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "png")

    def run(
        program: str | Path, *arguments: str | Path, columns: int = 200, pictures: bool = False
    ) -> Result:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        capfd.readouterr()
        before = contents(tmp_path)
        status = 0
        with monkeypatch.context() as patch:
            for name in () if pictures else ("gallery", "confusion", "reliability"):
                patch.setattr(figures, name, lambda *_, **__: pixel.getvalue())
            try:
                if program == "research":
                    runpy.run_module("research", run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(str(program), run_name="__main__")
            except SystemExit as stop:
                status = int(stop.code or 0)
        # A refusal changes nothing, not one byte.
        assert status != 2 or contents(tmp_path) == before
        return Result(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """300 training and 100 test examples."""
    return Dataset(make_split(300), make_split(100, "test", seed=1), "made up")


@pytest.fixture(scope="session")
def data_file(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same data set as an .npz file."""
    return save_npz(dataset, tmp_path_factory.mktemp("data") / "made-up.npz")


@pytest.fixture(scope="session")
def finished_run(data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small finished run; the file ``stdout`` three levels up is its output."""
    folder = tmp_path_factory.mktemp("run")
    result = run_python(
        *(EXPERIMENTS / "mnist_cnn.py", "--data", data_file, "--epochs", "3"),
        *("--batch-size", "32", "--log-every", "4", "--holdout", "50", "--dense-width", "16"),
        "--test",
        cwd=folder,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = (folder / "runs" / "mnist_cnn").iterdir()
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return run


@pytest.fixture
def step() -> Callable[[State, Any, Any], dict[str, Any]]:
    """The reference experiment's step."""
    from research.tools.load_experiment import load_experiment

    return load_experiment(EXPERIMENTS / "mnist_cnn.py").step
