"""Corruptions of images at five severities, to measure how robust a network is.

The fifteen kinds are those of MNIST-C (Mu and Gilmer, "MNIST-C: A Robustness Benchmark for Computer
Vision", 2019). Code and amounts are this project's own, so accuracies can't be compared with those
on the published files.

The bytes are the same on every processor. Pixels are computed with integers alone, since NumPy's
exp, sin and sums of floats differ in the last bits between AVX2 and AVX-512. Random numbers are the
raw output of Philox, which NumPy promises to keep; what its Generator makes of them may change.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

SEVERITIES = (1, 2, 3, 4, 5)
# The unit of fixed-point numbers. Random numbers are below it, too.
_ONE = 1 << 16
# Images corrupted at a time; bounds the memory needed.
_BLOCK = 1000

Ints = npt.NDArray[np.int32]
_Y, _X = np.indices((28, 28), np.int32)
_NEIGHBOURS = np.array(
    [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)], np.int32
)
# The sines of 0, 22.5, 45... degrees; four places further on stand the cosines.
_SINES = [round(math.sin(math.pi * n / 8) * _ONE) for n in range(12)]


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        change: a function (pixels, random, amount) -> pixels. Pixels are int32 [B, 28, 28], 0 to
            255; random numbers int32 [B, 784], 0 to 65535.
        amounts: the amount at each severity.
        unit: what the amounts are.
    """

    change: Callable[[Ints, Ints, int], Ints]
    amounts: tuple[int, int, int, int, int]
    unit: str


def corrupt(
    images: npt.NDArray[np.uint8], name: str, severity: int, seed: int = 0
) -> npt.NDArray[np.uint8]:
    """Corrupts each image.

    The random numbers are a function of (seed, name, position of the image). They are the same at
    each severity, so that a higher severity does more of the same to an image.

    Args:
        images: uint8 [N, 28, 28, 1]; 0 is background and 255 is ink.
        name: a key of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: any non-negative integer.

    Returns:
        New images, uint8 [N, 28, 28, 1].

    Raises:
        ValueError: if there is no such corruption or severity.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"no corruption {name!r} of severity {severity!r}; give one of "
            f"{', '.join(CORRUPTIONS)}, and 1 to 5"
        )
    corruption = CORRUPTIONS[name]
    amount = corruption.amounts[severity - 1]
    philox = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    result = np.empty_like(images)
    for first in range(0, len(images), _BLOCK):
        pixels = images[first : first + _BLOCK, ..., 0].astype(np.int32)
        raw = philox.random_raw((len(pixels), 28 * 28 // 4))
        random = raw.astype("<u8").view("<u2").astype(np.int32)
        result[first : first + _BLOCK, ..., 0] = corruption.change(pixels, random, amount)
    return result


def _shot_noise(pixels: Ints, random: Ints, photons: int) -> Ints:
    """Counts photons: each pixel becomes a Poisson number whose mean is its grey level."""
    keys, inked = _poisson(photons), pixels > 0
    levels, draws = pixels[inked], random.reshape(pixels.shape)[inked]
    found = np.searchsorted(keys, levels * _ONE + draws, side="right")
    count = found - levels * (len(keys) // 256)
    counted = np.zeros_like(pixels)
    counted[inked] = np.minimum((510 * count + photons) // (2 * photons), 255)
    return counted


@functools.lru_cache(maxsize=len(SEVERITIES))
def _poisson(photons: int) -> Ints:
    """The Poisson distributions of the grey levels 0 to 255, in ascending order.

    Grey level v has keys v * 65536 + 65536 * P(at most 0, 1, 2... photons). Rounding to 16 bits
    hides differences between the exp of two C libraries.
    """
    most = photons + 10 * math.isqrt(photons) + 10
    keys = []
    for level in range(256):
        mean = photons * level / 255
        probability = total = math.exp(-mean)
        for count in range(1, most + 1):
            keys.append(level * _ONE + min(round(_ONE * total), _ONE))
            probability *= mean / count
            total += probability
    return np.array(keys, np.int32)


def _impulse_noise(pixels: Ints, random: Ints, percent: int) -> Ints:
    """Sets pixels at random to 0 or to 255."""
    random = random.reshape(pixels.shape)
    return np.where(random >> 1 < _ONE // 2 * percent // 100, random % 2 * 255, pixels)


def _glass_blur(pixels: Ints, random: Ints, width: int) -> Ints:
    """Takes each pixel from a random place in a square around it, and blurs a little."""
    random = random.reshape(pixels.shape)
    down, right = ((byte * width >> 8) - width // 2 for byte in (random >> 8, random & 255))
    return _blurred(_taken(pixels, _Y + down, _X + right))


def _motion_blur(pixels: Ints, random: Ints, length: int) -> Ints:
    """Takes the mean along a line in one of eight directions."""
    half, total = length // 2, np.zeros_like(pixels)
    framed = np.pad(pixels, ((0, 0), (half, half), (half, half)))
    direction = random[:, 0] * 8 >> 16
    for n in range(8):
        chosen = direction == n
        down, right = _SINES[n], _SINES[n + 4]
        for place in range(-half, half + 1):
            y, x = (half + (place * way + _ONE // 2 >> 16) for way in (down, right))
            total[chosen] += framed[chosen, y : y + 28, x : x + 28]
    return (total + half) // length


def _shear(pixels: Ints, random: Ints, percent: int) -> Ints:
    """Moves each row sideways, by a share of its distance from the middle."""
    slant = _sign(random) * (_ONE * percent // 100)
    return _transformed(pixels, _ONE, slant, 0, _ONE)


def _scale(pixels: Ints, random: Ints, percent: int) -> Ints:
    """Makes the digit smaller."""
    wide = _ONE * 100 // percent  # the step in the image for one pixel of the result
    return _transformed(pixels, wide, 0, 0, wide)


def _rotate(pixels: Ints, random: Ints, degrees: int) -> Ints:
    """Turns the digit to the left or to the right."""
    sine = _sign(random) * round(math.sin(math.radians(degrees)) * _ONE)
    cosine = round(math.cos(math.radians(degrees)) * _ONE)
    return _transformed(pixels, cosine, -sine, sine, cosine)


def _brightness(pixels: Ints, random: Ints, levels: int) -> Ints:
    """Makes every pixel lighter."""
    return np.minimum(pixels + levels, 255)


def _translate(pixels: Ints, random: Ints, distance: int) -> Ints:
    """Moves the digit along one axis or both."""
    ways = _NEIGHBOURS[random[:, 0] * 8 >> 16]
    return _taken(pixels, _Y + distance * _each(ways[:, 0]), _X + distance * _each(ways[:, 1]))


def _stripe(pixels: Ints, random: Ints, width: int) -> Ints:
    """Inverts a vertical stripe somewhere in the middle."""
    middle = _each(8 + (random[:, 0] * 12 >> 16))
    return np.where(np.abs(_X - middle) <= width // 2, 255 - pixels, pixels)


def _fog(pixels: Ints, random: Ints, percent: int) -> Ints:
    """Covers the image with clouds: random numbers on three lattices, interpolated and added."""
    clouds, used = np.zeros_like(pixels), 0
    for spacing, share in ((16, 4), (8, 2), (4, 1)):
        points = -(-27 // spacing) + 1
        lattice = random[:, used : used + points**2].reshape(-1, points, points) >> 8
        used += points**2
        distance = np.abs(_Y[:, :1] - spacing * np.arange(points, dtype=np.int32))
        weights = np.maximum(spacing - distance, 0)
        clouds += share * (weights @ lattice @ weights.T // spacing**2)
    # The mean of many random numbers is seldom far from 127: stretch the contrast.
    clouds = np.clip(2 * clouds // 7 - 127, 0, 255)
    return pixels + (255 - pixels) * clouds * percent // (255 * 100)


def _spatter(pixels: Ints, random: Ints, drops: int) -> Ints:
    """Covers the image with round drops of light grey."""
    for n in range(drops):
        x, y = (_each(random[:, 3 * n + axis] * 28 >> 16) for axis in (0, 1))
        size = _each(1 + (random[:, 3 * n + 2] * 9 >> 16))
        inside = (_X - x) ** 2 + (_Y - y) ** 2 <= size
        pixels = np.where(inside, np.maximum(pixels, 200), pixels)
    return pixels


def _dotted_line(pixels: Ints, random: Ints, lines: int) -> Ints:
    """Draws dotted lines from the left edge to the right edge."""
    for n in range(lines):
        y = _line(random[:, 2 * n], random[:, 2 * n + 1])[:, np.newaxis, :28]
        dots = ((_Y - y) // 2 == 0) & (_X % 4 < 2)  # two pixels wide and high
        pixels = np.where(dots, 255, pixels)
    return pixels


def _zigzag(pixels: Ints, random: Ints, height: int) -> Ints:
    """Draws a zigzag line from the left edge to the right edge."""
    x = np.arange(29, dtype=np.int32) + (random[:, 2:3] * 8 >> 16)
    y = _line(random[:, 0], random[:, 1]) + height * (np.abs(x % 8 - 4) - 2) // 2
    low, high = (end(y[:, 1:], y[:, :-1])[:, np.newaxis] for end in (np.minimum, np.maximum))
    drawn = (low <= _Y) & (high >= _Y)
    return np.where(drawn, 255, pixels)


def _edges(pixels: Ints, random: Ints, percent: int) -> Ints:
    """Fades the digit into its outline, found as by Canny (1986) but with a single threshold."""
    smooth = np.pad(_blurred(pixels), ((0, 0), (1, 1), (1, 1)))
    rows = smooth[:, :-2] + 2 * smooth[:, 1:-1] + smooth[:, 2:]
    columns = smooth[:, :, :-2] + 2 * smooth[:, :, 1:-1] + smooth[:, :, 2:]
    right, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    strength = right**2 + down**2
    # The direction of the gradient, to the nearest of four: tan(22.5 degrees) is 27146 / 65536.
    flat = np.abs(down) * _ONE < np.abs(right) * 27146
    steep = np.abs(right) * _ONE < np.abs(down) * 27146
    framed = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    above, beside, below = framed[:, :-2], framed[:, 1:-1], framed[:, 2:]
    which = [flat, steep, right * down > 0]
    ahead = np.select(which, [beside[..., 2:], below[..., 1:-1], below[..., 2:]], below[..., :-2])
    behind = np.select(which, [beside[..., :-2], above[..., 1:-1], above[..., :-2]], above[..., 2:])
    outline = 255 * ((strength > 200**2) & (strength > ahead) & (strength >= behind))
    return pixels + (outline - pixels) * percent // 100


CORRUPTIONS = {
    "shot_noise": Corruption(_shot_noise, (60, 25, 12, 5, 3), "photons where ink is full"),
    "impulse_noise": Corruption(_impulse_noise, (3, 6, 10, 17, 27), "% of the pixels"),
    "glass_blur": Corruption(_glass_blur, (3, 4, 5, 6, 7), "pixels, the side of the square"),
    "motion_blur": Corruption(_motion_blur, (3, 5, 7, 9, 11), "pixels of the line"),
    "shear": Corruption(_shear, (15, 30, 45, 60, 75), "% of the distance from the middle"),
    "scale": Corruption(_scale, (90, 80, 70, 60, 50), "% of the size"),
    "rotate": Corruption(_rotate, (10, 20, 30, 40, 50), "degrees"),
    "brightness": Corruption(_brightness, (25, 50, 75, 100, 125), "of 255, added"),
    "translate": Corruption(_translate, (1, 2, 3, 4, 5), "pixels along an axis"),
    "stripe": Corruption(_stripe, (3, 5, 7, 9, 11), "pixels wide"),
    "fog": Corruption(_fog, (40, 55, 70, 85, 100), "% at the densest"),
    "spatter": Corruption(_spatter, (3, 6, 9, 12, 15), "drops"),
    "dotted_line": Corruption(_dotted_line, (1, 2, 3, 4, 5), "lines"),
    "zigzag": Corruption(_zigzag, (1, 2, 3, 4, 5), "pixels, up and down"),
    "edges": Corruption(_edges, (60, 70, 80, 90, 100), "% of the outline"),
}


def _each(values: Ints) -> Ints:
    """One value for each image, [B], as [B, 1, 1]."""
    return values[:, np.newaxis, np.newaxis]


def _sign(random: Ints) -> Ints:
    """-1 or 1 for each image, [B, 1, 1]."""
    return _each(random[:, 0] % 2 * 2 - 1)


def _line(left: Ints, right: Ints) -> Ints:
    """The rows, [B, 29], of a line between random heights at columns 0 and 27; 28 is beyond."""
    x = np.arange(29, dtype=np.int32)
    return (left[:, np.newaxis] * (27 - x) + right[:, np.newaxis] * x) * 28 // 27 >> 16


def _taken(pixels: Ints, y: Ints, x: Ints) -> Ints:
    """The pixels at rows y and columns x, each broadcast to [B, 28, 28]; 0 outside the image."""
    framed = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    image = np.arange(len(pixels))[:, np.newaxis, np.newaxis]
    return framed.take(900 * image + 30 * np.clip(y + 1, 0, 29) + np.clip(x + 1, 0, 29))


def _transformed(pixels: Ints, a: int | Ints, b: int | Ints, c: int | Ints, d: int | Ints) -> Ints:
    """Takes the pixel at (x, y) from (a x + b y, c x + d y), relative to the middle, bilinear.

    The numbers are fixed-point, for all images or [B, 1, 1].
    """
    # Twice the distance from the middle, which lies between two pixels.
    right, down = 2 * _X - 27, 2 * _Y - 27
    x, y = (a * right + b * down + 27 * _ONE) >> 1, (c * right + d * down + 27 * _ONE) >> 1
    beyond_x, beyond_y = x >> 8 & 255, y >> 8 & 255
    x, y = x >> 16, y >> 16
    above, below = (
        (256 - beyond_x) * _taken(pixels, row, x) + beyond_x * _taken(pixels, row, x + 1)
        for row in (y, y + 1)
    )
    return ((256 - beyond_y) * above + beyond_y * below + _ONE // 2) >> 16


def _blurred(pixels: Ints) -> Ints:
    """The mean with the eight neighbours, in which nearer pixels weigh more."""
    framed = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    rows = framed[:, :-2] + 2 * framed[:, 1:-1] + framed[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:] + 8) >> 4
