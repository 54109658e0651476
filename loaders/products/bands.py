"""Bands of a product: their grids, and their pixels, read strip by strip with every block of the file decoded once."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from pgearth.loaders.products.files import BandFile, unreadable
from pgearth.pyfuncs.errors import PgearthError

METRES_PER_DEGREE = 111_320
# No block is asked for twice, so GDAL need not keep any; and it is we who decide on the number of threads.
LEAST_ROWS = 64  # to decode at a time
GDAL_OPTIONS = {"GDAL_CACHEMAX": 64 << 20, "GDAL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Band:
    """A band's file and its north-up grid: upper left corner and pixel size (positive) in units of the CRS.

    `dtype` is the type of the pixels in the units of the archive. `metres` is the pixel height on the ground (of a
    geographic grid: along the meridian); `srid` is None where the CRS is not one of EPSG's.
    """

    file: BandFile
    crs: CRS
    srid: int | None
    width: int
    height: int
    left: float
    top: float
    pixel_width: float
    pixel_height: float
    metres: float
    block_width: int
    block_height: int
    dtype: np.dtype
    nodata: float | None

    @property
    def name(self) -> str:
        """The band's name."""
        return self.file.name

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north."""
        return (
            self.left,
            self.top - self.height * self.pixel_height,
            self.left + self.width * self.pixel_width,
            self.top,
        )

    def pixels_apart(self, other: Band) -> float:
        """Largest distance between corresponding edges of the two footprints, in pixels of this band."""
        sizes = (self.pixel_width, self.pixel_height) * 2
        return max(abs(a - b) / size for a, b, size in zip(self.bounds, other.bounds, sizes, strict=True))


def open_band(file: BandFile, bands_in_file: int = 1) -> Band:
    """Read the grid of a band in a file of so many. Raises PgearthError unless it is an intact north-up raster."""
    path = file.path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a PgearthError follows
            with file.open() as dataset:
                count, crs, transform = dataset.count, dataset.crs, dataset.transform
                width, height = dataset.width, dataset.height
                if file.number <= count:
                    block_height, block_width = dataset.block_shapes[file.number - 1]
                    dtype = np.dtype(dataset.dtypes[file.number - 1])
                    nodata = dataset.nodatavals[file.number - 1]
                    tags = dataset.scales[file.number - 1], dataset.offsets[file.number - 1]
    except RasterioError as error:
        raise unreadable(path, error) from error
    if count != bands_in_file:
        raise PgearthError(
            f"{path}: {count} bands where {'one is' if bands_in_file == 1 else f'{bands_in_file} are'} expected",
            "Split the file: one file per band.",
        )
    if dtype.kind not in "iuf":
        raise PgearthError(
            f"{path}: PostGIS has no pixel type for {dtype}", "Convert the file with gdal_translate -ot."
        )
    if file.units and dtype.kind == "f":
        raise PgearthError(
            f"{path}: floating-point pixels, but the product's scale, {file.units[0]:g}, is of whole numbers",
            "Load the file as it was delivered.",
        )
    if file.units and tags != (1, 0) and not np.allclose(tags, file.units, rtol=1e-6, atol=1e-9):
        raise PgearthError(
            f"{path}: its tags say scale {tags[0]:g} and offset {tags[1]:g}, the product's metadata {file.units[0]:g}"
            f" and {file.units[1]:g}",
            "Load the file as it was delivered.",
        )
    if file.factor != 1 and dtype.kind != "f":
        dtype = np.dtype("float32")
    if crs is None:
        raise PgearthError(
            f"{path}: no coordinate reference system",
            "Write the product's into the file (gdal_edit.py -a_srs EPSG:...), or leave the band out with --bands.",
        )
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise PgearthError(
            f"{path}: the grid is rotated, not north-up, or missing: {tuple(transform)[:6]}",
            "Warp the file to a north-up grid, such as gdalwarp does.",
        )
    metres_per_unit = crs.linear_units_factor[1] if crs.is_projected else 1.0
    return Band(
        file=file,
        crs=crs,
        srid=file.srid or crs.to_epsg(),
        width=width,
        height=height,
        left=transform.c,
        top=transform.f,
        pixel_width=transform.a,
        pixel_height=-transform.e,
        metres=-transform.e * (METRES_PER_DEGREE if crs.is_geographic else metres_per_unit),
        block_width=block_width,
        block_height=block_height,
        dtype=dtype,
        nodata=file.nodata if nodata is None else nodata,
    )


class StripReader:
    """Reads strips of rows of a band from north to south, one row of blocks ahead, in a thread of `threads`.

    It holds two rows of blocks, or those that a strip lies in where they are more, in arrays that it uses again and
    again; low blocks (GeoTIFF in strips) are taken together. Raises PgearthError for a file that cannot be read.
    """

    def __init__(self, band: Band, threads: Executor) -> None:
        self.band = band
        self.threads = threads
        self.step = band.block_height * -(-LEAST_ROWS // band.block_height)
        self.decoded: deque[tuple[int, np.ndarray]] = deque()  # first row, and rows
        self.end = 0
        self.free: list[np.ndarray] = []
        self.closing = False
        try:
            # Not as a context manager: rasterio's has to be left in the thread that entered it.
            with rasterio.Env(**GDAL_OPTIONS):
                self.dataset = band.file.open()
        except RasterioError as error:
            raise unreadable(band.file.path, error) from error
        self.ahead: Future[np.ndarray] | None = self.submit()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` (exclusive), an array (rows, width); `start` never decreases between calls."""
        while self.decoded and self.decoded[0][0] + len(self.decoded[0][1]) <= start:
            self.free.append(self.decoded.popleft()[1])
        while self.end < stop:
            if self.ahead is None:
                self.ahead = self.submit()
            rows = self.ahead.result()
            self.decoded.append((self.end, rows))
            self.end += len(rows)
            self.ahead = None
        if self.ahead is None and len(self.decoded) <= 1 and self.end < self.band.height:
            self.ahead = self.submit()
        return np.concatenate([rows[max(start - first, 0) : stop - first] for first, rows in self.decoded])

    def submit(self) -> Future[np.ndarray]:
        """Have the next rows decoded."""
        shape = (min(self.step, self.band.height - self.end), self.band.width)
        rows = self.free.pop()[: shape[0]] if self.free else np.empty(shape, self.band.dtype)
        decoded: Future[np.ndarray] = Future()
        self.threads.submit(self.decode, self.end, rows, 0, decoded)
        return decoded

    def decode(self, start: int, rows: np.ndarray, x: int, decoded: Future[np.ndarray]) -> None:
        """Fill an array with the rows from `start` on: here the blocks from column `x` on, then the columns after them.

        Each column of blocks is a task of its own, so that no thread idles while another decodes the last band. One
        block per call of GDAL: of a window over several, its JPEG 2000 driver decodes each in a thread of its own
        whose errors get lost, and a truncated file would read as zeros.
        """
        band = self.band
        try:
            with rasterio.Env(**GDAL_OPTIONS):  # raises GDAL's errors without printing them, too
                for y in range(0, len(rows), band.block_height):
                    part = rows[y : y + band.block_height, x : x + band.block_width]
                    pixels = band.file.read(self.dataset, Window(x, start + y, part.shape[1], part.shape[0]))
                    part[:] = convert(pixels, band)
        except RasterioError as error:
            decoded.set_exception(unreadable(band.file.path, error))
        except BaseException as error:
            decoded.set_exception(error)
        else:
            x += band.block_width
            if x >= band.width or self.closing:
                decoded.set_result(rows)
            else:
                self.threads.submit(self.decode, start, rows, x, decoded)

    def close(self) -> None:
        """Wait for the blocks being decoded, and close the file."""
        self.closing = True
        if self.ahead is not None:
            self.ahead.exception()
        self.dataset.close()


def convert(pixels: np.ndarray, band: Band) -> np.ndarray:
    """Valid pixels times the band's factor plus its offset, clipped below at 1, in the band's type; nodata stays."""
    factor, offset = band.file.factor, band.file.offset
    if factor == 1 and not offset:
        return pixels
    if band.dtype.kind == "f":
        converted = pixels.astype(band.dtype) * band.dtype.type(factor) + band.dtype.type(offset)
        converted = np.maximum(converted, 1) if offset else converted
    else:
        converted = np.clip(pixels.astype(np.int64) + round(offset), 1, np.iinfo(band.dtype).max).astype(band.dtype)
    return converted if band.nodata is None else np.where(pixels == band.nodata, pixels, converted).astype(band.dtype)


def start_readers(stack: ExitStack, bands: Sequence[Band], threads: int) -> dict[str, StripReader]:
    """A reader for each band, whose files are read in so many threads until the stack is left."""
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    return {band.name: stack.enter_context(closing(StripReader(band, pool))) for band in bands}
