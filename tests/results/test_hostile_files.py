"""Loading an untrusted model file executes nothing, opens no other file, and reads little."""

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

Config = dict[str, Any]

KERNEL = "model_weights/dense1/mnist_cnn/dense1/kernel"
BIAS = "model_weights/dense1/mnist_cnn/dense1/bias"
GIANT = 1 << 40


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "mnist.h5"
    export_h5(MnistCNN(8), path, make_split(20).images)
    return path.read_bytes()


@pytest.fixture(scope="module")
def functional(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of a functional model with a residual connection, without digests."""
    path, layers = tmp_path_factory.mktemp("good") / "mnist.h5", tf.keras.layers
    images = tf.keras.Input((28, 28, 1), name="images")
    x = layers.Conv2D(4, 3, padding="same", name="conv1")(images)
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.BatchNormalization(name="norm")(layers.Add(name="add")([x, y]))
    x = layers.Dropout(0.5, name="drop")(layers.GlobalAveragePooling2D(name="pool")(x))
    outputs = layers.Dense(10, activation="softmax", name="dense")(x)
    tf.keras.Model(images, outputs, name="residual").save(path)
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
    os.mkfifo("pipe.h5")  # opening it would wait forever
    layout = h5py.VirtualLayout((8,), "f4", maxshape=(None,))
    source = h5py.VirtualSource("pipe.h5", "x", (8,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    del file[BIAS]
    file.create_virtual_dataset(BIAS, layout)


def sparse(file: Any, width: int) -> None:
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


def described(change: Callable[[Config], Any]) -> Callable[[Any], None]:
    """Changes the description of a network; ``change`` gets the parsed JSON."""

    def rewrite(file: Any) -> None:
        config = json.loads(file.attrs["model_config"])
        change(config)
        del file.attrs["model_config"]  # a longer text needs a new attribute
        file.attrs["model_config"] = json.dumps(config)

    return rewrite


def entry(config: Config, name: str) -> Config:
    found: Config = next(e for e in config["config"]["layers"] if e["config"]["name"] == name)
    return found


def option(name: str, **changes: Any) -> Callable[[Any], None]:
    """Changes options of the layer ``name``."""
    return described(lambda config: entry(config, name)["config"].update(changes))


def another(name: str, **changes: Any) -> Callable[[Any], None]:
    """Changes the entry of the layer ``name``, outside of its options."""
    return described(lambda config: entry(config, name).update(changes))


def renamed(name: Any) -> Callable[[Any], None]:
    """Renames conv1 wherever the file names it."""

    def rewrite(file: Any) -> None:
        text = file.attrs["model_config"].replace('"conv1"', json.dumps(name))
        del file.attrs["model_config"]
        file.attrs["model_config"] = text

    return rewrite


def fed(name: str, *sources: Any, **options: Any) -> Callable[[Any], None]:
    """Makes the layer ``name`` take the outputs of other layers."""
    tensors = [
        {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}
        for source in sources
    ]
    return another(name, inbound_nodes=[{"args": [tensors], "kwargs": options}])


def ended(end: str, value: Any) -> Callable[[Any], None]:
    return described(lambda config: config["config"].update({end: value}))


def nested(config: Config) -> None:
    model = json.loads(json.dumps(config["config"])) | {"name": "x"}
    entry(config, "conv2").update(class_name="Functional", config=model)


def nested_often(config: Config) -> None:
    model: Config = {"name": "x", "layers": []}
    for _ in range(200):
        model = {"name": "x", "layers": [{"class_name": "Sequential", "config": model}]}
    entry(config, "conv2").update(class_name="Sequential", config=model)


def shared(config: Config) -> None:
    entry(config, "conv2")["inbound_nodes"] *= 2


def repeated(config: Config) -> None:
    config["config"]["layers"].insert(2, entry(config, "conv1"))


def second_input(config: Config) -> None:
    config["config"]["layers"].insert(1, json.loads(json.dumps(config["config"]["layers"][0])))
    config["config"]["layers"][1]["config"]["name"] = config["config"]["layers"][1]["name"] = "more"


def dangling(config: Config) -> None:
    copy = json.loads(json.dumps(entry(config, "conv2")).replace("conv2", "conv3"))
    config["config"]["layers"].insert(3, copy)


def many_layers(config: Config) -> None:
    config["config"]["layers"] *= 40


def large_outputs(config: Config) -> None:
    """100 layers with outputs of 28 x 28 x 16 numbers, and no weights."""
    layers = config["config"]["layers"]
    wide(config, 16)
    for number in range(100):
        text = json.dumps(entry(config, "conv2")).replace("conv2", f"act{number}")
        copy = json.loads(text)
        copy["class_name"] = "Activation"
        copy["config"] = {"name": f"act{number}", "activation": "relu"}
        layers.insert(3, copy)


def wide(config: Config, filters: int, **changes: Any) -> None:
    for name in ("conv1", "conv2"):
        entry(config, name)["config"].update(filters=filters, **changes)


def many_parameters(config: Config) -> None:
    wide(config, 160)
    entry(config, "pool").update(class_name="Flatten")
    entry(config, "pool")["config"].pop("keepdims")
    entry(config, "dense")["config"]["units"] = 2**17


def uneven_strides(config: Config) -> None:
    """A layer that Keras builds and TensorFlow can't compute."""
    found = entry(config, "conv1")
    found["class_name"] = "DepthwiseConv2D"
    keep = ("name", "padding", "activation", "kernel_size", "data_format")
    options = {name: found["config"][name] for name in keep}
    found["config"] = options | {"depth_multiplier": 4, "strides": [1, 2]}
    strides = {"strides": [1, 2]}
    entry(config, "conv2")["config"].update(strides)
    entry(config, "conv2")["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "images"


def negative_variance(file: Any) -> None:
    file["model_weights/norm/norm/moving_variance"][:] = -1


def undecodable(file: Any) -> None:
    text = file.attrs["model_config"].encode().replace(b"conv1", b"con\xff1")
    del file.attrs["model_config"]
    file.attrs["model_config"] = text


HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "Lambda layer": (lambda_layer, "no layer 'Lambda'"),
    "a class of another module": (another_class, "no layer 'Popen'"),
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
    "layer of text": (lambda f: layer(f, 6, units="8"), "units of dense1 is '8'"),
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
    "other width": (lambda f: layer(f, 6, units=9), r"shape \(9216, 8\), and not \(9216, 9\)"),
    "other shape": (lambda f: replaced(f, KERNEL, data=np.zeros((9, 9), "f4")), "has the shape"),
    "other activation": (lambda f: layer(f, 6, activation="tanh"), "another SHA-256"),
    "other filters": (lambda f: layer(f, 1, filters=GIANT), "filters of conv1"),
    "missing array": (lambda f: f.pop(BIAS), "is not there"),
    "group for an array": (grouped, "is <HDF5 group"),
    "giant description": (reconfigured("[" * 2 * 10**6), "not that of a small network"),
    "nested description": (reconfigured("[" * 50_000), "not a model of this kind"),
    "description of numbers": (reconfigured(np.zeros(100)), "is no text"),
    "no description": (lambda f: f.attrs.pop("model_config"), "not a model of this kind"),
}


# The same for a functional model, in a file without digests.
HOSTILE_FUNCTIONAL: dict[str, tuple[Callable[[Any], None], str]] = {
    "model in a model": (described(nested), "no layer 'Functional'"),
    "200 models in one another": (described(nested_often), "no layer 'Sequential'"),
    "layer that opens files": (another("conv2", class_name="TFSMLayer"), "no layer 'TFSMLayer'"),
    "class that is no text": (another("conv2", class_name=["Conv2D"]), "no layer .'Conv2D'"),
    "custom layer": (another("conv2", registered_name="Custom>Conv2D"), "not Keras's own"),
    "layer of another module": (another("conv2", module="os"), "not Keras's own"),
    "model of another class": (described(lambda c: c.update(class_name="Popen")), "is a 'Popen'"),
    "Lambda for an activation": (
        option("conv2", activation={"class_name": "__lambda__", "config": {"value": "4wAA"}}),
        "activation of conv2 is .*not accepted",
    ),
    "function for an activation": (option("conv2", activation="os>system"), "activation of conv2"),
    "filters of truth": (option("conv2", filters=True), "filters of conv2 is True"),
    "filters of a fraction": (option("conv2", filters=4.0), "filters of conv2 is 4.0"),
    "filters of none": (option("conv2", filters=None), "filters of conv2 is None"),
    "filters of a list": (option("conv2", filters=[4]), "filters of conv2 is .4"),
    "unknown option": (option("conv2", lora_rank=4), "unknown option 'lora_rank'"),
    "quantized layer": (option("dense", quantization_config={}), "quantization_config of dense"),
    "huge kernel": (option("conv2", kernel_size=[GIANT, 3]), "kernel_size of conv2"),
    "kernel of three": (option("conv2", kernel_size=[3, 3, 3]), "kernel_size of conv2"),
    "no strides": (option("conv2", strides=[0, 0]), "strides of conv2"),
    "huge strides": (option("conv2", strides=[GIANT, GIANT]), "strides of conv2"),
    "huge dilation": (option("conv2", dilation_rate=[GIANT, 1]), "dilation_rate of conv2"),
    "unknown padding": (option("conv2", padding="causal"), "padding of conv2 is 'causal'"),
    "channels first": (option("conv2", data_format="channels_first"), "data_format of conv2"),
    "uneven groups": (option("conv2", groups=3), "divisible by the number of groups"),
    "uneven strides": (described(uneven_strides), "not a model of this kind"),
    "epsilon of NaN": (option("norm", epsilon=float("nan")), "epsilon of norm is nan"),
    "endless epsilon": (option("norm", epsilon=float("inf")), "epsilon of norm is inf"),
    "negative variance": (negative_variance, "its probabilities sum to nan"),
    "missing statistics": (
        lambda f: f["model_weights/norm/norm"].pop("moving_mean"),
        "moving_mean is not there",
    ),
    "dropout of everything": (option("drop", rate=1.0), "rate of drop is 1.0"),
    "mixed precision": (option("conv2", dtype="mixed_float16"), "dtype of conv2"),
    "double precision": (
        option("conv2", dtype={"class_name": "DTypePolicy", "config": {"name": "float64"}}),
        "dtype of conv2",
    ),
    "quantized precision": (
        option("conv2", dtype={"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}),
        "dtype of conv2",
    ),
    "shared layer": (described(shared), "conv2 is shared"),
    "cycle": (fed("conv1", "conv2"), "conv1 takes 'conv2'"),
    "layer that feeds itself": (fed("conv2", "conv2"), "conv2 takes 'conv2'"),
    "input that is nowhere": (fed("conv2", "nowhere"), "conv2 takes 'nowhere'"),
    "input that is no text": (fed("conv2", {"a": 1}), "conv2 takes {"),
    "sum of one": (fed("add", "conv2"), "add has 1 inputs"),
    "sum of a hundred": (fed("add", *["conv2"] * 100), "add has 100 inputs"),
    "convolution of two": (fed("conv2", "conv1", "images"), "conv2 has 2 inputs"),
    "layer without input": (another("conv2", inbound_nodes=[]), "conv2 has 0 inputs"),
    "inputs of other shapes": (fed("add", "conv1", "images"), "no layer takes .* conv2"),
    "called for training": (fed("drop", "pool", training=True), "'training' = True"),
    "called with a state": (fed("conv2", "conv1", initial_state=[]), "'initial_state' = "),
    "two layers of one name": (described(repeated), "two layers have the name conv1"),
    "layer that leads nowhere": (described(dangling), "no layer takes the output of conv3"),
    "name with a slash": (renamed("a/b"), "a layer has the name 'a/b'"),
    "name of a folder above": (renamed(".."), "a layer has the name '..'"),
    "name with NUL": (renamed("a\0b"), "a layer has the name"),
    "name that moves the cursor": (renamed("\x1b[2J"), "a layer has the name '.x1b"),
    "name of half a character": (renamed("\ud800"), "a layer has the name"),
    "no name": (renamed(""), "a layer has the name ''"),
    "long name": (renamed("a" * 10**5), "a layer has the name 'aaa"),
    "number for a name": (renamed(7), "a layer has the name 7"),
    "two outputs": (ended("output_layers", [["dense", 0, 0], ["pool", 0, 0]]), "output_layers"),
    "output from within": (ended("output_layers", ["pool", 0, 0]), "output_layers"),
    "no output": (ended("output_layers", []), "output_layers"),
    "two inputs": (described(second_input), "the first layer is no InputLayer, or another"),
    "no layers": (ended("layers", []), "has not 2 to 256 layers"),
    "layers by name": (ended("layers", {}), "has not 2 to 256 layers"),
    "too many layers": (described(many_layers), "has not 2 to 256 layers"),
    "other input": (option("images", batch_shape=[None, 28, 28, 3]), "batch_shape of images"),
    "fixed batch": (option("images", batch_shape=[10**6, 28, 28, 1]), "batch_shape of images"),
    "sparse input": (option("images", sparse=True), "sparse of images"),
    "large output": (
        described(lambda c: wide(c, 4096)),
        "conv1 it is too large: 3,211,264 numbers",
    ),
    "large outputs": (described(large_outputs), "too large: .* numbers in all outputs"),
    "too many parameters": (described(many_parameters), "too large: .* parameters"),
    "slow convolutions": (
        described(lambda c: wide(c, 160, kernel_size=[28, 28])),
        "too large: .* multiplications",
    ),
    "logits for an output": (option("dense", activation="linear"), "dense, is no softmax"),
    "sigmoid for an output": (option("dense", activation="sigmoid"), "dense, is no softmax"),
    "nine classes": (option("dense", units=9), "dense, is no softmax of 10"),
    "no configuration": (described(lambda c: c.update(config=None)), "not a model of this kind"),
    "list for a description": (reconfigured("[1, 2]"), "not a model of this kind"),
    "undecodable description": (undecodable, "not a model of this kind"),
}


def make(kind: str, content: bytes, folder: Path) -> Path:
    path = folder / "mnist.h5"
    path.write_bytes(content)
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.zeros(8, "f4")
    with h5py.File(path, "r+") as file:
        (HOSTILE | HOSTILE_FUNCTIONAL)[kind][0](file)
    return path


@pytest.mark.parametrize("kind", [*HOSTILE, *HOSTILE_FUNCTIONAL])
def test_it_is_refused_in_one_line(
    kind: str, exported: bytes, functional: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(kind, exported if kind in HOSTILE else functional, tmp_path)
    (tmp_path / "other.h5").unlink()
    (tmp_path / "other.h5").mkdir()  # opening it would fail
    with pytest.raises(InputError, match=(HOSTILE | HOSTILE_FUNCTIONAL)[kind][1]) as caught:
        load_h5(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()
    assert "other.h5" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def evil_initializer(config: Config) -> None:
    evil = {"module": "subprocess", "class_name": "Popen", "config": {"args": "touch executed"}}
    for name in ("kernel_initializer", "bias_regularizer", "kernel_constraint", "seed"):
        entry(config, "conv1")["config"][name] = evil
    config["build_config"] = config["compile_config"] = evil


def evil_compilation(file: Any) -> None:
    loss = {"module": "subprocess", "class_name": "Popen", "config": {"args": "touch executed"}}
    file.attrs["training_config"] = json.dumps({"loss": loss, "optimizer_config": loss})


@pytest.mark.parametrize("change", [lambda f: None, described(evil_initializer), evil_compilation])
def test_what_does_not_matter_for_predictions_is_not_read(
    change: Callable[[Any], None],
    functional: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist.h5").write_bytes(functional)
    images = np.ones([2, 28, 28, 1], np.float32)
    expected = tf.keras.models.load_model("mnist.h5")(images)
    with h5py.File("mnist.h5", "r+") as file:
        change(file)
    np.testing.assert_array_equal(load_h5(Path("mnist.h5"))(images), expected)
    assert not Path("executed").exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    for path in (tmp_path / "pipe.h5", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="no such file"):
            load_h5(path)


# This program loads each file and prints the time and the process's peak memory.
MEASURED = """
import re, sys, time
from pathlib import Path
from research.errors import InputError
from research.results.export import load_h5
slowest = 0.0
for path in sys.argv[1:]:
    begun = time.perf_counter()
    try:
        load_h5(Path(path))
        sys.exit(f"{path} was accepted")
    except InputError:
        slowest = max(slowest, time.perf_counter() - begun)
status = Path("/proc/self/status").read_text()
print(slowest, re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])
"""


@pytest.mark.slow
def test_memory_stays_bounded(
    exported: bytes, functional: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for number, kind in enumerate([*HOSTILE, *HOSTILE_FUNCTIONAL]):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        files.append(make(kind, exported if kind in HOSTILE else functional, folder))
    (tmp_path / "measured.py").write_text(MEASURED)
    result = run_python(tmp_path / "measured.py", *files, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    slowest, peak = result.stdout.split()[-2:]
    print(f"{len(files)} kinds; at most {peak} KiB of memory and {float(slowest):.2f} s for one")
    assert int(peak) < 1_000_000
