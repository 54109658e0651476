"""Pictures for people: PNG quicklooks of patches."""

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from pyfuncs.errors import PgearthError
from pyfuncs.rasters import NODATA


def rgb_png(red: np.ndarray, green: np.ndarray, blue: np.ndarray, nodata: float | None = NODATA) -> bytes:
    """Draw three bands (height, width) as an 8-bit RGB PNG.

    Each band is stretched from the 2nd to the 98th percentile of its valid pixels. Pixels that equal `nodata` or are
    not finite in any band are black. Raises PgearthError when the bands differ in shape.
    """
    if not red.shape == green.shape == blue.shape:
        raise PgearthError(f"bands of one picture differ in shape: {red.shape}, {green.shape}, {blue.shape}")
    bands = np.stack([red, green, blue], axis=-1).astype(np.float64)
    valid = (np.isfinite(bands) & (bands != nodata)).all(axis=-1)
    picture = np.zeros(bands.shape, np.uint8)
    if valid.any():
        low, high = np.percentile(bands[valid], [2, 98], axis=0)
        stretched = (bands[valid] - low) / np.where(high > low, high - low, 1.0)
        picture[valid] = np.rint(255 * stretched.clip(0, 1))
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def patch_png(bands: Mapping[str, np.ndarray]) -> bytes:
    """Draw a patch: B04, B03, B02 of Sentinel-2; VV, VH and VV - VH (a ratio, in decibels) of Sentinel-1.

    Raises PgearthError when the patch has neither.
    """
    if {"B04", "B03", "B02"} <= bands.keys():
        return rgb_png(bands["B04"], bands["B03"], bands["B02"])
    if {"VV", "VH"} <= bands.keys():
        return rgb_png(bands["VV"], bands["VH"], bands["VV"] - bands["VH"], nodata=None)
    raise PgearthError(
        f"a patch of the bands {', '.join(bands)} cannot be drawn in colour",
        hint="It takes B04, B03 and B02 (Sentinel-2) or VV and VH (Sentinel-1).",
    )
