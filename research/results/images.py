"""Reads a digit from an image file and prepares it as MNIST's own digits were prepared."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

from research.errors import InputError, one_line
from research.files import open_regular

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

# The accepted formats. Others can start programs: Pillow passes EPS files to Ghostscript.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")

# A larger image is refused before it is decoded.
MOST_PIXELS = 50_000_000

# The longer side is reduced to about this many pixels before the image becomes floating-point.
LONGEST_SIDE = 1000

# The longer side is reduced to this many pixels, or up to twice as many, to look for ink.
INK_SIDE = 140


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

    An image of 28x28 pixels is used unchanged, but for being inverted if its border is light. From
    any other, the background is taken off, also one that is lit unevenly, and specks beside the
    digit. What remains is prepared as LeCun et al. describe for MNIST: the ink is scaled to fit
    20x20 pixels, with its proportions kept, and its centre of mass is put in the middle of 28x28
    pixels.

    Raises:
        InputError: if the file is missing, is not an image in one of the formats, is too large, or
            is blank.
    """
    grey = _greyscale(path)
    if grey.shape != (28, 28):
        ink, inverted = _without_background(grey)
    else:
        border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        inverted = bool(np.median(border) > 127.5)
        ink = 255 - grey if inverted else grey
    if ink.max() - ink.min() < 16:
        raise InputError(f"{path}: the image is blank; give one that shows a digit")
    if grey.shape != (28, 28):
        ink = _centred(_without_specks(ink))
    return Digit(np.rint(ink).astype(np.uint8)[..., np.newaxis], inverted)


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


def _without_background(
    grey: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], bool]:
    """The ink on a background of 0, [height, width], 0 to 255; and whether it was dark.

    The image is reduced to fewer than 2 * ``INK_SIDE`` pixels. Of 200 simulated photographs of
    MNIST's test digits (uneven light, noise, blur, off-centre), the reference network after two
    epochs read 199, as many as of the plain images.
    """
    image = Image.fromarray(grey.astype(np.float32)).reduce(max(1, max(grey.shape) // INK_SIDE))
    reduced = np.asarray(image, np.float64)
    height, width = reduced.shape
    few = image.reduce(max(1, max(reduced.shape) // 40))
    above = reduced - _surface(np.asarray(few, np.float64), (height, width))
    dark = float((above**3).sum()) < 0
    ink = -above if dark else above
    # A single bright pixel must not decide what full ink is.
    full = float(np.partition(ink.ravel(), -max(1, ink.size // 500))[-max(1, ink.size // 500)])
    noise = 1.4826 * float(np.median(np.abs(ink - np.median(ink))))
    least = min(3 * noise, full / 2)
    if full < 16:
        return np.zeros_like(ink), dark
    return 255 * np.clip((ink - least) / (0.9 * full - least), 0, 1), dark


def _surface(grey: npt.NDArray[np.float64], shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The brightness of the background as a polynomial of degree 2 in both coordinates.

    The first fit is to the border, a plane. Then pixels count the less, the farther they are from
    the last fit, and ink not at all.

    Args:
        grey: an image of few pixels.
        shape: the height and width at which to evaluate the polynomial.
    """
    edge = max(1, min(grey.shape) // 10)
    border = np.ones(grey.shape)
    border[edge:-edge, edge:-edge] = 0
    terms, values, weights = _terms(grey.shape), grey.reshape(-1), border.reshape(-1)
    used = 3  # the terms of a plane
    for _ in range(9):
        weighted = terms[:, :used] * weights[:, np.newaxis]
        fit = np.linalg.lstsq(weighted, values * weights, rcond=None)[0]
        off = values - terms[:, :used] @ fit
        spread = 1.4826 * float(np.median(np.abs(off - np.median(off))))
        weights = np.clip(1 - (off / (3 * spread + 2)) ** 2, 0, None)
        used = 6
    return np.asarray(_terms(shape) @ fit).reshape(shape)


def _terms(shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """1, y, x, y^2, x y and x^2 at each pixel, [height * width, 6], with y and x from -1 to 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    terms = np.stack([np.ones(shape), y, x, y * y, x * y, x * x], axis=-1)
    return terms.reshape(-1, 6)


def _without_specks(ink: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ink without connected parts of less than 5% of the ink of the largest one."""
    strokes = ink > 0.3 * ink.max()
    parts = np.zeros(ink.shape, int)
    amounts = [0.0]
    for place in zip(*np.nonzero(strokes), strict=True):
        if parts[place]:
            continue
        parts[place], found = len(amounts), [place]
        for y, x in found:  # grows while it is read
            around = np.s_[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            new = np.argwhere(strokes[around] & (parts[around] == 0))
            parts[around][tuple(new.T)] = len(amounts)
            found += [(max(y - 1, 0) + a, max(x - 1, 0) + b) for a, b in new]
        amounts.append(float(sum(ink[place] for place in found)))
    large = np.array(amounts) >= 0.05 * max(amounts)
    kept = Image.fromarray((large & (np.arange(len(amounts)) > 0))[parts].astype(np.uint8))
    soft_edges = np.asarray(kept.filter(ImageFilter.MaxFilter(3))) > 0
    return np.where(soft_edges, ink, 0)


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
