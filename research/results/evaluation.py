"""The figures of a trained model, computed from its probabilities on a whole split."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from research.data.dataset import NUM_CLASSES, Split
from research.errors import NonFiniteError
from research.training.returned import sorted_by_kind

import numpy as np
import numpy.typing as npt
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrongly classified example; ``confidence`` is the predicted class's probability, 0..1."""

    index: int
    label: int
    predicted: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The project's own figures of a model on a split.

    Attributes:
        examples: number of examples; all have the same weight.
        loss: mean categorical cross-entropy in nats.
        accuracy: fraction classified correctly, 0 to 1.
        accuracy_interval: 95% Wilson score interval of the accuracy.
        precision: for each class, the fraction of its predictions that are right; 0 without any.
        recall: for each class, the fraction of its examples that are found; 0 without any.
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

    @property
    def always(self) -> tuple[int, float]:
        """The most frequent class, and the accuracy of always answering it, 0 to 1."""
        most = max(self.support)
        return self.support.index(most), most / self.examples

    @property
    def has_learned(self) -> bool:
        """Whether the accuracy is above the 95% interval of that of ``always``."""
        return self.accuracy > wilson_interval(max(self.support), self.examples)[1]

    @property
    def figures(self) -> dict[str, float]:
        """The figures that TensorBoard draws over the steps, by tag."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "quality/calibration_error": self.calibration_error,
        }


def evaluate(model: tf.keras.Model, split: Split) -> Evaluation:
    """Evaluates a model on all examples of a split.

    Args:
        model: a Keras model, float32 [B, 28, 28, 1] in 0..1 -> probabilities [B, 10].
        split: at least one example.
    """
    return evaluate_probabilities(predict_probabilities(model, split.images), split.labels)


@dataclasses.dataclass(frozen=True)
class Validation:
    """A model's evaluation on a split that it was not trained on, with the experiment's figures.

    Attributes:
        evaluation: the project's own figures.
        probabilities: float32 [N, 10], the model's probabilities on the split.
        figures: the figures that TensorBoard draws over the steps, by tag; the experiment's too.
        shown: the experiment's images and vectors by name, for TensorBoard.
    """

    evaluation: Evaluation
    probabilities: npt.NDArray[np.float32]
    figures: dict[str, float]
    shown: Mapping[str, tf.Tensor] = dataclasses.field(default_factory=dict)

    def require_finite(self) -> None:
        """Raises NonFiniteError if a figure is NaN or infinite."""
        for name, value in self.figures.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} became {value} in a validation")


def validate(
    model: tf.keras.Model,
    split: Split,
    training: Split | None = None,
    further: Callable[[npt.NDArray[np.float32]], Mapping[str, Any]] | None = None,
) -> Validation:
    """Evaluates a model on all of a split, and computes the experiment's further figures.

    Args:
        model: see ``evaluate``.
        split: examples that the model was not trained on.
        training: the training examples; the loss on the first 1,000 of them, without dropout, gives
            ``quality/generalization_gap``. None leaves this figure out.
        further: a function of the model's probabilities [N, 10] on the split that returns tensors
            by name; the scalars are figures, the images and vectors are shown.

    Raises:
        NonFiniteError: if a probability of the model is NaN.
        ValueError: if ``further`` returns anything but scalars, images and vectors by name, or a
            name that is taken.
    """
    probabilities = predict_probabilities(model, split.images)
    found = evaluate_probabilities(probabilities, split.labels)
    figures = found.figures
    if training is not None:
        gap = found.loss - evaluate(model, training.first(1000)).loss
        figures["quality/generalization_gap"] = gap
    taken = [field.name for field in dataclasses.fields(found)] + ["quality/generalization_gap"]
    if further is None:
        return Validation(found, probabilities, figures)
    scalars, shown = sorted_by_kind(further(probabilities), "figures", [*figures, *taken])
    figures |= {name: float(value) for name, value in scalars.items()}
    return Validation(found, probabilities, figures, shown)


def predict_probabilities(
    model: tf.keras.Model, images: npt.NDArray[np.uint8], batch_size: int = 500
) -> npt.NDArray[np.float32]:
    """The model's probabilities, float32 [N, 10], for uint8 images [N, 28, 28, 1].

    ``batch_size`` bounds the memory needed.

    Raises:
        NonFiniteError: if a weight of the model, or a probability, is NaN or infinite.
    """
    probabilities = _in_batches(_compiled(model), images, batch_size)
    # Max pooling turns NaN into a number, so the probabilities alone don't show NaN weights.
    if not all(np.isfinite(array).all() for array in (*model.get_weights(), probabilities)):
        raise NonFiniteError("the model's probabilities became nan: its training has diverged")
    return probabilities


def embed(
    model: tf.keras.Sequential, images: npt.NDArray[np.uint8], batch_size: int = 500
) -> npt.NDArray[np.float32]:
    """The input of the model's last layer, float32 [N, units]; see ``predict_probabilities``."""
    penultimate = tf.keras.Model(model.inputs, model.layers[-1].input)
    return _in_batches(_compiled(penultimate), images, batch_size)


def _in_batches(
    forward: Callable[[npt.NDArray[np.uint8]], tf.Tensor],
    images: npt.NDArray[np.uint8],
    batch_size: int,
) -> npt.NDArray[np.float32]:
    batches = [forward(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return np.concatenate([batch.numpy() for batch in batches])


# Cached: a model is evaluated after every epoch and traced once.
@functools.lru_cache(maxsize=2)
def _compiled(model: tf.keras.Model) -> Callable[[npt.NDArray[np.uint8]], tf.Tensor]:
    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], tf.uint8)])
    def forward(images: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(images, tf.float32) / 255.0, training=False)

    return forward


def evaluate_probabilities(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]
) -> Evaluation:
    """Computes the figures, in float64.

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
    # A float32 softmax can underflow to 0; the smallest normal number bounds the loss.
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
        calibration_error=calibration_error(calibration_bins(confidence, correct)),
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


@dataclasses.dataclass(frozen=True)
class CalibrationBins:
    """Examples grouped by confidence, in bins of equal width from 0 to 1.

    Attributes:
        count: [bins], number of examples.
        confidence: [bins], mean confidence of the examples; 0 in an empty bin.
        accuracy: [bins], fraction classified correctly; 0 in an empty bin.
    """

    count: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]


def calibration_bins(
    confidence: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_], bins: int = 15
) -> CalibrationBins:
    """Groups examples by confidence.

    Args:
        confidence: [N], the probability of the predicted class, 0 to 1.
        correct: [N], whether the prediction was right.
        bins: number of bins.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    sums = [np.bincount(which, weights=w, minlength=bins) for w in (confidence, correct)]
    return CalibrationBins(count, *(total / np.maximum(count, 1) for total in sums))


def calibration_error(bins: CalibrationBins) -> float:
    """Expected calibration error (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    Returns:
        The mean over the examples of the gap between their bin's accuracy and confidence, 0 to 1.
    """
    gap = np.abs(bins.accuracy - bins.confidence)
    return float(np.average(gap, weights=bins.count))
