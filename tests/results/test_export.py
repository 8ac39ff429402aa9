from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.errors import InputError, NonFiniteError
from research.files import sha256
from research.network.mnist_cnn import MnistCNN
from research.results import export
from research.results.accepted_layers import LAYERS, MERGING
from research.results.evaluation import evaluate, predict_probabilities
from research.results.export import check_exportable, export_h5, load_h5
from research.results.read_h5 import digest
from research.training.optimizer import Adadelta
from research.training.schedules import LearningRate

import h5py
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_split, run_python, skip_if_onednn_aborts

# This program runs in a process of its own, in isolated mode, without this project.
ELSEWHERE = """
import json, sys
import numpy as np, tensorflow as tf
h5, arrays, out = sys.argv[1:]
data = np.load(arrays)
model = tf.keras.models.load_model(h5)
np.save(out, model.predict(data["x"], batch_size=64, verbose=0))
loss, accuracy = model.evaluate(data["x"], data["y"], batch_size=64, verbose=0)
history = model.fit(data["x"], data["y"], epochs=3, batch_size=16, verbose=0).history["loss"]
print(json.dumps({
    "loss": loss, "accuracy": accuracy, "history": history,
    "optimizer": [model.optimizer.name, float(model.optimizer.learning_rate)],
    "layers": [type(layer).__name__ for layer in model.layers],
    "project": "research" in sys.modules,
}))
"""


class Residual(tf.keras.Model):
    """A network with a residual connection and batch normalization, not a Sequential."""

    def __init__(self, precision: str = "float32") -> None:
        super().__init__(name="residual", dtype=precision)
        tf.keras.utils.set_random_seed(1)
        layers = tf.keras.layers
        # The layers have another order than the twin's.
        self.dense = layers.Dense(10, name="dense", dtype=precision)
        for n in (1, 2):
            convolution = layers.Conv2D(
                *(4, 3), padding="same", use_bias=False, name=f"conv{n}", dtype=precision
            )
            setattr(self, f"conv{n}", convolution)
            setattr(self, f"norm{n}", layers.BatchNormalization(name=f"norm{n}", dtype=precision))
        self(tf.zeros([1, 28, 28, 1]))

    def logits(self, images: Any, training: bool = False, seed: Any = None) -> Any:
        x = tf.nn.relu(self.norm1(self.conv1(images), training=training))
        x = tf.nn.relu(x + self.norm2(self.conv2(x), training=training))
        return tf.cast(self.dense(tf.reduce_mean(x, [1, 2])), tf.float32)

    def call(self, images: Any, training: bool = False, seed: Any = None) -> Any:
        return tf.nn.softmax(self.logits(images, training, seed))

    def stock_twin(self) -> Any:
        layers = tf.keras.layers
        images = tf.keras.Input((28, 28, 1), name="images")
        x = images
        for n in (1, 2):
            y = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"conv{n}")(x)
            y = layers.BatchNormalization(name=f"norm{n}")(y)
            x = layers.ReLU(name=f"relu{n}")(y if n == 1 else layers.Add(name="add")([x, y]))
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        outputs = layers.Dense(10, activation="softmax", name="dense")(x)
        twin = tf.keras.Model(images, outputs, name="residual")
        for layer in twin.layers:
            if layer.weights:
                layer.set_weights(getattr(self, layer.name).get_weights())
        return twin


TWIN = Residual.stock_twin  # the tests replace it


def arrays(count: int) -> tuple[Any, Any]:
    split = make_split(count)
    return split.images.astype(np.float32) / 255, np.eye(10, dtype=np.float32)[split.labels]


@pytest.fixture
def exported(tmp_path: Path) -> tuple[MnistCNN, Path]:
    model, path = MnistCNN(8, seed=3), tmp_path / "mnist.h5"
    export_h5(model, path, make_split(20).images, Adadelta(0.5))
    return model, path


@pytest.mark.processor
def test_a_fresh_process_without_this_project_predicts_the_same_bits_and_can_fit_on(
    exported: tuple[MnistCNN, Path], tmp_path: Path
) -> None:
    model, path = exported
    split = make_split(100)
    images = split.images.astype(np.float32) / np.float32(255)
    labels = np.eye(10, dtype=np.float32)[split.labels]
    np.savez(tmp_path / "arrays.npz", x=images, y=labels)
    script = tmp_path / "elsewhere.py"
    script.write_text(ELSEWHERE)
    out = tmp_path / "out.npy"
    result = run_python(script, path, tmp_path / "arrays.npz", out, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert not found["project"]
    assert found["layers"] == [
        *("Conv2D", "Conv2D", "MaxPooling2D", "Dropout", "Flatten", "Dense", "Dropout", "Dense")
    ]
    np.testing.assert_array_equal(np.load(out), model.predict(images, batch_size=64, verbose=0))
    ours = evaluate(model, split)
    assert (found["loss"], found["accuracy"]) == pytest.approx((ours.loss, ours.accuracy), rel=1e-5)
    assert found["optimizer"] == ["adadelta", 0.5]
    assert found["history"][-1] < found["history"][0]


def test_it_stands_beside_its_digest(exported: tuple[MnistCNN, Path]) -> None:
    _, path = exported
    digest, name = (path.parent / "mnist.h5.sha256").read_text().split()
    assert (digest, name) == (sha256(path), "mnist.h5")
    assert sorted(p.name for p in path.parent.iterdir()) == ["mnist.h5", "mnist.h5.sha256"]


def test_a_failed_export_leaves_the_old_file_alone(
    exported: tuple[MnistCNN, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = exported
    before = path.read_bytes()
    monkeypatch.setattr(export, "predict_probabilities", lambda model, images: np.random.rand(2))
    with pytest.raises(RuntimeError, match="other probabilities than the model"):
        export_h5(MnistCNN(8, seed=4), path, make_split(20).images)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_a_twin_of_other_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MnistCNN(8, seed=5).stock_twin()
    monkeypatch.setattr(MnistCNN, "stock_twin", lambda self: other)
    with pytest.raises(RuntimeError, match="other probabilities than the model"):
        export_h5(MnistCNN(8, seed=3), tmp_path / "mnist.h5", make_split(20).images)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_refused(exported: tuple[MnistCNN, Path]) -> None:
    _, path = exported
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="has changed since"):
        load_h5(path)


@pytest.mark.processor
def test_a_residual_network_with_batch_normalization_is_exported(tmp_path: Path) -> None:
    model, path, (x, y) = Residual(), tmp_path / "mnist.h5", arrays(100)
    for _ in range(20):
        model(x, training=True)  # moves the moving statistics
    images = make_split(100).images
    check_exportable(model)
    export_h5(model, path, images, tf.keras.optimizers.Adam(0.01))

    stock = tf.keras.models.load_model(path)
    assert type(stock.optimizer) is tf.keras.optimizers.Adam
    ours = predict_probabilities(model, images)
    np.testing.assert_allclose(stock.predict(x, verbose=0), ours, atol=1e-6)
    np.testing.assert_array_equal(
        predict_probabilities(load_h5(path), images), predict_probabilities(stock, images)
    )
    loss, _ = stock.evaluate(x, y, verbose=0)
    assert loss == pytest.approx(evaluate(model, make_split(100)).loss, rel=1e-4)
    before = stock.get_weights()
    stock.fit(x[:20], y[:20], batch_size=20, verbose=0)
    assert not any(np.array_equal(a, b) for a, b in zip(before, stock.get_weights(), strict=True))


class Forgetful(tf.keras.optimizers.SGD):
    """A custom optimizer with an option that Keras does not have."""

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"forgetting": 0.5}


class Own(tf.keras.optimizers.Optimizer):
    """A custom optimizer without a stock Keras class."""

    def __init__(self) -> None:
        super().__init__(0.1)


def at_the_end(optimizer: Any) -> Any:
    optimizer.iterations.assign(100)
    return optimizer


@pytest.mark.parametrize(
    ("optimizer", "stock", "options"),
    [
        (
            lambda: Adadelta(0.5, rho=0.9, epsilon=1e-6),
            tf.keras.optimizers.Adadelta,
            {"learning_rate": 0.5, "rho": 0.9, "epsilon": 1e-6, "name": "adadelta"},
        ),
        (  # the schedule ends at 0; its last update had 0.01
            lambda: at_the_end(Adadelta(LearningRate(1.0, 100, "linear"))),
            tf.keras.optimizers.Adadelta,
            {"learning_rate": 0.01},
        ),
        (
            lambda: tf.keras.optimizers.LossScaleOptimizer(
                tf.keras.optimizers.AdamW(0.25, weight_decay=0.125, clipnorm=2.0)
            ),
            tf.keras.optimizers.AdamW,
            {"learning_rate": 0.25, "weight_decay": 0.125, "clipnorm": 2.0},
        ),
        (
            lambda: Forgetful(0.25, momentum=0.5, nesterov=True),
            tf.keras.optimizers.SGD,
            {"learning_rate": 0.25, "momentum": 0.5, "nesterov": True},
        ),
        (lambda: None, type(None), {}),
        (Own, type(None), {}),
    ],
)
def test_the_file_has_the_experiments_own_optimizer(
    optimizer: Callable[[], Any], stock: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "mnist.h5"
    export_h5(MnistCNN(2), path, make_split(20).images, optimizer())
    loaded = tf.keras.models.load_model(path)
    found: Any = getattr(loaded, "optimizer", None)
    assert type(found) is stock
    for name, value in options.items():
        assert found.get_config()[name] == (value if name == "name" else pytest.approx(value))
    load_h5(path)


@pytest.mark.processor
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("network", [lambda p: MnistCNN(8, precision=p), Residual])
def test_a_model_and_its_twin_are_compared_and_left_as_they_were(
    network: Callable[[str], Any], precision: str
) -> None:
    skip_if_onednn_aborts(precision)
    model = network(precision)
    before = [variable.numpy() for variable in model.variables]
    check_exportable(model)
    after = [variable.numpy() for variable in model.variables]
    assert [a.tobytes() for a in after] == [b.tobytes() for b in before]


def other_layer(name: str, **options: Any) -> Callable[[Any], Any]:
    """The twin of ``Residual`` with other options of one layer, and the same weights."""

    def make(model: Any) -> Any:
        twin = TWIN(model)
        config = twin.get_config()
        layer = next(each for each in config["layers"] if each["config"]["name"] == name)
        layer["config"].update(options)
        changed = tf.keras.Model.from_config(config)
        changed.set_weights(twin.get_weights())
        return changed

    return make


def without_moving_statistics(model: Any) -> Any:
    twin = TWIN(model)
    norm = twin.get_layer("norm1")
    norm.set_weights([*norm.get_weights()[:2], np.zeros(4), np.ones(4)])
    return twin


def without_weights(model: Any) -> Any:
    twin = TWIN(model)
    return tf.keras.models.clone_model(twin)


def with_own_layers(model: Any) -> Any:
    images = tf.keras.Input((28, 28, 1))
    x = tf.keras.layers.Flatten()(model.conv1(images))
    return tf.keras.Model(images, tf.keras.layers.Dense(10, activation="softmax")(x))


def flat(*layers: Any) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        stock = tf.keras.layers
        made = [layer(stock) for layer in layers]
        images = [tf.keras.Input((28, 28, 1))]
        return tf.keras.Sequential([*images, *made])

    return make


def softmax(units: int) -> Callable[[Any], Any]:
    return lambda stock: stock.Dense(units, activation="softmax")


class Flatten(tf.keras.layers.Flatten):
    """A custom layer with the name of a stock layer."""


@pytest.mark.parametrize(
    ("twin", "words"),
    [
        (None, "has no stock_twin"),
        (without_weights, "predicts other probabilities"),
        (without_moving_statistics, "predicts other probabilities"),
        (other_layer("norm2", epsilon=1e-5), "predicts other probabilities"),
        (other_layer("relu1", negative_slope=0.01), "predicts other probabilities"),
        (other_layer("dense", activation="linear"), "dense, is no softmax of 10 classes"),
        (other_layer("conv1", dtype="mixed_bfloat16"), "dtype of conv1"),
        (with_own_layers, "conv1"),
        (flat(lambda stock: stock.Flatten(), softmax(9)), "is no softmax of 10 classes"),
        (flat(lambda stock: Flatten(), softmax(10)), "is not Keras's own"),
        (flat(lambda stock: stock.Lambda(lambda x: x), softmax(10)), "no layer 'Lambda'"),
        (flat(lambda stock: stock.Conv2D(400, 3), softmax(10)), "too large"),
        (flat(lambda stock: stock.Flatten(), softmax(10), softmax(10)), "other probabilities"),
        (lambda model: model, "neither a Sequential nor a functional"),
        (lambda model: None, "can't be saved"),
        (lambda model: 1 / 0, "division by zero"),
    ],
)
def test_what_cant_be_exported_is_refused_before_the_training(
    twin: Callable[[Any], Any] | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Residual, "stock_twin", twin)
    model = Residual()
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(InputError, match=words) as caught:
        check_exportable(model)
    assert str(caught.value).startswith("the network residual")
    assert "\n" not in str(caught.value)
    after = [variable.numpy() for variable in model.variables]
    assert [a.tobytes() for a in after] == [b.tobytes() for b in before]


@pytest.mark.processor
def test_a_model_on_two_replicas_is_compared_and_exported(tmp_path: Path) -> None:
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = Residual()
        optimizer = Adadelta(LearningRate(0.5, 10))
        optimizer.build(model.trainable_variables)
    check_exportable(model)
    export_h5(model, tmp_path / "mnist.h5", make_split(20).images, optimizer)


@pytest.mark.parametrize("width", [4_544, 4_700, 1_000_000, 2**31 - 1])
def test_a_network_too_large_for_the_file_is_not_even_built(width: int) -> None:
    with pytest.raises(InputError, match=f"dense_width {width}: .* at most 41,943,040"):
        MnistCNN(width)


# Options that differ from each layer's defaults and that change the predictions.
OPTIONS: dict[str, dict[str, Any]] = {
    "Conv2D": dict(filters=6, kernel_size=(3, 2), strides=2, padding="same", groups=2),
    "DepthwiseConv2D": dict(kernel_size=3, depth_multiplier=2, dilation_rate=2, activation="elu"),
    "SeparableConv2D": dict(filters=5, kernel_size=3, use_bias=False, activation="gelu"),
    "Dense": dict(units=3, activation="tanh"),
    "BatchNormalization": dict(epsilon=1e-2, momentum=0.5, scale=False),
    "LayerNormalization": dict(epsilon=1e-2, center=False),
    "GroupNormalization": dict(groups=2),
    "MaxPooling2D": dict(pool_size=3, strides=2, padding="same"),
    "AveragePooling2D": dict(pool_size=(2, 3)),
    "GlobalMaxPooling2D": dict(keepdims=True),
    "ZeroPadding2D": dict(padding=((1, 2), (0, 3))),
    "Dropout": dict(rate=0.5, seed=1),
    "SpatialDropout2D": dict(rate=0.5),
    "GaussianNoise": dict(stddev=0.1),
    "Activation": dict(activation="silu"),
    "ReLU": dict(max_value=0.5, negative_slope=0.1, threshold=0.1),
    "LeakyReLU": dict(negative_slope=0.3),
    "ELU": dict(alpha=0.5),
}


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "InputLayer"])
def test_every_accepted_layer_is_read_as_keras_wrote_it(kind: str, tmp_path: Path) -> None:
    layers = tf.keras.layers
    images = tf.keras.Input((28, 28, 1), name="images")
    x = layers.Conv2D(4, 3, strides=3, name="before")(images)
    layer = getattr(layers, kind)(**OPTIONS.get(kind, {}), name="layer")
    y = layer([x, layers.ReLU(name="other")(x)] if kind in MERGING else x)
    y = layers.Dense(10, name="dense")(layers.Flatten(name="flat")(y))
    model = tf.keras.Model(images, layers.Softmax(name="softmax")(y), name="some")
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.1, 0.3, w.shape) for w in model.get_weights()])
    model.save(tmp_path / "mnist.h5")
    x, _ = arrays(20)
    loaded = load_h5(tmp_path / "mnist.h5")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_file_with_the_older_digest_is_read_and_checked(
    exported: tuple[MnistCNN, Path],
) -> None:
    model, path = exported
    path.with_name("mnist.h5.sha256").unlink()
    with h5py.File(path, "r+") as file:
        del file.attrs["network_sha256"]
        file.attrs["weights_sha256"] = digest("", model.get_weights())
    pairs = zip(load_h5(path).get_weights(), model.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    with h5py.File(path, "r+") as file:
        file["model_weights/dense2/mnist_cnn/dense2/bias"][3] += 1
    with pytest.raises(InputError, match="another SHA-256"):
        load_h5(path)


def test_weights_so_large_that_probabilities_are_nan_are_named(tmp_path: Path) -> None:
    model = MnistCNN(8, (0.25, 0.5), 0, "float32")
    model.dense2.kernel.assign(3e38 * np.ones([8, 10]))
    model.dense1.bias.assign(np.full(8, 10.0))
    with pytest.raises(NonFiniteError, match="a probability of the exported network"):
        export_h5(model, tmp_path / "mnist.h5", make_split(100).images)
    assert not list(tmp_path.iterdir())
