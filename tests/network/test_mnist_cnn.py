from __future__ import annotations

from research.errors import InputError
from research.network.mnist_cnn import MnistCNN

import numpy as np
import pytest
import tensorflow as tf
from conftest import skip_if_onednn_aborts


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


@pytest.mark.processor
@pytest.mark.parametrize(
    ("precision", "compute_dtype", "dtype"),
    [
        ("float32", "float32", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("mixed_float16", "float16", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_probabilities_have_the_dtype_of_the_weights(
    precision: str, compute_dtype: str, dtype: str
) -> None:
    skip_if_onednn_aborts(precision)
    model = MnistCNN(8, precision=precision)
    images = tf.random.stateless_uniform([5, 28, 28, 1], [1, 2])
    probabilities, logits = model(images), model.logits(images)
    assert probabilities.dtype == logits.dtype == dtype
    assert {v.dtype for v in model.variables} == {dtype}
    np.testing.assert_allclose(tf.reduce_sum(probabilities, 1), 1, rtol=1e-5)
    np.testing.assert_allclose(tf.nn.softmax(logits), probabilities, atol=1e-6)
    assert model.compute_dtype == compute_dtype


@pytest.mark.processor
def test_a_precision_in_which_tensorflow_would_abort_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    monkeypatch.setattr("research.processor.extensions", lambda: {"avx2", "avx512f", "avx512_fp16"})
    for dtype in ("bfloat16", "float16"):
        with pytest.raises(InputError, match=f"mixed_{dtype}: .* ONEDNN_MAX_CPU_ISA=AVX2 .*unset"):
            MnistCNN(8, precision=f"mixed_{dtype}")


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
