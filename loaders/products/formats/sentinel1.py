"""Sentinel-1 GRD products: .SAFE folders or zips, their pixels as sigma nought in decibels on a UTM grid.

Measurements come in the radar's geometry, with a grid of ground control points. They are put on the UTM zone of the
scene's centre through a thin plate spline of these points (nearest neighbour, pixels of the product's spacing), and
calibrated with the look-up table of the annotation: sigma nought = DN^2 / A^2 (Sentinel-1 Level 1 Detailed Algorithm
Definition, 9.1), A interpolated bilinearly, as the Product Specification says. There is no terrain correction and no
removal of thermal noise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import GCPTransformer
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from pgearth.loaders.archive.footprint import footprint
from pgearth.loaders.archive.write import Product
from pgearth.loaders.files.gdal_files import open_raster
from pgearth.loaders.files.xml_documents import elements, find, find_text, local_name, parse_xml, to_json
from pgearth.loaders.products.files import BandFile, Given, ProductFiles, parse_time
from pgearth.loaders.products.folder import Folder, open_folder
from pgearth.pyfuncs.errors import PgearthError

MANIFEST = "manifest.safe"
NAME = re.compile(r"S1[A-D]_(?P<mode>IW|EW|S[1-6])_(?P<type>GRD|SLC|RAW|OCN)(?P<resolution>[FHM_])_.*")
MEASUREMENT = re.compile(r"measurement/s1[a-d]-\w+-grd-(?P<polarisation>vv|vh|hh|hv)-.*\.tiff", re.IGNORECASE)
POLARISATIONS = ("VV", "VH", "HH", "HV")
SPACING = {("EW", "H"): 25.0, ("EW", "M"): 40.0}  # metres, of the delivered pixels; all others:
SPACING_OF_RESOLUTION = {"F": 3.5, "H": 10.0, "M": 40.0}
MESH = 64  # pixels between those whose place in the image is computed; in between it is interpolated linearly


@dataclass(frozen=True, eq=False)
class CalibrationTable:
    """The look-up table A of sigma nought: vectors of values at pixels, one vector for each of some lines."""

    lines: np.ndarray
    pixels: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]

    def at(self, line: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        """A at places in the image, interpolated bilinearly; beyond the table its nearest value."""
        rows = np.array(
            [np.interp(pixel, pixels, values) for pixels, values in zip(self.pixels, self.values, strict=True)]
        )
        position = np.interp(line, self.lines, np.arange(len(self.lines)))
        above = np.minimum(position.astype(int), len(self.lines) - 1)
        below = np.minimum(above + 1, len(self.lines) - 1)
        share = position - above
        place = np.indices(line.shape)
        return rows[above, *place] * (1 - share) + rows[below, *place] * share


@dataclass(frozen=True, eq=False)
class CalibratedBand(BandFile):
    """One polarisation: opened on the UTM grid `utm` (SRID) with pixels of `spacing` metres, read as decibels."""

    utm: int = 0
    spacing: float = 10.0
    table: CalibrationTable = field(default_factory=lambda: CalibrationTable(np.empty(0), (), ()))

    def open(self) -> WarpedVRT:
        """The measurement's UTM grid. Raises RasterioError if it is unreadable.

        Its pixels are those of `read`, not its own: WarpedVRT ignores control points when it is given a grid.
        """
        source = open_raster(self.path)
        points, crs = source.gcps
        if not points:
            raise RasterioError(f"{self.path}: no ground control points")
        to_utm = Transformer.from_crs(crs.to_wkt(), self.utm, always_xy=True)
        x, y = (np.array(axis) / self.spacing for axis in to_utm.transform(*longitudes_latitudes(points)))
        # whole pixels from the zone's origin, so that neighbouring slices fit together
        left, top, right, bottom = np.floor(x.min()), np.ceil(y.max()), np.ceil(x.max()), np.floor(y.min())
        return WarpedVRT(
            source,
            src_crs=crs,
            crs=f"EPSG:{self.utm}",
            transform=rasterio.Affine(self.spacing, 0, left * self.spacing, 0, -self.spacing, top * self.spacing),
            width=int(right - left),
            height=int(top - bottom),
            dtype="float32",
            nodata=np.nan,
        )

    def read(self, dataset: DatasetReader | WarpedVRT, window: Window) -> np.ndarray:
        """Sigma nought of a window in decibels, float32 (rows, columns); NaN where there is no measurement."""
        source: DatasetReader = dataset.src_dataset
        rows, columns = (mesh(start, stop) for start, stop in window.toranges())
        points, crs = source.gcps
        to_degrees = Transformer.from_crs(self.utm, crs.to_wkt(), always_xy=True)
        on_ground = to_degrees.transform(*(dataset.transform @ np.meshgrid(columns + 0.5, rows + 0.5)))
        line, pixel = image_places(points, *on_ground)
        down, across = weights(rows, window.row_off, window.height), weights(columns, window.col_off, window.width)
        numbers = nearest(source, self.number, down @ line @ across.T, down @ pixel @ across.T)
        amplitude = down @ self.table.at(line - 0.5, pixel - 0.5) @ across.T
        decibels: np.ndarray = (20 * np.log10(numbers / amplitude)).astype("float32")
        return decibels


def mesh(start: int, stop: int) -> np.ndarray:
    """Pixel numbers from start to the last before stop, at most MESH apart."""
    return np.linspace(start, stop - 1, max(2, -(-(stop - start) // MESH) + 1))


def weights(points: np.ndarray, start: int, count: int) -> np.ndarray:
    """Matrix (count, points) that interpolates linearly from values at mesh points to `count` pixels from `start`."""
    pixels = np.arange(start, start + count)
    return np.column_stack([np.interp(pixels, points, unit) for unit in np.eye(len(points))])


def longitudes_latitudes(points: Sequence[GroundControlPoint]) -> tuple[np.ndarray, np.ndarray]:
    """Of ground control points; longitudes of a scene across the antimeridian go on beyond 180 degrees."""
    longitudes, latitudes = np.array([(point.x, point.y) for point in points]).T
    if np.ptp(longitudes) > 180:
        longitudes = longitudes % 360
    return longitudes, latitudes


def image_places(
    points: Sequence[GroundControlPoint], longitudes: np.ndarray, latitudes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Line and pixel of places on the ground, counted from the outer corner of the first."""
    around = longitudes_latitudes(points)[0]
    if around.max() > 180:
        longitudes = longitudes % 360
    unwrapped = [
        GroundControlPoint(point.row, point.col, longitude, point.y)
        for point, longitude in zip(points, around, strict=True)
    ]
    with GCPTransformer(unwrapped, tps=True) as transformer:
        found = transformer.rowcol(longitudes.ravel(), latitudes.ravel(), op=lambda place: place)
    line, pixel = (np.asarray(axis, dtype=float).reshape(longitudes.shape) for axis in found)
    return line, pixel


def nearest(source: DatasetReader, number: int, line: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Pixels of a band at places in its image, as float64; NaN outside of it and where it is 0, its nodata."""
    row, column = np.floor(line).astype(int), np.floor(pixel).astype(int)
    inside = (row >= 0) & (row < source.height) & (column >= 0) & (column < source.width)
    numbers = np.full(line.shape, np.nan)
    if inside.any():
        row, column = row[inside], column[inside]
        top, left = row.min(), column.min()
        window = Window(left, top, column.max() + 1 - left, row.max() + 1 - top)
        numbers[inside] = source.read(number, window=window)[row - top, column - left]
    return np.where(numbers == 0, np.nan, numbers)


def open_product(path: Path, given: Given) -> ProductFiles | None:
    """Read manifest.safe and the calibration tables of the measurements that are there.

    Raises PgearthError for products of other types than GRD, for damaged metadata, and for a measurement without its
    calibration.
    """
    folder = open_folder(path)
    if folder is None or MANIFEST not in folder.sizes or not folder.name.upper().startswith("S1"):
        return None
    name = NAME.fullmatch(folder.name)
    if name is None or name["type"] != "GRD":
        raise PgearthError(f"{folder.path}: no GRD product of Sentinel-1", "Of Sentinel-1, GRD products are known.")
    label = folder.label(MANIFEST)
    root = parse_xml(folder.read(MANIFEST), label)
    try:
        outline = outline_of(root)
        product = make_product(folder, root, outline, given)
        expected = tuple(sorted(polarisations_of(root), key=POLARISATIONS.index))
    except (LookupError, ValueError) as error:
        raise PgearthError(f"{label}: not valid metadata: {error}", "Replace it by an intact copy.") from error
    spacing = SPACING.get((name["mode"], name["resolution"]), SPACING_OF_RESOLUTION[name["resolution"]])
    measurements = {
        match["polarisation"].upper(): file for file in folder.sizes if (match := MEASUREMENT.fullmatch(file))
    }
    calibrations = {polarisation: calibration_file(folder, file) for polarisation, file in measurements.items()}
    bands = tuple(
        CalibratedBand(
            polarisation,
            folder.gdal_path(measurements[polarisation]),
            nodata=np.nan,
            utm=utm_zone(outline),
            spacing=spacing,
            table=read_table(folder, calibrations[polarisation]),
        )
        for polarisation in POLARISATIONS
        if polarisation in measurements
    )
    used = [MANIFEST, *measurements.values(), *calibrations.values()]
    return ProductFiles(product, bands, expected, grid="aligned:120", sources=folder.sources(used))


def make_product(folder: Folder, root: Element, outline: shapely.Polygon, given: Given) -> Product:
    """The product's row. Raises LookupError or ValueError where the manifest lacks something."""
    processing, version = original_processing(root)
    return Product(
        name=given.name or folder.name,
        platform=given.platform or f"sentinel-1{find_text(find(root, 'platform'), 'number').lower()}",
        level="GRD",
        sensing_time=given.sensing_time or parse_time(find_text(root, "startTime")),
        footprint=footprint(outline),
        source_path=str(folder.path),
        metadata={MANIFEST: to_json(root)},
        end_time=parse_time(find_text(root, "stopTime")),
        processed_at=parse_time(processing.attrib["stop"]),
        processing_baseline=version,
        relative_orbit=int(find_text(root, "relativeOrbitNumber")),
        bytes=sum(folder.sizes.values()),
    )


def original_processing(root: Element) -> tuple[Element, str]:
    """ESA's processing of the product, and the version of its software. Raises LookupError if there is none.

    It is the outermost by the Sentinel-1 IPF: what was done to the product later wraps it, as a conversion to COG does.
    """
    for processing in elements(root, "processing"):
        for facility in processing:
            for software in facility:
                if "IPF" in software.attrib.get("name", "") and local_name(software.tag) == "software":
                    return processing, software.attrib["version"]
    raise LookupError("no processing by the Sentinel-1 IPF")


def polarisations_of(root: Element) -> set[str]:
    """Polarisations that the manifest names. Raises LookupError if it names none."""
    named = {
        (element.text or "").strip()
        for element in root.iter()
        if local_name(element.tag) == "transmitterReceiverPolarisation"
    }
    if not named or not named.issubset(POLARISATIONS):
        raise LookupError(f"no known polarisations: {', '.join(sorted(named))}")
    return named


def outline_of(root: Element) -> shapely.Polygon:
    """The scene's outline in EPSG:4326; gml:coordinates has latitude before longitude."""
    pairs = [tuple(float(number) for number in pair.split(",")) for pair in find_text(root, "coordinates").split()]
    return shapely.Polygon([(longitude, latitude) for latitude, longitude in pairs])


def utm_zone(outline: shapely.Polygon) -> int:
    """SRID of the UTM zone of the outline's centre."""
    longitudes, latitudes = np.array(outline.exterior.coords)[:-1].T
    if np.ptp(longitudes) > 180:  # across the antimeridian
        longitudes = np.where(longitudes < 0, longitudes + 360, longitudes)
    zone = int((longitudes.mean() + 180) % 360 // 6) + 1
    return (32600 if latitudes.mean() >= 0 else 32700) + zone


def calibration_file(folder: Folder, measurement: str) -> str:
    """The calibration annotation of a measurement. Raises PgearthError if it is missing."""
    stem = Path(measurement).stem
    file = f"annotation/calibration/calibration-{stem}.xml"
    if file not in folder.sizes:
        raise PgearthError(f"{folder.label(measurement)}: no {file} beside it", "Download the whole product again.")
    return file


def read_table(folder: Folder, file: str) -> CalibrationTable:
    """Read the sigmaNought vectors of a calibration annotation. Raises PgearthError if it is damaged."""
    label = folder.label(file)
    root = parse_xml(folder.read(file), label)
    try:
        vectors = [
            (
                int(find_text(vector, "line")),
                np.array(find_text(vector, "pixel").split(), dtype=float),
                np.array(find_text(vector, "sigmaNought").split(), dtype=float),
            )
            for vector in root.iter("calibrationVector")
        ]
        if not vectors:
            raise LookupError("no calibrationVector")
        if any(len(pixels) != len(values) or (values <= 0).any() for _, pixels, values in vectors):
            raise ValueError("a sigmaNought vector does not fit its pixels")
    except (LookupError, ValueError) as error:
        raise PgearthError(f"{label}: not valid metadata: {error}", "Replace it by an intact copy.") from error
    vectors.sort(key=lambda vector: vector[0])
    lines, pixels, values = zip(*vectors, strict=True)
    return CalibrationTable(np.array(lines, dtype=float), pixels, values)
