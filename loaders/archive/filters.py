"""Filters of patches: what a user writes of times and areas, as arguments of eo.filter, and the search by them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import shapely.errors
from psycopg import Connection
from psycopg.sql import SQL, Composed, Placeholder
from shapely.geometry import shape

from pgearth.pyfuncs.documents import parse_json, read_document
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.queries import filter_call

SEARCH = SQL("eo.search({filter}, max_results => {max_results}, after_patch_id => {after_patch_id})")


def search_call(filters: Mapping[str, Any]) -> Composed:
    """The call of eo.search by arguments of eo.filter, max_results (None or missing: all) and after_patch_id.

    `filters` are the query's parameters, too.
    """
    page = {
        name: Placeholder(name) if filters.get(name) is not None else SQL("null")
        for name in ("max_results", "after_patch_id")
    }
    return SEARCH.format(filter=filter_call(filters), **page)


def within_collections(
    connection: Connection, filters: Mapping[str, Any], collections: list[str] | None
) -> Mapping[str, Any]:
    """Filters that let only such patches pass as are in one of the user's collections; None: no such limit."""
    if collections is None:
        return filters
    rows = connection.execute("select patch_id from eo.collection_patches(%s)", (collections,)).fetchall()
    members = {patch_id for (patch_id,) in rows}
    wanted = filters.get("patch_ids")
    return {**filters, "patch_ids": sorted(members if wanted is None else members.intersection(wanted))}


def parse_time(text: str) -> str:
    """An ISO 8601 time with its zone, UTC where none is given. Raises PgearthError for any other text."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise PgearthError(f"{text!r} is no time", "Give one such as 2017-06-13 or 2017-06-13T10:10:31Z.") from error
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()


def parse_area(text: str) -> str:
    """An area as EWKT: from WKT (EPSG:4326 unless it begins with SRID=...;), a GeoJSON file or west,south,east,north.

    Raises PgearthError for any other text.
    """
    try:
        if text.lower().endswith(("json", "geojson")):
            srid, area = "SRID=4326", area_of_geojson(parse_json(read_document(Path(text))))
        elif "," in text and "(" not in text:
            srid, area = "SRID=4326", rectangle(text)
        else:
            prefix, _, wkt = text.rpartition(";")
            srid, area = prefix or "SRID=4326", shapely.from_wkt(wkt)
        if not re.fullmatch(r"SRID=\d{1,6}", srid):
            raise ValueError(f"it begins with {srid}, not SRID=... and the number of a reference system")
        if area.is_empty:
            raise ValueError("its geometry is empty")
        if not np.isfinite(shapely.get_coordinates(area)).all():
            raise ValueError("its coordinates are not all finite")
        return f"{srid};{area.wkt}"
    except (OSError, ValueError, shapely.GEOSException) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PgearthError(
            f"--area {text[:200]!r} is no area: {reason}",
            "Give WKT, the name of a GeoJSON file, or west,south,east,north in degrees: south is less than north,"
            " west > east means across the antimeridian.",
        ) from error


def rectangle(text: str) -> shapely.Geometry:
    """The area of west,south,east,north in degrees; west > east means across the antimeridian, as in eo.rectangle.

    Longitudes may also go on beyond 180, as 190 for -170. Raises ValueError for any other text.
    """
    edges = [float(number) for number in text.split(",")]
    if len(edges) != 4:
        raise ValueError(f"it has {len(edges)} numbers, not 4")
    west, south, east, north = edges
    onward = -360 <= west < east <= min(360, west + 360)
    across = -180 <= east < west <= 180 and west - east < 360
    if not ((onward or across) and -90 <= south < north <= 90):
        raise ValueError(f"west {west}, south {south}, east {east}, north {north} is no rectangle")
    boxes = [(west, east)] if onward else [(west, 180.0), (-180.0, east)]
    boxes = [(left, right) for left, right in boxes if left < right]
    area = shapely.MultiPolygon([shapely.box(left, south, right, north) for left, right in boxes])
    return shapely.segmentize(area, 90)


def area_of_geojson(document: Any) -> shapely.Geometry:
    """The area of a GeoJSON document, of all features together. Raises ValueError for any other document."""
    if not isinstance(document, dict):
        raise ValueError("it is no GeoJSON: no object")
    collection = document.get("type") == "FeatureCollection"
    features = document.get("features") if collection else [document]
    if not isinstance(features, list) or not features:
        raise ValueError("it has no features")
    shapes = []
    for number, feature in enumerate(features, start=1):
        geometry = feature.get("geometry", feature) if isinstance(feature, dict) else None
        which = f"feature {number}" if collection else "it"
        if not isinstance(geometry, dict):
            raise ValueError(f"{which} has no geometry")
        try:
            shapes.append(shape(geometry))
        except (AttributeError, LookupError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
            raise ValueError(f"the geometry of {which} is none of GeoJSON's") from error
    return shapes[0] if len(shapes) == 1 else shapely.union_all(shapes)
