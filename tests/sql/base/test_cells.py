"""Geohash cells against pygeohash and shapely."""

from __future__ import annotations

import numpy as np
import psycopg
import pygeohash
import pytest
import shapely
from psycopg import errors

AREAS = {
    "triangle": "POLYGON((7.5 51.4, 7.9 51.45, 7.6 51.7, 7.5 51.4))",
    "two parts": "MULTIPOLYGON(((7.5 51.4, 7.6 51.4, 7.6 51.5, 7.5 51.4)), ((8.5 51.4, 8.6 51.4, 8.6 51.5, 8.5 51.4)))",
    "point": "POINT(-58.3816 -34.6037)",
    "antimeridian": "MULTIPOLYGON(((179.9 -17, 180 -17, 180 -16.9, 179.9 -16.9, 179.9 -17)), ((-180 -17, -179.9 -17, -179.9 -16.9, -180 -16.9, -180 -17)))",
    "pole": "POLYGON((10 89.9, 10.2 89.9, 10.2 90, 10 90, 10 89.9))",
    "edge of a cell": "POLYGON((0 0, 0.1 0, 0.1 0.1, 0 0.1, 0 0))",
}


def pygeohash_box(cell: str) -> shapely.Polygon:
    box = pygeohash.get_bounding_box(cell)
    return shapely.box(box.min_lon, box.min_lat, box.max_lon, box.max_lat)


def check_cover(archive: psycopg.Connection, area: shapely.Geometry, expression: str, precision: int) -> None:
    """The cells of an expression are those that meet `area`, and leave nothing of it out."""
    cells = archive.execute(
        f"select cell, st_asbinary(geom) from eo.cells({expression}, %s)".encode(), (precision,)
    ).fetchall()
    boxes = {cell: pygeohash_box(cell) for cell, _ in cells}
    assert len(boxes) == len(cells) > 0
    assert [cell for cell, _ in cells] == sorted(boxes)
    assert all(len(cell) == precision for cell in boxes)
    for cell, wkb in cells:
        assert shapely.from_wkb(wkb).symmetric_difference(boxes[cell]).area < 1e-12
        assert boxes[cell].distance(area) < 1e-9, "a cell that does not meet the area"
    assert area.difference(shapely.union_all(list(boxes.values()))).area < 1e-12, "a part without a cell"
    # Nothing around the cover meets the area.
    around = {
        neighbour
        for (neighbour,) in archive.execute(
            "select distinct n from unnest(%s::text[]) c (cell), eo.cell_neighbours(c.cell) n", (list(boxes),)
        )
    }
    assert not any(pygeohash_box(cell).buffer(-1e-9).intersects(area) for cell in around - boxes.keys())


@pytest.mark.parametrize("precision", [1, 3, 4, 5])
@pytest.mark.parametrize("name", AREAS)
def test_cells_cover_the_area_exactly(module_archive: psycopg.Connection, name: str, precision: int) -> None:
    check_cover(module_archive, shapely.from_wkt(AREAS[name]), f"st_geomfromtext('{AREAS[name]}', 4326)", precision)


@pytest.mark.parametrize(
    "expression",
    [
        "st_makeenvelope(179, -18, 181.5, -16, 4326)",
        "eo.rectangle(179.3, 60, -179.1, 61)",
        "eo.circle(st_point(180, -17, 4326), 60000)",
        "eo.circle(st_point(30, 89.8, 4326), 50000)",
        "st_makeenvelope(-1e5, -1e5, 1e5, 1e5, 3031)",
        "st_makeenvelope(600000, 7000000, 800000, 7100000, 32660)",
    ],
)
def test_cells_across_the_antimeridian_and_at_the_poles(module_archive: psycopg.Connection, expression: str) -> None:
    """The area in EPSG:4326 itself is held against pyproj in test_search.py."""
    row = module_archive.execute(f"select st_asbinary(eo_internal.search_area({expression}))".encode()).fetchone()
    assert row is not None
    check_cover(module_archive, shapely.from_wkb(row[0]), expression, 4 if "89.8" not in expression else 3)


def test_cell_of_and_box_equal_pygeohash(module_archive: psycopg.Connection) -> None:
    generator = np.random.default_rng(5)
    for longitude, latitude in zip(generator.uniform(-180, 180, 60), generator.uniform(-90, 90, 60), strict=True):
        for precision in (1, 5, 6, 9):
            row = module_archive.execute(
                "select cell, st_asbinary(eo.cell_box(cell)) from eo.cell_of(st_point(%s, %s, 4326), %s) cell",
                (float(longitude), float(latitude), precision),
            ).fetchone()
            assert row is not None
            assert row[0] == pygeohash.encode(latitude, longitude, precision)
            assert shapely.from_wkb(row[1]).symmetric_difference(pygeohash_box(row[0])).area < 1e-12


@pytest.mark.parametrize("cell", ["u1jrk", "u1j", "ezs42", "xbpbp", "8", "7zzzz", "gzzzz", "s0000"])
def test_neighbours(module_archive: psycopg.Connection, cell: str) -> None:
    """Those cells whose rectangles touch this one's, on the globe: oracle by enumerating points around it."""
    box = pygeohash.get_bounding_box(cell)
    width, height = box.max_lon - box.min_lon, box.max_lat - box.min_lat
    expected = set()
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            latitude = (box.min_lat + box.max_lat) / 2 + dy * height
            longitude = ((box.min_lon + box.max_lon) / 2 + dx * width + 180) % 360 - 180
            if (dx, dy) != (0, 0) and -90 < latitude < 90:
                expected.add(pygeohash.encode(latitude, longitude, len(cell)))
    found = [neighbour for (neighbour,) in module_archive.execute("select eo.cell_neighbours(%s)", (cell,))]
    assert found == sorted(expected)


def test_area_in_another_reference_system(module_archive: psycopg.Connection) -> None:
    found = module_archive.execute(
        "select cell from eo.cells(st_makeenvelope(400000, 5700000, 401200, 5701200, 32632), 5)"
    ).fetchall()
    row = module_archive.execute(
        "select eo.cell_of(st_makeenvelope(400000, 5700000, 401200, 5701200, 32632))"
    ).fetchone()
    assert row in found


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("eo.cells(st_makeenvelope(0, 0, 1, 1, 4326), 13)", errors.InvalidParameterValue, "not 13"),
        ("eo.cells(st_makeenvelope(0, 0, 1, 1, 4326), 0)", errors.InvalidParameterValue, "not 0"),
        ("eo.cells(st_makeenvelope(0, 0, 60, 60, 4326), 7)", errors.ProgramLimitExceeded, "precision 7"),
        ("eo.cells(st_makeenvelope(170, 0, 390, 10, 4326), 3)", errors.InvalidParameterValue, "beyond longitude"),
        ("eo.cell_box('abc')", errors.InvalidParameterValue, '"abc"'),
        ("eo.cell_neighbours('')", errors.InvalidParameterValue, '""'),
    ],
)
def test_bad_arguments(module_archive: psycopg.Connection, call: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        module_archive.execute(f"select * from {call}".encode())
    assert caught.value.diag.message_hint  # type: ignore[attr-defined]


def test_an_empty_area_has_no_cells(module_archive: psycopg.Connection) -> None:
    assert module_archive.execute("select * from eo.cells('SRID=4326;POLYGON EMPTY'::geometry)").fetchall() == []
