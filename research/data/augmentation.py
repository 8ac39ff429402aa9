"""Augmentation: random changes of training images, each a pure function of a seed.

Several replicas change each image as one replica would, see ``research.seeds``.
"""

from __future__ import annotations

import math

from research.seeds import Seed, own_examples, random_amounts

import tensorflow as tf


def random_shift(images: tf.Tensor, seed: Seed, pixels: int = 1) -> tf.Tensor:
    """Shifts each image by whole pixels, drawn independently for each image and each axis.

    Args:
        images: float [B, H, W, C].
        seed: a step gets one from ``state.random_seed("augmentation")``; or any integer [2].
        pixels: the largest shift in either direction, at least 0; all shifts are equally likely.

    Returns:
        A tensor like ``images``; pixels shifted in from outside are 0.
    """
    shifts = random_amounts(seed, 2, tf.shape(images)[0], -pixels, pixels + 1, tf.int32)
    right, down = (own_examples(seed, s) for s in tf.unstack(tf.cast(shifts, tf.float32)))
    one, zero = tf.ones_like(right), tf.zeros_like(right)
    return _transform(images, [one, zero, right, zero, one, down], "NEAREST")


def random_affine(
    images: tf.Tensor,
    seed: Seed,
    *,
    shift: float = 0.0,
    rotation: float = 0.0,
    scale: float = 0.0,
    shear: float = 0.0,
) -> tf.Tensor:
    """Shifts, scales, rotates and shears each image, in that order, by random amounts.

    Each amount is drawn independently for each image, uniformly within its limit. Scaling, rotation
    and shearing leave the middle of the image in place. Interpolation is bilinear.

    Args:
        images: float [B, H, W, C].
        seed: a step gets one from ``state.random_seed("augmentation")``; or any integer [2].
        shift: the largest shift in pixels, along each axis and in either direction.
        rotation: the largest angle in degrees, in either direction.
        scale: height and width are multiplied by two factors from 1 - scale to 1 + scale; 0 to
            below 1.
        shear: a row moves sideways by at most ``shear`` times its distance from the middle.

    Returns:
        A tensor like ``images``; pixels that come in from outside are 0.
    """
    amounts = random_amounts(seed, 6, tf.shape(images)[0], -1.0, 1.0)
    angle = amounts[0] * math.radians(rotation)
    width, height = 1 + amounts[1] * scale, 1 + amounts[2] * scale
    slant, right, down = amounts[3] * shear, amounts[4] * shift, amounts[5] * shift
    cosine, sine = tf.cos(angle), tf.sin(angle)
    # The matrix takes a place in the result, relative to the middle, to its place in the image.
    a, b = cosine / width, (slant * cosine - sine) / width
    c, d = sine / height, (slant * sine + cosine) / height
    middle_x, middle_y = (images.shape[2] - 1) / 2, (images.shape[1] - 1) / 2
    x = middle_x + right - a * middle_x - b * middle_y
    y = middle_y + down - c * middle_x - d * middle_y
    matrix = [own_examples(seed, element) for element in (a, b, x, c, d, y)]
    return _transform(images, matrix, "BILINEAR")


def _transform(images: tf.Tensor, matrix: list[float | tf.Tensor], interpolation: str) -> tf.Tensor:
    """Transforms each image; its matrix maps (x, y, 1) in the result to (x, y) in the image."""
    zero = tf.zeros_like(matrix[0])
    transformed = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([*matrix, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        interpolation=interpolation,
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
    transformed.set_shape(images.shape)  # the operation forgets height and width
    return transformed
