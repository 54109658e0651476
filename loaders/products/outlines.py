"""Outlines of bands' grids: footprints of products whose metadata have none."""

from __future__ import annotations

import numpy as np
import shapely
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from pgearth.loaders.archive.footprint import densely_transformed, unwound
from pgearth.loaders.products.files import BandFile, unreadable


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
