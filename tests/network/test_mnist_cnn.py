from __future__ import annotations

from research.network.mnist_cnn import MnistCNN

import numpy as np
import pytest
import tensorflow as tf


def test_the_reference_architecture_is_built_at_once() -> None:
    model = MnistCNN()
    assert model.count_params() == 2_380_938
    assert len(model.trainable_variables) == 8
    assert [w.shape for w in model.get_weights()] == [
        w.shape for w in model.stock_twin().get_weights()
    ]


def test_initial_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (MnistCNN(8, seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_it_returns_float32_probabilities_and_keeps_float32_weights(precision: str) -> None:
    model = MnistCNN(8, precision=precision)
    images = tf.random.stateless_uniform([5, 28, 28, 1], [1, 2])
    probabilities, logits = model(images), model.logits(images)
    assert probabilities.dtype == logits.dtype == tf.float32
    assert {v.dtype for v in model.variables} == {"float32"}
    np.testing.assert_allclose(tf.reduce_sum(probabilities, 1), 1, rtol=1e-5)
    np.testing.assert_allclose(tf.nn.softmax(logits), probabilities, atol=1e-6)
    assert model.compute_dtype == ("float32" if precision == "float32" else precision[6:])


def test_dropout_is_a_function_of_the_seed_and_off_outside_training() -> None:
    model = MnistCNN(8)
    images = tf.random.stateless_uniform([5, 28, 28, 1], [1, 2])

    def logits(seed: int) -> list[float]:
        out = model.logits(images, training=True, seed=tf.constant([seed, 0]))
        return list(out.numpy().ravel())

    assert logits(1) == logits(1)
    assert logits(1) != logits(2)
    np.testing.assert_array_equal(model.logits(images), model.logits(images))
    with pytest.raises(ValueError, match="dropout needs a seed"):
        model.logits(images, training=True)
