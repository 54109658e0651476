"""Outlines as the archive has them: in EPSG:4326, cut at the antimeridian, up to latitude 90 about a pole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import shapely
from pyproj import Transformer

TURNS = (-720.0, -360.0, 0.0, 360.0, 720.0)  # degrees by which longitudes of one place may differ


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

    It is cut at the antimeridian and reaches up to latitude 90 about a pole, as all footprints are, see
    sql/0_base/2_areas.sql. An outline crosses the antimeridian where longitudes of neighbouring vertices differ by more
    than 180 degrees, or where they go on beyond 180 or -180.
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
    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(outline))]
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
