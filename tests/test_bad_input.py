"""Bad input ends with one clear line and status 2, and leaves nothing behind."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.data.dataset import Dataset
from research.data.formats import IDX_STEMS
from research.network.mnist_cnn import MnistCNN

import h5py
import numpy as np
import pytest
import tensorflow as tf
from conftest import EXPERIMENTS, Result, RunHere, make_split, run_python
from PIL import Image

MakeFile = Callable[[Path], Path]


def complaint(result: Result) -> str:
    """The one line of a program's error message."""
    assert result.status == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--epchs 3", ["--epchs", "--epochs"]),
        ("--epochs 0", ["--epochs 0", "above 0"]),
        ("--epochs inf", ["--epochs inf", "above 0"]),
        ("--epochs many", ["--epochs", "many"]),
        ("--epochs", ["--epochs"]),
        ("--batch-size -5", ["--batch-size -5", "at least 1"]),
        ("--learning-rate nan", ["--learning-rate nan", "above 0"]),
        ("--learning-rate 0", ["--learning-rate 0", "above 0"]),
        ("--learning-rate 1e-36", ["--learning-rate 1e-36", "from 1e-20"]),
        ("--batch-size 9223372036854775808", ["--batch-size 9223372036854775808"]),
        ("--data " + 300 * "x", ["xxx", "no such file"]),
        ("--run-dir " + 300 * "x", ["xxx", "can't be created"]),
        ("--run-dir dangling", ["--run-dir dangling", "exists"]),
        ("--clip-norm -1", ["--clip-norm -1", "above 0"]),
        ("--decay exponential", ["--decay", "exponential", "cosine"]),
        ("--warmup-epochs 5 --epochs 4", ["--warmup-epochs 5", "4 of --epochs"]),
        ("--precision float8", ["--precision", "float8", "mixed_bfloat16"]),
        ("--strategy tpu", ["--strategy", "tpu", "mirrored"]),
        ("--strategy mirrored --batch-size 1", ["--batch-size 1", "2 replicas"]),
        ("--seed -1", ["--seed -1", "2147483647"]),
        ("--seed 2147483648", ["--seed 2147483648"]),
        ("--steps-per-call 0", ["--steps-per-call 0"]),
        ("--log-every 0", ["--log-every 0"]),
        ("--dense-width 0", ["--dense-width 0"]),
        ("--dense-width 4700", ["dense_width 4700", "at most"]),
        ("--dense-width 1000000", ["dense_width 1000000", "at most"]),
        ("--dropout 0.5 1", ["--dropout 1", "below 1"]),
        ("--patience 0 --holdout 9", ["--patience 0", "at least 1"]),
        ("--patience 3", ["--patience 3", "--holdout"]),
        ("--select-by accuracy", ["--select-by accuracy", "lowest loss"]),
        ("--holdout-seed -1", ["--holdout-seed -1", "2147483647"]),
        ("--holdout -1", ["--holdout -1"]),
        ("--reserve 0 1", ["--reserve 0 1", "such as 10000 0"]),
        ("--data data.npz --reserve 300 0", ["--reserve 300", "1 to 299"]),
        ("--holdout 10 --examples 10", ["--holdout 10", "--examples 10"]),
        ("--examples 0", ["--examples 0"]),
        ("--profile 5 4", ["--profile 5 4", "first and the last"]),
        ("--profile 0 4", ["--profile 0 4", "first and the last"]),
        ("--data data.npz --profile 30 40", ["--profile 30 40", "the run has 36 steps"]),
        ("surplus", ["surplus"]),
        ("--data nowhere.npz", ["nowhere.npz", "no such file"]),
        ("--run-dir taken", ["--run-dir taken", "exists"]),
        ("--run-dir taken/file/below", ["taken/file/below", "can't be created"]),
        ("--data data.npz --holdout 300", ["--holdout 300", "1 to 299"]),
    ],
)
def test_options(
    options: str,
    words: list[str],
    data_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_here: RunHere,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/file").touch()
    Path("dangling").symlink_to("nowhere")
    Path("data.npz").symlink_to(data_file)
    before = sorted(tmp_path.rglob("*"))
    if "--data" not in options:
        options = f"--data data.npz {options}"
    message = complaint(run_here(EXPERIMENTS / "mnist_cnn.py", *options.split()))
    for word in words:
        assert word in message
    assert sorted(tmp_path.rglob("*")) == before


def npz(**changes: Any) -> MakeFile:
    def make(folder: Path) -> Path:
        split = make_split(20)
        images, labels = split.images[..., 0], split.labels
        arrays: dict[str, Any] = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
        arrays = {k: v for k, v in (arrays | changes).items() if v is not None}
        np.savez_compressed(folder / "bad.npz", **arrays)
        return folder / "bad.npz"

    return make


def npy(folder: Path) -> Path:
    np.save(folder / "bad.npy", np.zeros(3))
    return (folder / "bad.npy").rename(folder / "bad.npz")


def npz_with_plain_member(folder: Path) -> Path:
    path = npz(x_train=None)(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train", b"no array")
    return path


def fifo(name: str) -> MakeFile:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def truncated_npz(folder: Path) -> Path:
    path = npz()(folder)
    path.write_bytes(path.read_bytes()[:-500])
    return path


def flipped_npz(folder: Path) -> Path:
    path = npz()(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    return path


def other_file(content: bytes) -> MakeFile:
    def make(folder: Path) -> Path:
        (folder / "bad.npz").write_bytes(content)
        return folder / "bad.npz"

    return make


def idx_folder(name: str, change: Callable[[bytes], bytes]) -> MakeFile:
    def make(folder: Path) -> Path:
        split = make_split(20)
        for stem in IDX_STEMS:
            array = split.images[..., 0] if "images" in stem else split.labels
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            content = gzip.compress(header + array.tobytes())
            if stem == name:
                content = change(content)
            if content:
                (folder / f"{stem}.gz").write_bytes(content)
        return folder

    return make


def recompressed(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: gzip.compress(change(gzip.decompress(content)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (npz(y_test=None), ["bad.npz", "y_test"]),
        (npz(x_train=np.zeros((20, 28, 27), np.uint8)), ["bad.npz", "(20, 28, 27)"]),
        (npz(x_train=np.zeros((0, 28, 28), np.uint8)), ["bad.npz", "(0, 28, 28)"]),
        (npz(x_train=np.zeros((20, 28, 28), np.float32)), ["bad.npz", "float32", "uint8"]),
        (npz(y_train=np.eye(10)[np.arange(20) % 10]), ["bad.npz", "one-hot"]),
        (npz(y_train=np.arange(20)), ["bad.npz", "0 to 19", "0..9"]),
        (npz(y_train=np.full(20, -1)), ["bad.npz", "-1"]),
        (npz(y_train=np.zeros(19, np.uint8)), ["bad.npz", "(19,)", "20 images"]),
        (npz(y_train=np.array([{}] * 20, object)), ["bad.npz"]),
        (truncated_npz, ["bad.npz", "download it again"]),
        (npy, ["bad.npz", "download it again"]),
        (fifo("bad.npz"), ["bad.npz", "can't be read (it is a FIFO"]),
        (npz_with_plain_member, ["bad.npz", "no array x_train"]),
        (
            idx_folder("train-labels-idx1-ubyte", recompressed(lambda content: b"\0\0\x08\x7f")),
            ["train-labels-idx1-ubyte.gz", "127 dimensions"],
        ),
        (flipped_npz, ["bad.npz", "download it again"]),
        (other_file(b"hello"), ["bad.npz", "download it again"]),
        (other_file(b""), ["bad.npz", "download it again"]),
        (idx_folder("t10k-labels-idx1-ubyte", lambda content: b""), ["t10k-labels-idx1-ubyte"]),
        (
            idx_folder("train-images-idx3-ubyte", lambda content: content[:-100]),
            ["train-images-idx3-ubyte.gz", "download it again"],
        ),
        (
            idx_folder("train-images-idx3-ubyte", recompressed(lambda content: content[:-100])),
            ["train-images-idx3-ubyte.gz", "promises 15680 bytes"],
        ),
        (
            idx_folder("train-labels-idx1-ubyte", recompressed(lambda content: b"\0\0\x0d\1")),
            ["train-labels-idx1-ubyte.gz", "00000d01"],
        ),
        (
            idx_folder("train-labels-idx1-ubyte", recompressed(lambda content: content[:5])),
            ["train-labels-idx1-ubyte.gz", "header"],
        ),
        (
            idx_folder("train-labels-idx1-ubyte", lambda content: b"plain"),
            ["train-labels-idx1-ubyte.gz", "can't be read"],
        ),
    ],
)
def test_data(
    make: MakeFile,
    words: list[str],
    tmp_path: Path,
    run_here: RunHere,
) -> None:
    (tmp_path / "data").mkdir()
    path = make(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    message = complaint(run_here(EXPERIMENTS / "mnist_cnn.py", "--data", path))
    for word in words:
        assert word in message
    assert sorted(tmp_path.rglob("*")) == before


def h5_of(model: Any) -> MakeFile:
    def make(folder: Path) -> Path:
        model().save(folder / "model.h5")
        return folder / "model.h5"

    return make


def written(name: str, content: bytes) -> MakeFile:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def empty_h5(folder: Path) -> Path:
    with h5py.File(folder / "model.h5", "w"):
        return folder / "model.h5"


def other_network() -> Any:
    return tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(3)])


def unbuilt_network() -> Any:
    return tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(10)])


def network_of_logits() -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [tf.keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10, bias_initializer="ones")]
    )


def network_with_nan() -> Any:
    twin = MnistCNN(8).stock_twin()
    twin.layers[-1].bias.assign(np.full(10, np.nan))
    return twin


def network_with_lambda() -> Any:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Lambda(lambda x: x),
            layers.Dense(10, activation="softmax"),
        ]
    )


def undecodable_digest(folder: Path) -> Path:
    path = h5_of(lambda: MnistCNN(8).stock_twin())(folder)
    (folder / "model.h5.sha256").write_bytes(b"\xff\xfe")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nothing.h5", ["nothing.h5", "no such file"]),
        (lambda folder: folder, ["not a run directory"]),
        (written("model.h5", b"not HDF5"), ["model.h5", "not a model of this kind"]),
        (written("model.h5", b""), ["model.h5", "not a model of this kind"]),
        (empty_h5, ["model.h5", "not a model of this kind"]),
        (h5_of(other_network), ["model.h5", "not a model of this kind"]),
        (h5_of(unbuilt_network), ["model.h5", "not a model of this kind"]),
        (h5_of(network_of_logits), ["model.h5", "dense", "no softmax"]),
        (h5_of(network_with_nan), ["model.h5", "dense2/bias holds NaN"]),
        (h5_of(network_with_lambda), ["model.h5", "not a model of this kind"]),
        (undecodable_digest, ["model.h5", "SHA-256", "has changed"]),
    ],
)
def test_evaluate(make: MakeFile, words: list[str], tmp_path: Path, run_here: RunHere) -> None:
    message = complaint(run_here("research", "evaluate", str(make(tmp_path))))
    for word in words:
        assert word in message


def test_predict(tmp_path: Path, run_here: RunHere, dataset: Dataset) -> None:
    MnistCNN(8).stock_twin().save(tmp_path / "mnist.h5")
    Image.fromarray(dataset.test.images[0, ..., 0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    os.mkfifo(tmp_path / "fifo.png")
    model, good, bad = (str(tmp_path / name) for name in ("mnist.h5", "good.png", "bad.png"))
    assert "it is a FIFO" in complaint(run_here("research", "predict", model, "fifo.png"))
    assert "bad.png" in complaint(run_here("research", "predict", model, bad))
    assert "good.png" in complaint(run_here("research", "predict", good, good))
    assert "no image" in complaint(run_here("research", "predict", model))
    assert "transmogrify" in complaint(run_here("research", "transmogrify"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("def", "not a program"),
        ("import nowhere", "not a program"),
        ("x = 1", "it makes no experiment"),
        (
            "from research.config import Config as Base\nimport dataclasses\n"
            "@dataclasses.dataclass(frozen=True, kw_only=True)\nclass Config(Base):\n    new: int\n"
            "from research.experiment import Experiment\n"
            "experiment = Experiment(config=Config, build=None, step=None)",
            "give each option a default",
        ),
    ],
)
def test_bench(content: str | None, words: str, tmp_path: Path, run_here: RunHere) -> None:
    file = tmp_path / "experiment.py"
    if content is not None:
        file.write_text(content)
    assert words in complaint(run_here("research", "bench", str(file)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--blocks 1", ["--blocks 1", "at least 2"]),
        ("--steps 0", ["--steps 0", "at least 1"]),
        ("--trainings 1", ["--trainings 1", "at least 2"]),
        ("--trainings 2 --recording", ["--trainings 2", "without --recording"]),
        ("--examples 9", ["--examples 9", "--recording or --trainings"]),
        ("--loops fit-float32 fit-float32", ["--loops fit-float32 fit-float32", "each once"]),
        ("--loops transmogrify", ["transmogrify"]),
    ],
)
def test_options_of_bench(options: str, words: list[str], run_here: RunHere) -> None:
    message = complaint(run_here("research", "bench", *options.split()))
    for word in words:
        assert word in message


def test_as_a_user_would_see_it(tmp_path: Path) -> None:
    result = run_python(EXPERIMENTS / "mnist_cnn.py", "--epochs", "0", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --epochs 0: give a number above 0, such as 12 or 1.5 (--help explains the "
        "options)\n"
    )
    assert list(tmp_path.iterdir()) == []
