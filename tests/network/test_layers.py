"""The project's faster layers compute the same as Keras's layers."""

from __future__ import annotations

from typing import Any

from research.network.layers import Conv2D, bias_relu, convolution_with_products, dropout
from research.processor import has_bfloat16
from research.seeds import derive_seed

import numpy as np
import pytest
import tensorflow as tf
from conftest import skip_if_onednn_aborts

pytestmark = pytest.mark.processor


def made(shape: list[int], number: int) -> Any:
    """Normally distributed numbers, rounded to bfloat16."""
    numbers = tf.random.stateless_normal(shape, [1, number])
    return tf.cast(tf.cast(numbers, tf.bfloat16), tf.float32)


def ours_keras_and_exact(channels: int, pool: int | None, precision: str) -> list[tuple[Any, Any]]:
    """Our layer, Keras's in the same precision, and Keras's in float64, with the same weights.

    Each is a function, and its variables.
    """
    convolution = Conv2D(16, 3, add_bias=pool is None, dtype=precision)
    convolution(tf.zeros([1, 10, 9, channels]))
    weights = [made(w.shape, number).numpy() for number, w in enumerate(convolution.get_weights())]
    convolution.set_weights(weights)

    def ours(inputs: Any) -> Any:
        if pool is None:
            return convolution(inputs)
        pooled = tf.nn.max_pool2d(convolution(inputs), pool, pool, "VALID")
        return bias_relu(pooled, convolution.bias)

    def keras(dtype: str) -> Any:
        layers = [tf.keras.layers.Conv2D(16, 3, activation="relu", dtype=dtype)]
        layers += [tf.keras.layers.MaxPooling2D(pool, dtype=dtype)] if pool else []
        model = tf.keras.Sequential([tf.keras.Input((10, 9, channels)), *layers])
        model.set_weights(weights)
        return model

    models = (keras(precision), keras("float64"))
    return [(ours, convolution.variables), *((model, model.variables) for model in models)]


def loss_weights(
    inputs: Any, kernel: Any, bias: Any, pool: int | None, unit_roundoff: float
) -> Any:
    """The weight of each output in the loss: 0 where rounding may decide max pooling or ReLU.

    There the whole gradient may go another way, and both ways are right.
    """
    sums = tf.nn.conv2d(tf.cast(inputs, tf.float64), kernel, 1, "VALID").numpy()
    size = pool or 1
    n, height, width, filters = sums.shape
    height, width = height // size, width // size
    windows = sums[:, : height * size, : width * size].reshape(
        n, height, size, width, size, filters
    )
    ranked = np.sort(windows.transpose(0, 1, 3, 5, 2, 4).reshape(n, height, width, filters, -1))
    largest = ranked[..., -1]
    margin = np.abs(largest + bias)
    if pool:
        margin = np.minimum(margin, largest - ranked[..., -2])
    # Each of the two compared numbers is rounded twice.
    decided = margin > 4 * unit_roundoff * (np.abs(largest) + np.abs(bias))
    assert decided.mean() > 0.8
    return made([*largest.shape], 7).numpy() * decided


def values_and_gradients(layer: Any, variables: Any, inputs: Any, weights: Any) -> list[Any]:
    """The output, and the gradients of input, kernel and bias, compiled as in training."""

    @tf.function
    def compute() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = tf.cast(layer(inputs), tf.float64)
            loss = tf.reduce_sum(outputs * weights)
        return outputs, *tape.gradient(loss, [inputs, *[v.value for v in variables]])

    return [value.numpy() for value in compute()]


def computed(
    channels: int, pool: int | None, precision: str, unit_roundoff: float
) -> tuple[list[list[Any]], Any]:
    """Values and gradients of our layer, in float32 Keras's, and the exact ones; and the bias."""
    inputs = made([5, 10, 9, channels], 3)
    layers = ours_keras_and_exact(channels, pool, precision)
    kernel, bias = (v.numpy() for v in layers[-1][1])
    weights = loss_weights(inputs, kernel, bias, pool, unit_roundoff)
    if precision != "float32":
        del layers[1]
    return [values_and_gradients(*layer, inputs, weights) for layer in layers], bias


# On any processor, a sum of n float32 numbers has an error of about sqrt(n) * 2**-24 of their size:
# 1e-6 here.
@pytest.mark.parametrize("only_avx2", [True, False])
@pytest.mark.parametrize(("channels", "pool"), [(1, None), (8, None), (8, 2), (16, 3)])
def test_a_convolution_computes_what_keras_computes(
    channels: int, pool: int | None, only_avx2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("research.network.layers.has_only_avx2", lambda: only_avx2)
    (ours, keras, exact), _ = computed(channels, pool, "float32", 2.0**-20)
    for a, b, c in zip(ours, keras, exact, strict=True):
        for found in (a, b):
            np.testing.assert_allclose(found, c, rtol=1e-5, atol=1e-5 * np.abs(c).max())


# Sums are float32 ones, and every result is rounded to 16 bits. The bias is added after max
# pooling: an output may be rounded twice, without the bias and with it; a gradient is rounded once.
# Keras's layers are no measure: on some processors they round once, on others within each sum.
@pytest.mark.parametrize(
    ("precision", "unit_roundoff", "native"),
    [
        ("mixed_bfloat16", 2.0**-8, True),
        ("mixed_bfloat16", 2.0**-8, False),
        ("mixed_float16", 2.0**-11, False),
    ],
)
@pytest.mark.parametrize(("channels", "pool"), [(1, None), (8, None), (8, 2), (16, 3)])
def test_in_16_bits_a_convolution_errs_by_rounding_its_results_alone(
    channels: int,
    pool: int | None,
    precision: str,
    unit_roundoff: float,
    native: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skip_if_onednn_aborts(precision)
    if native and not has_bfloat16():
        pytest.skip("oneDNN has no native bfloat16 here")
    monkeypatch.setattr("research.network.layers.has_bfloat16", lambda: native)
    (ours, exact), bias = computed(channels, pool, precision, unit_roundoff)
    # The sum without the bias is at most as large as the output and the bias.
    rounded = [2 * (np.abs(exact[0]) + np.abs(bias)), *exact[1:]]
    for found, true, size in zip(ours, exact, rounded, strict=True):
        assert np.linalg.norm(found - true) <= 1.01 * unit_roundoff * np.linalg.norm(size)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (5, 2), (10, 9)])
def test_gradients_by_products_are_those_of_the_stock_operation(
    size: tuple[int, int], batch: int
) -> None:
    inputs, kernel = made([batch, 10, 9, 3], 1), made([*size, 3, 4], 2)

    def gradients(convolution: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([inputs, kernel])
            outputs = convolution(inputs, kernel)
            loss = tf.reduce_sum(outputs * made(outputs.shape, 3))
        return tape.gradient(loss, [inputs, kernel])

    stock = gradients(lambda inputs, kernel: tf.nn.conv2d(inputs, kernel, 1, "VALID"))
    for a, b in zip(gradients(convolution_with_products), stock, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.125, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate: float, dtype: tf.DType) -> None:
    ones = tf.ones([401, 501], dtype)
    out = tf.cast(dropout(ones, rate, derive_seed(0, "dropout", 1)), tf.float32).numpy()
    # Five standard deviations of a binomial share.
    assert np.mean(out == 0) == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / out.size))
    assert set(np.unique(out)) <= {0.0, np.float32(tf.cast(1 / (1 - rate), dtype))}


def test_what_is_dropped_is_independent_of_place_step_and_replica() -> None:
    kept = np.stack(
        [
            dropout(tf.ones([100_000]), 0.5, derive_seed(0, "dropout", step, replica)).numpy() > 0
            for step in (1, 2)
            for replica in (0, 1)
        ]
    )
    # Neighbours come from one random word; each correlation is below five standard deviations.
    neighbours = [kept[:, shift:] == kept[:, :-shift] for shift in (1, 2, 3, 4)]
    others = [kept[i] == kept[j] for i in range(4) for j in range(i)]
    for agree in (*neighbours, *others):
        assert np.mean(agree) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(agree.size))


def test_the_gradient_of_dropout_has_the_same_mask() -> None:
    inputs, seed = made([7, 9], 1), tf.constant([1, 2])
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = dropout(inputs, 0.25, seed)
    gradient = tape.gradient(outputs, inputs)
    np.testing.assert_allclose(outputs, gradient * inputs, rtol=1e-6)
