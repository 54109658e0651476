"""Rasters: PostGIS raster WKB to and from numpy, and resampling.

The WKB layout is PostGIS's RFC 2 (raster/doc/RFC2-WellKnownBinaryFormat), except for the pixel type codes of 32BF and
64BF: the RFC prints 9 and 10, the server writes 10 and 11 (librtcore.h).
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from pgearth.pyfuncs.errors import FEATURE_NOT_SUPPORTED, INVALID_BINARY_REPRESENTATION, PgearthError

NODATA = 0
"""Integer that means "no data" where pixels travel without a raster around them, as in Sentinel-2; floats use NaN."""

# 1BB, 2BUI and 4BUI also take one byte per pixel in WKB, so they read as 8BUI.
_DTYPES = {
    0: "u1", 1: "u1", 2: "u1", 3: "i1", 4: "u1", 5: "i2", 6: "u2", 7: "i4", 8: "u4", 10: "f4", 11: "f8",
}  # fmt: skip
_PIXEL_TYPES = {np.dtype(dtype): code for code, dtype in _DTYPES.items() if code > 2}
_PIXEL_TYPE_MASK = 0x0F
_HAS_NODATA = 0x40
_IS_OFFLINE = 0x80
_HEADER = "HH6diHH"  # version, bands, transform, srid, width, height


@dataclass(frozen=True, eq=False)
class Raster:
    """A PostGIS raster in memory.

    `bands` are (height, width) arrays of one shape, each with its own dtype. `transform` is as PostGIS stores it:
    (scale x, scale y, upper left x, upper left y, skew x, skew y) in units of the `srid` (0: unknown). `nodata` has one
    value per band, None for a band without. Raises PgearthError when these do not fit together.
    """

    bands: tuple[np.ndarray, ...]
    transform: tuple[float, float, float, float, float, float]
    srid: int
    nodata: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if not self.bands:
            raise PgearthError("a raster without bands holds no pixels", hint="Give a raster of one band at least.")
        if len(self.nodata) != len(self.bands):
            raise PgearthError(
                f"{len(self.nodata)} nodata values for {len(self.bands)} bands",
                hint="Give each band a nodata value, or None.",
            )
        shapes = {band.shape for band in self.bands}
        shape = self.bands[0].shape
        if len(shapes) > 1 or len(shape) != 2 or min(shape) < 1 or max(shape) > 0xFFFF:
            raise PgearthError(
                f"raster bands have shapes {sorted(shapes)}",
                hint="All bands of a raster have one shape of 1 to 65535 rows and columns.",
            )

    def filled(self) -> tuple[np.ndarray, ...]:
        """Return the bands with nodata values replaced by what encoders leave out: NODATA, or NaN in float bands."""
        return tuple(
            band if nodata is None or nodata == absent(band) else np.where(band == nodata, absent(band), band)
            for band, nodata in zip(self.bands, self.nodata, strict=True)
        )


def absent(band: np.ndarray) -> Any:
    """What stands for no data in a band without a raster around it, in the band's dtype."""
    return band.dtype.type(np.nan if np.issubdtype(band.dtype, np.floating) else NODATA)


def from_wkb(wkb: bytes) -> Raster:
    """Read a PostGIS raster from the output of `ST_AsWKB`; the bands are read-only views of `wkb`, not copies.

    Big-endian WKB is copied into native byte order. Raises PgearthError for anything that is not a whole in-database
    raster.
    """
    try:
        order: Literal["<", ">"] = "<" if wkb[0] else ">"
        version, count, *transform, srid, width, height = struct.unpack_from(order + _HEADER, wkb, 1)
        if wkb[0] > 1 or version != 0:
            raise ValueError(f"byte order {wkb[0]}, version {version}")
        offset = 1 + struct.calcsize(order + _HEADER)
        bands, nodata = [], []
        for number in range(1, count + 1):
            flags = wkb[offset]
            if flags & _IS_OFFLINE:
                raise PgearthError(
                    f"band {number} of the raster is stored outside the database",
                    sqlstate=FEATURE_NOT_SUPPORTED,
                    hint="Read it with ST_AsWKB(rast, true), which brings the pixels along.",
                )
            dtype = np.dtype(_DTYPES[flags & _PIXEL_TYPE_MASK]).newbyteorder(order)
            values = np.frombuffer(wkb, dtype, 1 + width * height, offset + 1)  # the nodata value precedes the pixels
            values = values.astype(dtype.newbyteorder("="), copy=False)
            nodata.append(values[0].item() if flags & _HAS_NODATA else None)
            bands.append(values[1:].reshape(height, width))
            offset += 1 + values.nbytes
        if offset != len(wkb):
            raise ValueError(f"{len(wkb) - offset} bytes too many")
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise PgearthError(
            f"not the WKB of a raster ({len(wkb)} bytes): {error}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Pass the whole output of ST_AsWKB(rast).",
        ) from error
    return Raster(tuple(bands), tuple(transform), srid, tuple(nodata))


def to_wkb(raster: Raster) -> bytes:
    """Write a raster as little-endian WKB with in-database bands, the input of `ST_RastFromWKB`.

    Raises PgearthError for a dtype that PostGIS has no pixel type for, and for a nodata value that a band cannot hold.
    """
    height, width = raster.bands[0].shape
    parts: list[Any] = [
        struct.pack("<B" + _HEADER, 1, 0, len(raster.bands), *raster.transform, raster.srid, width, height)
    ]
    for band, nodata in zip(raster.bands, raster.nodata, strict=True):
        pixel_type = _PIXEL_TYPES.get(band.dtype.newbyteorder("="))
        if pixel_type is None:
            raise PgearthError(
                f"PostGIS has no pixel type for {band.dtype}",
                hint=f"Convert the band to one of {', '.join(str(dtype) for dtype in _PIXEL_TYPES)}.",
            )
        if nodata is not None and np.issubdtype(band.dtype, np.integer):
            limits = np.iinfo(band.dtype)
            if not (limits.min <= nodata <= limits.max and float(nodata).is_integer()):
                raise PgearthError(
                    f"a band of {band.dtype} cannot hold the nodata value {nodata}", "Convert the band, or its nodata."
                )
        little = band.dtype.newbyteorder("<")
        parts += [
            bytes([pixel_type | (0 if nodata is None else _HAS_NODATA)]),
            np.array([0 if nodata is None else nodata]).astype(little),
            np.ascontiguousarray(band, little),
        ]
    return b"".join(parts)


def valid_pixels(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    """Where pixels are neither `nodata` (None: there is no such value) nor NaN, a boolean array of the same shape."""
    if np.issubdtype(pixels.dtype, np.floating):
        valid = ~np.isnan(pixels)
        return valid if nodata is None or np.isnan(nodata) else valid & (pixels != nodata)
    return np.ones(pixels.shape, bool) if nodata is None else pixels != nodata


def band_statistics(pixels: np.ndarray, nodata: float | None) -> np.ndarray:
    """Statistics of the valid pixels of bands (..., rows, columns), an array (..., 5) of float64.

    Least and greatest value, mean, standard deviation (of the population), all four NaN without valid pixels, and the
    share of pixels that are valid, 0 to 1.
    """
    flat = pixels.reshape(*pixels.shape[:-2], -1)
    valid = valid_pixels(flat, nodata)
    numbers = np.count_nonzero(valid, axis=-1)
    values = flat.astype(np.float64)
    if complete := bool((numbers == flat.shape[-1]).all()):
        least, greatest = flat.min(axis=-1), flat.max(axis=-1)
    else:
        least = np.min(values, axis=-1, where=valid, initial=np.inf)
        greatest = np.max(values, axis=-1, where=valid, initial=-np.inf)
        values[~valid] = 0
    with np.errstate(invalid="ignore"):  # 0 / 0 where there is no valid pixel
        mean = values.sum(axis=-1) / numbers
        values -= mean[..., None]
        if not complete:
            values[~valid] = 0
        deviation = np.sqrt(np.einsum("...i,...i", values, values) / numbers)
    result = np.stack([least, greatest, mean, deviation, numbers / flat.shape[-1]], axis=-1).astype(np.float64)
    result[numbers == 0, :4] = np.nan
    return result


def resample(band: Any, shape: tuple[int, int]) -> Any:
    """Resample the last two axes of an array (..., height, width) to `shape`, keeping the extent.

    Whole factors: repeated pixels (finer) or block means (coarser). Other factors: bilinear between pixel centres, the
    outermost pixels continued to the edge. Means and bilinear values are float64; a NaN pixel makes every pixel it
    contributes to NaN. Works on arrays of any library of the array API standard.
    """
    xp = array_namespace(band)
    height, width = band.shape[-2:]
    rows, columns = shape
    if (height, width) == (rows, columns):
        return band
    if rows % height == 0 and columns % width == 0:
        return xp.repeat(xp.repeat(band, rows // height, axis=-2), columns // width, axis=-1)
    values = xp.astype(band, xp.float64)
    if height % rows == 0 and width % columns == 0:
        blocks = xp.reshape(values, (*band.shape[:-2], rows, height // rows, columns, width // columns))
        return xp.mean(blocks, axis=(-3, -1))

    from scipy.ndimage import zoom  # here, because importing it takes 0.2 s and few archives need it

    factors = [1.0] * (band.ndim - 2) + [rows / height, columns / width]
    return xp.asarray(zoom(np.asarray(values), factors, order=1, mode="nearest", grid_mode=True))


def bands_from_wkb(wkb: bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the bands of a raster by their names, each with its nodata value replaced as `Raster.filled` does."""
    bands = from_wkb(wkb).filled()
    if len(bands) != len(names):
        raise PgearthError(
            f"a raster of {len(bands)} bands cannot have the names {', '.join(names)}",
            hint="Give as many names as the raster has bands.",
        )
    return dict(zip(names, bands, strict=True))
