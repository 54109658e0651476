"""Patches from the pixels of several places: what is dropped or masked, statistics, scene classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pgearth.loaders.archive.write import Patch, PatchRaster, Product
from pgearth.loaders.products.bands import Band
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import Raster, band_statistics, to_wkb, valid_pixels

Nodata = Literal["keep", "drop", "mask"]
Patches = Generator[Patch, None, Counter[str]]

SCL_LABEL_ID = 2000
SCL_CLASSES = 12
# Cloud shadow, medium and high cloud probability, and thin cirrus, which ESA's CLOUDY_PIXEL_PERCENTAGE counts as cloud.
SCL_CLOUD_OR_SHADOW = (3, 8, 9, 10)
SCL_SNOW = 11
VALID_FRACTION = 4  # its place in what band_statistics returns


@dataclass(frozen=True)
class Cutting:
    """What is cut, and how: `classes` names the band of scene classes, if there is one."""

    product: Product
    srid: int
    classes: str | None
    nodata: Nodata
    threads: int

    @property
    def label(self) -> str:
        """What the progress display calls the product."""
        return f"{self.product.level} {self.product.mgrs_tile or self.product.name}"


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


def make_patches(cutting: Cutting, places: Sequence[Place], stacks: Sequence[Stack]) -> Patches:
    """Yield the patches of several places, but for those that are dropped.

    Dropped is what has no valid pixel in any reflectance band, and where so asked what has a nodata pixel in any band.
    Returns how many were dropped (without_data, with_nodata_dropped), and how many were masked.
    """
    counts: Counter[str] = Counter()
    statistics = describe(stacks)
    if cutting.nodata == "mask":
        gaps: np.ndarray = np.any([(one[..., VALID_FRACTION] < 1).any(axis=0) for one in statistics], axis=0)
        if gaps.any():
            stacks = [mask(stacks, number, gaps) for number in range(len(stacks))]
            statistics = describe(stacks)
            counts["masked"] = int(np.count_nonzero(gaps))
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
            counts[what] = number
    shares = class_shares(cutting, stacks, len(places))
    for index in np.flatnonzero(kept).tolist():
        yield make_patch(cutting, places[index], index, stacks, statistics, None if shares is None else shares[index])
    return counts


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
