"""What a product consists of, whatever its format: its row in eo.product, and its bands as GDAL opens them.

Every format has a module with `open_product(path, given)`, which returns these, or None for a path of another format.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import rasterio
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from loaders.patches import Product


@dataclass(frozen=True)
class Given:
    """What the caller says of the product, in place of its metadata: name, start of sensing (aware), platform."""

    name: str | None = None
    sensing_time: datetime | None = None
    platform: str | None = None


@dataclass(frozen=True)
class BandFile:
    """One band in a file: `path` is what GDAL opens (a file, /vsizip/..., a subdataset), `number` its band, from 1.

    `nodata` is for files that carry no tag of their own (None: such a file has no nodata). `offset` is to be added to
    every valid pixel on reading, clipped below at 1: -1000 for Sentinel-2 since baseline 04.00.
    """

    name: str
    path: str
    number: int = 1
    nodata: float | None = None
    offset: int = 0

    def open(self) -> DatasetReader | WarpedVRT:
        """Open the file on a north-up grid. Raises RasterioError if it is unreadable."""
        return rasterio.open(self.path)


@dataclass(frozen=True)
class ProductFiles:
    """A product that was found: its row and all its bands, those that are there in several resolutions several times.

    `expected` are the bands that it should have: loading fails if one is missing, unless bands are selected. `grid` is
    how it is cut unless the caller says otherwise (see loaders/grids.py). `classes` names the band of scene classes.
    """

    product: Product
    bands: tuple[BandFile, ...]
    expected: tuple[str, ...]
    grid: str
    classes: str | None = None
