"""Uploaded GeoTIFFs, decoded without GDAL.

PL/Python runs in a process that has PostGIS's GDAL: reading through rasterio, with a GDAL of its own, crashed the
server. PostGIS's ST_FromGDALRaster is no way either: after an image it fails to decode, it fails on good ones too.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from pgearth.pyfuncs.documents import parse_xml
from pgearth.pyfuncs.errors import (
    FEATURE_NOT_SUPPORTED,
    INVALID_BINARY_REPRESENTATION,
    PROGRAM_LIMIT_EXCEEDED,
    PgearthError,
)
from pgearth.pyfuncs.limits import IMAGE_PAGES, IMAGE_PARTS, IMAGE_PIXELS, IMAGE_TAGS, TAG_VALUES, check_pixels
from pgearth.pyfuncs.pixels.rasters import Raster, absent

# Tags: TIFF 6.0, GeoTIFF 1.1, and GDAL's own (https://gdal.org/en/stable/drivers/raster/gtiff.html).
ORIENTATION_TAG, EXTRA_SAMPLES_TAG = 274, 338
PIXEL_SCALE_TAG, TRANSFORMATION_TAG = 33550, 34264
GDAL_METADATA_TAG, GDAL_NODATA_TAG = 42112, 42113
ALPHA = (1, 2)  # among extra samples
ALPHA_NAMES = ("alpha", "a", "mask")
REDUCED_IMAGE, MASK = 1, 4  # bits of a page's subfile type
COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA", 50000: "zstd"}
"""Those that unpack no more than is asked for. Others, such as JPEG, have a size of their own inside."""
VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# tifffile would look for what microscopes and cameras add, and follow it.
PLAIN_TIFF: dict[str, Any] = {f"is_{flag}": False for flag in tifffile.TIFF.FILE_FLAGS}


@dataclass(frozen=True)
class Scale:
    """What the numbers of a band mean: physical value = number * factor + offset."""

    factor: float
    offset: float


@dataclass(frozen=True, eq=False)
class Image:
    """An uploaded image: its bands by name, each (height, width) and north-up, and what its file says of their scales.

    Numbers are as they are stored, but for pixels without data, which are NODATA or NaN (Raster.filled).
    """

    bands: Mapping[str, np.ndarray]
    scales: Mapping[str, Scale]


def read_image(image: bytes, band_names: Sequence[str] | None = None, limit: int = IMAGE_PIXELS.default) -> Image:
    """Read an uploaded GeoTIFF.

    The bands are called by `band_names`, in the file's order, or else by the file's band descriptions. Pixels of the
    file's nodata value, outside of its mask, or with alpha 0, have no data. A file whose first row is the southernmost
    is turned. Raises PgearthError when the file is no TIFF, is damaged, has more than `limit` pixels times bands, lies
    askew, or its bands cannot be named.
    """
    try:
        check_structure(image)
        with tifffile.TiffFile(io.BytesIO(image), **PLAIN_TIFF) as file:
            return _read(file, len(image), band_names, limit)
    except PgearthError:
        raise
    # Damaged files raise whatever the decoder stumbles on.
    except Exception as error:
        raise PgearthError(
            f"cannot read the image ({len(image)} bytes) as a GeoTIFF: {error}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Pass the whole content of a GeoTIFF file as bytea.",
        ) from error


def _read(file: tifffile.TiffFile, size: int, band_names: Sequence[str] | None, limit: int) -> Image:
    page = file.pages.first
    check_page(page, size, limit)
    turn = _turn(page)
    samples = page.samplesperpixel
    items = _items(page)
    descriptions = [items.get(("description", sample)) for sample in range(samples)]
    named, alpha = _division(page, descriptions, band_names)
    names = _band_names([descriptions[sample] for sample in named], band_names)
    scales = {
        name: Scale(_number(items, "scale", sample, 1.0), _number(items, "offset", sample, 0.0))
        for name, sample in zip(names, named, strict=True)
        if ("scale", sample) in items or ("offset", sample) in items
    }
    nodata = _nodata(page)
    pixels = _pixels(page)
    valid = _mask(file, page, size, limit)
    for sample in alpha:
        valid = valid & (pixels[sample] != 0)
    raster = Raster(tuple(pixels[sample] for sample in named), (1, -1, 0, 0, 0, 0), 0, (nodata,) * len(named))
    bands = {}
    for name, band in zip(names, raster.filled(), strict=True):
        bands[name] = np.ascontiguousarray(turn(band if valid.all() else np.where(valid, band, absent(band))))
    return Image(bands, scales)


SINGLE_TAGS = frozenset({256, 257, 259, 262, 266, 274, 277, 284, 317, 322, 323, 32997, 32998})
"""Tags of TIFF 6.0 that tell sizes and kinds: of one value, where tifffile would take several for a tuple."""


def check_structure(image: bytes) -> None:
    """Raise PgearthError for a TIFF of too many pages or tags, or with a tag of too many values.

    Looks at headers only. Raises struct.error, IndexError or ValueError for what is no TIFF.
    """
    for pages, tags in enumerate(_directories(image), start=1):
        total = 0
        for code, kind, count in tags:
            if code in SINGLE_TAGS and count != 1:
                raise ValueError(f"its tag {code} has {count} values, not one")
            total += count * VALUE_BYTES.get(kind, 1)
            if count > TAG_VALUES:
                raise _too_large(f"a tag of the image has {count:,} values", f"At most {TAG_VALUES:,} are read.")
        if pages > IMAGE_PAGES:
            raise _too_large(f"the image has more than {IMAGE_PAGES} pages", "Pass a file of one image.")
        if len(tags) > IMAGE_TAGS:
            raise _too_large(f"the image has {len(tags)} tags", f"At most {IMAGE_TAGS} are read.")
        if total > len(image):
            raise ValueError("its tags are longer than the file")


def _directories(image: bytes) -> Iterator[list[tuple[int, int, int]]]:
    """Code, type and number of values of the tags of each page of a TIFF, in order."""
    order = {b"II": "<", b"MM": ">"}[image[:2]]
    (version,) = struct.unpack_from(f"{order}H", image, 2)
    count_format, entry_format, offset_format, start = {42: ("H", "HHI4x", "I", 4), 43: ("Q", "HHQ8x", "Q", 8)}[version]
    (offset,) = struct.unpack_from(order + offset_format, image, start)
    while offset:
        (count,) = struct.unpack_from(order + count_format, image, offset)
        offset += struct.calcsize(order + count_format)
        entry = struct.Struct(order + entry_format)
        end = offset + count * entry.size
        yield list(entry.iter_unpack(image[offset:end]))
        (offset,) = struct.unpack_from(order + offset_format, image, end)


def check_page(page: Any, size: int, limit: int) -> None:
    """Raise PgearthError for a page, of a file of so many bytes, that is too large to decode in a server process."""
    width, height, depth, samples = page.imagewidth, page.imagelength, page.imagedepth, page.samplesperpixel
    described = f"image of {width} x {height} pixels in {samples} bands"
    if depth != 1:
        described += f", {depth} deep,"
    check_pixels(width * height * depth * samples, limit, described)
    if depth != 1:
        raise PgearthError(
            f"{described.rstrip(',')} is a volume", sqlstate=FEATURE_NOT_SUPPORTED, hint="Pass a flat image."
        )
    if page.compression not in COMPRESSIONS:
        raise PgearthError(
            f"the image is compressed by {getattr(page.compression, 'name', page.compression)}",
            sqlstate=FEATURE_NOT_SUPPORTED,
            hint=f"Compress it by one of {', '.join(dict.fromkeys(COMPRESSIONS.values()))}:"
            " gdal_translate -co COMPRESS=DEFLATE",
        )
    if page.is_tiled:
        across, down = page.tilewidth, page.tilelength
        padded = math.ceil(width / across) * across * math.ceil(height / down) * down * page.tiledepth * samples
        check_pixels(padded, max(limit, 4 * width * height * samples), f"{described} in tiles of {across} x {down}")
    if len(page.dataoffsets) > IMAGE_PARTS:
        raise _too_large(f"{described} in {len(page.dataoffsets):,} strips or tiles", f"At most {IMAGE_PARTS:,}.")
    if sum(page.databytecounts) > 2 * size:
        raise ValueError("its strips or tiles are longer than the file")


def _too_large(message: str, hint: str) -> PgearthError:
    return PgearthError(message, sqlstate=PROGRAM_LIMIT_EXCEEDED, hint=hint)


def _pixels(page: Any) -> np.ndarray:
    """The samples of a page, (samples, height, width)."""
    width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
    pixels = page.asarray(maxworkers=1)
    if pixels.dtype.kind not in "iuf":
        raise PgearthError(
            f"the image's pixels are of type {pixels.dtype}",
            sqlstate=FEATURE_NOT_SUPPORTED,
            hint="Pass integers or real numbers.",
        )
    # Separate planes come as (bands, height, width), interleaved pixels as (height, width, bands).
    if page.planarconfig == 2:
        return np.asarray(pixels.reshape(samples, height, width))
    return np.moveaxis(pixels.reshape(height, width, samples), -1, 0)


def _turn(page: Any) -> Any:
    """What makes the rows of a page go from north to south and its columns from west to east, by its georeference.

    Raises PgearthError for one that lies askew, and for one whose rows are said to begin at another corner.
    """
    if (orientation := int(_value(page, ORIENTATION_TAG) or 1)) != 1:
        raise PgearthError(
            f"the image has the orientation {orientation}",
            sqlstate=FEATURE_NOT_SUPPORTED,
            hint="Write it with the first row at the top and the first column at the left, orientation 1.",
        )
    columns = rows = 1
    if (scale := _value(page, PIXEL_SCALE_TAG)) is not None:
        # Of its second number the sign does not count, as for GDAL: rows go from north to south.
        columns = 1 if float(scale[0]) >= 0 else -1
    elif (matrix := _value(page, TRANSFORMATION_TAG)) is not None:
        to_east, skew_x, skew_y, to_north = (float(matrix[place]) for place in (0, 1, 4, 5))
        if skew_x or skew_y or not (to_east and to_north):
            raise PgearthError(
                "the image is rotated: its rows do not go from west to east",
                sqlstate=FEATURE_NOT_SUPPORTED,
                hint="Warp it to a north-up grid, such as gdalwarp does.",
            )
        columns, rows = (1 if to_east > 0 else -1), (1 if to_north < 0 else -1)
    return lambda band: band[::rows, ::columns]


def _mask(file: tifffile.TiffFile, page: Any, size: int, limit: int) -> np.ndarray:
    """Where pixels are valid by the file's mask, booleans (height, width); everywhere without one.

    Raises PgearthError for a mask of another size.
    """
    shape = (page.imagelength, page.imagewidth)
    for number in range(1, len(file.pages)):
        mask: Any = file.pages[number]
        if mask.subfiletype & MASK and not mask.subfiletype & REDUCED_IMAGE:
            if (mask.imagelength, mask.imagewidth, mask.samplesperpixel) != (*shape, 1):
                raise PgearthError(
                    f"the image has {page.imagewidth} x {page.imagelength} pixels, its mask"
                    f" {mask.imagewidth} x {mask.imagelength} in {mask.samplesperpixel} bands",
                    sqlstate=FEATURE_NOT_SUPPORTED,
                    hint="Pass a mask of the image's size, for all bands together.",
                )
            check_page(mask, size, limit)
            return np.asarray(mask.asarray(maxworkers=1).reshape(shape) != 0)
    return np.ones(shape, bool)


def _division(
    page: Any, descriptions: Sequence[str | None], band_names: Sequence[str] | None
) -> tuple[list[int], list[int]]:
    """Which samples of a page are bands, and which are alpha: those that are tagged so, and that nobody names.

    GDAL tags the fourth of four bands of 8 bits so, whatever it is.
    """
    samples = page.samplesperpixel
    extra = _value(page, EXTRA_SAMPLES_TAG)
    kinds = [int(kind) for kind in np.atleast_1d(extra if extra is not None else [])]
    names: Sequence[str | None] = descriptions if band_names is None else band_names
    tagged = [samples - len(kinds) + place for place, kind in enumerate(kinds) if kind in ALPHA]
    alpha = [
        sample
        for sample in tagged
        if sample >= len(names) or names[sample] is None or str(names[sample]).lower() in ALPHA_NAMES
    ]
    return [sample for sample in range(samples) if sample not in alpha], alpha


def _value(page: Any, tag: int) -> Any:
    found = page.tags.get(tag)
    return None if found is None else found.value


def _text(page: Any, tag: int) -> str:
    value = _value(page, tag)
    return value.strip("\0 ") if isinstance(value, str) else ""


def _nodata(page: Any) -> float | None:
    """The number that means no data; None where the file says none. Raises PgearthError for what is no number."""
    text = _text(page, GDAL_NODATA_TAG)
    if text.lower() in ("", "none"):
        return None
    try:
        return float(text)
    except ValueError:
        raise PgearthError(
            f"the image's nodata value, {text[:100]!r}, is no number",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Set it with gdal_edit.py -a_nodata, or remove it with -unsetnodata.",
        ) from None


def _items(page: Any) -> dict[tuple[str, int], str]:
    """What GDAL's metadata say of single samples, by role (description, scale, offset) and number of the sample."""
    text = _text(page, GDAL_METADATA_TAG)
    if not text:
        return {}
    return {
        (role, int(item.get("sample", "0"))): item.text or ""
        for item in parse_xml(text.encode()).iter("Item")
        if (role := item.get("role")) is not None
    }


def _number(items: Mapping[tuple[str, int], str], role: str, sample: int, default: float) -> float:
    """A scale or offset. Raises PgearthError for one that is no finite number, and for a scale of 0."""
    text = items.get((role, sample))
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (role == "scale" and number == 0):
        raise PgearthError(
            f"the {role} of band {sample + 1} of the image is {text[:100]!r}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Set it with gdal_edit.py -scale and -offset.",
        )
    return number


def _band_names(descriptions: Sequence[str | None], band_names: Sequence[str] | None) -> list[str]:
    if band_names is None:
        if None in descriptions:
            raise PgearthError(
                f"the image does not name its bands: descriptions {list(descriptions)}",
                hint="Write band descriptions such as B02 into the file, or pass the names in the file's order.",
            )
        band_names = [str(description) for description in descriptions]
    if len(band_names) == len(descriptions) + 1 and band_names[-1].lower() in ALPHA_NAMES:
        band_names = band_names[:-1]
    if len(band_names) != len(descriptions):
        raise PgearthError(
            f"{len(band_names)} band names for an image of {len(descriptions)} bands",
            hint="Name every band of the file, in its order, also those that the encoder does not read.",
        )
    if len(set(band_names)) < len(band_names):
        raise PgearthError(f"band names repeat: {', '.join(band_names)}", hint="Give each band a name of its own.")
    return list(band_names)
