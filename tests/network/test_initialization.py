"""Initial weights that differ from the layers' defaults."""

from __future__ import annotations

from research.data.mnist import load_mnist
from research.network.initialization import set_decorrelating_filters
from research.network.mnist_cnn import MnistCNN

import numpy as np
import pytest
import tensorflow as tf


def test_the_seed_decides_the_filters() -> None:
    first, second = MnistCNN(8, seed=1).conv1, MnistCNN(8, seed=2).conv1
    for seed in (5, 6):
        set_decorrelating_filters(first, 5)
        set_decorrelating_filters(second, seed)
        for a, b in zip(first.variables, second.variables, strict=True):
            assert np.array_equal(a, b) == (seed == 5)


def test_outputs_of_decorrelating_filters_are_centred_and_of_like_size() -> None:
    conv1 = MnistCNN(8).conv1
    set_decorrelating_filters(conv1, 0)
    pixels = np.random.default_rng(0).normal(size=(28, 28, 500))
    for _ in range(2):  # along columns, then rows
        pixels = np.swapaxes(pixels, 0, 1)
        for place in range(1, 28):
            pixels[place] = 0.8 * pixels[place - 1] + 0.6 * pixels[place]
    images = (0.15 + np.sqrt(0.11) * pixels.transpose(2, 0, 1)[..., np.newaxis]).astype("float32")
    outputs = tf.nn.bias_add(tf.nn.conv2d(images, conv1.kernel, 1, "VALID"), conv1.bias)
    spread = np.std(outputs, axis=(0, 1, 2))
    assert 0.5 < spread.min() < spread.max() < 1.1
    np.testing.assert_allclose(np.mean(outputs, axis=(0, 1, 2)), 0, atol=0.1)


@pytest.mark.slow
def test_outputs_of_decorrelating_filters_are_centred_and_of_like_size_on_mnist() -> None:
    images = tf.constant(load_mnist(print).train.images[:2000] / np.float32(255))
    conv1 = MnistCNN(8).conv1
    for seed in range(3):
        set_decorrelating_filters(conv1, seed)
        outputs = tf.nn.bias_add(tf.nn.conv2d(images, conv1.kernel, 1, "VALID"), conv1.bias)
        size = np.std(outputs, axis=(0, 1, 2))
        assert 0.5 < size.min() < size.max() < 1.2
        np.testing.assert_allclose(np.mean(outputs, axis=(0, 1, 2)), 0, atol=0.02)
