"""Reading a data set from files: a Keras-style ``.npz``, or a folder of IDX files.

Both formats are those in which MNIST and its look-alikes (Fashion-MNIST, KMNIST, ...) are
published. The IDX format is described at the foot of Yann LeCun's MNIST page: two zero bytes,
a type (0x08 is uint8), the number of dimensions, each dimension as a big-endian uint32, data.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from research.data.dataset import NUM_CLASSES, Dataset, Split
from research.errors import InputError, one_line

import numpy as np
import numpy.typing as npt

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
# The published names; some mirrors write a dot where the original has a hyphen.
IDX_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def read_dataset(path: Path) -> Dataset:
    """Reads a data set from an ``.npz`` file or a folder of IDX files, gzipped or not.

    Raises:
        InputError: if the path is neither, or a file is missing, damaged, or holds something
            other than uint8 images of 28x28 pixels with labels from 0 to 9.
    """
    if os.path.isdir(path):
        files = [_find_idx(path, stem) for stem in IDX_STEMS]
        arrays = [read_idx(file) for file in files]
    elif os.path.isfile(path):
        files = [path] * 4
        arrays = read_npz(path)
    else:
        raise InputError(
            f"{path}: no such file or folder; give a Keras-style .npz or a folder of IDX files"
        )
    x_train, y_train, x_test, y_test = arrays
    return Dataset(
        make_split(x_train, y_train, "train", files[0]),
        make_split(x_test, y_test, "test", files[2]),
        source=str(path.resolve()),  # the same name wherever a run is resumed
    )


def make_split(images: npt.NDArray[Any], labels: npt.NDArray[Any], name: str, file: Path) -> Split:
    """Checks the arrays of one split and brings them to their one shape and dtype.

    Args:
        images: uint8 [N, 28, 28] or [N, 28, 28, 1], N at least 1.
        labels: any integer dtype, [N], values 0 to 9.
        name: the split's name.
        file: the file to name in an error.

    Raises:
        InputError: if shape, dtype, length or a label's value is anything else.
    """
    where = f"{file}: {name} "
    if images.dtype != np.uint8:
        raise InputError(
            f"{where}images have dtype {images.dtype}; give the original uint8 bytes, 0 to 255"
        )
    if images.shape[1:] not in ((28, 28), (28, 28, 1)) or len(images) == 0:
        raise InputError(
            f"{where}images have shape {images.shape}; expected [N, 28, 28] or [N, 28, 28, 1], "
            "N at least 1"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise InputError(
            f"{where}labels have dtype {labels.dtype} and shape {labels.shape}; expected one "
            f"integer for each of the {len(images)} images, not one-hot"
        )
    if labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise InputError(
            f"{where}labels run from {labels.min()} to {labels.max()}; they must lie in 0..9"
        )
    return Split(images.reshape(-1, 28, 28, 1), labels.astype(np.uint8), name)


def read_npz(path: Path) -> list[npt.NDArray[Any]]:
    """The arrays x_train, y_train, x_test and y_test of a Keras-style ``.npz``, in this order.

    Raises:
        InputError: if it is no NumPy archive, is damaged, or lacks one of the four. Pickled
            objects are never loaded.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in NPZ_KEYS if key not in archive]
            if missing:
                raise InputError(
                    f"{path}: no array {', '.join(missing)}; a Keras-style .npz holds "
                    f"{', '.join(NPZ_KEYS)}"
                )
            arrays = [archive[key] for key in NPZ_KEYS]
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise ValueError("a member is no array")
            return arrays
    except InputError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and NumPy raise nearly anything
        raise InputError(
            f"{path}: not a readable .npz archive, or a damaged one ({one_line(error)}); "
            "download it again, or give a folder of IDX files"
        ) from error


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The uint8 array in an IDX file, gzipped or not.

    Raises:
        InputError: if the file is damaged, of another type, or longer or shorter than its
            header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: can't be read ({one_line(error)}); download it again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{path}: not an IDX file of unsigned bytes (it starts with '{content[:4].hex()}', "
            "expected '000008..'); download it again"
        )
    if content[3] not in (1, 3):
        raise InputError(f"{path}: has {content[3]} dimensions, not 1 or 3; download it again")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InputError(f"{path}: ends within its header; download it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"{path}: its header promises {math.prod(shape)} bytes of data {list(shape)}, "
            f"but there are {len(content) - start}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find_idx(folder: Path, stem: str) -> Path:
    names = [s + ending for s in (stem, stem.replace("-idx", ".idx")) for ending in ("", ".gz")]
    for name in names:
        if os.path.isfile(folder / name):
            return folder / name
    raise InputError(f"{folder}: no file {stem} or {stem}.gz in it; put the four IDX files there")
