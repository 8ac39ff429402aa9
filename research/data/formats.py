"""Reading a data set from files: a Keras-style ``.npz``, or a folder of IDX files.

MNIST and its look-alikes (Fashion-MNIST, KMNIST, ...) are published in these two formats. An IDX
file, as Yann LeCun's MNIST page describes the format, has two zero bytes, a type (0x08 is uint8),
the number of dimensions, each dimension as a big-endian uint32, and then the data.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from research.data.dataset import NUM_CLASSES, Dataset, Split
from research.errors import InputError, one_line
from research.files import open_regular

import numpy as np
import numpy.typing as npt

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
# The published file names; some mirrors write a dot in place of a hyphen.
IDX_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


# A data set is read into memory as a whole: a million images take 784 MB.
MOST_EXAMPLES = 1_000_000


def read_dataset(path: Path) -> Dataset:
    """Reads a data set from an ``.npz`` file or a folder of IDX files, gzipped or not.

    Shapes, dtypes and sizes are checked before any data are unpacked.

    Raises:
        InputError: if the path is neither, or a file is missing or damaged, or its content is
            not at most ``MOST_EXAMPLES`` uint8 images of 28x28 pixels with labels from 0 to 9.
    """
    if os.path.isdir(path):
        files = [_find_idx(path, stem) for stem in IDX_STEMS]
        arrays = [read_idx(file) for file in files]
    else:
        files = [path] * 4
        arrays = read_npz(path)
    x_train, y_train, x_test, y_test = arrays
    return Dataset(
        make_split(x_train, y_train, "train", files[0]),
        make_split(x_test, y_test, "test", files[2]),
        source=str(path.resolve()),  # the same name wherever a run is resumed
    )


@dataclasses.dataclass(frozen=True)
class _Header:
    """The header of an ``.npy`` file, and the bytes that the whole file must have."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int


def make_split(images: npt.NDArray[Any], labels: npt.NDArray[Any], name: str, file: Path) -> Split:
    """Checks the arrays of one split and converts them to the shapes and dtypes of ``Split``.

    Args:
        images: uint8 [N, 28, 28] or [N, 28, 28, 1], N from 1 to ``MOST_EXAMPLES``.
        labels: any integer dtype, [N], values 0 to 9.
        name: the split's name.
        file: the file that an error names.

    Raises:
        InputError: if a shape, a dtype, a length or a label's value is different.
    """
    _check_shapes(images, labels, name, file)
    if labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise InputError(
            f"{file}: {name} labels run from {labels.min()} to {labels.max()}; they must lie in "
            "0..9"
        )
    return Split(images.reshape(-1, 28, 28, 1), labels.astype(np.uint8), name)


def _check_shapes(
    images: npt.NDArray[Any] | _Header, labels: npt.NDArray[Any] | _Header, name: str, file: Path
) -> None:
    where = f"{file}: {name} "
    if images.dtype != np.uint8:
        raise InputError(
            f"{where}images have dtype {images.dtype}; give the original uint8 bytes, 0 to 255"
        )
    if images.shape[1:] not in ((28, 28), (28, 28, 1)) or images.shape[0] < 1:
        raise InputError(
            f"{where}images have shape {images.shape}; expected [N, 28, 28] or [N, 28, 28, 1], "
            "N at least 1"
        )
    if images.shape[0] > MOST_EXAMPLES:
        raise InputError(
            f"{where}images have shape {images.shape}; give at most {MOST_EXAMPLES} examples"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise InputError(
            f"{where}labels have dtype {labels.dtype} and shape {labels.shape}; expected one "
            f"integer for each of the {images.shape[0]} images, not one-hot"
        )


def read_npz(path: Path) -> list[npt.NDArray[Any]]:
    """The arrays x_train, y_train, x_test and y_test of a Keras-style ``.npz``, in this order.

    Raises:
        InputError: if the file is not a NumPy archive, is damaged, lacks one of the four arrays,
            or an array has a shape or dtype that ``make_split`` refuses. Pickled objects are never
            loaded.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            missing = [key for key in NPZ_KEYS if f"{key}.npy" not in archive.namelist()]
            if missing:
                raise InputError(
                    f"{path}: no array {', '.join(missing)}; a Keras-style .npz holds "
                    f"{', '.join(NPZ_KEYS)}"
                )
            headers = [_npy_header(archive, key) for key in NPZ_KEYS]
            x_train, y_train, x_test, y_test = headers
            _check_shapes(x_train, y_train, "train", path)
            _check_shapes(x_test, y_test, "test", path)
            return [_npy(archive, *pair) for pair in zip(NPZ_KEYS, headers, strict=True)]
    except InputError:
        raise
    except OSError as error:
        there = os.path.lexists(path)
        reason = f"can't be read ({error.strerror or one_line(error)})"
        raise InputError(
            f"{path}: {reason if there else 'no such file or folder'}; give a Keras-style .npz or "
            "a folder of IDX files"
        ) from error
    except Exception as error:  # for a damaged archive zipfile and NumPy raise errors of many kinds
        raise InputError(
            f"{path}: not a readable .npz archive, or a damaged one ({one_line(error)}); "
            "download it again, or give a folder of IDX files"
        ) from error


def _npy_header(archive: zipfile.ZipFile, key: str) -> _Header:
    with archive.open(f"{key}.npy") as stream:
        start = io.BytesIO(stream.read(1 << 16))  # bounded: a header may claim a length of 4 GB
    if np.lib.format.read_magic(start) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(start)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(start)
    return _Header(dtype, shape, start.tell() + math.prod(shape) * dtype.itemsize)


def _npy(archive: zipfile.ZipFile, key: str, header: _Header) -> npt.NDArray[Any]:
    if archive.getinfo(f"{key}.npy").file_size != header.size:
        raise ValueError(f"{key} has another size than its header says")
    with archive.open(f"{key}.npy") as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The uint8 array in an IDX file, gzipped or not.

    Raises:
        InputError: if the file is damaged, has another type, is longer or shorter than its header
            says, or is larger than ``MOST_EXAMPLES`` images.
    """
    try:
        with open_regular(path) as file:
            return _read_idx(path, gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path}: can't be read ({reason}); download it again") from error


def _read_idx(path: Path, stream: BinaryIO | gzip.GzipFile) -> npt.NDArray[np.uint8]:
    start = stream.read(4)
    if len(start) < 4 or start[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{path}: not an IDX file of unsigned bytes (it starts with '{start.hex()}', "
            "expected '000008..'); download it again"
        )
    if start[3] not in (1, 3):
        raise InputError(f"{path}: has {start[3]} dimensions, not 1 or 3; download it again")
    sizes = stream.read(4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise InputError(f"{path}: ends within its header; download it again")
    shape = struct.unpack(f">{start[3]}I", sizes)
    promised = math.prod(shape)
    where = f"{path}: its header promises {promised} bytes of data {list(shape)}"
    if promised > MOST_EXAMPLES * 28 * 28:
        raise InputError(f"{where}; give at most {MOST_EXAMPLES} examples")
    data = stream.read(promised + 1)
    if len(data) != promised:
        there = len(data) if len(data) < promised else "more"
        raise InputError(f"{where}, but there are {there}; download it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _find_idx(folder: Path, stem: str) -> Path:
    names = [s + ending for s in (stem, stem.replace("-idx", ".idx")) for ending in ("", ".gz")]
    for name in names:
        if os.path.isfile(folder / name):
            return folder / name
    raise InputError(f"{folder}: no file {stem} or {stem}.gz in it; put the four IDX files there")
