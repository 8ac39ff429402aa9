"""mnist.h5: the trained network in a file that any Keras opens, with none of this project."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from research.errors import InputError, one_line
from research.files import replaced_atomically, sha256, storage_errors
from research.network.mnist_cnn import MnistCNN
from research.results.evaluation import predict_probabilities

import h5py
import numpy as np
import numpy.typing as npt
import tensorflow as tf

# That of a dense layer of 4,500 units; 16 times what the reference needs.
LARGEST_FILE = 160 * 2**20
# The attribute of mnist.h5 that holds the SHA-256 of its weights.
_DIGEST = "weights_sha256"
# What decides, besides the weights, what a layer computes when it is not being trained.
_DECISIVE = frozenset(
    {
        *("activation", "batch_shape", "data_format", "dilation_rate", "filters", "groups"),
        *("kernel_size", "name", "padding", "pool_size", "strides", "units", "use_bias"),
    }
)


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
        tf.keras.optimizers.Adadelta(learning_rate, rho=0.95, epsilon=1e-7, name="adadelta"),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    with replaced_atomically(path) as partial:
        # HDF5 tells of a full disk by errors of more than one kind.
        with storage_errors(path, RuntimeError):
            twin.save(partial)
            with h5py.File(partial, "r+") as file:
                # Keras 3.15 restores the optimizer onto an empty list of variables, and `fit`
                # then fails; without the stored variables it starts the optimizer afresh.
                file.pop("optimizer_weights", None)
                # HDF5 has no checksums of its own.
                file.attrs[_DIGEST] = _digest(twin.get_weights())
        loaded = tf.keras.models.load_model(partial)
        _compare(model, loaded, images)
        digest = sha256(partial)
    with storage_errors(digest_path(path)), replaced_atomically(digest_path(path)) as partial:
        partial.write_text(f"{digest}  {path.name}\n")
    return loaded


def digest_path(path: Path) -> Path:
    """Where the SHA-256 of a file stands, in the format that ``sha256sum --check`` reads."""
    return path.with_name(path.name + ".sha256")


def load_h5(path: Path) -> Any:
    """Loads a model that ``export_h5`` has written, trusting nothing in the file.

    The network is built here, of stock layers; from the file come only the width of the dense
    layer and the weights. Nothing in it is executed, no other file is opened because of it, and
    no more is read than the weights need.

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
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        with h5py.File(path, "r") as file:
            expected = MnistCNN(dense_width=1).stock_twin()
            arrays = {name: _plain_array(file, name) for name in _places(expected)}
            width = arrays["model_weights/dense1/mnist_cnn/dense1/bias"].shape[-1]
            _compare_description(file, expected, arrays, width, size)
            weights = [_finite(array, name) for name, array in arrays.items()]
            if file.attrs.get(_DIGEST, _digest(weights)) != _digest(weights):
                raise ValueError("its weights have another SHA-256 than it says")
        twin = MnistCNN(width).stock_twin()
        twin.set_weights(weights)
    except InputError:
        raise
    except Exception as error:  # h5py raises errors of many kinds for a damaged file
        raise InputError(
            f"{path}: not a model of this kind ({one_line(error)[:200]}); give an mnist.h5 "
            "that an experiment has saved"
        ) from error
    return twin


def _check_digest(path: Path) -> None:
    with digest_path(path).open("rb") as file:
        expected = file.read(64)
    if expected != sha256(path).encode():
        raise InputError(
            f"{path}: its SHA-256 is not the one in {digest_path(path).name}: the file has changed "
            "since it was saved; restore it, or train again"
        )


def _compare_description(
    file: Any, expected: Any, arrays: dict[str, Any], width: int, size: int
) -> None:
    """Refuses a file whose layers are not those of a network, but for the width of ``dense1``."""
    # The size of the arrays bounds how long the texts in the file can be.
    stored = sum(array.id.get_storage_size() for array in arrays.values())
    # An optimizer such as Adam keeps two more numbers for each weight.
    if size > 3 * stored + 1_000_000:
        raise ValueError(f"{size} bytes are not what {stored} bytes of weights need")
    attribute = file.attrs.get_id("model_config")
    if attribute.shape != () or len(text := file.attrs["model_config"]) > 100_000:
        raise ValueError("its model_config is not that of a small network")
    found, layers = json.loads(text)["config"]["layers"], expected.get_config()["layers"]
    kinds = [[layer["class_name"] for layer in of] for of in (found, layers)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"its layers are {', '.join(map(str, kinds[0]))[:150]}")
    for there, ours in zip(found, layers, strict=True):
        name = ours["config"]["name"]
        if name == "dense1":
            ours["config"]["units"] = width
        for option in _DECISIVE & ours["config"].keys():
            value, wanted = (layer["config"].get(option) for layer in (there, ours))
            if json.dumps(value) != json.dumps(wanted):
                raise ValueError(f"{option} of {name} is {str(value)[:50]}, and not {wanted}")


def _places(twin: Any) -> list[str]:
    """Where in an HDF5 file Keras keeps each weight of a network, in the order of its weights."""
    return [f"model_weights/{layer.name}/{v.path}" for layer in twin.layers for v in layer.weights]


def _plain_array(file: Any, name: str) -> Any:
    """The data set at ``name``, if its numbers are stored in this very file as they are."""
    found = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or part not in found:
            raise ValueError(f"{name} is not there")
        # Links can lead to other files.
        if not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link")
        found = found[part]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name} is {found}")
    # So can external and virtual storage, whose shape is not even to be asked for: that opens
    # them. Filters can unfold; and what is not stored reads as zeros.
    properties = found.id.get_create_plist()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
        raise ValueError(f"{name} is not stored as plain numbers in this file")
    if found.dtype != np.float32 or found.id.get_storage_size() != 4 * math.prod(found.shape):
        raise ValueError(f"{name} is not stored as plain numbers in this file")
    return found


def _finite(array: Any, name: str) -> npt.NDArray[np.float32]:
    weight: npt.NDArray[np.float32] = array[()]
    if not np.isfinite(weight).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return weight


def _digest(weights: list[npt.NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _compare(model: MnistCNN, loaded: Any, images: npt.NDArray[np.uint8]) -> None:
    pairs = zip(model.get_weights(), loaded.get_weights(), strict=True)
    if not all(np.array_equal(a, b) for a, b in pairs):
        raise RuntimeError("the exported file holds other weights than the model")
    if model.compute_dtype == "float32" and not np.array_equal(
        predict_probabilities(model, images), predict_probabilities(loaded, images)
    ):
        raise RuntimeError("the exported file predicts other probabilities than the model")
