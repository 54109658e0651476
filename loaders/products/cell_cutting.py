"""Warps the bands of a product into patches that are geohash cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from pgearth.loaders.products.bands import METRES_PER_DEGREE, Band, start_readers
from pgearth.loaders.products.files import unreadable
from pgearth.loaders.products.patches import Cutting, Patches, Place, Stack, make_patches
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.pixels.rasters import NODATA


@dataclass(frozen=True)
class Cell:
    """A geohash cell: its bounds in degrees (west, south, east, north), and in the units of the bands.

    `turn` is what longitudes of the bands are more than the cell's: 360 where a grid goes on beyond 180 degrees.
    """

    name: str
    degrees: tuple[float, float, float, float]
    outline: tuple[float, float, float, float]
    turn: float = 0.0


def fit_cells(cells: Sequence[tuple[str, tuple[float, float, float, float]]], bands: Sequence[Band]) -> list[Cell]:
    """Cells with their bounds on the bands' grids, from north to south; those beside the grids are left out."""
    to_grid = Transformer.from_crs("EPSG:4326", bands[0].crs.to_wkt(), always_xy=True)
    fitted = []
    for name, degrees in cells:
        box = shapely.box(*degrees)
        outline = shapely.transform(
            shapely.segmentize(box, (degrees[3] - degrees[1]) / 16), to_grid.transform, interleaved=False
        ).bounds
        for turn in (0.0, 360.0, -360.0) if bands[0].crs.is_geographic else (0.0,):
            there = (outline[0] + turn, outline[1], outline[2] + turn, outline[3])
            if all(np.isfinite(there)) and any(rows_of(there, band, 0) != (0, 0) for band in bands):
                fitted.append(Cell(name, degrees, there, turn))
                break
    return sorted(fitted, key=lambda cell: (-cell.outline[1], cell.outline[0]))


def rows_of(outline: tuple[float, float, float, float], band: Band, margin: int) -> tuple[int, int]:
    """First and last (exclusive) row of a band's pixels that lie within an outline and a margin of so many pixels.

    (0, 0) if there are none.
    """
    west, south, east, north = outline
    if west >= band.bounds[2] or east <= band.bounds[0] or south >= band.bounds[3] or north <= band.bounds[1]:
        return 0, 0
    start = max(int((band.top - north) / band.pixel_height) - margin, 0)
    return start, min(int((band.top - south) / band.pixel_height) + 1 + margin, band.height)


def columns_of(outline: tuple[float, float, float, float], band: Band, margin: int) -> tuple[int, int]:
    """The same for columns, where there are such rows."""
    start = max(int((outline[0] - band.left) / band.pixel_width) - margin, 0)
    return start, min(int((outline[2] - band.left) / band.pixel_width) + 1 + margin, band.width)


def cut_cells(cutting: Cutting, bands: Sequence[Band], cells: Sequence[Cell], pixels: int) -> Patches:
    """Warp a product into cells of `pixels` x `pixels` pixels: bilinear, scene classes by the nearest pixel.

    Every band gets a nodata value, for cells that reach beyond the product: 0, or NaN of floating-point bands, where
    the file has none. Returns counts as make_patches.
    """
    counts: Counter[str] = Counter()
    cutting = replace(cutting, srid=4326)
    nodata = tuple(
        band.nodata if band.nodata is not None else float("nan") if np.issubdtype(band.dtype, np.floating) else NODATA
        for band in bands
    )
    with ExitStack() as stack:
        readers = start_readers(stack, bands, cutting.threads)
        # The first row that this cell or any later one needs, by band.
        margins = {band.name: warp_margin(band, cells, pixels) for band in bands}
        needed: dict[str, list[int]] = {}
        for band in bands:
            starts = [rows_of(cell.outline, band, margins[band.name]) for cell in cells]
            firsts = [start if stop else band.height for start, stop in starts]
            needed[band.name] = np.minimum.accumulate(firsts[::-1])[::-1].tolist()
        for number, cell in enumerate(progress(cells, cutting.label, "cells")):
            west, south, east, north = cell.degrees
            width, height = (east - west) / pixels, (north - south) / pixels
            target = Affine(width, 0, west + cell.turn, 0, -height, north)
            images = []
            for band, no in zip(bands, nodata, strict=True):
                margin = margins[band.name]
                image = np.full((pixels, pixels), no, band.dtype)
                start, stop = rows_of(cell.outline, band, margin)
                if stop > start:
                    first = needed[band.name][number]
                    left, right = columns_of(cell.outline, band, margin)
                    source = readers[band.name].read(first, stop)[start - first :, left:right]
                    warp(
                        band, np.ascontiguousarray(source), left, start, image, target, no, band.name == cutting.classes
                    )
                images.append(image[None])
            counts += yield from make_patches(
                cutting,
                [Place(f"{cutting.product.name}_{cell.name}", west, south, east, north)],
                [
                    Stack(
                        resolution=max(round(height * METRES_PER_DEGREE), 1),
                        factor=1,
                        bands=tuple(bands),
                        pixels=tuple(images),
                        nodata=nodata,
                        transforms=[(width, -height, west, north, 0.0, 0.0)],
                    )
                ],
            )
    return counts


def warp_margin(band: Band, cells: Sequence[Cell], pixels: int) -> int:
    """Pixels around a cell that bilinear warping may look at: two of the target's, and two of the band's."""
    widest = max((cell.outline[2] - cell.outline[0] for cell in cells), default=0.0) / band.pixel_width
    tallest = max((cell.outline[3] - cell.outline[1] for cell in cells), default=0.0) / band.pixel_height
    return int(2 * max(widest, tallest) / pixels) + 2


def warp(
    band: Band,
    source: np.ndarray,
    left: int,
    top: int,
    image: np.ndarray,
    target: Affine,
    nodata: float,
    classes: bool,
) -> None:
    """Warp pixels of a band, of which (left, top) is the first, into an image in EPSG:4326."""
    x, y = band.left + left * band.pixel_width, band.top - top * band.pixel_height
    try:
        with rasterio.Env():
            reproject(
                source,
                image,
                src_transform=Affine(band.pixel_width, 0, x, 0, -band.pixel_height, y),
                src_crs=band.crs,
                src_nodata=band.nodata,
                dst_transform=target,
                dst_crs="EPSG:4326",
                dst_nodata=nodata,
                resampling=Resampling.nearest if classes else Resampling.bilinear,
            )
    except (RasterioError, ValueError) as error:
        raise unreadable(band.file.path, RasterioError(str(error))) from error
