"""Uploaded GeoTIFFs, decoded without GDAL.

PL/Python runs in a process that has PostGIS's GDAL: reading through rasterio, with a GDAL of its own, crashed the
server. PostGIS's ST_FromGDALRaster is no way either: after an image it fails to decode, it fails on good ones too.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from pyfuncs.errors import INVALID_BINARY_REPRESENTATION, PROGRAM_LIMIT_EXCEEDED, PgearthError
from pyfuncs.rasters import Raster

MAX_IMAGE_PIXELS = 16_000_000  # pixels times bands
GDAL_METADATA_TAG, GDAL_NODATA_TAG = 42112, 42113  # https://gdal.org/en/stable/drivers/raster/gtiff.html


def read_image(image: bytes, band_names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read an uploaded GeoTIFF into one (height, width) array per band.

    The bands are called by `band_names`, in the file's order, or else by the file's band descriptions. The file's
    nodata value becomes NODATA. Raises PgearthError when the file is no TIFF, is damaged, has more than
    MAX_IMAGE_PIXELS pixels times bands, or its bands cannot be named.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(image)) as file:
            page = file.pages.first
            width, height, count = page.imagewidth, page.imagelength, page.samplesperpixel
            check_size(width, height, count)
            names = _band_names(_descriptions(_text(page, GDAL_METADATA_TAG), count), band_names)
            # Separate planes come as (bands, height, width), interleaved pixels as (height, width, bands).
            pixels = page.asarray()
            bands = (
                pixels.reshape(count, height, width)
                if page.planarconfig == 2
                else np.moveaxis(pixels.reshape(height, width, count), -1, 0)
            )
            nodata = _nodata(_text(page, GDAL_NODATA_TAG))
    except PgearthError:
        raise
    # Damaged files raise whatever the decoder stumbles on.
    except Exception as error:
        raise PgearthError(
            f"cannot read the image ({len(image)} bytes) as a GeoTIFF: {error}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Pass the whole content of a GeoTIFF file as bytea.",
        ) from error
    raster = Raster(tuple(bands), (1, -1, 0, 0, 0, 0), 0, (nodata,) * count)
    return dict(zip(names, raster.filled(), strict=True))


def check_size(width: int, height: int, count: int) -> None:
    """Raise PgearthError for an image too large to decode in a server process."""
    if width * height * count > MAX_IMAGE_PIXELS:
        raise PgearthError(
            f"image of {width} x {height} pixels in {count} bands is too large",
            sqlstate=PROGRAM_LIMIT_EXCEEDED,
            hint=f"The limit is {MAX_IMAGE_PIXELS} pixels times bands: cut out the part to search for.",
        )


def _text(page: Any, tag: int) -> str:
    found = page.tags.get(tag)
    return found.value.strip("\0 ") if found else ""


def _nodata(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise PgearthError(
            f"the image's nodata value is {text!r}, which is no number",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Write a number into the tag GDAL_NODATA (42113), or leave it out.",
        ) from error


def _descriptions(metadata: str, count: int) -> list[str | None]:
    descriptions: list[str | None] = [None] * count
    if metadata:
        for item in ElementTree.fromstring(metadata).iter("Item"):
            if item.get("role") == "description":
                descriptions[int(item.get("sample", "0"))] = item.text
    return descriptions


def _band_names(descriptions: Sequence[str | None], band_names: Sequence[str] | None) -> list[str]:
    if band_names is None:
        if None in descriptions:
            raise PgearthError(
                f"the image does not name its bands: descriptions {list(descriptions)}",
                hint="Write band descriptions such as B02 into the file, or pass the names in the file's order.",
            )
        band_names = [str(description) for description in descriptions]
    if len(band_names) != len(descriptions):
        raise PgearthError(
            f"{len(band_names)} band names for an image of {len(descriptions)} bands",
            hint="Name every band of the file, in its order, also those that the encoder does not read.",
        )
    if len(set(band_names)) < len(band_names):
        raise PgearthError(f"band names repeat: {', '.join(band_names)}", hint="Give each band a name of its own.")
    return list(band_names)
