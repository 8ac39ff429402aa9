"""Initial weights other than the layers' own."""

from __future__ import annotations

from research.network.initialization import set_decorrelating_filters
from research.network.mnist_cnn import MnistCNN

import numpy as np
import tensorflow as tf


def test_outputs_of_decorrelating_filters_are_centred_and_of_like_size() -> None:
    conv1 = MnistCNN(seed=3).conv1
    set_decorrelating_filters(conv1, 3)
    pixels = np.random.default_rng(0).normal(size=(28, 28, 500))
    for _ in range(2):  # along the columns, then along the rows
        pixels = np.swapaxes(pixels, 0, 1)
        for place in range(1, 28):
            pixels[place] = 0.8 * pixels[place - 1] + 0.6 * pixels[place]
    images = (0.15 + np.sqrt(0.11) * pixels.transpose(2, 0, 1)[..., np.newaxis]).astype("float32")
    outputs = tf.nn.bias_add(tf.nn.conv2d(images, conv1.kernel, 1, "VALID"), conv1.bias)
    spread = np.std(outputs, axis=(0, 1, 2))
    assert 0.5 < spread.min() < spread.max() < 1.1
    np.testing.assert_allclose(np.mean(outputs, axis=(0, 1, 2)), 0, atol=0.1)
