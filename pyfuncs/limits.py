"""Limits to what is read from a user, all of them: they are checked before memory is taken.

A file of a few kilobytes can say that it holds gigabytes, and a decoder believes it. Those of kind Setting are for a
user to change: in SQL with `set pgearth.NAME = ...`, which any session may, for the command by the environment
variable PGEARTH_NAME. Not beyond half of the memory that is available at that moment, however.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pgearth.pyfuncs.errors import PROGRAM_LIMIT_EXCEEDED, PgearthError

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Setting:
    """A limit that a user may change; `memory` is how many bytes one of what it counts takes, at most, meanwhile."""

    name: str
    default: int
    memory: int

    def value(self, text: str | None) -> int:
        """The limit, of a user who set it to a text (None or empty: did not). Raises PgearthError for no number."""
        if not text:
            return self.default
        try:
            wanted = int(text)
            if wanted < 1:
                raise ValueError
        except ValueError:
            raise PgearthError(
                f"{self.name} is {text!r}", hint=f"Set it to a whole number above 0; the default is {self.default}."
            ) from None
        return wanted if wanted <= self.default else max(self.default, min(wanted, self._in_memory()))

    def of_environment(self) -> int:
        """The limit for the command."""
        return self.value(os.environ.get(self.variable))

    @property
    def variable(self) -> str:
        """The environment variable that sets it for the command."""
        return f"PGEARTH_{self.name.upper()}"

    def _in_memory(self) -> int:
        import psutil  # here, because most calls do not need it

        return int(psutil.virtual_memory().available // 2 // self.memory)


# Uploaded images and rasters, in a backend

IMAGE_PIXELS = Setting("max_image_pixels", default=16_000_000, memory=48)
"""Pixels times bands that one call gets: 12 bands of 1,150 x 1,150. Every factor counts (depth, planes, samples, the
padding of tiles, and the finest grid of bands of several resolutions, to which encoders resample). Of eight bytes each,
as they come, in the copies that are made on the way, and in float64, where features are computed."""
IMAGE_PAGES = 64
"""Images in a TIFF, of which the first and its mask are read: a COG has its overviews and their masks, 20 at most."""
IMAGE_TAGS = 256
"""Tags of one image: GDAL writes 30."""
TAG_VALUES = 1_000_000
"""Values of one tag: the longest are the places of strips and tiles, and GDAL's metadata, in bytes."""
IMAGE_PARTS = 100_000
"""Strips and tiles of an image: 16 million pixels in the smallest tiles that TIFF allows (16 x 16) are 62,500."""

# Documents: XML and JSON

DOCUMENT_BYTES = Setting("max_document_bytes", default=64 * MEGABYTE, memory=8)
"""Bytes of one document: the largest known of a product, an annotation of Sentinel-1, has 4 MB."""
DOCUMENT_VALUES = Setting("max_document_values", default=2_000_000, memory=300)
"""Elements, members and items of a document, each of which is an object of 60 to 300 bytes in Python."""
DOCUMENT_DEPTH = 100
"""How deep elements, arrays and objects lie in each other: Python's own limit, 1,000, is that of its stack."""

# Archives and the files in them

PATCH_BYTES = Setting("max_patch_bytes", default=256 * MEGABYTE, memory=4)
"""Bytes of all files of one patch in an export, and of its pixels: 12 bands of 2,300 x 2,300 in 32 bits."""
ARCHIVE_MEMBERS = 1_000_000
"""Files in a zip or tar archive: an export's shard of 4 GB has 300,000."""
ZIP_DIRECTORY_BYTES = 128 * MEGABYTE
"""Bytes of a zip archive's directory, which is read whole: of a million files with long names."""
TAR_HEADER_BYTES = MEGABYTE
"""Bytes of a long name or of extended headers in a tar archive, which are read whole."""
PARQUET_BYTES = Setting("max_parquet_bytes", default=1024 * MEGABYTE, memory=2)
"""Bytes of a row group of a parquet file, unpacked: pyarrow unpacks its columns' pages whole."""
PARQUET_VALUES = 50_000_000
"""Values of a column in a row group, which take no room in a file where they are all the same."""
PARQUET_TEXT_BYTES = 1_000
"""Bytes of a text in a table, which a file may have once and mean in every row: names of patches have 80."""

# Models and weights

MODEL_BYTES = 500 * MEGABYTE
"""Bytes of weights or of a model: pg_dump reads no larger values (also eo.register_encoder)."""
WEIGHTS_HEADER_BYTES = MEGABYTE
"""Bytes of the header of weights in the safetensors format, JSON: a ResNet-50's has 30 kB."""


def check_pixels(pixels: int, limit: int, image: str) -> None:
    """Raise PgearthError for more pixels times bands than the limit; `image` is how the message calls them."""
    if pixels > limit:
        raise PgearthError(
            f"{image} is too large: {pixels:,} pixels times bands",
            sqlstate=PROGRAM_LIMIT_EXCEEDED,
            hint=f"The limit is {limit:,}: cut out the part that matters, or where the server has the memory:"
            f" set pgearth.{IMAGE_PIXELS.name} = ...",
        )
