"""Cuts the bands of a product into patches: all bands of one place in one pass, every block of the files decoded once.

Memory: of each band no more than two rows of blocks, the one that is cut and the next, which threads decode meanwhile,
whatever the product's height; and one row of patches. Only strips higher than a block (large windows, and geohash
cells: the rows between the northernmost and the southernmost edge of a row of them) take the blocks that they lie in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from pgearth.loaders.archive.write import Patch, PatchRaster, Product
from pgearth.loaders.products.bands import METRES_PER_DEGREE, Band, StripReader, unreadable
from pgearth.loaders.products.grids import Lattice
from pgearth.loaders.work.progress import progress
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import NODATA, Raster, band_statistics, to_wkb, valid_pixels

Nodata = Literal["keep", "drop", "mask"]

SCL_LABEL_ID = 2000
SCL_CLASSES = 12
# Cloud shadow, medium and high cloud probability, and thin cirrus, which ESA's CLOUDY_PIXEL_PERCENTAGE counts as cloud.
SCL_CLOUD_OR_SHADOW = (3, 8, 9, 10)
SCL_SNOW = 11
VALID_FRACTION = 4  # its place in what band_statistics returns

# Grids of different resolution may be shifted by half a pixel of the coarser one: exports of scenes in geographic
# coordinates (SSL4EO-S12) snap each resolution to its own grid. Bands of one resolution share one georeference.
TOLERANCE_BETWEEN_RESOLUTIONS = 0.5
TOLERANCE_WITHIN_RESOLUTION = 0.01


@dataclass(frozen=True)
class Cutting:
    """What is cut, and how: `classes` names the band of scene classes, if there is one."""

    product: Product
    srid: int
    classes: str | None
    nodata: Nodata
    threads: int
    counts: Counter[str]


@dataclass(frozen=True)
class Place:
    """Where a patch lies: bounds in units of the cutting's `srid`."""

    name: str
    west: float
    south: float
    east: float
    north: float
    column: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class Stack:
    """Bands of one resolution (metres) at several places: of each band an array (places, rows, columns).

    `transforms` has the grid of each place as a PostGIS raster has it, `nodata` the value of each band. `factor` is the
    side of a pixel in finest pixels.
    """

    resolution: int
    factor: int
    bands: tuple[Band, ...]
    pixels: tuple[np.ndarray, ...]
    nodata: tuple[float | None, ...]
    transforms: Sequence[tuple[float, float, float, float, float, float]]


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


def cut_windows(cutting: Cutting, resolutions: dict[int, list[Band]], lattice: Lattice) -> Iterator[Patch]:
    """Cut a product into the windows of a lattice, row by row."""
    finest = resolutions[1][0]
    size = lattice.size
    with ExitStack() as stack:
        readers = start_readers(stack, [band for bands in resolutions.values() for band in bands], cutting.threads)
        for row in progress(range(lattice.rows), progress_label(cutting.product), "strips"):
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
            yield from make_patches(cutting, places, stacks)


def start_readers(stack: ExitStack, bands: Sequence[Band], threads: int) -> dict[str, StripReader]:
    """A reader for each band, whose files are read in so many threads until the stack is left."""
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    return {band.name: stack.enter_context(closing(StripReader(band, pool))) for band in bands}


def progress_label(product: Product) -> str:
    """What the progress display calls a product."""
    return f"{product.level} {product.mgrs_tile or product.name}"


def windows(strip: np.ndarray, first: int, side: int, number: int) -> np.ndarray:
    """Windows of a strip of rows from column `first` on, an array (number, side, side)."""
    part = strip[:, first : first + number * side]
    return np.ascontiguousarray(part.reshape(side, number, side).swapaxes(0, 1))


def make_patches(cutting: Cutting, places: Sequence[Place], stacks: Sequence[Stack]) -> Iterator[Patch]:
    """The patches of several places, but for those that are dropped, which are counted.

    Dropped is what has no valid pixel in any reflectance band, and where so asked what has a nodata pixel in any band.
    """
    statistics = describe(stacks)
    if cutting.nodata == "mask":
        gaps: np.ndarray = np.any([(one[..., VALID_FRACTION] < 1).any(axis=0) for one in statistics], axis=0)
        if gaps.any():
            stacks = [mask(stacks, number, gaps) for number in range(len(stacks))]
            statistics = describe(stacks)
            cutting.counts["masked"] += int(np.count_nonzero(gaps))
    reflectance = [
        [number for number, band in enumerate(stack.bands) if band.name != cutting.classes] for stack in stacks
    ]
    with_data: np.ndarray = np.any(
        [(one[bands, :, VALID_FRACTION] > 0).any(axis=0) for one, bands in zip(statistics, reflectance, strict=True)],
        axis=0,
    )
    kept = with_data.copy()
    if cutting.nodata == "drop":
        kept &= np.all([(one[..., VALID_FRACTION] == 1).all(axis=0) for one in statistics], axis=0)
    for what, places_so in (("without_data", ~with_data), ("with_nodata_dropped", with_data & ~kept)):
        if number := int(np.count_nonzero(places_so)):
            cutting.counts[what] += number
    shares = class_shares(cutting, stacks, len(places))
    for index in np.flatnonzero(kept).tolist():
        yield make_patch(cutting, places[index], index, stacks, statistics, None if shares is None else shares[index])


def describe(stacks: Sequence[Stack]) -> list[np.ndarray]:
    """Statistics of the bands of each stack, arrays (bands, places, 5)."""
    return [
        np.stack([band_statistics(pixels, no) for pixels, no in zip(stack.pixels, stack.nodata, strict=True)])
        for stack in stacks
    ]


def mask(stacks: Sequence[Stack], number: int, gaps: np.ndarray) -> Stack:
    """One of the stacks with nodata wherever any band of any stack has none, in the places `gaps` (boolean)."""
    target = stacks[number]
    side = target.pixels[0].shape[1] * target.factor
    missing: np.ndarray = np.zeros((np.count_nonzero(gaps), side, side), bool)
    for stack in stacks:
        for band, pixels, nodata in zip(stack.bands, stack.pixels, stack.nodata, strict=True):
            if nodata is None:
                raise PgearthError(
                    f"{band.file.path}: it has no nodata value, so nothing can be masked in it",
                    "Keep or drop what has no data: --nodata keep or --nodata drop.",
                )
            absent = ~valid_pixels(pixels[gaps], nodata)
            missing |= absent.repeat(stack.factor, axis=1).repeat(stack.factor, axis=2)
    coarse = side // target.factor
    blocks = missing.reshape(-1, coarse, target.factor, coarse, target.factor)
    missing = np.any(blocks, axis=(2, 4))
    masked = []
    for pixels, nodata in zip(target.pixels, target.nodata, strict=True):
        copy = pixels.copy()
        copy[gaps] = np.where(missing, pixels.dtype.type(nodata), pixels[gaps])
        masked.append(copy)
    return replace(target, pixels=tuple(masked))


def class_shares(cutting: Cutting, stacks: Sequence[Stack], places: int) -> np.ndarray | None:
    """Share of each scene class in the classified pixels of each place, an array (places, 12).

    NaN where no pixel is classified; None without a band of scene classes. Raises PgearthError for an unknown class.
    """
    for stack in stacks:
        for band, pixels, nodata in zip(stack.bands, stack.pixels, stack.nodata, strict=True):
            if band.name != cutting.classes:
                continue
            valid = valid_pixels(pixels, nodata)
            codes = pixels[valid].astype(np.int64)
            if codes.size and (codes.min() < 0 or codes.max() >= SCL_CLASSES):
                raise PgearthError(
                    f"{band.file.path}: unknown scene class {codes[(codes < 0) | (codes >= SCL_CLASSES)][0]}",
                    f"Scene classes are 0 to 11. Replace the file, or leave {band.name} out with --bands.",
                )
            place = np.nonzero(valid)[0]
            numbers = np.bincount(place * SCL_CLASSES + codes, minlength=places * SCL_CLASSES)
            numbers = numbers.reshape(places, SCL_CLASSES)
            with np.errstate(invalid="ignore"):
                return numbers / numbers.sum(axis=1, keepdims=True)
    return None


def make_patch(
    cutting: Cutting,
    place: Place,
    index: int,
    stacks: Sequence[Stack],
    statistics: Sequence[np.ndarray],
    shares: np.ndarray | None,
) -> Patch:
    """The patch of one place: `index` is its number in the stacks, `shares` those of scene classes in it."""
    # No class at all is no knowledge: the processor classifies every pixel that it has data for.
    classified = shares is not None and not np.isnan(shares[0])
    classes = np.flatnonzero(shares) if shares is not None and classified else np.array([], int)
    return Patch(
        name=place.name,
        product=cutting.product.name,
        platform=cutting.product.platform,
        sensing_time=cutting.product.sensing_time,
        srid=cutting.srid,
        west=place.west,
        south=place.south,
        east=place.east,
        north=place.north,
        tile_column=place.column,
        tile_row=place.row,
        scene_class_ids=(SCL_LABEL_ID + classes).tolist() or None,
        scene_class_fraction=shares[classes].tolist() if shares is not None and classified else None,
        cloud_or_shadow=bool(np.isin(classes, SCL_CLOUD_OR_SHADOW).any()) if classified else None,
        seasonal_snow=bool((classes == SCL_SNOW).any()) if classified else None,
        rasters=[
            PatchRaster(
                stack.resolution, tuple(band.name for band in stack.bands), wkb(cutting, stack, index), one[:, index]
            )
            for stack, one in zip(stacks, statistics, strict=True)
        ],
    )


def wkb(cutting: Cutting, stack: Stack, index: int) -> bytes:
    """Raster WKB of one place of a stack. Raises PgearthError for pixels that PostGIS cannot hold."""
    try:
        return to_wkb(
            Raster(
                bands=tuple(pixels[index] for pixels in stack.pixels),
                transform=stack.transforms[index],
                srid=cutting.srid,
                nodata=stack.nodata,
            )
        )
    except PgearthError as error:
        files = ", ".join(band.file.path for band in stack.bands)
        raise error.of(files) from error


# Geohash cells


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


def cut_cells(cutting: Cutting, bands: Sequence[Band], cells: Sequence[Cell], pixels: int) -> Iterator[Patch]:
    """Warp a product into cells of `pixels` x `pixels` pixels: bilinear, scene classes by the nearest pixel.

    Every band gets a nodata value, for cells that reach beyond the product: 0, or NaN of floating-point bands, where
    the file has none.
    """
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
        for number, cell in enumerate(progress(cells, progress_label(cutting.product), "cells")):
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
            yield from make_patches(
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
