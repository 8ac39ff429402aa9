"""The accuracy of a trained model on corrupted images."""

from __future__ import annotations

from research.data.corruptions import CORRUPTIONS, corrupt
from research.data.dataset import Split
from research.results.evaluation import predict_probabilities, wilson_interval

import numpy as np
import numpy.typing as npt
import tensorflow as tf


def correct_under(
    model: tf.keras.Model, split: Split, corruption: str, severity: int, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Whether the model classifies each corrupted example correctly, [N].

    Args:
        model: see ``research.results.evaluation.evaluate``.
        split: the examples, not yet corrupted.
        corruption: a key of ``research.data.corruptions.CORRUPTIONS``.
        severity: 1 to 5.
        seed: decides the random numbers of the corruption.
    """
    images = corrupt(split.images, corruption, severity, seed)
    correct: npt.NDArray[np.bool_] = predict_probabilities(model, images).argmax(1) == split.labels
    return correct


def corrupted_accuracy(
    model: tf.keras.Model, split: Split, severity: int = 3, seed: int = 0
) -> float:
    """The mean accuracy over all corruptions, 0 to 1: one figure for an experiment's ``figures``.

    See ``correct_under``.
    """
    each = [correct_under(model, split, name, severity, seed).mean() for name in CORRUPTIONS]
    return float(np.mean(each))


def mean_interval(correct: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The 95% interval of a mean accuracy over corruptions and severities.

    An example that is hard under one corruption is often hard under the next one, so the examples
    are what is independent here, and not the predictions. Where all examples have the same mean,
    their spread says nothing, and the interval is Wilson's for so many examples.

    Args:
        correct: [..., N], the examples last.
    """
    of_example = correct.reshape(-1, correct.shape[-1]).mean(0)
    if not of_example.std():
        return wilson_interval(round(float(of_example.sum())), len(of_example))
    spread = 1.959964 * float(of_example.std()) / float(np.sqrt(len(of_example)))
    mean = float(of_example.mean())
    return max(0.0, mean - spread), min(1.0, mean + spread)
