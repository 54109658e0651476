"""Cuts the bands of a product into patches: all bands of one place in one pass, every block of the files decoded once.

Memory: of each band no more than two rows of blocks, the one that is cut and the next, which threads decode meanwhile,
whatever the product's height; and one row of patches. Only strips higher than a block (large windows, and geohash
cells: the rows between the northernmost and the southernmost edge of a row of them) take the blocks that they lie in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pgearth.loaders.products.bands import Band, start_readers
from pgearth.loaders.products.grids import Lattice
from pgearth.loaders.products.patches import Cutting, Patches, Place, Stack, make_patches
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError

# Grids of different resolution may be shifted by half a pixel of the coarser one: exports of scenes in geographic
# coordinates (SSL4EO-S12) snap each resolution to its own grid. Bands of one resolution share one georeference.
TOLERANCE_BETWEEN_RESOLUTIONS = 0.5
TOLERANCE_WITHIN_RESOLUTION = 0.01


def fit_bands(
    path: Path, bands: Sequence[Band], size: int, bands_option: Callable[[set[str]], str]
) -> dict[int, list[Band]]:
    """The bands by the factor of their pixel size to the finest, finest first.

    Raises PgearthError where footprints differ, or windows of `size` finest pixels are not whole in every band.
    """
    finest = min(bands, key=lambda band: band.metres)
    resolutions: dict[int, list[Band]] = {}
    for band in sorted(bands, key=lambda band: band.metres):
        ratio = band.metres / finest.metres
        factor = round(ratio)
        if abs(ratio - factor) > 0.01 or size % factor:
            raise PgearthError(
                f"{band.file.path}: pixels of {band.metres:g} m do not go evenly into windows of {size} pixels of"
                f" {finest.metres:g} m ({finest.file.path})",
                f"Resample the band, or leave it out: {bands_option({other.name for other in bands} - {band.name})}",
            )
        same = resolutions.setdefault(factor, [band])
        for other, tolerance in ((finest, TOLERANCE_BETWEEN_RESOLUTIONS), (same[0], TOLERANCE_WITHIN_RESOLUTION)):
            if band.pixels_apart(other) > tolerance:
                raise PgearthError(
                    f"{path}: different footprints among bands: {band.file.path} covers {band.bounds},"
                    f" {other.file.path} {other.bounds}",
                    "Replace the file that does not belong to this product, or leave its band out with --bands.",
                )
        if band is not same[0]:
            same.append(band)
    return {factor: [band for band in bands if band in same] for factor, same in resolutions.items()}


def cut_windows(cutting: Cutting, resolutions: dict[int, list[Band]], lattice: Lattice) -> Patches:
    """Cut a product into the windows of a lattice, row by row; return counts as make_patches."""
    counts: Counter[str] = Counter()
    finest = resolutions[1][0]
    size = lattice.size
    with ExitStack() as stack:
        readers = start_readers(stack, [band for bands in resolutions.values() for band in bands], cutting.threads)
        for row in progress(range(lattice.rows), cutting.label, "strips"):
            y = lattice.top + row * size
            north = lattice.bound(finest.top - y * finest.pixel_height)
            places = [
                Place(
                    name=lattice.name(cutting.product.name, column, row),
                    west=lattice.bound(finest.left + (lattice.left + column * size) * finest.pixel_width),
                    south=lattice.bound(finest.top - (y + size) * finest.pixel_height),
                    east=lattice.bound(finest.left + (lattice.left + (column + 1) * size) * finest.pixel_width),
                    north=north,
                    column=lattice.first_column + column,
                    row=lattice.first_row + row,
                )
                for column in range(lattice.columns)
            ]
            stacks = []
            for factor, bands in resolutions.items():
                grid, side, first = bands[0], size // factor, lattice.left // factor
                top = grid.top - y // factor * grid.pixel_height
                stacks.append(
                    Stack(
                        resolution=round(grid.metres),
                        factor=factor,
                        bands=tuple(bands),
                        pixels=tuple(
                            windows(readers[band.name].read(y // factor, y // factor + side), first, side, len(places))
                            for band in bands
                        ),
                        nodata=tuple(band.nodata for band in bands),
                        transforms=[
                            (grid.pixel_width, -grid.pixel_height, grid.left + x * grid.pixel_width, top, 0.0, 0.0)
                            for x in range(first, first + side * len(places), side)
                        ],
                    )
                )
            counts += yield from make_patches(cutting, places, stacks)
    return counts


def windows(strip: np.ndarray, first: int, side: int, number: int) -> np.ndarray:
    """Windows of a strip of rows from column `first` on, an array (number, side, side)."""
    part = strip[:, first : first + number * side]
    return np.ascontiguousarray(part.reshape(side, number, side).swapaxes(0, 1))
