"""Units of pixels: what an encoder reads, as it declares it, and how an uploaded image's numbers become that.

An encoder declares a unit for each of its bands (eo.encoder.units), one of UNITS, or nothing: then its numbers are not
looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pgearth.pyfuncs.errors import NUMERIC_VALUE_OUT_OF_RANGE, PgearthError
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.pixels.rasters import NODATA, absent, valid_pixels
from pgearth.pyfuncs.pixels.uploads import Image, Scale

Bands = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Unit:
    """A unit: its name for people, how many of it are one of the physical quantity, and what an image can hold of it.

    Values lie between `least` and `greatest`; the greatest of an image is above `some_above`, and the least of it below
    `some_below`, or its numbers are of another unit. `otherwise` says what they then are likely to be.
    """

    title: str
    per_physical: float
    least: float
    greatest: float
    some_above: float
    some_below: float
    otherwise: str


UNITS = {
    "reflectance10000": Unit(
        "reflectance times 10,000",
        per_physical=10_000,
        least=-2_000,  # with the offset of -1,000 taken into account twice; -9,999 is what others call no data
        greatest=65_535,
        some_above=100,  # of all bands the brightest pixel, where even deep water reflects a hundredth of the blue
        some_below=np.inf,
        otherwise="Multiply reflectance from 0 to 1 by 10,000, as gdal_translate -ot UInt16 -scale 0 1 0 10000 does;"
        " other digital numbers are converted if the file has their scale and offset (gdal_edit.py -scale ...).",
    ),
    "reflectance": Unit(
        "reflectance from 0 to 1",
        per_physical=1,
        least=-1,
        greatest=20,
        some_above=-np.inf,
        some_below=np.inf,
        otherwise="Digital numbers (Sentinel-2's are 10,000 times as large) are converted if the file has their scale"
        " and offset: gdal_edit.py -scale 0.0001 -offset 0",
    ),
    "decibels": Unit(
        "backscatter in decibels",
        per_physical=1,
        least=-200,
        greatest=100,
        some_above=-np.inf,
        some_below=0,  # an image of nothing but corner reflectors is none
        otherwise="Convert backscatter that is a ratio: 10 * log10(sigma nought).",
    ),
}


def check_units(units: Sequence[str], bands: Sequence[str]) -> None:
    """Raise PgearthError unless these are units, one for each band."""
    unknown = [unit for unit in units if unit not in UNITS]
    if unknown or len(units) != len(bands):
        raise PgearthError(
            f"{', '.join(units)} are not the units of {len(bands)} bands", hint=f"Units are {', '.join(UNITS)}."
        )


def in_units(encoder: Encoder, image: Image) -> dict[str, np.ndarray]:
    """The bands of an uploaded image, those that the encoder reads in its units.

    Raises PgearthError for scales where it declares none, for numbers that cannot be of its units, and for a band
    without any data, of which features would be those of a place that is nowhere.
    """
    bands = dict(image.bands)
    if empty := [name for name in encoder.bands if name in bands and finite_range(bands[name]) is None]:
        raise PgearthError(
            f"the image has no data in {', '.join(empty)}",
            hint="Pass an image of a place that its bands show; 0, NaN and the file's nodata value are no data.",
        )
    for number, name in enumerate(encoder.bands):
        if name not in image.scales or name not in bands:
            continue
        scale = image.scales[name]
        if encoder.units is not None:
            bands[name] = converted(bands[name], scale, UNITS[encoder.units[number]])
        elif scale != Scale(1.0, 0.0):
            raise PgearthError(
                f"band {name} of the image has the scale {scale.factor} and the offset {scale.offset}, but encoder"
                f" {encoder.name}:{encoder.version} does not declare its units",
                hint="Write the numbers that it was made for into the file, without scale and offset.",
            )
    check_range(encoder, bands)
    return bands


def converted(band: np.ndarray, scale: Scale, unit: Unit) -> np.ndarray:
    """The numbers of a band in a unit; pixels without data stay such.

    Reflectance times 10,000 is as the archive stores it: whole, and 1 at least.
    """
    valid = valid_pixels(band, absent(band))
    values = (band.astype(np.float64) * scale.factor + scale.offset) * unit.per_physical
    if unit is UNITS["reflectance10000"]:
        return np.where(valid, np.clip(np.rint(values), 1, unit.greatest), NODATA).astype(np.uint16)
    return np.where(valid, values, np.nan).astype(np.float32)


def check_range(encoder: Encoder, bands: Bands) -> None:
    """Raise PgearthError where numbers of the bands that an encoder reads cannot be of the units that it declares."""
    if encoder.units is None:
        return
    for unit_name in dict.fromkeys(encoder.units):
        unit = UNITS[unit_name]
        pixels = [
            bands[name]
            for name, declared in zip(encoder.bands, encoder.units, strict=True)
            if declared == unit_name and name in bands
        ]
        ranges = [found for band in pixels if (found := finite_range(band))]
        if not ranges:
            continue
        least, greatest = min(low for low, _ in ranges), max(high for _, high in ranges)
        possible = least >= unit.least and greatest <= unit.greatest
        if not (possible and greatest > unit.some_above and least < unit.some_below):
            raise PgearthError(
                f"the image's numbers, {least:g} to {greatest:g}, cannot be {unit.title}, which encoder"
                f" {encoder.name}:{encoder.version} reads",
                sqlstate=NUMERIC_VALUE_OUT_OF_RANGE,
                hint=unit.otherwise,
            )


def finite_range(band: np.ndarray) -> tuple[float, float] | None:
    """Least and greatest of the pixels with data; None where there are none."""
    values = band[valid_pixels(band, absent(band))]
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None
