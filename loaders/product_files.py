"""What a product consists of, whatever its format: its row in eo.product, and its bands as GDAL opens them.

Every format has a module with `open_product(path, given)`, which returns these, or None for a path of another format;
loaders/product_formats.py tries them in turn. What the formats share is here, too: the files of a folder or archive,
times, and footprints.
"""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from loaders.errors import InputError
from loaders.patches import Product

MOST_FILES = 100_000  # far more than a product has: a folder of a whole archive was named
LARGEST_DOCUMENT = 64 << 20  # bytes; the largest metadata file known, an annotation of Sentinel-1, has 4 MB


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
    every valid pixel on reading, clipped below at 1: -1000 for Sentinel-2 since baseline 04.00. `srid` is for a
    coordinate reference system that EPSG has no code for (None: it has one).
    """

    name: str
    path: str
    number: int = 1
    nodata: float | None = None
    offset: int = 0
    srid: int | None = None

    def open(self) -> DatasetReader | WarpedVRT:
        """Open the file on a north-up grid. Raises RasterioError if it is unreadable."""
        return rasterio.open(self.path)

    def read(self, dataset: DatasetReader | WarpedVRT, window: Window) -> np.ndarray:
        """Pixels of a window of the dataset that `open` returned, without `offset`: an array (rows, columns)."""
        pixels: np.ndarray = dataset.read(self.number, window=window)
        return pixels


@dataclass(frozen=True)
class ProductFiles:
    """A product that was found: its row and all its bands, those that are there in several resolutions several times.

    `expected` are the bands that it should have: loading fails if one is missing, unless bands are selected. `grid` is
    how it is cut unless the caller says otherwise (see loaders/grids.py). `classes` names the band of scene classes.
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


@dataclass(frozen=True)
class Folder:
    """The files of a product, in a folder or, without unpacking it, in a zip or tar archive.

    `sizes` are bytes by path relative to the folder; of an archive, to the one folder that all its files lie in.
    """

    path: Path
    sizes: dict[str, int]
    archive: str | None = None  # GDAL's file system for it: vsizip or vsitar
    top: str = ""

    @property
    def name(self) -> str:
        """Name of the folder, without .SAFE."""
        name = PurePosixPath(self.top).name or (self.path.stem if self.archive else self.path.name)
        return name.removesuffix(".SAFE")

    def gdal_path(self, file: str) -> str:
        """How GDAL opens a file of the folder."""
        return f"/{self.archive}/{{{self.path}}}/{self.top}{file}" if self.archive else str(self.path / file)

    def label(self, file: str) -> str:
        """How messages call a file of the folder."""
        return str(self.path / f"{self.top}{file}")

    def sources(self, files: Iterable[str]) -> tuple[Path, ...]:
        """The files on disk that these files of the folder are in."""
        return (self.path,) if self.archive else tuple(self.path / file for file in sorted(files))

    def read(self, file: str) -> bytes:
        """Contents of a metadata file. Raises InputError if it cannot be read."""
        if self.sizes[file] > LARGEST_DOCUMENT:
            raise InputError(f"{self.label(file)}: {self.sizes[file]:,} bytes are too many for metadata")
        try:
            if self.archive == "vsizip":
                with zipfile.ZipFile(self.path) as archive:
                    return archive.read(self.top + file)
            if self.archive == "vsitar":
                with tarfile.open(self.path, "r:") as tar, tar.extractfile(self.top + file) as member:  # type: ignore[union-attr]
                    return member.read()
            return (self.path / file).read_bytes()
        # RuntimeError and NotImplementedError: encrypted, or compressed in a way that Python does not know.
        except (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
            raise InputError(f"{self.label(file)}: cannot be read: {error}", "Replace it by an intact copy.") from error


def open_folder(path: Path) -> Folder | None:
    """List what is in a folder, zip (.zip) or tar archive (.tar); None for any other file.

    Raises InputError for a damaged archive and for a folder with too many files for a product.
    """
    path = path.resolve()
    if path.is_dir():
        return Folder(path, dict(walk(path)))
    try:
        match path.suffix.lower():
            case ".zip":
                with zipfile.ZipFile(path) as archive:
                    sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
                system = "vsizip"
            case ".tar":
                with tarfile.open(path, "r:") as tar:
                    sizes = {member.name: member.size for member in tar if member.isfile()}
                system = "vsitar"
            case _:
                return None
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{path}: a damaged archive: {error}", "Download it again.") from error
    heads = {name.partition("/")[0] for name in sizes if "/" in name}
    top = f"{heads.pop()}/" if len(heads) == 1 and all("/" in name for name in sizes) else ""
    return Folder(path, {name.removeprefix(top): size for name, size in sizes.items()}, system, top)


def walk(path: Path) -> Iterable[tuple[str, int]]:
    """Relative path and size of every file under a folder."""
    count = 0
    for folder, _, names in os.walk(path, onerror=refuse_unread):
        for name in names:
            count += 1
            if count > MOST_FILES:
                raise InputError(f"{path}: more than {MOST_FILES:,} files", "Name the folders of products themselves.")
            file = Path(folder, name)
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.stat().st_size


def refuse_unread(error: OSError) -> None:
    """Raise InputError for a folder that cannot be listed: what is in it would be missed without a word."""
    raise InputError(
        f"{error.filename}: the folder cannot be read: {error.strerror}",
        "Give the user who runs the command the right to it, or take it out of the product.",
    )


def parse_time(text: str) -> datetime:
    """An ISO 8601 time; without a zone it is UTC. Raises ValueError for anything else."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def from_geojson(geometry: dict[str, Any] | None, srid: int = 4326) -> shapely.Geometry | None:
    """Outline in EPSG:4326 of a GeoJSON polygon or multipolygon in `srid`; None for anything else."""
    if not geometry or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return None
    return to_wgs84(shapely.force_2d(shapely.from_geojson(json.dumps(geometry))), srid)


def to_wgs84(outline: shapely.Geometry, srid: int) -> shapely.Geometry:
    """Transform an outline to EPSG:4326 (longitude, latitude), with more vertices, so that long edges stay in place."""
    if srid == 4326:
        return outline
    return densely_transformed(outline, Transformer.from_crs(srid, 4326, always_xy=True))


def densely_transformed(outline: shapely.Geometry, transformer: Transformer) -> shapely.Geometry:
    """Transform an outline after putting a vertex on every 64th of its length."""
    dense = shapely.segmentize(outline, outline.length / 64)
    return shapely.transform(dense, transformer.transform, interleaved=False)


def footprint(outline: shapely.Geometry | None) -> bytes | None:
    """WKB of the valid MultiPolygon in EPSG:4326 for an outline, which is cut where it crosses the antimeridian.

    An outline crosses where longitudes of neighbouring vertices differ by more than 180 degrees. None for an outline
    without area.
    """
    if outline is None:
        return None
    polygons = [polygon for part in shapely.get_parts(outline) for polygon in split_at_antimeridian(part)]
    merged = shapely.union_all([shapely.make_valid(polygon) for polygon in polygons])
    parts = [part for part in shapely.get_parts(merged) if part.geom_type == "Polygon" and part.area > 0]
    return shapely.to_wkb(shapely.multipolygons(parts)) if parts else None


def split_at_antimeridian(polygon: shapely.Polygon) -> list[shapely.Geometry]:
    """A polygon's parts between -180 and 180 degrees of longitude."""
    ring = np.array(polygon.exterior.coords)[:, :2]
    steps = np.diff(ring[:, 0])
    if np.abs(steps).max() <= 180:
        return [polygon]
    ring[1:, 0] = ring[0, 0] + np.cumsum((steps + 180) % 360 - 180)  # the short way round between vertices
    whole = shapely.make_valid(shapely.Polygon(ring))
    return [
        shapely.transform(part, lambda points, turn=turn: points - (turn, 0))
        for turn in (-360.0, 0.0, 360.0)
        if (part := whole.intersection(shapely.box(turn - 180, -90, turn + 180, 90))).area
    ]


def bounds_of(band: BandFile) -> shapely.Geometry | None:
    """Outline in EPSG:4326 of a band's grid: the footprint of a product whose metadata have none.

    None for a grid without coordinate reference system. Raises InputError if the file cannot be read.
    """
    try:
        with band.open() as dataset:
            bounds, crs = dataset.bounds, dataset.crs
    except RasterioError as error:
        raise unreadable(band.path, error) from error
    if crs is None:
        return None
    box = shapely.box(*bounds)
    if crs.to_epsg() == 4326:
        return box
    return densely_transformed(box, Transformer.from_crs(crs.to_wkt(), 4326, always_xy=True))


def unreadable(path: str | Path, error: RasterioError) -> InputError:
    """The error for a file that is damaged or no raster, which may show only where its pixels are read."""
    return InputError(
        f"{path}: cannot be read as a raster ({error.__cause__ or error})", "Replace the file by an intact copy."
    )
