"""The fused Adadelta computes the same as Keras's Adadelta."""

from __future__ import annotations

from research.training.optimizer import Adadelta
from research.training.schedules import LearningRate

import numpy as np
import tensorflow as tf


def test_it_computes_what_keras_computes() -> None:
    start = tf.random.stateless_normal([50, 20], [1, 2])
    ours, keras = (tf.keras.Variable(start), tf.keras.Variable(start))
    schedule = LearningRate(2.0, 20, "linear", 5)
    options = {"rho": 0.9, "epsilon": 1e-6, "weight_decay": 0.01}
    fast = Adadelta(schedule, **options)
    slow = tf.keras.optimizers.Adadelta(schedule, **options)
    for step in range(20):
        gradient = tf.random.stateless_normal([50, 20], [3, step]) * 10.0 ** (step % 5 - 3)
        fast.apply([gradient], [ours])
        slow.apply([gradient], [keras])
    assert np.abs(ours.numpy() - start.numpy()).max() > 0.1
    np.testing.assert_allclose(ours.numpy(), keras.numpy(), rtol=1e-5, atol=1e-5)
    for a, b in zip(fast.variables, slow.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-7)
