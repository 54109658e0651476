"""Sentinel-2 scenes (L2A or L1C): a folder of single-band COG, GeoTIFF or JPEG 2000 files, cut into patches.

The grid is BigEarthNet's: windows of 120 x 120 pixels of the scene's finest band, counted from its upper left corner,
partial windows at the right and lower edges left out. At Sentinel-2's true 10 m that is 1,200 m; in a downsampled
scene, or without the 10 m bands, a window is still 120 pixels wide and covers more ground. A pixel of a coarser band
must span a whole number of finest pixels that divides 120, so that windows of it are whole, too: 60 pixels at 20 m, 20
at 60 m.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from os import cpu_count
from pathlib import Path
from typing import Any

import click
import numpy as np
import rasterio
import shapely
from psycopg import Connection
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from loaders.database import connect
from loaders.errors import InputError
from loaders.ledger import file_checksum, load_item
from loaders.patches import PLATFORMS, Patch, PatchRaster, Product, write_patches, write_products
from loaders.progress import progress
from loaders.scene_product import describe_product, parse_time
from pyfuncs.errors import PgearthError
from pyfuncs.rasters import Raster, to_wkb

SOURCE = "scene"
WINDOW = 120
METRES_PER_DEGREE = 111_320
SCL = "SCL"
REFLECTANCE_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
BANDS = (*REFLECTANCE_BANDS, SCL)
OPTIONAL_BANDS = ("B10", SCL)  # B10 is in L1C only, SCL in L2A only
NODATA = 0
DRIVERS = ("GTiff", "JP2OpenJPEG")
# Bytes for GDAL's cache of decoded blocks, by default a twentieth of the memory: no block is asked for twice.
BLOCK_CACHE = 64 << 20

SCL_LABEL_ID = 2000
SCL_CLASSES = range(12)
# Cloud shadow, medium and high cloud probability, and thin cirrus, which ESA's CLOUDY_PIXEL_PERCENTAGE counts as cloud.
SCL_CLOUD_OR_SHADOW = {3, 8, 9, 10}

# Grids of different resolution may be shifted by half a pixel of the coarser one: exports of scenes in geographic
# coordinates (SSL4EO-S12) snap each resolution to its own grid. Bands of one resolution share one georeference.
TOLERANCE_BETWEEN_RESOLUTIONS = 0.5
TOLERANCE_WITHIN_RESOLUTION = 0.01

BAND_FILE = re.compile(r"(?:^|.*_)(B(?:0?[1-9]|1[0-2]|8A)|SCL)(?:_\d+m)?\.(?:tiff?|jp2)", re.IGNORECASE)


@dataclass(frozen=True)
class Band:
    """A band's file and its north-up grid: upper left corner and pixel size (positive) in units of the CRS.

    `metres` is the pixel height on the ground (of a geographic grid: along the meridian); `srid` is None where the CRS
    is not one of EPSG's.
    """

    name: str
    path: Path
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
    nodata: float

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


@dataclass(frozen=True)
class Scene:
    """Bands on one grid; `resolutions` has them by the factor of their pixel size to the finest one, finest first."""

    srid: int
    resolutions: dict[int, list[Band]]

    @property
    def finest(self) -> Band:
        """A band of the finest resolution."""
        return self.resolutions[1][0]

    @property
    def bands(self) -> list[Band]:
        """All bands."""
        return [band for bands in self.resolutions.values() for band in bands]

    @property
    def columns(self) -> int:
        """Number of whole windows from west to east."""
        return min(band.width // (WINDOW // factor) for factor, (band, *_) in self.resolutions.items())

    @property
    def rows(self) -> int:
        """Number of whole windows from north to south."""
        return min(band.height // (WINDOW // factor) for factor, (band, *_) in self.resolutions.items())


def load_scene(
    connection: Connection,
    path: Path,
    *,
    bands: Sequence[str] | None = None,
    name: str | None = None,
    sensing_time: datetime | None = None,
    platform: str | None = None,
) -> Counter[str]:
    """Load the scene in the folder `path` in one transaction; return counts: patches, without_data, loaded_before.

    `bands` selects bands (default: the twelve of L2A, and B10 and SCL where present). `name`, `sensing_time` (aware)
    and `platform` (as in eo.product) override what metadata file and folder name say. Patches without a valid pixel in
    any reflectance band are dropped and counted. Raises InputError, with nothing loaded, for a missing or unreadable
    band, grids that do not fit together, and a product that cannot be named or dated.
    """
    files = find_band_files(path)
    scene = fit_grid(path, choose_bands(path, files, bands))
    product = describe_product(
        path,
        shapely.box(*scene.finest.bounds),
        scene.srid,
        "L1C" if "B10" in files else "L2A",
        name,
        sensing_time,
        platform,
    )
    checksum = file_checksum(*(band.path for band in scene.bands))
    with load_item(connection, SOURCE, product.name, checksum) as item:
        if item is None:
            return Counter(loaded_before=1)
        write_products(connection, [product])
        with rasterio.Env(GDAL_CACHEMAX=BLOCK_CACHE):
            item.rows = write_patches(connection, SOURCE, cut_patches(scene, product, item.details))
        return Counter(patches=item.rows) + item.details


def find_band_files(path: Path) -> dict[str, list[Path]]:
    """Files of each band in a scene's folder, by band name (B01 .. B12, B8A, SCL).

    They lie in the folder itself or in its R10m, R20m, R60m; of a .SAFE folder, in GRANULE/*/IMG_DATA. Raises
    InputError when there are none, or when they belong to several granules.
    """
    found: dict[Path, dict[str, list[Path]]] = {}
    for folder in (path, *sorted(path.glob("GRANULE/*/IMG_DATA"))):
        for file in sorted([*folder.glob("*"), *folder.glob("R*m/*")]):
            if match := BAND_FILE.fullmatch(file.name):
                found.setdefault(folder, {}).setdefault(normalise(match[1]), []).append(file)
    if not found:
        raise InputError(
            f"{path}: no band files found",
            "A scene is a folder with files such as B02.tif or T33UUP_20200219T112111_B02_10m.jp2, one per band.",
        )
    if len(found) > 1:
        raise InputError(
            f"{path}: the bands lie in several folders: {', '.join(str(folder) for folder in found)}",
            "Load each of these folders by itself; --name, --time and --platform tell what it is.",
        )
    return next(iter(found.values()))


def normalise(name: str) -> str:
    """Band name as the archive writes it: B2 and b02 become B02."""
    name = name.upper()
    return f"B{int(name[1:]):02}" if name[1:].isdigit() else name


def choose_bands(path: Path, files: dict[str, list[Path]], selected: Sequence[str] | None) -> list[Band]:
    """Open the wanted bands, each in its finest resolution (where it is there in several), in the order of BANDS."""
    if selected is None:
        wanted = [name for name in BANDS if name in files or name not in OPTIONAL_BANDS]
    else:
        names = {normalise(name.strip()) for name in selected}
        if unknown := names.difference(BANDS):
            raise InputError(f"{', '.join(sorted(unknown))}: no such band", f"Bands are {', '.join(BANDS)}.")
        if not names.intersection(REFLECTANCE_BANDS):
            raise InputError(f"{path}: no reflectance band selected", "Add at least one of B01 to B12 to --bands.")
        wanted = [name for name in BANDS if name in names]
    if missing := [name for name in wanted if name not in files]:
        raise InputError(
            f"{path}: no file for {'band' if len(missing) == 1 else 'bands'} {', '.join(missing)}",
            f"Add what is missing, or load what is there: {bands_option(set(wanted) - set(missing))}",
        )
    bands = []
    for name in wanted:
        finest, *others = sorted((open_band(name, file) for file in files[name]), key=lambda band: band.metres)
        for other in others:
            if other.path.parent == finest.path.parent and other.metres == finest.metres:
                raise InputError(
                    f"{path}: band {name} is there twice: {finest.path.name} and {other.path.name}",
                    "Remove one of the files; each scene needs a folder of its own.",
                )
        bands.append(finest)
    return bands


def bands_option(names: set[str]) -> str:
    """The option that loads these bands only."""
    return "--bands " + ",".join(name for name in BANDS if name in names)


def open_band(name: str, path: Path) -> Band:
    """Read the grid of a band's file. Raises InputError unless it is an intact north-up single-band raster."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an InputError follows
            with rasterio.open(path) as dataset:
                driver = dataset.driver
                count, crs, transform = dataset.count, dataset.crs, dataset.transform
                width, height, nodata = dataset.width, dataset.height, dataset.nodata
                block_height, block_width = dataset.block_shapes[0]
    except RasterioError as error:
        raise unreadable(path, error) from error
    if driver not in DRIVERS:  # a VRT, for one, would read other files than the one named
        raise InputError(f"{path}: {driver} where GeoTIFF or JPEG 2000 is expected", "Convert it with gdal_translate.")
    if count != 1:
        raise InputError(f"{path}: {count} bands where one is expected", "Split the file: one file per band.")
    if crs is None:
        raise InputError(
            f"{path}: no coordinate reference system",
            "Write the scene's into the file (gdal_edit.py -a_srs EPSG:...), or leave the band out with --bands.",
        )
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise InputError(
            f"{path}: the grid is rotated, not north-up, or missing: {tuple(transform)[:6]}",
            "Warp the file to a north-up grid, such as gdalwarp does.",
        )
    metres_per_unit = crs.linear_units_factor[1] if crs.is_projected else 1.0
    return Band(
        name=name,
        path=path,
        srid=crs.to_epsg(),
        width=width,
        height=height,
        left=transform.c,
        top=transform.f,
        pixel_width=transform.a,
        pixel_height=-transform.e,
        metres=-transform.e * (METRES_PER_DEGREE if crs.is_geographic else metres_per_unit),
        block_width=block_width,
        block_height=block_height,
        nodata=NODATA if nodata is None else nodata,
    )


def unreadable(path: Path, error: RasterioError) -> InputError:
    """The error for a file that is damaged or no raster, which may show only where its pixels are read."""
    return InputError(
        f"{path}: cannot be read as a raster ({error.__cause__ or error})", "Replace the file by an intact copy."
    )


def fit_grid(path: Path, bands: list[Band]) -> Scene:
    """Fit the bands to one grid. Raises InputError where CRS, footprints or resolutions do not go together."""
    srids = Counter(band.srid for band in bands)
    srid = srids.most_common(1)[0][0]
    if unlike := [band for band in bands if band.srid != srid]:
        usual = {band.name for band in bands if band.srid == srid}
        raise InputError(
            "; ".join(f"{band.path}: {crs_name(band.srid)}" for band in unlike)
            + f", while {crs_name(srid)} is that of {srids[srid]} of the {len(bands)} bands",
            f"Replace the file, or load the scene without it: {bands_option(usual)}",
        )
    if srid is None:
        raise InputError(
            f"{bands[0].path}: the coordinate reference system is not one of EPSG's",
            "Warp the scene to one that is (gdalwarp -t_srs EPSG:...): eo.patch stores its number.",
        )
    finest = min(bands, key=lambda band: band.metres)
    resolutions: dict[int, list[Band]] = {}
    for band in sorted(bands, key=lambda band: band.metres):
        ratio = band.metres / finest.metres
        factor = round(ratio)
        if abs(ratio - factor) > 0.01 or WINDOW % factor:
            raise InputError(
                f"{band.path}: pixels of {band.metres:g} m do not go evenly into windows of {WINDOW} pixels of"
                f" {finest.metres:g} m ({finest.path.name})",
                f"Resample the band, or leave it out: {bands_option({other.name for other in bands} - {band.name})}",
            )
        same = resolutions.setdefault(factor, [band])
        for other, tolerance in ((finest, TOLERANCE_BETWEEN_RESOLUTIONS), (same[0], TOLERANCE_WITHIN_RESOLUTION)):
            if band.pixels_apart(other) > tolerance:
                raise InputError(
                    f"{path}: different footprints among bands: {band.path.name} covers {band.bounds},"
                    f" {other.path.name} {other.bounds}",
                    "Replace the file that does not belong to this scene, or leave its band out with --bands.",
                )
        if band is not same[0]:
            same.append(band)
    scene = Scene(srid, {factor: in_order(same) for factor, same in resolutions.items()})
    if not scene.columns or not scene.rows:
        raise InputError(
            f"{path}: smaller than one patch: {finest.width} x {finest.height} pixels of {finest.path.name}",
            f"A patch takes {WINDOW} x {WINDOW} pixels of the finest band.",
        )
    return scene


def in_order(bands: list[Band]) -> list[Band]:
    """The bands in the order of BANDS."""
    return sorted(bands, key=lambda band: BANDS.index(band.name))


def crs_name(srid: int | None) -> str:
    """How messages call a coordinate reference system."""
    return "a coordinate reference system unknown to EPSG" if srid is None else f"EPSG:{srid}"


def cut_patches(scene: Scene, product: Product, counts: Counter[str]) -> Iterator[Patch]:
    """Cut the scene into patches, row by row; count those without data, which are dropped, in `counts`.

    Holds one strip of windows of all bands, rounded up to whole blocks of the files: every block is decoded once.
    """
    with ExitStack() as stack:
        readers = {band.name: stack.enter_context(StripReader(band)) for band in scene.bands}
        threads = stack.enter_context(ThreadPoolExecutor(cpu_count()))
        for row in progress(range(scene.rows), f"{product.level} {product.mgrs_tile or product.name}", "strips"):
            pixels = [
                (factor, name, threads.submit(readers[name].read, row * WINDOW // factor, (row + 1) * WINDOW // factor))
                for factor, bands in scene.resolutions.items()
                for name in (band.name for band in bands)
            ]
            strip = {name: future.result() for _, name, future in pixels}
            for column in range(scene.columns):
                windows = {
                    name: strip[name][:, column * WINDOW // factor : (column + 1) * WINDOW // factor]
                    for factor, name, _ in pixels
                }
                patch = make_patch(scene, product, column, row, windows)
                if patch is None:
                    counts["without_data"] += 1
                else:
                    yield patch


class StripReader:
    """Reads strips of rows of a band from north to south; further rows of the blocks decoded are kept for the next."""

    def __init__(self, band: Band) -> None:
        self.band = band
        self.first = 0
        try:
            self.dataset = rasterio.open(band.path)
        except RasterioError as error:
            raise unreadable(band.path, error) from error
        self.rows = np.empty((0, band.width), self.dataset.dtypes[0])

    def __enter__(self) -> StripReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.dataset.close()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` (exclusive), an array (rows, width); a call starts at the stop of the one before."""
        decoded = self.first + len(self.rows)
        kept = self.rows[start - self.first :]
        if stop > decoded:
            end = min(-(-stop // self.band.block_height) * self.band.block_height, self.band.height)
            kept = np.concatenate([kept, *self.decode(decoded, end)])
        self.rows, self.first = kept, start
        return self.rows[: stop - start]

    def decode(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Decode the block rows between two rows, one block per call of GDAL.

        Of a window over several blocks, GDAL's JPEG 2000 driver decodes each in a thread of its own whose errors get
        lost: a truncated file would read as zeros.
        """
        band = self.band
        with rasterio.Env():  # raises GDAL's errors without printing them, too
            for y in range(start, stop, band.block_height):
                height = min(band.block_height, stop - y)
                try:
                    yield np.hstack(
                        [
                            self.dataset.read(1, window=Window(x, y, min(band.block_width, band.width - x), height))
                            for x in range(0, band.width, band.block_width)
                        ]
                    )
                except RasterioError as error:
                    raise unreadable(band.path, error) from error


def make_patch(scene: Scene, product: Product, column: int, row: int, windows: dict[str, np.ndarray]) -> Patch | None:
    """The patch of one window of the grid, or None when no reflectance band has a valid pixel in it."""
    nodata = {band.name: band.nodata for band in scene.bands}
    if not any(valid(windows[name], nodata[name]).any() for name in windows if name != SCL):
        return None
    classes = scene_classes(scene, windows[SCL]) if SCL in windows else []
    finest = scene.finest
    return Patch(
        name=f"{product.name}_{column}_{row}",
        product=product.name,
        platform=product.platform,
        sensing_time=product.sensing_time,
        srid=scene.srid,
        west=finest.left + column * WINDOW * finest.pixel_width,
        south=finest.top - (row + 1) * WINDOW * finest.pixel_height,
        east=finest.left + (column + 1) * WINDOW * finest.pixel_width,
        north=finest.top - row * WINDOW * finest.pixel_height,
        tile_column=column,
        tile_row=row,
        # No class at all is no knowledge: the processor classifies every pixel that it has data for.
        scene_class_ids=[SCL_LABEL_ID + code for code in classes] or None,
        cloud_or_shadow=not SCL_CLOUD_OR_SHADOW.isdisjoint(classes) if classes else None,
        rasters=[
            PatchRaster(
                round(bands[0].metres),
                tuple(band.name for band in bands),
                window_wkb(scene.srid, bands, column * WINDOW // factor, row * WINDOW // factor, windows),
            )
            for factor, bands in scene.resolutions.items()
        ],
    )


def valid(pixels: np.ndarray, nodata: float) -> np.ndarray:
    """Where pixels are not nodata."""
    return ~np.isnan(pixels) if np.isnan(nodata) else pixels != nodata


def scene_classes(scene: Scene, pixels: np.ndarray) -> list[int]:
    """Codes of the scene classes in a window of the SCL band, ascending."""
    scl = next(band for band in scene.bands if band.name == SCL)
    classes: list[int] = np.unique(pixels[valid(pixels, scl.nodata)]).tolist()
    if unknown := [code for code in classes if code not in SCL_CLASSES]:
        raise InputError(
            f"{scl.path}: unknown scene class {unknown[0]}",
            "Scene classes are 0 to 11. Replace the file, or load the scene without it: "
            + bands_option({band.name for band in scene.bands} - {SCL}),
        )
    return classes


def window_wkb(srid: int, bands: list[Band], x: int, y: int, windows: dict[str, np.ndarray]) -> bytes:
    """Raster WKB of the windows of bands that share a grid; (x, y) is the windows' first column and row in it."""
    grid = bands[0]
    left, top = grid.left + x * grid.pixel_width, grid.top - y * grid.pixel_height
    try:
        return to_wkb(
            Raster(
                bands=tuple(windows[band.name] for band in bands),
                transform=(grid.pixel_width, -grid.pixel_height, left, top, 0.0, 0.0),
                srid=srid,
                nodata=tuple(band.nodata for band in bands),
            )
        )
    except PgearthError as error:
        files = ", ".join(str(band.path) for band in bands)
        raise InputError(f"{files}: {error}", error.hint or "Convert the files.") from error


class Time(click.ParamType):
    """A time on the command line, as ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse it, or fail with what was expected."""
        try:
            return value if isinstance(value, datetime) else parse_time(value)
        except ValueError:
            self.fail(f"{value!r} is no ISO 8601 time such as 2020-02-19T11:21:11Z", param, ctx)


@click.command()
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--bands", help="Bands to load, comma-separated; default: B01-B09, B8A, B11, B12; B10 and SCL if there.")
@click.option("--name", help="Product name. Parts of one product that lie in several folders need a name each.")
@click.option("--time", "sensing_time", type=Time(), help="Start of sensing, ISO 8601; UTC if no zone is given.")
@click.option("--platform", type=click.Choice([name for code, name in PLATFORMS.items() if code.startswith("S2")]))
def scene(
    paths: tuple[Path, ...], bands: str | None, name: str | None, sensing_time: datetime | None, platform: str | None
) -> None:
    """Load Sentinel-2 scenes, each PATH a folder of single-band files, and cut them into patches of 120 x 120 pixels.

    Name, time and platform are read from the STAC item, tileInfo.json or metadata.json in the folder, or from its name.
    """
    if len(paths) > 1 and (name or sensing_time):
        raise click.UsageError("--name and --time are of one scene: give one PATH.")
    counts: Counter[str] = Counter()
    with connect(autocommit=True) as connection:
        for path in paths:
            counts += load_scene(
                connection,
                path,
                bands=bands.split(",") if bands else None,
                name=name,
                sensing_time=sensing_time,
                platform=platform,
            )
    click.echo(
        f"{len(paths)} scenes: {counts['patches']} patches loaded, {counts['without_data']} without data dropped;"
        f" {counts['loaded_before']} scenes skipped as loaded before."
    )
