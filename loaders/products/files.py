"""What a product consists of, whatever its format: its row in eo.product, and its bands as GDAL opens them.

Every format has a module with `open_product(path, given)`, which returns these, or None for a path of another format;
formats/known.py tries them in turn. What the formats share is here, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from pgearth.loaders.archive.write import Product
from pgearth.loaders.files.gdal_files import RASTER_DRIVERS, RASTER_FORMATS, open_raster
from pgearth.pyfuncs.errors import PgearthError

# What a product's name has as its time is the start of the data take; metadata may have the granule's own.
LONGEST_DATA_TAKE = timedelta(hours=2)


@dataclass(frozen=True)
class Given:
    """What the caller says of the product, in place of its metadata: name, start of sensing (aware), platform.

    `scale` and `offset` are those of Sentinel-2's pixels: reflectance = scale * pixel + offset.
    """

    name: str | None = None
    sensing_time: datetime | None = None
    platform: str | None = None
    scale: float | None = None
    offset: float | None = None


@dataclass(frozen=True)
class BandFile:
    """One band in a file: `path` is what GDAL opens (a file, /vsizip/..., a subdataset), `number` its band, from 1.

    `nodata` is for files that carry no tag of their own (None: such a file has no nodata). Every valid pixel is
    multiplied by `factor` on reading, and `offset` is added, clipped below at 1: 1 and -1000 for Sentinel-2 as ESA
    delivers it since baseline 04.00. `unknown_units` says why neither is known; then no pixel may be stored. `srid` is
    for a coordinate reference system that EPSG has no code for (None: it has one). `units` are scale and offset by the
    metadata of pixels that are stored as they are: whole numbers, whose tags, if there are any, must say the same.
    `drivers` are those that may open it.
    """

    name: str
    path: str
    number: int = 1
    nodata: float | None = None
    offset: float = 0
    srid: int | None = None
    factor: float = 1
    unknown_units: str | None = None
    units: tuple[float, float] | None = None
    drivers: tuple[str, ...] = RASTER_DRIVERS

    def open(self) -> DatasetReader | WarpedVRT:
        """Open the file on a north-up grid. Raises RasterioError if it is unreadable."""
        return open_raster(self.path, self.drivers)

    def read(self, dataset: DatasetReader | WarpedVRT, window: Window) -> np.ndarray:
        """Pixels of a window of the dataset that `open` returned, as they are in it: an array (rows, columns)."""
        pixels: np.ndarray = dataset.read(self.number, window=window)
        return pixels


@dataclass(frozen=True)
class ProductFiles:
    """A product that was found: its row and all its bands, those that are there in several resolutions several times.

    `expected` are the bands that it should have: loading fails if one is missing, unless bands are selected. `grid` is
    how it is cut unless the caller says otherwise (see grids.py). `classes` names the band of scene classes.
    `sources` are the files on disk that all this is read from: metadata and bands, or the archive that holds them.
    """

    product: Product
    bands: tuple[BandFile, ...]
    expected: tuple[str, ...]
    grid: str
    classes: str | None = None
    sources: tuple[Path, ...] = ()

    def named(self, text: str) -> str | None:
        """The band's name as this product writes it, for one in any case, with or without zeros; None: it has none."""
        names = {short_name(name): name for name in (*self.expected, *(band.name for band in self.bands))}
        return names.get(short_name(text))


def short_name(band: str) -> str:
    """A band's name in capitals and without leading zeros: b02 is B2."""
    name = band.strip().upper()
    head, digits = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
    return f"{head}{int(digits)}" if digits else name


def parse_time(text: str) -> datetime:
    """An ISO 8601 time; without a zone it is UTC. Raises ValueError for anything else."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def unreadable(path: str | Path, error: RasterioError) -> PgearthError:
    """The error for a file that is damaged or no raster, which may show only where its pixels are read."""
    return PgearthError(
        f"{path}: cannot be read as a raster ({error.__cause__ or error})",
        f"{RASTER_FORMATS}. Replace the file by an intact copy, or convert it with gdal_translate.",
    )
