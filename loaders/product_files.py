"""What a product consists of, whatever its format: its row in eo.product, and its bands as GDAL opens them.

Every format has a module with `open_product(path, given)`, which returns these, or None for a path of another format;
loaders/product_formats.py tries them in turn. What the formats share is here, too: the files of a folder or archive,
times, and footprints.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import shapely
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from loaders.archives import open_tar, open_zip, read_member, tar_members
from loaders.gdal_files import RASTER_DRIVERS, RASTER_FORMATS, open_raster
from loaders.patches import Product
from pyfuncs.errors import PgearthError
from pyfuncs.limits import DOCUMENT_BYTES

# What a product's name has as its time is the start of the data take; metadata may have the granule's own.
LONGEST_DATA_TAKE = timedelta(hours=2)
MOST_FILES = 100_000  # far more than a product has: a folder of a whole archive was named
# Of macOS (also inside archives made there) and Windows.
LEFT_BY_DESKTOPS = re.compile(r"(?:^|/)(?:__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
FILE_OF_A_PRODUCT = re.compile(r"\.(?:xml|json|safe|tiff?|jp2|hdf)$|_MTL\.txt$", re.IGNORECASE)
FOLDER_OF_A_PRODUCT = re.compile(r"GRANULE|IMG_DATA|DATASTRIP|R\d+m|measurement|annotation|preview", re.IGNORECASE)
IN_ZIP = re.compile(r"/vsizip/\{(?P<archive>.+?)\}/(?P<member>[^:\"]+)")
BYTES_CHECKED_AT_ONCE = 1 << 20
TURNS = (-720.0, -360.0, 0.0, 360.0, 720.0)  # degrees by which longitudes of one place may differ


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

    `sizes` are bytes by path relative to the product's own folder, `top` (see `innermost`), with / as GDAL writes it.
    `members` are an archive's own names of the paths that it writes in another way: with \\, or with ./ before them.
    """

    path: Path
    sizes: dict[str, int]
    archive: str | None = None  # GDAL's file system for it: vsizip or vsitar
    top: str = ""
    members: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder, without .SAFE."""
        name = PurePosixPath(self.top).name or (self.path.stem if self.archive else self.path.name)
        return name.removesuffix(".SAFE")

    def gdal_path(self, file: str) -> str:
        """How GDAL opens a file of the folder."""
        return f"/{self.archive}/{{{self.path}}}/{self.top}{file}" if self.archive else str(self.path / self.top / file)

    def label(self, file: str) -> str:
        """How messages call a file of the folder."""
        return str(self.path / f"{self.top}{file}")

    def sources(self, files: Iterable[str]) -> tuple[Path, ...]:
        """The files on disk that these files of the folder are in."""
        return (self.path,) if self.archive else tuple(self.path / self.top / file for file in sorted(files))

    def read(self, file: str) -> bytes:
        """Contents of a metadata file. Raises PgearthError if it cannot be read."""
        if self.sizes[file] > (limit := DOCUMENT_BYTES.of_environment()):
            raise PgearthError(
                f"{self.label(file)}: {self.sizes[file]:,} bytes are too many for metadata",
                f"The limit is {limit:,}; {DOCUMENT_BYTES.variable} sets another.",
            )
        name = self.members.get(self.top + file, self.top + file)
        try:
            if self.archive == "vsizip":
                with open_zip(self.path) as archive:
                    return read_member(archive, name, limit)
            if self.archive == "vsitar":
                with open_tar(self.path) as tar, tar.extractfile(name) as member:  # type: ignore[union-attr]
                    return member.read()
            return (self.path / name).read_bytes()
        # RuntimeError and NotImplementedError: encrypted, or compressed in a way that Python does not know.
        except (OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
            raise PgearthError(
                f"{self.label(file)}: cannot be read: {error}", "Replace it by an intact copy."
            ) from error


def open_folder(path: Path) -> Folder | None:
    """List what is in a folder, zip (.zip) or tar archive (.tar); None for any other file.

    Raises PgearthError for a damaged archive and for a folder with too many files for a product.
    """
    path = path.resolve()
    if path.is_dir():
        return make_folder(path, dict(walk(path)))
    try:
        match path.suffix.lower():
            case ".zip":
                with open_zip(path) as archive:
                    files = [info for info in archive.infolist() if not info.is_dir()]
                    sizes = {info.filename: info.file_size for info in files}
                if len(sizes) < len(files):
                    [(twice, _)] = Counter(info.filename for info in files).most_common(1)
                    raise PgearthError(
                        f"{path}: it has two files {twice}", "Unpack it, keep the right one, and load the folder."
                    )
                system = "vsizip"
            case ".tar":
                with open_tar(path) as tar:
                    found = [member for member in tar_members(tar) if member.isfile()]
                if any("path" in member.pax_headers for member in found):
                    raise PgearthError(
                        f"{path}: a tar with long names in the POSIX format, which GDAL does not read",
                        "Unpack it and load the folder, or make the tar with --format=gnu.",
                    )
                sizes = {member.name: member.size for member in found}
                system = "vsitar"
            case _:
                return None
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise PgearthError(f"{path}: a damaged archive: {error}", "Download it again.") from error
    members = {posix_path(name): name for name in sizes if not name.endswith("\\")}
    folder = make_folder(path, {name: sizes[member] for name, member in members.items()})
    return replace(folder, archive=system, members={name: own for name, own in members.items() if name != own})


def check_archived(paths: Iterable[str]) -> None:
    """Raise PgearthError unless the files, as GDAL opens them, are intact where they lie in zip archives.

    GDAL does not look at the checksums of the archive, and a GeoTIFF has none of its own: damage would be pixels.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        if found := IN_ZIP.search(path):
            wanted[found["archive"]].add(found["member"])
    for archive_path, members in wanted.items():
        with open_zip(Path(archive_path)) as archive:
            for info in archive.infolist():
                if posix_path(info.filename) not in members:
                    continue
                try:
                    with archive.open(info) as member:
                        while member.read(BYTES_CHECKED_AT_ONCE):
                            pass
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                    raise PgearthError(
                        f"{archive_path}: {info.filename} is damaged: {error}", "Download the archive again."
                    ) from error


def posix_path(name: str) -> str:
    """An archive member's name as GDAL has it: with / where it was made on Windows, and without ./ before it."""
    return name.replace("\\", "/").removeprefix("./")


def make_folder(path: Path, sizes: dict[str, int]) -> Folder:
    """The product's own folder among the files under a path, without what desktops leave among them."""
    sizes = {name: size for name, size in sizes.items() if not LEFT_BY_DESKTOPS.search(name)}
    top = innermost(sizes)
    return Folder(path, {name.removeprefix(top): size for name, size in sizes.items() if name.startswith(top)}, top=top)


def innermost(names: Iterable[str]) -> str:
    """The folder that a product lies in, "" or ending in /: unpacking often puts it into one folder too many.

    That is a folder with no other folder beside it and no file of a product, whatever else (checksums, pictures).
    """
    top = ""
    while True:
        below = [name.removeprefix(top) for name in names if name.startswith(top)]
        heads = {name.partition("/")[0] for name in below if "/" in name}
        if len(heads) != 1 or any("/" not in name and FILE_OF_A_PRODUCT.search(name) for name in below):
            return top
        head = heads.pop()
        if FOLDER_OF_A_PRODUCT.fullmatch(head):
            return top
        top = f"{top}{head}/"


def walk(path: Path) -> Iterable[tuple[str, int]]:
    """Relative path and size of every file under a folder."""
    count = 0
    for folder, _, names in os.walk(path, onerror=refuse_unread):
        for name in names:
            count += 1
            if count > MOST_FILES:
                raise PgearthError(
                    f"{path}: more than {MOST_FILES:,} files", "Name the folders of products themselves."
                )
            file = Path(folder, name)
            if file.is_symlink() and not file.resolve().is_relative_to(path):
                raise PgearthError(f"{file}: it is a link that leaves the folder", "Put the file itself there.")
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.stat().st_size


def refuse_unread(error: OSError) -> None:
    """Raise PgearthError for a folder that cannot be listed: what is in it would be missed without a word."""
    raise PgearthError(
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
    """WKB of the valid MultiPolygon in EPSG:4326 for an outline; None for an outline without area.

    It is cut at the antimeridian and reaches up to latitude 90 about a pole, as all footprints (sql/020_cells.sql). An
    outline crosses the antimeridian where longitudes of neighbouring vertices differ by more than 180 degrees, or where
    they go on beyond 180 or -180.
    """
    if outline is None:
        return None
    polygons = [polygon for part in shapely.get_parts(outline) for polygon in split_at_antimeridian(part)]
    merged = shapely.union_all([shapely.make_valid(polygon) for polygon in polygons])
    parts = [part for part in shapely.get_parts(merged) if part.geom_type == "Polygon" and part.area > 0]
    return shapely.to_wkb(shapely.multipolygons(parts)) if parts else None


def split_at_antimeridian(polygon: shapely.Polygon) -> list[shapely.Geometry]:
    """A polygon's parts between -180 and 180 degrees of longitude."""
    steps = longitude_steps(polygon)
    if ((steps > 180) & (steps != 360)).any():  # an edge of 360 degrees goes around the world
        shell, *holes = [unwound(shapely.get_coordinates(ring)) for ring in shapely.get_rings(polygon)]
        whole = shell.difference(shapely.union_all([turned(hole, turn) for hole in holes for turn in TURNS]))
    else:
        west, south, east, north = polygon.bounds
        if west >= -180 and east <= 180 and south >= -90 and north <= 90:
            return [polygon]
        whole = shapely.make_valid(polygon)
    return [
        turned(part, -turn)
        for turn in TURNS
        if (part := whole.intersection(turned(shapely.box(-180, -90, 180, 90), turn))).area
    ]


def longitude_steps(outline: shapely.Geometry) -> np.ndarray:
    """By how many degrees of longitude neighbouring vertices of an outline differ."""
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(outline)]
    return np.concatenate([np.abs(np.diff(ring[:, 0])) for ring in rings])


def turned(geometry: shapely.Geometry, degrees: float) -> shapely.Geometry:
    """A geometry with other longitudes."""
    return shapely.transform(geometry, lambda points: points + np.array((degrees, 0)))


def unwound(ring: np.ndarray) -> shapely.Geometry:
    """The polygon of a ring: the short way round between vertices, and along latitude 90 or -90 about a pole."""
    start = int(np.argmin(np.abs(ring[:-1, 1])))
    last, pole = ring[start, 0], None
    points: list[tuple[float, float]] = []
    for longitude, latitude in [*ring[start:-1].tolist(), *ring[: start + 1].tolist()]:
        if abs(latitude) > 90 - 1e-9:  # a pole has every longitude: from that of the vertex before to that of the next
            pole = latitude
            points.append((last, pole))
            continue
        last = longitude - 360 * round((longitude - last) / 360)
        if pole is not None:
            points.append((last, pole))
            pole = None
        points.append((last, latitude))
    if abs(last - points[0][0]) > 180:
        pole = float(np.copysign(90, ring[:, 1].mean()))
        points += [(last, pole), (points[0][0], pole)]
    return shapely.make_valid(shapely.Polygon(points))


def bounds_of(band: BandFile) -> shapely.Geometry | None:
    """Outline in EPSG:4326 of a band's grid: the footprint of a product whose metadata have none.

    None for a grid without coordinate reference system, or that reaches off the globe. Raises PgearthError if the file
    cannot be read.
    """
    try:
        with band.open() as dataset:
            bounds, crs = dataset.bounds, dataset.crs
    except RasterioError as error:
        raise unreadable(band.path, error) from error
    if crs is None:
        return None
    box = shapely.box(*bounds)
    if crs.is_geographic:
        box = shapely.segmentize(box, 90)  # wide, but not the other way round
        return box if crs.to_epsg() == 4326 else densely_transformed(box, to_degrees(crs))
    parts = [densely_transformed(part, to_degrees(crs)) for part in quarters(box, crs)]
    if not np.isfinite(shapely.get_coordinates(parts)).all():
        return None
    # The transformation gives a pole any longitude.
    return shapely.union_all([unwound(shapely.get_coordinates(part)) for part in parts])


def to_degrees(crs: CRS) -> Transformer:
    """From a file's reference system to longitude and latitude."""
    return Transformer.from_crs(crs.to_wkt(), 4326, always_xy=True)


def quarters(box: shapely.Polygon, crs: CRS) -> list[shapely.Polygon]:
    """A box in a projected reference system; one that holds a pole, in parts that have it as a corner at most."""
    for latitude in (90, -90):
        x, y = Transformer.from_crs(4326, crs.to_wkt(), always_xy=True).transform(0, latitude)
        west, south, east, north = box.bounds
        if west <= x <= east and south <= y <= north:
            return [
                shapely.box(left, bottom, right, top)
                for left, right in ((west, x), (x, east))
                for bottom, top in ((south, y), (y, north))
                if right - left > 1e-6 and top - bottom > 1e-6
            ]
    return [box]


def unreadable(path: str | Path, error: RasterioError) -> PgearthError:
    """The error for a file that is damaged or no raster, which may show only where its pixels are read."""
    return PgearthError(
        f"{path}: cannot be read as a raster ({error.__cause__ or error})",
        f"{RASTER_FORMATS}. Replace the file by an intact copy, or convert it with gdal_translate.",
    )
