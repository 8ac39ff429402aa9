"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any, Literal

import tensorflow as tf

Decay = Literal["constant", "linear", "cosine"]


class LearningRate(tf.keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to a peak, then constant, or decay to zero.

    In the warm-up, step k (counted from 0) has the rate ``peak * (k + 1) / warmup_steps``: the
    first rate is above 0, and the last one of the warm-up is the peak. Decay follows a straight
    line or half a cosine (Loshchilov and Hutter, "SGDR", 2017, equation 5 without restarts), and
    would reach zero one step after the last. The optimizer counts the steps: steps that loss
    scaling skips do not count.

    Args:
        peak: the highest learning rate, above 0.
        total_steps: steps of the whole training, at least 1.
        decay: the shape after the warm-up.
        warmup_steps: length of the warm-up, 0 to ``total_steps``.

    Raises:
        ValueError: if ``warmup_steps`` is out of range.
    """

    def __init__(
        self,
        peak: float,
        total_steps: int = 1,
        decay: Decay = "constant",
        warmup_steps: int = 0,
    ) -> None:
        if not 0 <= warmup_steps <= total_steps:
            raise ValueError(
                f"warmup_steps={warmup_steps} is not within 0 and total_steps={total_steps}"
            )
        self.peak = peak
        self.total_steps = total_steps
        self.decay = decay
        self.warmup_steps = warmup_steps

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """The learning rate of the step after ``step`` others: a float32 scalar, at least 0."""
        step = tf.cast(step, tf.float32)
        warmup = tf.minimum((step + 1) / max(self.warmup_steps, 1), 1.0)
        left = max(self.total_steps - self.warmup_steps, 1)
        progress = tf.clip_by_value((step - self.warmup_steps) / left, 0.0, 1.0)
        if self.decay == "linear":
            remaining = 1 - progress
        elif self.decay == "cosine":
            remaining = (1 + tf.cos(math.pi * progress)) / 2
        else:
            remaining = tf.ones_like(progress)
        return self.peak * warmup * remaining

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, which Keras stores with an optimizer."""
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "decay": self.decay,
            "warmup_steps": self.warmup_steps,
        }
