from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import tracemalloc
import zipfile
from pathlib import Path

from research.data.dataset import Dataset
from research.data.formats import IDX_STEMS, MOST_EXAMPLES, read_dataset, read_idx
from research.errors import InputError

import numpy as np
import numpy.typing as npt
import pytest
from conftest import save_npz


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def save_idx(dataset: Dataset, folder: Path, compress: bool, dotted: bool = False) -> Path:
    train, test = dataset.train, dataset.test
    arrays = (train.images[..., 0], train.labels, test.images[..., 0], test.labels)
    for stem, array in zip(IDX_STEMS, arrays, strict=True):
        name = stem.replace("-idx", ".idx") if dotted else stem
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


def test_data_have_the_same_name_from_everywhere(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_npz(dataset, tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    assert read_dataset(Path("data.npz")).source == read_dataset(path).source == str(path)


@pytest.mark.parametrize("how", ["npz", "idx", "idx.gz", "dotted idx"])
def test_every_format_gives_the_same_data(how: str, dataset: Dataset, tmp_path: Path) -> None:
    if how == "npz":
        path = save_npz(dataset, tmp_path / "data.npz")
    else:
        path = save_idx(dataset, tmp_path, how == "idx.gz", dotted=how == "dotted idx")
    read = read_dataset(path)
    for split, expected in ((read.train, dataset.train), (read.test, dataset.test)):
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)
        assert split.images.dtype == split.labels.dtype == np.uint8


def npz_of_headers(path: Path, headers: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    """An .npz whose arrays have headers with a dtype and a shape, and no data."""
    usual = {"x_train": ("|u1", (20, 28, 28)), "y_train": ("|u1", (20,))}
    usual |= {"x_test": usual["x_train"], "y_test": usual["y_train"]}
    with zipfile.ZipFile(path, "w") as archive:
        for name, (dtype, shape) in (usual | headers).items():
            header = io.BytesIO()
            about = {"descr": dtype, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(header, about)
            archive.writestr(f"{name}.npy", header.getvalue())
    return path


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "words"),
    [
        ("x_train", "<f4", (20, 28, 28), "float32"),
        ("x_train", "|O", (20, 28, 28), "object"),
        ("x_test", "|u1", (20, 28, 28_000_000), "test images have shape"),
        ("x_test", "|u1", (), "test images have shape"),
        ("x_train", "|u1", (-1, 28, 28), "train images have shape"),
        ("x_train", "|u1", (MOST_EXAMPLES + 1, 28, 28), "at most 1000000 examples"),
        ("y_train", "<i8", (10**12,), "one integer for each of the 20 images"),
        ("y_test", "|O", (20,), "test labels have dtype object"),
        ("y_test", "<i8", (20,), "another size than its header says"),
    ],
)
def test_an_npz_is_refused_by_its_headers_before_it_is_unpacked(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(np.lib.format, "read_array")
    with pytest.raises(InputError, match=words):
        read_dataset(npz_of_headers(tmp_path / "bomb.npz", {name: (dtype, shape)}))


def test_a_gzipped_file_is_not_unpacked_beyond_what_its_header_promises(tmp_path: Path) -> None:
    bomb = tmp_path / "labels.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(b"\0\0\x08\1" + struct.pack(">I", 10))
        file.write(bytes(30_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"promises 10 bytes .* but there are more"):
            read_idx(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
    with gzip.open(bomb, "wb") as file:
        file.write(b"\0\0\x08\3" + struct.pack(">3I", MOST_EXAMPLES + 1, 28, 28))
    with pytest.raises(InputError, match="give at most 1000000 examples"):
        read_idx(bomb)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
@pytest.mark.parametrize("where", ["the data", "a file of the folder"])
def test_what_is_no_regular_file_is_never_waited_for(
    kind: str, where: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("data")
    if where == "a file of the folder":
        Path("folder").mkdir()
        path = save_idx(dataset, Path("folder"), compress=True) / f"{IDX_STEMS[2]}.gz"
        path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    with pytest.raises(InputError, match=f"it is a {kind}|no file t10k-images"):
        read_dataset(path if where == "the data" else path.parent)
    if where != "the data":
        with pytest.raises(InputError, match=f"it is a {kind}"):
            read_idx(path)
