"""mnist.h5: the trained network in a file that any Keras opens, with none of this project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from research.errors import InputError, one_line
from research.files import replaced_atomically, sha256
from research.network.mnist_cnn import MnistCNN
from research.results.evaluation import predict_probabilities

import h5py
import numpy as np
import numpy.typing as npt
import tensorflow as tf


def export_h5(
    model: MnistCNN, path: Path, images: npt.NDArray[np.uint8], learning_rate: float
) -> Any:
    """Writes the model's stock twin, compiled, and beside it the file's SHA-256.

    The file is read back and compared before it takes its name.

    Args:
        model: the trained model.
        path: ends in ``.h5``; a file of this name is replaced, at one stroke.
        images: uint8 [N, 28, 28, 1], on which the file's predictions are compared.
        learning_rate: that of the Adadelta with which ``fit`` would go on.

    Returns:
        The model that was read back from the file.

    Raises:
        RuntimeError: if the file does not hold the model's weights, or, for a float32 model, does
            not predict the very same bits. ``path`` is then as it was.
    """
    twin = model.stock_twin()
    twin.compile(
        tf.keras.optimizers.Adadelta(learning_rate, rho=0.95, epsilon=1e-7),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    with replaced_atomically(path) as partial:
        twin.save(partial)
        # Keras 3.15 restores the optimizer onto an empty list of variables, and `fit` then
        # fails; without the stored variables it starts the optimizer afresh.
        with h5py.File(partial, "r+") as file:
            file.pop("optimizer_weights", None)
        loaded = tf.keras.models.load_model(partial)
        _compare(model, loaded, images)
        digest = sha256(partial)
    with replaced_atomically(digest_path(path)) as partial:
        partial.write_text(f"{digest}  {path.name}\n")
    return loaded


def digest_path(path: Path) -> Path:
    """Where the SHA-256 of a file stands, in the format that ``sha256sum --check`` reads."""
    return path.with_name(path.name + ".sha256")


def load_h5(path: Path) -> Any:
    """Loads a model that ``export_h5`` has written.

    Returns:
        A Keras model, float32 [B, 28, 28, 1] in 0..1 -> probabilities [B, 10].

    Raises:
        InputError: if there is no such file, it is damaged, or it holds some other model.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; give an mnist.h5 that an experiment has saved")
    try:
        if os.path.isfile(digest_path(path)):
            _check_digest(path)
        model = tf.keras.models.load_model(path, compile=False)
        answer = np.asarray(model(tf.zeros([1, 28, 28, 1]), training=False))
        if answer.shape != (1, 10) or not abs(answer.sum() - 1) < 1e-3:
            raise ValueError("it does not turn images [B, 28, 28, 1] into probabilities [B, 10]")
    except InputError:
        raise
    except Exception as error:  # h5py and Keras raise errors of many kinds for a damaged file
        raise InputError(
            f"{path}: not a model of this kind ({one_line(error)[:200]}); give an mnist.h5 "
            "that an experiment has saved"
        ) from error
    return model


def _check_digest(path: Path) -> None:
    if digest_path(path).read_text().split()[:1] != [sha256(path)]:
        raise InputError(
            f"{path}: its SHA-256 is not the one in {digest_path(path).name}: the file has changed "
            "since it was saved; restore it, or train again"
        )


def _compare(model: MnistCNN, loaded: Any, images: npt.NDArray[np.uint8]) -> None:
    pairs = zip(model.get_weights(), loaded.get_weights(), strict=True)
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise RuntimeError("the exported file holds other weights than the model")
    if model.compute_dtype == "float32" and not np.array_equal(
        predict_probabilities(model, images), predict_probabilities(loaded, images)
    ):
        raise RuntimeError("the exported file predicts other probabilities than the model")
