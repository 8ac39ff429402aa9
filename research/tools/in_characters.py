"""Draws an image in the terminal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def in_characters(image: npt.NDArray[np.uint8]) -> str:
    """A digit as eleven lines of 22 characters, without the frame of three pixels.

    Args:
        image: uint8 [28, 28, 1].
    """
    # Characters are twice as high as wide: two rows of pixels make one row of characters.
    pixels = image[3:25, 3:25, 0].reshape(11, 2, 22).mean(1)
    shades = np.array(list(" ░▒▓█"))[np.minimum(pixels * 5 / 255, 4).astype(int)]
    return "\n".join(map("".join, shades))
