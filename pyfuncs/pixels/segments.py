"""Segments of a patch: parts of the ground, the same in every band, which get hash codes of their own.

A segmentation says how patches are cut into segments; it is a dictionary, as `eo.encoder.segmentation` records it:
`{"method": "grid", "side": 2}`, or what `slic_segmentation` makes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import absent, resample, valid_pixels

SLIC_BANDS = ("B02", "B03", "B04", "B08")
"""The bands of Sentinel-2 with 10 m pixels, which show boundaries best."""
SLIC_COMPACTNESS = 0.3
"""Weight of nearness in space against nearness in colour, for bands of variance 1 scaled to [0, 1]."""

MOST = {"grid": 100, "slic": 1000}
"""Ways to cut patches, and the greatest number of each."""

Patch = Mapping[str, np.ndarray]
"""Band names to pixels (height, width) of one extent, whose resolutions may differ."""


def parse_segmentation(text: str, bands: Sequence[str]) -> dict[str, Any]:
    """The segmentation that `grid:2` (2 x 2 windows) or `slic:9` (about 9 superpixels) means for an encoder's bands.

    Raises PgearthError for anything else, and for numbers out of range.
    """
    method, _, number = text.partition(":")
    if method in MOST and number.isascii() and number.isdecimal() and 2 <= int(number[:9]) <= MOST[method]:
        return grid_segmentation(int(number)) if method == "grid" else slic_segmentation(int(number), bands)
    raise PgearthError(
        f"{text!r} is no way to cut patches into segments",
        f"Give grid:SIDE (2 to {MOST['grid']}; 2 makes quadrants) or slic:NUMBER (superpixels, 2 to {MOST['slic']}).",
    )


def grid_segmentation(side: int) -> dict[str, Any]:
    """Segmentation into the windows of a grid of side x side; side 2 makes quadrants."""
    return {"method": "grid", "side": side}


def slic_segmentation(segments: int, bands: Sequence[str]) -> dict[str, Any]:
    """Segmentation into about so many superpixels, for an encoder that reads these bands.

    Those of SLIC_BANDS that are among them decide where segments end, or all of them where none is; so segments do not
    depend on what else the encoder reads or has learned.
    """
    return {
        "method": "slic",
        "segments": segments,
        "compactness": SLIC_COMPACTNESS,
        "bands": [band for band in SLIC_BANDS if band in bands] or list(bands),
        "library": f"scikit-image {version('scikit-image')}",
    }


def same_cut(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two segmentations cut alike, be it by another version of the library."""
    return {**one, "library": None} == {**other, "library": None}


def cut_segments(patch: Patch, bands: Sequence[str], segmentation: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """Cut a patch into segments, each again a patch, of the given bands: those that an encoder reads.

    Raises PgearthError for a patch without one of the bands, and where the pixels of a band do not fit the cuts, for
    the segments of two bands would then show different ground.
    """
    missing = [name for name in bands if name not in patch]
    if missing:
        raise PgearthError(
            f"missing band {', '.join(missing)}", hint=f"The encoder needs the bands {', '.join(bands)}."
        )
    read = {name: patch[name] for name in bands}
    if segmentation["method"] == "grid":
        return grid_segments(read, segmentation["side"])
    return [segment(read, inside) for inside in slic_masks(read, segmentation)]


def grid_segments(patch: Patch, side: int) -> list[dict[str, np.ndarray]]:
    """Cut a patch into side x side windows, row by row from the upper left; they are views of its pixels.

    Raises PgearthError where a band does not divide into whole pixels.
    """
    for name, pixels in patch.items():
        if pixels.shape[0] % side or pixels.shape[1] % side:
            raise PgearthError(
                f"band {name} of {pixels.shape[0]} x {pixels.shape[1]} pixels does not divide into"
                f" {side} x {side} segments",
                hint="Take a number that divides the pixels of every band, such as 2, 4 or 5.",
            )
    return [
        {name: window(pixels, side, row, column) for name, pixels in patch.items()}
        for row in range(side)
        for column in range(side)
    ]


def window(pixels: np.ndarray, side: int, row: int, column: int) -> np.ndarray:
    """The window in a row and a column of a grid of side x side."""
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]


def slic_masks(patch: Patch, segmentation: Mapping[str, Any]) -> list[np.ndarray]:
    """Masks (height, width) on the finest grid of the patch, one for each segment found by SLIC.

    SLIC: Achanta et al. 2012. The masks do not overlap and together hold all pixels that have data in every deciding
    band; of a patch without such pixels, the one mask holds everything. They are in the order of their first pixels,
    row by row. Raises PgearthError for a band whose pixels are not made of whole pixels of the finest band.
    """
    from skimage.segmentation import slic  # here, because importing it takes half a second

    height = max(pixels.shape[0] for pixels in patch.values())
    width = max(pixels.shape[1] for pixels in patch.values())
    for name, pixels in patch.items():
        if height % pixels.shape[0] or width % pixels.shape[1]:
            raise PgearthError(
                f"band {name} of {pixels.shape[0]} x {pixels.shape[1]} pixels does not divide the {height} x {width}"
                " pixels of the finest band",
                hint="Give bands of one extent whose pixels are whole multiples of the finest ones.",
            )
    shape = (height, width)
    bands = [patch[name] for name in segmentation["bands"]]
    image = np.stack([resample(pixels, shape) for pixels in bands], axis=-1).astype(np.float64)
    valid = np.all([resample(valid_pixels(pixels, absent(pixels)), shape) for pixels in bands], axis=0)
    if not valid.any():
        return [np.ones(shape, bool)]
    values = image[valid]
    deviation = values.std(axis=0)
    image = (image - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    image[~valid] = 0  # the mean: maskSLIC, which leaves such pixels out, may lose others and scatter segments
    labels = slic(
        image,
        n_segments=segmentation["segments"],
        compactness=segmentation["compactness"],
        convert2lab=False,  # three bands are no colours of a photograph
        start_label=1,
        channel_axis=-1,
    )
    labels[~valid] = 0
    numbers, first = np.unique(labels, return_index=True)
    return [labels == number for number in numbers[np.argsort(first)] if number > 0]


def segment(patch: Patch, inside: np.ndarray) -> dict[str, np.ndarray]:
    """Cut the smallest window around a segment out of a patch; its pixels outside the segment have no data.

    `inside` is a mask on the finest grid. A coarser pixel is inside where at least half of it is, or, of a segment that
    covers no pixel by half, the pixels that it covers most.
    """
    height, width = inside.shape
    # The window ends where pixels of every band do.
    rows, columns = (
        enclosing(
            np.flatnonzero(inside.any(axis=1 - axis)),
            math.lcm(*(inside.shape[axis] // pixels.shape[axis] for pixels in patch.values())),
        )
        for axis in (0, 1)
    )
    cut_out = {}
    for name, pixels in patch.items():
        share = resample(inside.astype(np.float64), (pixels.shape[0], pixels.shape[1]))
        covered = share >= min(0.5, share.max())
        y, x = height // pixels.shape[0], width // pixels.shape[1]
        cut = (slice(rows.start // y, rows.stop // y), slice(columns.start // x, columns.stop // x))
        cut_out[name] = np.where(covered[cut], pixels[cut], absent(pixels))
    return cut_out


def enclosing(positions: np.ndarray, step: int) -> slice:
    """The shortest slice from one multiple of `step` to another that holds all positions (ascending)."""
    return slice(int(positions[0]) // step * step, -(-(int(positions[-1]) + 1) // step) * step)
