"""Every figure about a trained model, computed from its probabilities on a whole split."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from research.data.dataset import NUM_CLASSES, Split
from research.errors import NonFiniteError

import numpy as np
import numpy.typing as npt
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One example that was classified wrongly; ``confidence`` is the predicted class's 0..1."""

    index: int
    label: int
    predicted: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model's probabilities on a split amount to.

    Attributes:
        examples: number of examples; every one counts the same.
        loss: mean categorical cross-entropy in nats.
        accuracy: fraction classified correctly, 0 to 1.
        accuracy_interval: 95% Wilson score interval of the accuracy.
        precision: for each class, the fraction of those predicted as it that are; 0 for none.
        recall: for each class, the fraction of its examples that are found; 0 for none.
        support: for each class, its number of examples.
        confusion: [10][10], number of examples by true class (row) and predicted class.
        calibration_error: expected calibration error, 0 to 1, see ``calibration_error``.
        most_wrong: the mistakes of highest confidence, highest first, at most ten.
    """

    examples: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    precision: list[float]
    recall: list[float]
    support: list[int]
    confusion: list[list[int]]
    calibration_error: float
    most_wrong: list[Mistake]


def evaluate(model: Any, split: Split) -> Evaluation:
    """Evaluates a model on all examples of a split.

    Args:
        model: a Keras model, float32 [B, 28, 28, 1] in 0..1 -> probabilities [B, 10].
        split: at least one example.
    """
    return evaluate_probabilities(predict_probabilities(model, split.images), split.labels)


def predict_probabilities(
    model: Any, images: npt.NDArray[np.uint8], batch_size: int = 500
) -> npt.NDArray[np.float32]:
    """The model's probabilities, float32 [N, 10], for uint8 images [N, 28, 28, 1].

    ``batch_size`` bounds the memory needed.

    Raises:
        NonFiniteError: if the model answers with NaN, as one with such weights does.
    """
    forward = _compiled(model)
    batches = [forward(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    probabilities = np.concatenate([batch.numpy() for batch in batches])
    if not np.isfinite(probabilities).all():
        raise NonFiniteError("the model's probabilities became nan: its training has diverged")
    return probabilities


# A model is evaluated after every epoch, and should be traced for it once.
@functools.lru_cache(maxsize=2)
def _compiled(model: Any) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], tf.uint8)])
    def forward(images: Any) -> Any:
        return model(tf.cast(images, tf.float32) / 255.0, training=False)

    return forward


def evaluate_probabilities(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]
) -> Evaluation:
    """Computes every figure, in float64.

    Args:
        probabilities: float [N, 10], rows that sum to 1.
        labels: integers [N], 0 to 9.
    """
    count = len(labels)
    p = probabilities.astype(np.float64)
    predicted, confidence = p.argmax(1), p.max(1)
    correct = predicted == labels
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(confusion, (labels, predicted), 1)
    hits = confusion.diagonal()
    # A float32 softmax can underflow to 0; its smallest normal number bounds the loss.
    own = np.maximum(p[np.arange(count), labels], np.finfo(np.float32).tiny)
    wrong = np.flatnonzero(~correct)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:10]
    return Evaluation(
        examples=count,
        loss=float(-np.log(own).mean()),
        accuracy=float(correct.mean()),
        accuracy_interval=wilson_interval(int(correct.sum()), count),
        precision=(hits / np.maximum(confusion.sum(0), 1)).tolist(),
        recall=(hits / np.maximum(confusion.sum(1), 1)).tolist(),
        support=confusion.sum(1).tolist(),
        confusion=confusion.tolist(),
        calibration_error=calibration_error(confidence, correct),
        most_wrong=[
            Mistake(int(i), int(labels[i]), int(predicted[i]), float(confidence[i])) for i in wrong
        ],
    )


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a binomial proportion (Wilson 1927); ``z`` = 1.96 gives 95%."""
    rate = successes / trials
    center = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def calibration_error(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """Expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    Args:
        confidence: [N], the probability of the predicted class, 0 to 1.
        correct: [N], whether the prediction was right.
        bins: number of bins of equal width that confidences are sorted into.

    Returns:
        The mean over the examples of the gap between a bin's accuracy and its confidence.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
