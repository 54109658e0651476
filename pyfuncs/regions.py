"""Regions of a patch: sub-windows of the same ground in every band, which get hash codes of their own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pyfuncs.errors import PgearthError


def grid_regions(bands: Mapping[str, np.ndarray], side: int) -> list[dict[str, np.ndarray]]:
    """Cut a patch into side x side windows, row by row from the upper left; side 2 makes its quadrants.

    `bands` maps names to (height, width) arrays of one extent, whose resolutions may differ; the windows are views of
    them. Raises PgearthError where a band does not divide into whole pixels, for the windows of two bands would then
    show different ground.
    """
    for name, pixels in bands.items():
        if pixels.shape[0] % side or pixels.shape[1] % side:
            raise PgearthError(
                f"band {name} of {pixels.shape[0]} x {pixels.shape[1]} pixels does not divide into"
                f" {side} x {side} regions",
                hint="Take a number that divides the pixels of every band, such as 2, 4 or 5.",
            )
    return [
        {name: window(pixels, side, row, column) for name, pixels in bands.items()}
        for row in range(side)
        for column in range(side)
    ]


def window(pixels: np.ndarray, side: int, row: int, column: int) -> np.ndarray:
    """The window in a row and a column of a grid of side x side."""
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]
