"""MODIS land products on the sinusoidal grid: GeoTIFF or JPEG 2000 files of single bands, or HDF.

The files of one granule and date in a folder are a product; the path is one of them, or their folder if it holds no
other product. Names tell all that is known: NASA's (MCD43A4.A2017006.h21v11.006.2017018074804, with _B01.TIF behind it
for a single band) or those of sits cubes (TERRA_MODIS_012010_NDVI_2013-09-14.jp2, whose tile is h12v10).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import shapely
from pyproj import CRS, Transformer
from rasterio.errors import RasterioError

from pgearth.loaders.archive.footprint import densely_transformed, footprint
from pgearth.loaders.archive.write import Product
from pgearth.loaders.files.gdal_files import HDF_DRIVERS, RASTER_DRIVERS, open_raster
from pgearth.loaders.products.files import BandFile, Given, ProductFiles, unreadable
from pgearth.pyfuncs.errors import PgearthError

SRID = 906974  # in spatial_ref_sys since revision 0010; EPSG has none for the sinusoidal projection of a sphere
RADIUS = 6_371_007.181  # of that sphere, metres
SINUSOIDAL = CRS.from_proj4(f"+proj=sinu +lon_0=0 +x_0=0 +y_0=0 +R={RADIUS} +units=m +no_defs")

NASA_NAME = re.compile(
    r"(?P<granule>(?P<product>M[OYC]D\w+)\.A(?P<date>\d{7})\.h\d\dv\d\d\.(?P<collection>\d{3})\.(?P<made>\d{13}))"
    r"(?:_(?P<band>\w+)\.(?:tiff?|jp2)|\.hdf)",
    re.IGNORECASE,
)
SITS_NAME = re.compile(
    r"(?P<platform>TERRA|AQUA)_MODIS_(?P<tile>\d{6})_(?P<band>\w+)_(?P<date>\d{4}-\d\d-\d\d)\.(?:tiff?|jp2)",
    re.IGNORECASE,
)
PLATFORMS = {"MOD": "terra", "MYD": "aqua", "MCD": "terra+aqua"}
# Layers of HDF files: reflectance and its quality in MCD43, vegetation indices in MOD13.
LAYERS = (
    (re.compile(r"Nadir_Reflectance_Band(\d)$"), "B0{}"),
    (re.compile(r"Mandatory_Quality_Band(\d)$"), "B0{}QA"),
    (re.compile(r"\b(NDVI|EVI)$"), "{}"),
)
# Scale and fill value, as the products' user guides have them; offsets are 0.
REFLECTANCE = (1e-4, 32767)
VEGETATION_INDEX = (1e-4, -3000)
QUALITY_FILL = 255


@dataclass(frozen=True)
class Granule:
    """What a file's name says of its product."""

    name: str
    platform: str
    sensing_time: datetime
    processed_at: datetime | None = None
    collection: str | None = None


def open_product(path: Path, given: Given) -> ProductFiles | None:
    """Collect the granule's files. Raises PgearthError for a folder with several, and for HDF that GDAL cannot read."""
    path = path.resolve()
    siblings = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else siblings_of(path)
    files: dict[Granule, list[Path]] = {}
    for file in sorted(siblings):
        if granule := granule_of(file.name):
            files.setdefault(granule, []).append(file)
    if path.is_file():
        files = {granule: found for granule, found in files.items() if path in found}
    if not files:
        return None
    if len(files) > 1:
        raise PgearthError(
            f"{path}: files of {len(files)} MODIS products, such as {next(iter(files)).name}",
            "Name one file of each product; the others of the same granule are found beside it.",
        )
    (granule, found), *_ = files.items()
    bands = tuple(sorted((band for file in found for band in bands_of(file)), key=lambda band: band.name))
    product = Product(
        name=given.name or granule.name,
        platform=given.platform or granule.platform,
        level="L3",
        sensing_time=given.sensing_time or granule.sensing_time,
        footprint=footprint(outline_of(bands[0])),
        source_path=str(path),
        processed_at=granule.processed_at,
        processing_baseline=granule.collection,
        scales={band.name: scale for band in bands if (scale := calibration(band.name)[0])} or None,
        offsets={band.name: 0.0 for band in bands if calibration(band.name)[0]} or None,
        bytes=sum(file.stat().st_size for file in found),
    )
    expected = tuple(band.name for band in bands if not band.name.endswith("QA"))
    return ProductFiles(product, bands, expected, grid="aligned:120", sources=tuple(found))


def siblings_of(path: Path) -> Iterable[Path]:
    """The files beside a file of MODIS, among them itself."""
    return [file for file in path.parent.iterdir() if file.is_file()] if granule_of(path.name) else []


def granule_of(name: str) -> Granule | None:
    """The granule that a file of this name belongs to; None for a name that is not one of MODIS. The day is UTC's."""
    if match := NASA_NAME.fullmatch(name):
        product = match["product"].upper()
        return Granule(
            name=match["granule"],
            platform=PLATFORMS[product[:3]],
            sensing_time=parse_date(match["date"], "%Y%j"),
            processed_at=parse_date(match["made"], "%Y%j%H%M%S"),
            collection=match["collection"],
        )
    if match := SITS_NAME.fullmatch(name):
        return Granule(
            name=f"{match['platform']}_MODIS_{match['tile']}_{match['date']}".upper(),
            platform=match["platform"].lower(),
            sensing_time=parse_date(match["date"], "%Y-%m-%d"),
        )
    return None


def parse_date(text: str, form: str) -> datetime:
    """A time in a file's name. Raises PgearthError for a day that its year does not have."""
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC)
    except ValueError as error:
        raise PgearthError(
            f"{text}: no date of the form {form} in a MODIS file's name", "Give it the name that it was published with."
        ) from error


def bands_of(file: Path) -> list[BandFile]:
    """The bands in a file: of HDF, one per layer known by name."""
    match = NASA_NAME.fullmatch(file.name) or SITS_NAME.fullmatch(file.name)
    if match and match["band"]:
        return [make_band(match["band"].upper(), str(file))]
    try:
        with open_raster(file, HDF_DRIVERS) as dataset:
            subdatasets = dataset.subdatasets
    except RasterioError as error:
        raise PgearthError(
            f"{file}: cannot be read ({error.__cause__ or error}); rasterio's GDAL has no driver for HDF 4",
            f"Convert the layers with a GDAL that has (gdal_translate), to files named {file.stem}_B01.tif.",
        ) from error
    bands = []
    for subdataset in subdatasets:
        for pattern, form in LAYERS:
            if known := pattern.search(subdataset.strip('"')):
                bands.append(make_band(form.format(known[1]), subdataset, HDF_DRIVERS))
    if not bands:
        raise PgearthError(
            f"{file}: no layer that is known among {len(subdatasets)}",
            f"Convert the layers wanted with gdal_translate, to files named {file.stem}_B01.tif.",
        )
    return bands


def make_band(name: str, path: str, drivers: tuple[str, ...] = RASTER_DRIVERS) -> BandFile:
    """A band, with the fill value of its kind."""
    scale, nodata = calibration(name)
    units = None if scale is None else (scale, 0.0)
    return BandFile(name, path, nodata=nodata, srid=SRID, units=units, drivers=drivers)


def calibration(band: str) -> tuple[float | None, float | None]:
    """Scale (None: has none) and fill value of a band."""
    if band in ("NDVI", "EVI"):
        return VEGETATION_INDEX
    if re.fullmatch(r"B\d\d", band):
        return REFLECTANCE
    return None, QUALITY_FILL if band.endswith("QA") else None


def outline_of(band: BandFile) -> shapely.Geometry | None:
    """Outline in EPSG:4326 of a band's grid, without what of it lies beyond the sphere's outline on the map."""
    try:
        with band.open() as dataset:
            bounds = dataset.bounds
    except RasterioError as error:
        raise unreadable(band.path, error) from error
    # a little inside of 180 degrees, where longitudes would flip their sign
    latitudes = np.radians(np.linspace(-90, 90, 361))
    east = np.column_stack([np.pi * np.cos(latitudes) * (1 - 1e-9), latitudes]) * RADIUS
    world = shapely.Polygon([*east, *east[::-1] * (-1, 1)])
    inside = shapely.box(*bounds).intersection(world)
    if not inside.area:
        return None
    return densely_transformed(inside, Transformer.from_crs(SINUSOIDAL, 4326, always_xy=True))
