"""Draws an image in the terminal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def drawn(pixels: npt.NDArray[np.uint8]) -> str:
    """An image in characters of five shades, a line for every two rows.

    Args:
        pixels: uint8 [height, width], with an even height.
    """
    # Characters are twice as high as wide: two rows of pixels make one row of characters.
    rows = pixels.reshape(len(pixels) // 2, 2, -1).mean(1)
    shades = np.array(list(" ░▒▓█"))[np.minimum(rows * 5 / 255, 4).astype(int)]
    return "\n".join(map("".join, shades))
