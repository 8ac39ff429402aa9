"""Checks and sorts the tensors that a step or an evaluation returns by name."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import tensorflow as tf

# Names that the project itself records.
RESERVED = re.compile(
    r"input_seconds|examples|split|step|seconds"
    r"|(speed|time|update_ratio|weights|rescaled)/.*|pictures/(?!batch$).*"
)
KINDS = (
    "a scalar, images [N, height, width, channels] with 1, 3 or 4 channels, or a vector [N] for "
    "a histogram, of real numbers"
)


def sorted_by_kind(
    returned: Any, who: str = "the step", taken: Collection[str] = ()
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Divides the returned tensors into scalars and others.

    Args:
        returned: tensors by name.
        who: the function that returned them, for messages.
        taken: names that are in use.

    Returns:
        The scalars, float32; and the images [N, height, width, channels] and vectors [N], uint8 or
        float32.

    Raises:
        ValueError: if ``returned`` is not a dictionary, a name is not a string or is taken, or a
            tensor is not a scalar, images or a vector.
    """
    if not isinstance(returned, dict) or not returned:
        raise ValueError(f"{who} returned {returned!r}; return a dictionary {{name: tensor}}")
    scalars, others = {}, {}
    for name, value in returned.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"{who} returned the key {name!r}; keys are strings, and not empty")
        if RESERVED.fullmatch(name) or name in taken:
            raise ValueError(f"{who} returned the key {name!r}, which is taken; give it another")
        tensor = _checked(who, name, value)
        if name in ("loss", "accuracy") and tensor.shape.rank != 0:
            raise ValueError(
                f"{who} returned {name!r} with shape {tensor.shape}, a number for each example; "
                "take tf.reduce_mean of it"
            )
        if tensor.shape.rank == 0:
            scalars[name] = tf.cast(tensor, tf.float32)
        else:
            others[name] = tensor if tensor.dtype == tf.uint8 else tf.cast(tensor, tf.float32)
    if not scalars and not taken:
        raise ValueError(f"{who} returned no scalar, only {', '.join(others)}; return the loss")
    return scalars, others


def _checked(who: str, name: str, value: Any) -> Any:
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        found = f"a {type(value).__name__}"
        raise ValueError(f"{who} returned {name!r}, {found}; it must be {KINDS}") from error
    shape, dtype = tensor.shape, tensor.dtype
    number = dtype.is_floating or dtype.is_integer or (dtype.is_bool and shape.rank == 0)
    images = shape.rank == 4 and shape[3] in (1, 3, 4) and (dtype.is_floating or dtype == tf.uint8)
    if number and (shape.rank in (0, 1) or images):
        return tensor
    remedy = "" if shape.rank is None or not number else "; tf.reshape(..., [-1]) makes a vector"
    raise ValueError(
        f"{who} returned {name!r} with shape {shape} and dtype {dtype.name}; it must be {KINDS}"
        + remedy
    )
