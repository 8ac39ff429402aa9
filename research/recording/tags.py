"""What every tag of a run means. The table in runs/README.md shows the same."""

from __future__ import annotations

import dataclasses
import functools
import re


@dataclasses.dataclass(frozen=True)
class Tag:
    """A tag, or a family of tags with placeholders such as ``<layer>``.

    Attributes:
        name: the tag.
        folders: the folders of a run in which it is written; ``run`` is the run directory itself.
        unit: the unit and the range, or the kind of a tag without one.
        meaning: one line.
    """

    name: str
    folders: tuple[str, ...]
    unit: str
    meaning: str


_TRAIN, _RUN, _EVALUATED = ("train",), ("run",), ("validation", "test")
_ALL, _FRACTION = ("train", "validation", "test"), "fraction, 0 to 1"
TAGS = (
    Tag("loss", _ALL, "nats", "mean categorical cross-entropy; in training, with dropout"),
    Tag(
        *("objective", _TRAIN, "nats"),
        "what training minimizes, in experiments where that is not `loss`",
    ),
    Tag(
        *("accuracy", _ALL, _FRACTION),
        "examples classified correctly; in training, by the step's own labels, with dropout",
    ),
    Tag(
        *("loss_harder", _TRAIN, "nats"),
        "in `harder_half.py`: mean loss of the half of the batch that is learned from",
    ),
    Tag(
        *("loss_nearby", _TRAIN, "nats"),
        "in `sam.py`: loss at the nearby weights whose gradient makes the update",
    ),
    Tag(
        *("robust_accuracy", _EVALUATED, _FRACTION),
        "in `pgd.py` and `robustness.py`: accuracy on images attacked by PGD",
    ),
    Tag(
        *("corrupted_accuracy", _EVALUATED, _FRACTION),
        "in `pgd.py` and `robustness.py`: mean accuracy under fifteen corruptions, severity 3",
    ),
    Tag(
        *("optimizer/learning_rate", _TRAIN, "none"),
        "learning rate that the last step's update used",
    ),
    Tag(
        *("optimizer/gradient_norm", _TRAIN, "none"),
        "global norm of the averaged gradient, before clipping",
    ),
    Tag(
        *("optimizer/loss_scale", _TRAIN, "none"),
        "only with `mixed_float16`: what the loss is multiplied by",
    ),
    Tag(
        *("update_ratio/<layer>", _TRAIN, "none"),
        "norm of the last step's change of the weights over their own",
    ),
    Tag(
        *("quality/calibration_error", _EVALUATED, _FRACTION),
        "expected calibration error, 15 bins",
    ),
    Tag(
        *("quality/generalization_gap", ("validation",), "nats"),
        "validation loss minus that on 1,000 training examples, both without dropout",
    ),
    Tag(
        *("rescaled/log10_loss", _ALL, "none"),
        "decimal logarithm of `loss`: -1 is a loss of 0.1, -2 one of 0.01",
    ),
    Tag(
        *("rescaled/validation_loss", ("validation",), "nats"),
        "`loss` in validation alone, so that a chart shows it at its own scale",
    ),
    Tag(
        *("rescaled/validation_accuracy", ("validation",), _FRACTION),
        "`accuracy` in validation alone, so that a chart shows it at its own scale",
    ),
    Tag(
        *("speed/examples_per_second", _TRAIN, "1/s"),
        "training speed, without tracing and validation",
    ),
    Tag(
        *("time/<activity>", _TRAIN, _FRACTION),
        "share of the wall time since training began or was resumed: input (until the batch is "
        "ready), training, validation, logging, checkpointing; the five add up to 1",
    ),
    Tag("weights/<layer>/<variable>", _TRAIN, "histogram", "the weights after the step"),
    Tag(
        *("weight_gradients/<layer>/<variable>", _TRAIN, "histogram"),
        "the averaged gradient of the step, before clipping",
    ),
    Tag(
        *("pictures/batch", _TRAIN, "picture"),
        "30 of the step's images, as the data gives them, with their labels; or as the step "
        "changed them, if it returns them",
    ),
    Tag(
        *("pictures/filters_<layer>", _TRAIN, "picture"),
        "filters of the first convolution, trained or not; red is positive, blue negative",
    ),
    Tag(
        *("pictures/confusion", _EVALUATED, "picture"),
        "examples by truth (row) and prediction (column)",
    ),
    Tag(
        *("pictures/reliability", _EVALUATED, "picture"),
        "accuracy by confidence, and how many examples; on the dashed line, confidence is right",
    ),
    Tag(
        *("pictures/mistakes", _EVALUATED, "picture"),
        "the ten most confident mistakes: truth, prediction, confidence",
    ),
    Tag(
        *("digits/<digit>/pr_curves", _EVALUATED, _FRACTION),
        "precision by recall at 101 thresholds; at 99% accuracy all that matters is in the upper "
        "right corner: drag a rectangle around it",
    ),
    Tag(
        *("about/run", _RUN, "text"),
        "the experiment, the options that differ from its defaults, the command, the commit, the "
        "environment, the network",
    ),
    Tag("about/result", _RUN, "text", "how the run ended, and its figures; while it runs, nothing"),
    Tag("run/finished", _RUN, "0 or 1", "1 once the run has finished; of several seeds, the share"),
    Tag(
        *("run/failed", _RUN, "0 or 1"),
        "1 if the run ended by an error, such as NaN; of several seeds, the share",
    ),
    Tag("run/steps", _RUN, "steps", "steps of training that the run had recorded when it ended"),
    Tag("custom_scalars__config__", _RUN, "layout", "of the Custom Scalars dashboard"),
    Tag("_hparams_/session_start_info", _RUN, "options", "for the HParams dashboard"),
    Tag("_hparams_/session_end_info", _RUN, "status", "for the HParams dashboard"),
)


@functools.cache
def description(name: str) -> str:
    """What TensorBoard says of a tag, in Markdown; empty for a tag of an experiment's own."""
    for tag in TAGS:
        if re.fullmatch(re.sub(r"<\w+>", "[^/]+", tag.name), name):
            return f"{tag.meaning} ({tag.unit})"
    return ""
