"""A model file from elsewhere executes nothing, opens nothing else, and bounds what is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.errors import InputError
from research.network.mnist_cnn import MnistCNN
from research.results.export import export_h5, load_h5

import h5py
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_split, run_python
from PIL import Image

KERNEL = "model_weights/dense1/mnist_cnn/dense1/kernel"
BIAS = "model_weights/dense1/mnist_cnn/dense1/bias"
GIANT = 1 << 40


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "mnist.h5"
    export_h5(MnistCNN(8), path, make_split(20).images, 1.0)
    return path.read_bytes()


def replaced(file: Any, name: str, **options: Any) -> None:
    del file[name]
    file.create_dataset(name, **options)


def layer(file: Any, number: int, **changes: Any) -> None:
    config = json.loads(file.attrs["model_config"])
    config["config"]["layers"][number]["config"] |= changes
    file.attrs["model_config"] = json.dumps(config)


def another_class(file: Any) -> None:
    config = json.loads(file.attrs["model_config"])
    config["config"]["layers"][6] = {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"name": "dense1", "args": "touch executed", "units": 8},
        "registered_name": "Popen",
    }
    file.attrs["model_config"] = json.dumps(config)


def lambda_layer(file: Any) -> None:
    path = Path("lambda.h5")
    layers = tf.keras.layers
    tf.keras.Sequential(
        [
            tf.keras.Input((28, 28, 1)),
            layers.Lambda(lambda x: [open("executed", "w"), x][1]),  # noqa: PTH123, SIM115
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    ).save(path)
    Path("executed").unlink()
    with h5py.File(path) as other:
        for name, value in other.attrs.items():
            file.attrs[name] = value


def linked(file: Any, link: Any) -> None:
    del file[BIAS]
    file[BIAS] = link


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (8,))
    del file[BIAS]
    file.create_virtual_dataset(BIAS, layout)


def unlimited(file: Any) -> None:
    os.mkfifo("pipe.h5")  # whoever opened it would wait for ever
    layout = h5py.VirtualLayout((8,), "f4", maxshape=(None,))
    source = h5py.VirtualSource("pipe.h5", "x", (8,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    del file[BIAS]
    file.create_virtual_dataset(BIAS, layout)


def sparse(file: Any, width: int) -> None:
    layer(file, 6, units=width)
    file.flush()
    os.truncate(file.filename, (width + 1) * 4 * 9216)


def spoiled(file: Any, value: float) -> None:
    file[KERNEL][3, 3] = value


def grouped(file: Any) -> None:
    del file[BIAS]
    file.create_group(BIAS)


def reconfigured(text: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file.attrs["model_config"]
        file.attrs["model_config"] = text

    return change


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "Lambda layer": (lambda_layer, "its layers are InputLayer, Lambda"),
    "a class of another module": (another_class, "its layers are .* Popen"),
    "external link": (lambda f: linked(f, h5py.ExternalLink("other.h5", "x")), "is a link"),
    "soft link": (lambda f: linked(f, h5py.SoftLink("/" + KERNEL)), "is a link"),
    "link to a device": (lambda f: linked(f, h5py.ExternalLink("/dev/zero", "x")), "is a link"),
    "external storage": (
        lambda f: replaced(f, BIAS, shape=(8,), dtype="f4", external=[("other.h5", 0, 32)]),
        "not stored as plain numbers",
    ),
    "virtual storage": (virtual, "not stored as plain numbers"),
    "giant array": (
        lambda f: replaced(f, KERNEL, shape=(9216, GIANT), dtype="f4"),
        "not stored as plain",
    ),
    "array without bytes": (
        lambda f: replaced(f, KERNEL, shape=(9216, 8), dtype="f4"),
        "not stored as plain numbers",
    ),
    "giant layer": (lambda f: layer(f, 6, units=GIANT), f"units of dense1 is {GIANT}"),
    "negative layer": (lambda f: layer(f, 6, units=-1), "units of dense1 is -1"),
    "layer of text": (lambda f: layer(f, 6, units="8"), "units of dense1 is 8"),
    "giant sparse file": (lambda f: sparse(f, 80_000), "is larger than"),
    "large sparse file": (lambda f: sparse(f, 4_000), "are not what .* bytes of weights need"),
    "virtual storage of a device": (unlimited, "not stored as plain numbers"),
    "unfolding array": (
        lambda f: replaced(f, KERNEL, data=np.zeros((9216, 8), "f4"), compression="gzip"),
        "not stored as plain numbers",
    ),
    "NaN": (lambda f: spoiled(f, np.nan), "holds NaN or infinity"),
    "infinity": (lambda f: spoiled(f, -np.inf), "holds NaN or infinity"),
    "other weights": (lambda f: spoiled(f, 0.5), "another SHA-256"),
    "other dtype": (lambda f: replaced(f, BIAS, data=np.zeros(8, "f8")), "not stored as plain"),
    "objects": (lambda f: replaced(f, BIAS, data=["x"] * 8), "not stored as plain"),
    "other width": (lambda f: layer(f, 6, units=9), "units of dense1 is 9"),
    "other shape": (lambda f: replaced(f, KERNEL, data=np.zeros((9, 9), "f4")), "another SHA"),
    "other activation": (lambda f: layer(f, 6, activation="tanh"), "activation of dense1 is tanh"),
    "other filters": (lambda f: layer(f, 1, filters=GIANT), "filters of conv1"),
    "missing array": (lambda f: f.pop(BIAS), "is not there"),
    "group for an array": (grouped, "is <HDF5 group"),
    "giant description": (reconfigured("[" * 10**6), "not that of a small network"),
    "nested description": (reconfigured("[" * 50_000), "not a model of this kind"),
    "description of numbers": (reconfigured(np.zeros(100)), "not that of a small network"),
    "no description": (lambda f: f.attrs.pop("model_config"), "not a model of this kind"),
}


def make(kind: str, content: bytes, folder: Path) -> Path:
    path = folder / "mnist.h5"
    path.write_bytes(content)
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.zeros(8, "f4")
    with h5py.File(path, "r+") as file:
        HOSTILE[kind][0](file)
    return path


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_in_one_line(
    kind: str, exported: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(kind, exported, tmp_path)
    (tmp_path / "other.h5").unlink()
    (tmp_path / "other.h5").mkdir()  # whoever opened it would say so
    with pytest.raises(InputError, match=HOSTILE[kind][1]) as caught:
        load_h5(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "other.h5" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="no such file"):
            load_h5(path)


@pytest.mark.slow
def test_memory_stays_bounded(
    exported: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(make_split(1).images[0, ..., 0]).save("digit.png")
    (tmp_path / "measured.py").write_text(
        "import atexit, re, runpy\nfrom pathlib import Path\n"
        "status = Path('/proc/self/status')\n"
        "atexit.register(lambda: print(re.search(r'VmHWM:\\s*(\\d+) kB', status.read_text())[1]))\n"
        "runpy.run_module('research', run_name='__main__')\n"
    )
    peaks = []
    for kind in HOSTILE:
        path = make(kind, exported, tmp_path)
        result = run_python("measured.py", "predict", path, "digit.png", cwd=tmp_path)
        assert result.returncode == 2, kind
        assert result.stderr.count("\n") == 1, kind
        peaks.append(int(result.stdout.split()[-1]))
    print(f"{len(peaks)} kinds; at most {max(peaks)} KiB of memory")
    assert max(peaks) < 1_000_000
