"""Reads a digit from an image file and prepares it as MNIST's own digits were prepared."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

from research.errors import InputError, one_line
from research.files import open_regular

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

# The accepted formats. Others can start programs: Pillow passes EPS files to Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")

# A larger image is refused before it is decoded.
MOST_PIXELS = 50_000_000

# The longer side is reduced to about this many pixels before the image becomes floating-point.
LONGEST_SIDE = 1000


@dataclasses.dataclass(frozen=True)
class Digit:
    """An image as the network takes it.

    Attributes:
        pixels: uint8 [28, 28, 1], light ink on a dark background as in MNIST.
        inverted: whether the file showed dark ink on a light background.
    """

    pixels: npt.NDArray[np.uint8]
    inverted: bool


def read_digit(path: Path) -> Digit:
    """Reads an image file of any mode, in one of ``FORMATS``, of at most ``MOST_PIXELS``.

    A light border means dark ink on a light background; such an image is inverted. An image of
    28x28 pixels is otherwise used unchanged. Any other is prepared as LeCun et al. describe for
    MNIST: the ink is scaled to fit 20x20 pixels, with its proportions kept, and its centre of mass
    is put in the middle of 28x28 pixels.

    Raises:
        InputError: if the file is missing, is not an image in one of the formats, is too large, or
            is blank.
    """
    grey = _greyscale(path)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    inverted = bool(np.median(border) > 127.5)
    if inverted:
        grey = 255 - grey
    if grey.max() - grey.min() < 16:
        raise InputError(f"{path}: the image is blank; give one that shows a digit")
    if grey.shape != (28, 28):
        grey = _centred(grey - grey.min())
    return Digit(np.rint(grey).astype(np.uint8)[..., np.newaxis], inverted)


def _greyscale(path: Path) -> npt.NDArray[np.float64]:
    """The brightness, [height, width], 0 to 255; each side below 2 * ``LONGEST_SIDE``."""
    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                ImageOps.exif_transpose(image, in_place=True)
                grey = _brightness(image)
        if not np.isfinite(grey).all():
            raise ValueError("it holds NaN or infinity")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; give an image file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{path}: the image has more than {MOST_PIXELS} pixels; scale it down"
        ) from error
    except Exception as error:  # for a damaged file Pillow raises errors of many types
        reason = getattr(error, "strerror", None) or one_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "it has another format, or is damaged"
        raise InputError(
            f"{path}: not an image that can be read ({reason}); give a file in one of the formats "
            f"{', '.join(FORMATS)}"
        ) from error
    return grey


def _brightness(image: Image.Image) -> npt.NDArray[np.float64]:
    """The brightness of an image of any mode, [height, width], 0 to 255."""
    # Floating-point copies of a large image take gigabytes, so reduce the image first.
    factor = max(1, max(image.size) // LONGEST_SIDE)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode.startswith("I;16") or values.max() > 255:
            scale = 1 / 257  # 16 bits: 65535 is white
        else:
            scale = 255.0 if image.mode == "F" and values.max() <= 1 else 1.0
        reduced = Image.fromarray(values.astype(np.float32, copy=False)).reduce(factor)
        return np.clip(np.asarray(reduced, np.float64) * scale, 0, 255)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        colour = np.asarray(image.convert("RGBA").reduce(factor), np.float64)
        alpha = colour[..., 3] / 255
        brightness = colour[..., :3] @ (0.299, 0.587, 0.114)
        # The background behind transparent pixels is assumed to be the opposite of the ink.
        ink = np.average(brightness, weights=alpha) if alpha.any() else 0.0
        behind = 255.0 if ink < 127.5 and alpha.min() < 1 else 0.0
        return np.asarray(brightness * alpha + behind * (1 - alpha))
    return np.asarray(image.convert("L").reduce(factor), np.float64)


def _centred(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ink in ``grey``, on a background of 0, fitted to 20x20 and centred by mass: [28, 28]."""
    rows, columns = np.nonzero(grey > grey.max() / 4)
    box = grey[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = (max(1, round(side * 20 / max(box.shape))) for side in box.shape)
    ink = Image.fromarray(box.astype(np.float32))
    small = np.asarray(ink.resize((width, height), Image.Resampling.BILINEAR), np.float64)
    small = small * (255 / small.max())
    y, x = (np.average(np.indices(small.shape)[axis], weights=small) for axis in (0, 1))
    top = int(np.clip(round(13.5 - y), 0, 28 - height))
    left = int(np.clip(round(13.5 - x), 0, 28 - width))
    canvas = np.zeros((28, 28))
    canvas[top : top + height, left : left + width] = small
    return canvas
