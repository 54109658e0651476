"""The only place where GDAL opens files from outside: formats by allow-list, and nothing beside or beyond the file.

GDAL asks every driver whether it knows a file, whatever its name. Some formats (VRT, WMS and others) are instructions
to read elsewhere, files of the machine or of the network; these are not among the formats here, and what can lie beside
a raster (.aux.xml, .ovr, .msk, world files), which may name other files, too, is not looked at.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio.errors import RasterioIOError
from rasterio.io import DatasetReader, MemoryFile

from pgearth.pyfuncs.errors import PgearthError

RASTER_DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG")
RASTER_FORMATS = "Rasters are read as GeoTIFF (also cloud-optimised), JPEG 2000 and PNG"
HDF_DRIVERS = ("HDF4", "HDF4Image")
VECTOR_DRIVERS = ("GPKG", "ESRI Shapefile", "FlatGeobuf", "OpenFileGDB", "GeoJSON")
VECTOR_FORMATS = "Vectors are read as GeoPackage, shapefile, FlatGeobuf, file geodatabase and GeoJSON"
OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "USE_RRD": "NO",
}
# A file, or one in an archive (pgearth.loaders.products.files.Folder).
LOCAL_PATH = re.compile(r"/vsi(?:zip|tar)/\{(?P<archive>/[^{}]*)\}/.+|(?P<file>(?!/vsi).+)", re.DOTALL)
# The member crs, whose letters a hostile file may write as escapes.
CRS_MEMBER = re.compile(rb'"(?:c|\\u0063)(?:r|\\u0072)(?:s|\\u0073)"\s*:\s*', re.IGNORECASE)
LONGEST_CRS = 20_000  # bytes


def open_raster(path: str | Path, drivers: Sequence[str] = RASTER_DRIVERS) -> DatasetReader:
    """Open a raster file, or one in an archive on this machine. Raises RasterioError for all else."""
    match = LOCAL_PATH.fullmatch(str(path))
    if drivers == RASTER_DRIVERS and not (match and Path(match["archive"] or match["file"]).is_file()):
        raise RasterioIOError(f"{path} is no file on this machine")
    with rasterio.Env(**OPTIONS):
        return DatasetReader(str(path), driver=list(drivers))


@contextmanager
def open_raster_bytes(content: bytes) -> Iterator[DatasetReader]:
    """Open the contents of a raster file. Raises RasterioError for what is none of a known format."""
    with rasterio.Env(**OPTIONS), MemoryFile(content) as file, file.open(driver=list(RASTER_DRIVERS)) as dataset:
        yield dataset


@contextmanager
def vector_formats_of(path: Path) -> Iterator[None]:
    """Let pyogrio open a file by the drivers of its format only; afterwards by all, as before.

    Raises PgearthError for a file that says its reference system is to be had from the network.
    """
    import pyogrio
    from pyogrio._ogr import _register_drivers  # there is no public way to have OGR_SKIP looked at

    allowed = {"GeoJSON"} if is_json(path) else set(VECTOR_DRIVERS) - {"GeoJSON"}
    if allowed == {"GeoJSON"}:
        check_reference_system(path)
    skipped = sorted(set(pyogrio.list_drivers()) - allowed)
    pyogrio.set_gdal_config_options({"OGR_SKIP": ",".join(skipped)})
    try:
        _register_drivers()
        if not set(pyogrio.list_drivers()) <= allowed:
            raise RuntimeError("the drivers of pyogrio cannot be restricted")
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_SKIP": None})
        _register_drivers()


def is_json(path: Path) -> bool:
    """Whether a file begins as a JSON object does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def check_reference_system(path: Path) -> None:
    """Raise PgearthError for a GeoJSON file whose reference system is a link, which GDAL would follow."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for member in CRS_MEMBER.finditer(content):
            text = content[member.end() : member.end() + LONGEST_CRS].decode(errors="replace")
            if not text.startswith("{"):
                continue
            try:
                crs, _ = json.JSONDecoder().raw_decode(text)
                kind = crs.get("type")
            except (ValueError, RecursionError):
                kind = "unknown"
            if str(kind).lower() not in ("name", "epsg", "none"):
                raise PgearthError(
                    f"{path}: its reference system is of the type {str(kind)[:100]!r}, a link that is not followed",
                    "Write a copy that names it: ogr2ogr -a_srs EPSG:<code> COPY.gpkg FILE",
                )
