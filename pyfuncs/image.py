"""Uploaded GeoTIFFs: their size and the names of their bands, read without decoding a pixel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from xml.etree import ElementTree

import tifffile

from pyfuncs.errors import INVALID_BINARY_REPRESENTATION, PROGRAM_LIMIT_EXCEEDED, PgearthError

MAX_IMAGE_PIXELS = 64_000_000  # pixels times bands
GDAL_METADATA_TAG = 42112


def image_bands(image: bytes, band_names: Sequence[str] | None = None) -> list[str]:
    """Name the bands of a GeoTIFF: by `band_names`, in the file's order, or else by the file's band descriptions.

    The descriptions are GDAL's, in the tag GDAL_METADATA (https://gdal.org/drivers/raster/gtiff.html). Raises
    PgearthError when the file is no TIFF, has more than MAX_IMAGE_PIXELS pixels times bands, or its bands cannot be
    named.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(image)) as file:
            page = file.pages.first
            width, height, count = page.imagewidth, page.imagelength, page.samplesperpixel
            tag = page.tags.get(GDAL_METADATA_TAG)
            descriptions = _descriptions(tag.value if tag else "", count)
    except (tifffile.TiffFileError, ElementTree.ParseError, IndexError, ValueError, OSError) as error:
        raise PgearthError(
            f"cannot read the image ({len(image)} bytes) as a GeoTIFF: {error}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Pass the whole content of a GeoTIFF file as bytea.",
        ) from error
    if width * height * count > MAX_IMAGE_PIXELS:
        raise PgearthError(
            f"image of {width} x {height} pixels in {count} bands is too large",
            sqlstate=PROGRAM_LIMIT_EXCEEDED,
            hint=f"The limit is {MAX_IMAGE_PIXELS} pixels times bands: cut out the part to search for.",
        )
    return _band_names(descriptions, band_names)


def _descriptions(metadata: str, count: int) -> list[str | None]:
    descriptions: list[str | None] = [None] * count
    if metadata:
        for item in ElementTree.fromstring(metadata.strip("\0")).iter("Item"):
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
