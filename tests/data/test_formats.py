from __future__ import annotations

import gzip
import struct
from pathlib import Path

from research.data.dataset import Dataset
from research.data.formats import IDX_STEMS, read_dataset

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
