"""Bands of Sentinel-2, and the names of their files."""

from __future__ import annotations

import re

# In the order of the metadata's band_id, 0 to 12.
REFLECTANCE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
TEN_METRES = ("B02", "B03", "B04", "B08")
SCL = "SCL"
BANDS = (*REFLECTANCE_BANDS, SCL)
EXPECTED = tuple(band for band in REFLECTANCE_BANDS if band != "B10")  # B10 is in L1C only, SCL in L2A only
QUANTIFICATION = 10_000

BAND_FILE = re.compile(r"(?:^|.*_)(B(?:0?[1-9]|1[0-2]|8A)|SCL)(?:_\d+m)?\.(?:tiff?|jp2)", re.IGNORECASE)


def band_of(file_name: str) -> str | None:
    """The band (B01 .. B12, B8A, SCL) that a file is of by its name, such as B2.tif or A_b02_10m.jp2; None: of none."""
    match = BAND_FILE.fullmatch(file_name)
    if match is None:
        return None
    name = match[1].upper()
    return f"B{int(name[1:]):02}" if name[1:].isdigit() else name


def is_jpeg_2000(file: str) -> bool:
    """Whether a file is JPEG 2000: as ESA delivers it."""
    return file.lower().endswith(".jp2")


def bands_of(level: str | None) -> tuple[str, ...]:
    """Reflectance bands of a product of a level."""
    return REFLECTANCE_BANDS if level == "L1C" else EXPECTED
