"""Reads an mnist.h5 without trusting its content."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

from research.errors import InputError, one_line
from research.files import sha256
from research.network.limits import LARGEST_PARAMETERS
from research.results.stock_network import Network, Shape, build_model, read_network

import h5py
import numpy as np
import numpy.typing as npt
import tensorflow as tf

LONGEST_DESCRIPTION = 1_000_000
LARGEST_FILE = 4 * LARGEST_PARAMETERS + 4 * LONGEST_DESCRIPTION
# The attributes that hold a SHA-256, since HDF5 has no checksums. The first covers description and
# weights; older files, which could hold one network only, have the second, of the weights alone.
DIGEST, _OLD_DIGEST = "network_sha256", "weights_sha256"


def digest_path(path: Path) -> Path:
    """The file with the SHA-256 of ``path``, in the format that ``sha256sum --check`` reads."""
    return path.with_name(path.name + ".sha256")


def load_h5(path: Path) -> tf.keras.Model:
    """Loads a model that ``export_h5`` has written, without trusting the file.

    This function builds the network, from the layers and options in ``accepted_layers.py`` only. It
    executes nothing in the file, opens no other file because of it, and reads no more than the
    description and the weights. The author of a file still decides what its network predicts: the
    digests show accidental damage, but an attacker can write matching ones.

    Returns:
        A Keras model, float32 [B, 28, 28, 1] in 0..1 -> probabilities [B, 10].

    Raises:
        InputError: if the file is missing, is damaged, or does not hold an accepted network.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; give an mnist.h5 that an experiment has saved")
    try:
        if os.path.isfile(digest_path(path)):
            _check_digest(path)
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        with h5py.File(path, "r") as file:
            text = description_of(file)
            network = read_network(json.loads(text))
            # 3: an optimizer such as Adam may have stored two more numbers for each weight.
            needed = 4 * sum(map(math.prod, network.places().values()))
            if size > 3 * needed + 2 * LONGEST_DESCRIPTION:
                raise ValueError(f"{size} bytes are not what {needed} bytes of weights need")
            arrays = read_weights(file, network)
            digests = {DIGEST: digest(text, arrays.values())}
            digests[_OLD_DIGEST] = digest("", arrays.values())
            for attribute, expected in digests.items():
                if file.attrs.get(attribute, expected) != expected:
                    raise ValueError("its network has another SHA-256 than it says")
        model = build_model(network, arrays)
        # TensorFlow refuses some combinations of options only when it computes.
        (total,) = model(np.zeros([1, 28, 28, 1], np.float32), training=False).numpy().sum(1)
        if not abs(total - 1) < 1e-3:
            raise ValueError(f"its probabilities sum to {total}")
    except InputError:
        raise
    except Exception as error:  # h5py and Keras raise errors of many types
        raise InputError(
            f"{path}: not a model of this kind ({one_line(error)[:200]}); give an mnist.h5 "
            "that an experiment has saved"
        ) from error
    return model


def read_weights(file: h5py.File, network: Network) -> dict[str, npt.NDArray[np.float32]]:
    """The weights of a network, by their ``network.places()``.

    Args:
        file: an open h5py.File.
        network: the network of the file's description.

    Raises:
        ValueError: if a weight is missing or is not stored as plain, finite float32 numbers.
    """
    found = {place: _plain_array(file, place, shape) for place, shape in network.places().items()}
    return {place: _finite(array, place) for place, array in found.items()}


def digest(description: str, weights: Iterable[npt.NDArray[np.float32]]) -> str:
    """The SHA-256 of a network's description and weights, in hexadecimal."""
    found = hashlib.sha256(description.encode())
    for weight in weights:
        found.update(np.ascontiguousarray(weight).data)
    return found.hexdigest()


def description_of(file: h5py.File) -> str:
    """The JSON text with which Keras describes the network in a file.

    Raises:
        ValueError: if it is missing, is not text, or is longer than ``LONGEST_DESCRIPTION``.
    """
    attribute = file.attrs.get_id("model_config")
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise ValueError("its model_config is no text")
    text = file.attrs["model_config"]
    if len(text) > LONGEST_DESCRIPTION:
        raise ValueError("its model_config is not that of a small network")
    return text.decode() if isinstance(text, bytes) else str(text)


def _check_digest(path: Path) -> None:
    with digest_path(path).open("rb") as file:
        expected = file.read(64)
    if expected != sha256(path).encode():
        raise InputError(
            f"{path}: its SHA-256 is not the one in {digest_path(path).name}: the file has changed "
            "since it was saved; restore it, or train again"
        )


def _plain_array(file: h5py.File, name: str, shape: Shape) -> h5py.Dataset:
    """The data set at ``name``, if this file itself stores its numbers, and unfiltered."""
    found = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or part not in found:
            raise ValueError(f"{name} is not there")
        # Soft and external links can lead to other objects and files.
        if not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} is a link")
        found = found[part]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name} is {found}")
    # External and virtual storage lead to other files, which asking for the shape would open.
    # Filters can unpack to any size. Numbers that are not stored read as zeros.
    properties = found.id.get_create_plist()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
        raise ValueError(f"{name} is not stored as plain numbers in this file")
    if found.dtype != np.float32 or found.id.get_storage_size() != 4 * math.prod(found.shape):
        raise ValueError(f"{name} is not stored as plain numbers in this file")
    if found.shape != shape:
        raise ValueError(f"{name} has the shape {found.shape}, and not {shape}")
    return found


def _finite(array: h5py.Dataset, name: str) -> npt.NDArray[np.float32]:
    weight: npt.NDArray[np.float32] = array[()]
    if not np.isfinite(weight).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return weight
