"""The bands of a BigEarthNet patch, checked against what its description or name says."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from pgearth.loaders.archive.write import PatchRaster, patch_raster
from pgearth.loaders.datasets.bigearthnet.sensors import Sensor
from pgearth.loaders.files.gdal_files import RASTER_FORMATS, open_raster
from pgearth.loaders.products.mgrs import PATCH_SIDE
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.pixels.rasters import Raster


def read_rasters(
    folder: Path, sensor: Sensor, srid: int, bounds: tuple[float, float, float, float]
) -> list[PatchRaster]:
    """Read the bands of a patch, stacked by resolution.

    Every band must lie exactly within `bounds` (west, south, east, north) in `srid`, as the patch's description or name
    says. Raises PgearthError, naming the file, for bands that do not, and for missing, unreadable or unfitting ones.
    """
    west, _, _, north = bounds
    rasters = []
    for resolution, names in sensor.bands.items():
        transform = (float(resolution), -float(resolution), west, north, 0.0, 0.0)
        bands = [read_band(folder / f"{folder.name}_{name}.tif", sensor, resolution, srid, bounds) for name in names]
        raster = Raster(tuple(band for band, _ in bands), transform, srid, tuple(nodata for _, nodata in bands))
        rasters.append(patch_raster(resolution, names, raster))
    return rasters


def read_band(
    path: Path, sensor: Sensor, resolution: int, srid: int, bounds: tuple[float, float, float, float]
) -> tuple[np.ndarray, float | None]:
    """Pixels and nodata of one band file, which must be as read_rasters says."""
    if not path.is_file():
        raise PgearthError(f"{path}: this band is missing", "Take the patch from the archive again.")
    side = round(PATCH_SIDE) // resolution
    try:
        with open_raster(path) as dataset:
            if dataset.crs is None:
                raise PgearthError(f"{path}: it has no coordinate reference system", f"EPSG:{srid} is expected.")
            if (found := epsg_code(dataset.crs.to_wkt())) != srid:
                raise PgearthError(
                    f"{path}: it is in EPSG:{found}, the patch in EPSG:{srid}", "Take this file from the archive again."
                )
            if (dataset.count, *dataset.shape, *dataset.dtypes) != (1, side, side, sensor.dtype):
                raise PgearthError(
                    f"{path}: {dataset.count} band(s), {dataset.width} x {dataset.height} pixels, {dataset.dtypes[0]}",
                    f"Expected is one band, {side} x {side} pixels, {sensor.dtype}.",
                )
            if not dataset.transform.almost_equals(Affine(resolution, 0, bounds[0], 0, -resolution, bounds[3])):
                raise PgearthError(
                    f"{path}: its bounds are {tuple(dataset.bounds)}, those of the patch {bounds}",
                    "Bands and description of a patch have one footprint: one of them belongs to another patch.",
                )
            nodata = sensor.nodata if dataset.nodata is None else dataset.nodata
            return dataset.read(1), nodata
    except (RasterioError, ValueError) as error:
        raise PgearthError(
            f"{path}: it cannot be read: {error}", f"{RASTER_FORMATS}. Take this file from the archive again."
        ) from error


@lru_cache(maxsize=256)
def epsg_code(wkt: str) -> int:
    """EPSG code of a coordinate reference system. Raises ValueError if it has none."""
    code = CRS.from_wkt(wkt).to_epsg()
    if code is None:
        raise ValueError("its coordinate reference system has no EPSG code")
    return int(code)
