"""The globe is round: patches at the antimeridian and at the poles, found where they are.

Oracle: pyproj and shapely on longitudes 0 to 360; about the poles on a map that has the pole in its middle.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import psycopg
import pygeohash
import pyproj
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from tests.stand_ins import NO_WEIGHTS, lsh_weights

GEOD = pyproj.Geod(ellps="WGS84")
TIME = datetime(2023, 8, 21, 22, 19, 41, tzinfo=UTC)
Bounds = tuple[float, float, float, float]
POLAR_MAPS = {1: 3995, -1: 3031}


def utm(zone: int, latitude: float) -> int:
    return (32600 if latitude >= 0 else 32700) + zone


def grid(srid: int, x: float, y: float, side: float, columns: int, rows: int) -> list[tuple[int, Bounds]]:
    """Squares of `side` about a place, which is a corner of four of them."""
    return [
        (srid, (x + side * column, y + side * row, x + side * (column + 1), y + side * (row + 1)))
        for column in range(-columns // 2, (columns + 1) // 2)
        for row in range(-rows // 2, (rows + 1) // 2)
    ]


def places() -> list[tuple[int, Bounds]]:
    found = []
    for latitude in (-79.5, -45.0, -16.8, 0.01, 33.0, 65.5, 83.2):
        for zone in (60, 1):
            srid = utm(zone, latitude)
            x, y = pyproj.Transformer.from_crs(4326, srid, always_xy=True).transform(180.0, latitude)
            # The corner of four patches lies beside the antimeridian, so that it goes through a column of them.
            found += grid(srid, round(x, -1) + 330, round(y, -1), 1200.0, 6, 2)
            found += grid(srid, round(x, -1) + 9000, round(y, -1), 60_000.0, 2, 1)
    for srid, pole in ((32661, 2_000_000.0), (32761, 2_000_000.0), (3413, 0.0), (3031, 0.0)):
        found += grid(srid, pole, pole, 1200.0, 4, 4)  # the pole is a corner of four
        found += grid(srid, pole + 500, pole - 300, 1000.0, 2, 2)  # and inside of one
        found += grid(srid, pole, pole + 300, 1000.0, 4, 2)  # and on the edge of two
        found += grid(srid, pole + 70_000, pole, 70_000.0, 6, 2)
    found += grid(4326, 180.005, -17.0, 0.01, 4, 2)  # longitudes that go on beyond 180
    found += grid(4326, -180.005, -18.0, 0.01, 4, 2)
    found += grid(4326, 200.0, -17.0, 0.01, 2, 2)  # longitudes 0 to 360
    found += grid(3857, 20_037_508.0, -1_900_000.0, 1200.0, 4, 2)
    return found


def write(connection: psycopg.Connection, places: list[tuple[int, Bounds]], product: str = "globe") -> list[int]:
    """Store patches as the loaders do; their ids in the order of the places."""
    write_products(connection, [Product(product, "sentinel-2a", "L2A", TIME)])
    patches = [
        Patch(f"{product}_{number:05}", product, "sentinel-2a", TIME, srid, *bounds)
        for number, (srid, bounds) in enumerate(places)
    ]
    with connection.transaction():
        assert write_patches(connection, "test", patches) == len(patches)
    rows = connection.execute("select patch_id from eo.patch where name like %s || '%%' order by name", (product,))
    return [patch_id for (patch_id,) in rows]


@pytest.fixture(scope="module")
def patches(module_archive: psycopg.Connection) -> list[tuple[int, int, Bounds]]:
    """Patch id, srid and native bounds of what is stored."""
    there = places()
    ids = write(module_archive, there)
    module_archive.execute("vacuum analyze eo.patch")
    return [(patch_id, srid, bounds) for patch_id, (srid, bounds) in zip(ids, there, strict=True)]


def ring(srid: int, bounds: Bounds, pieces: int = 64) -> np.ndarray:
    """Longitudes and latitudes along the edges of native bounds, (2, n)."""
    box = shapely.segmentize(shapely.box(*bounds), max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / pieces)
    x, y = np.array(box.exterior.coords).T
    return np.array(pyproj.Transformer.from_crs(srid, 4326, always_xy=True).transform(x, y))


def on_map(longitude: np.ndarray, latitude: np.ndarray, pole: int) -> shapely.Geometry:
    """An outline in degrees, or with `pole` 1 or -1 on a map of that pole, in metres."""
    if pole:
        to_map = pyproj.Transformer.from_crs(4326, POLAR_MAPS[pole], always_xy=True)
        longitude, latitude = to_map.transform(longitude, latitude)
    return shapely.make_valid(shapely.Polygon(np.column_stack([longitude, latitude])))


def pole_of(srid: int, bounds: Bounds) -> int:
    latitude = ring(srid, bounds, 1)[1].mean()
    return int(np.sign(latitude)) * bool(abs(latitude) > 84)


AREAS: dict[str, tuple[str, shapely.Geometry]] = {
    # the expression, and the area on longitudes 0 to 360
    "rectangle": ("eo.rectangle(179.99, -17.05, -179.97, -16.7)", shapely.box(179.99, -17.05, 180.03, -16.7)),
    "west of it": ("eo.rectangle(179.9, -80, 179.995, 84)", shapely.box(179.9, -80, 179.995, 84)),
    "east of it": ("eo.rectangle(-179.995, -80, -179.9, 84)", shapely.box(180.005, -80, 180.1, 84)),
    "up to it": ("eo.rectangle(170, -80, 180, 84)", shapely.box(170, -80, 180, 84)),
    "from it": ("eo.rectangle(-180, -80, -170, 84)", shapely.box(180, -80, 190, 84)),
    "going on from 180": (
        "'SRID=4326;POLYGON((179.5 -46, 180.02 -45, 179.99 -44.99, 179.5 -46))'::geometry",
        shapely.from_wkt("POLYGON((179.5 -46, 180.02 -45, 179.99 -44.99, 179.5 -46))"),
    ),
    "going on from -180": (
        "st_makeenvelope(-180.01, 60, -179.98, 66, 4326)",
        shapely.box(179.99, 60, 180.02, 66),
    ),
    "in two parts": (
        "st_collect(st_makeenvelope(179.99, 32, 180, 34, 4326), st_makeenvelope(-180, 32, -179.999, 34, 4326))",
        shapely.box(179.99, 32, 180.001, 34),
    ),
    "0 to 360": ("st_makeenvelope(181, -19, 210, -16, 4326)", shapely.box(181, -19, 210, -16)),
    "all but it": (
        "eo.rectangle(-160.1, -90, 170, 85)",
        shapely.union_all([shapely.box(0, -90, 170, 85), shapely.box(199.9, -90, 360, 85)]),
    ),
    "Zambia": ("eo.circle(st_point(28, -17, 4326), 500000)", shapely.box(23, -22, 33, -12)),
    "cap": ("eo.rectangle(-180, 89.995, 180, 90)", shapely.box(-180, 89.995, 180, 90)),
    "half a cap": ("eo.rectangle(90, 80, -90, 90)", shapely.box(90, 80, 270, 90)),
    "southern wedge": ("eo.rectangle(20, -90, 30, -89.9)", shapely.box(20, -90, 30, -89.9)),
    "southern ring": ("eo.rectangle(-180, -89.5, 180, -89.2)", shapely.box(-180, -89.5, 180, -89.2)),
}


@pytest.mark.parametrize("name", AREAS)
def test_an_area_finds_what_meets_it(
    module_archive: psycopg.Connection, patches: list[tuple[int, int, Bounds]], name: str
) -> None:
    expression, area = AREAS[name]
    expected, unsure = set(), set()
    maps = {
        pole: shapely.union_all(
            [
                on_map(*np.array(shapely.segmentize(part, 0.05).exterior.coords).T, pole)
                for part in shapely.get_parts(area)
            ]
        )
        for pole in (0, 1, -1)
    }
    for patch_id, srid, bounds in patches:
        pole = pole_of(srid, bounds)
        longitude, latitude = ring(srid, bounds)
        shape = on_map(longitude % 360, latitude, pole)
        meets = shape.intersects(maps[pole])
        margin = 2e-4 * np.sqrt(shape.area)
        if meets != shape.buffer(margin).intersects(maps[pole]) or meets != shape.buffer(-margin).intersects(
            maps[pole]
        ):
            unsure.add(patch_id)
        elif meets:
            expected.add(patch_id)
    rows = module_archive.execute(
        f"select patch_id from eo.search(eo.filter({expression}), max_results => null)".encode()
    )
    found = {patch_id for (patch_id,) in rows}
    assert found - unsure == expected
    assert len(unsure) < len(patches) / 10
    assert bool(expected) != (name == "Zambia")
    inlined = module_archive.execute(f"select patch_id from eo.patches(eo.filter({expression}))".encode())
    assert {patch_id for (patch_id,) in inlined} == found


def test_every_patch_is_found_at_its_centre_and_near_its_corners_and_nowhere_else(
    module_archive: psycopg.Connection, patches: list[tuple[int, int, Bounds]]
) -> None:
    asked = []
    for patch_id, srid, (west, south, east, north) in patches:
        to_degrees = pyproj.Transformer.from_crs(srid, 4326, always_xy=True)
        for x, y in ((0.5, 0.5), (0.02, 0.02), (0.98, 0.02), (0.02, 0.98), (0.98, 0.98), (-0.02, -0.02), (1.02, 0.5)):
            longitude, latitude = to_degrees.transform(west + x * (east - west), south + y * (north - south))
            longitude = (longitude + 180) % 360 - 180
            asked.append((patch_id, longitude, latitude, 0 < x < 1))
        # the middle of the world at the same latitude
        asked.append((patch_id, longitude / 3, min(abs(latitude), 84) * np.sign(latitude), False))
    wrong = module_archive.execute(
        """
        select asked.*
        from unnest(%s::bigint[], %s::float8[], %s::float8[], %s::boolean[]) as asked (patch_id, x, y, within)
        where asked.within <> exists (
            select from eo.search(eo.filter(st_point(asked.x, asked.y, 4326), patch_ids => array[asked.patch_id])))
        """,
        [list(column) for column in zip(*asked, strict=True)],
    ).fetchall()
    assert wrong == []


def test_cells_are_those_of_the_centre(
    module_archive: psycopg.Connection, patches: list[tuple[int, int, Bounds]]
) -> None:
    stored = dict(module_archive.execute("select patch_id, cell from eo.patch").fetchall())
    for patch_id, srid, (west, south, east, north) in patches:
        longitude, latitude = pyproj.Transformer.from_crs(srid, 4326, always_xy=True).transform(
            (west + east) / 2, (south + north) / 2
        )
        if abs(abs(longitude) - 180) < 1e-9 or abs(latitude) > 90 - 1e-9:
            continue  # on either side, and at any longitude
        cell = pygeohash.encode(latitude, (longitude + 180) % 360 - 180, 9)
        assert stored[patch_id] == cell[:5]
        if patch_id % 5 == 0:
            found = module_archive.execute(
                "select count(*) from eo.search(eo.filter(cells => array[%s], patch_ids => array[%s::bigint]))",
                (cell[:7], patch_id),
            ).fetchone()
            assert found == (1,)


def geodesic_area(longitude: np.ndarray, latitude: np.ndarray) -> float:
    return abs(GEOD.polygon_area_perimeter(longitude, latitude)[0])


KINDS = st.one_of(
    st.tuples(st.sampled_from([32660, 32601, 32760, 32701]), st.floats(-3e5, 3e5), st.floats(-8e6, 8e6)),
    st.tuples(st.sampled_from([5041, 32661, 5042, 32761]), st.floats(-3000, 3000), st.floats(-3000, 3000)),
    st.tuples(st.sampled_from([3413, 3031]), st.floats(-2e6, 2e6), st.floats(-2e6, 2e6)),
)


def bounds_of(kind: tuple[int, float, float], side: float) -> Bounds:
    srid, x, y = kind
    if srid in (32660, 32601, 32760, 32701):
        north = abs(y) if srid < 32700 else 1e7 - abs(y)
        edge, _ = pyproj.Transformer.from_crs(4326, srid, always_xy=True).transform(180.0, 0.0)
        meridian, _ = pyproj.Transformer.from_crs(4326, srid, always_xy=True).transform(
            180.0, np.copysign(abs(y) / 111_000, 1 if srid < 32700 else -1)
        )
        x, y = meridian + x / 100 if abs(edge - meridian) < 5e5 else edge, north
    elif srid not in (3413, 3031):
        x, y = 2e6 + x, 2e6 + y
    return x, y, x + side, y + side


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=KINDS, side=st.sampled_from([300.0, 1200.0, 25_600.0, 109_800.0]))
def test_footprints_keep_their_area_and_stay_in_bounds(
    module_archive: psycopg.Connection, kind: tuple[int, float, float], side: float
) -> None:
    srid, bounds = kind[0], bounds_of(kind, side)
    row = module_archive.execute(
        "select st_asbinary(eo_internal.footprint(%s, %s, %s, %s, %s))", (*bounds, srid)
    ).fetchone()
    assert row is not None
    footprint = shapely.from_wkb(row[0])
    assert footprint.geom_type == "MultiPolygon" and footprint.is_valid and len(footprint.geoms) <= 2
    west, south, east, north = footprint.bounds
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
    parts = [shapely.segmentize(part, 0.25) for part in footprint.geoms]
    total = sum(geodesic_area(*np.array(part.exterior.coords).T) for part in parts)
    assert total == pytest.approx(geodesic_area(*ring(srid, bounds, 256)), rel=5e-3)
    # no part spans the globe but about a pole
    assert all(
        part.bounds[2] - part.bounds[0] <= 180 or abs(part.bounds[1]) == 90 or part.bounds[3] == 90
        for part in footprint.geoms
    )


@pytest.mark.parametrize(
    ("west", "south"),
    [
        (19_740_000, 1_000_000),  # the map ends inside of it
        (19_700_000, -1_055_597),
        (-20_015_109, 0),
        (0, 9_951_957.677),  # of the tiles about the pole
        (-27_798, 9_951_957.677),
        (100_000, -9_951_957.677),
        (930_000, 9_700_000),
        (5_000_000, 3_000_000),  # within
    ],
)
def test_the_map_of_modis_ends_at_the_antimeridian(
    module_archive: psycopg.Connection, west: float, south: float
) -> None:
    """What lies on the map where the footprint ends is not on the globe; oracle: each place's longitude by its formula."""
    bounds = (west, south, west + 55_597.0, south + 55_597.0)
    row = module_archive.execute("select st_asbinary(eo_internal.footprint(%s, %s, %s, %s, 906974))", bounds).fetchone()
    assert row is not None
    found = shapely.from_wkb(row[0])
    assert found.is_valid and found.bounds[0] >= -180 and found.bounds[2] <= 180
    x, y = np.meshgrid(np.linspace(bounds[0], bounds[2], 40)[1:-1], np.linspace(bounds[1], bounds[3], 40)[1:-1])
    latitude = np.degrees(y / 6371007.181)
    longitude = np.degrees(x / 6371007.181 / np.cos(np.radians(latitude)))
    on_globe = np.abs(longitude) < 180
    near_edge = np.abs(np.abs(longitude) - 180) < 0.01
    assert on_globe.any()
    points = shapely.points(longitude, latitude)
    assert shapely.contains(found, points[on_globe & ~near_edge]).all()
    if abs(west) > 400_000:  # else it has the other side of the globe, too
        beyond = shapely.points((longitude + 180) % 360 - 180, latitude)[~on_globe & ~near_edge]
        assert not shapely.contains(found, beyond).any()


@pytest.mark.parametrize("y", [5e-324, 2.2250738585e-313, 2.2250738585072014e-308, -1e-310])
@pytest.mark.parametrize("srid", [32601, 4326])
def test_numbers_next_to_nothing(module_archive: psycopg.Connection, srid: int, y: float) -> None:
    """PostGIS's ST_WrapX crashed with them: a file whose corner lies there must not."""
    west, size = (166021.44308053772, 109_800.0) if srid == 32601 else (-180.1, 1.0)
    row = module_archive.execute(
        "select st_xmin(f), st_ymin(f) from eo_internal.footprint(%s, %s, %s, %s, %s) f",
        (west, y, west + size, size, srid),
    ).fetchone()
    assert row == (-180, 0)


@pytest.mark.parametrize(
    ("bounds", "srid"),
    [((10, 91, 11, 92), 4326), ((800, 0, 801, 1), 4326)],
)
def test_bounds_that_are_nowhere(module_archive: psycopg.Connection, bounds: Bounds, srid: int) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="not on the globe") as caught:
        module_archive.execute("select eo_internal.footprint(%s, %s, %s, %s, %s)", (*bounds, srid))
    assert caught.value.diag.message_hint


@pytest.mark.parametrize(
    ("expression", "longitude", "latitude"),
    [
        ("eo.rectangle(179.5, -17, -179.9, -16)", 179.8, -16.5),
        ("eo.rectangle(179.9, -17, -179.5, -16)", -179.8, -16.5),
        ("st_makeenvelope(179.9, -17, 180.5, -16, 4326)", -179.8, -16.5),
        ("st_makeenvelope(-180.5, -17, -179.9, -16, 4326)", 179.8, -16.5),
        ("st_point(200, 10, 4326)", -160, 10),
        ("eo.circle(st_point(180, 52, 4326), 10000)", 180, 52),
        ("eo.rectangle(-180, 80, 180, 90)", None, 90),
        ("eo.circle(st_point(100, -89.99, 4326), 5000)", 100, -89.99),
        ("eo.rectangle(-180, -90, 180, 90)", 0, 0),
        ("eo.rectangle(10, 40, 12, 44)", 11, 42),
        ("st_makeenvelope(-180, -180, 180, 180, 3031)", None, -90),
    ],
)
def test_the_cell_of_what_lies_on_both_sides(
    module_archive: psycopg.Connection, expression: str, longitude: float | None, latitude: float
) -> None:
    row = module_archive.execute(
        f"select st_x(c), st_y(c) from st_centroid(eo.cell_box(eo.cell_of({expression}, 7))) c".encode()
    ).fetchone()
    assert row is not None
    assert row[1] == pytest.approx(latitude, abs=0.01)
    if longitude is not None:
        assert (row[0] - longitude + 180) % 360 - 180 == pytest.approx(0, abs=0.01 if abs(latitude) < 89 else 1)


def test_neighbouring_cells_across_the_antimeridian_touch(module_archive: psycopg.Connection) -> None:
    """The last cell before the antimeridian and those behind it share an edge, as anywhere."""
    row = module_archive.execute(
        """
        select array(select cell from eo.cells(eo.cell_box('xbpbp')) order by 1),
               array(select n from eo.cell_neighbours('xbpbp') n union select 'xbpbp' order by 1)
        """
    ).fetchone()
    assert row is not None
    assert row[0] == row[1] and len(row[0]) == 9


def test_patches_that_begin_at_the_antimeridian_touch_an_area_that_ends_there(
    archive: psycopg.Connection,
) -> None:
    boxes = [pygeohash.get_bounding_box(cell) for cell in ("xbpbp", "80000", "80001")]
    ids = write(archive, [(4326, (b.min_lon, b.min_lat, b.max_lon, b.max_lat)) for b in boxes])
    for area, expected in (
        ("eo.cell_box('xbpbp')", ids[:2]),
        ("eo.cell_box('80000')", ids),
        ("st_point(180, 0.01, 4326)", ids[:2]),
    ):
        rows = archive.execute(f"select patch_id from eo.search(eo.filter({area}))".encode()).fetchall()
        assert [patch_id for (patch_id,) in rows] == expected, area


# What is looked up by place


PLACES = {
    # id: level, country, parts on longitudes 0 to 360
    "FJ001": (3, "FJ", [(179.9, -17.0, 180.1, -16.7)]),
    "FJ002": (3, "FJ", [(179.98, -16.7, 180.0, -16.5)]),  # between the antimeridian and every vertex of the patches
    "FJ003": (3, "FJ", [(180.0, -16.7, 180.02, -16.5)]),
    "FR": (0, "FR", [(180.02, -16.7, 180.1, -16.5), (28.0, -17.0, 29.0, -16.0), (2.0, 45.0, 4.0, 48.0), (300.0, -17.0, 301.0, -16.0)]),
}  # fmt: skip


def split(parts: list[Bounds]) -> shapely.MultiPolygon:
    """Boxes on longitudes 0 to 360, cut at 180 and brought to -180 to 180."""
    pieces = []
    for west, south, east, north in parts:
        if west < 180:
            pieces.append(shapely.box(west, south, min(east, 180), north))
        if east > 180:
            pieces.append(shapely.box(max(west, 180) - 360, south, east - 360, north))
    return shapely.MultiPolygon(pieces)


@pytest.fixture
def fiji(archive: psycopg.Connection) -> dict[int, tuple[int, Bounds]]:
    """Patches of both zones about the antimeridian, and places there; srid and native bounds by patch."""
    for name, (level, country, parts) in PLACES.items():
        archive.execute(
            "insert into eo.nuts (nuts_id, level, country_code, name, geom) values (%s, %s, %s, %s, st_geomfromwkb(%s, 4326))",
            (name, level, country, name, shapely.to_wkb(split(parts))),
        )
    there = []
    for srid in (32760, 32701):
        x, y = pyproj.Transformer.from_crs(4326, srid, always_xy=True).transform(180.0, -16.7)
        there += grid(srid, round(x, -1) + 330, round(y, -1), 1200.0, 8, 4)
    return dict(zip(write(archive, there), there, strict=True))


def test_places_of_patches_at_the_antimeridian(
    archive: psycopg.Connection, fiji: dict[int, tuple[int, Bounds]]
) -> None:
    archive.execute("call eo.annotate('{country}')")
    rows = dict(archive.execute("select patch_id, nuts_ids from eo.patch").fetchall())
    countries = dict(archive.execute("select patch_id, country_codes from eo.patch").fetchall())
    seen = set()
    for patch_id, (srid, bounds) in fiji.items():
        longitude, latitude = ring(srid, bounds)
        outline = on_map(longitude % 360, latitude, 0)
        share = {
            name: outline.intersection(shapely.union_all([shapely.box(*part) for part in parts])).area / outline.area
            for name, (_, _, parts) in PLACES.items()
        }
        certain = {name for name, fraction in share.items() if fraction > 1e-4}
        level_3 = sorted((name for name in certain if name != "FR"), key=lambda name: -share[name])
        found = [name for name in rows[patch_id] or [] if share[name] > 1e-4]
        assert found == level_3, (srid, bounds)
        assert ("FR" in (countries[patch_id] or [])) == ("FR" in certain) or 0 < share["FR"] <= 1e-4
        seen |= certain
    assert seen == set(PLACES)


def test_far_parts_of_a_country_are_not_brought_to_the_zone(archive: psycopg.Connection) -> None:
    """What lies 90 degrees from a UTM zone has no place in it, and transforming it fails."""
    parts = [(179.9, -0.5, 180.1, 0.5), (86.9, -1.0, 87.1, 1.0)]
    archive.execute(
        "insert into eo.nuts (nuts_id, level, country_code, name, geom) values ('KI', 0, 'KI', 'KI', st_geomfromwkb(%s, 4326))",
        (shapely.to_wkb(split(parts)),),
    )
    write(archive, grid(32660, 833_980.0, 0.0, 1200.0, 4, 2))
    archive.execute("call eo.annotate('{country}')")
    assert archive.execute("select distinct country_codes from eo.patch").fetchall() == [(["KI"],)]


def test_patches_of_a_place_are_left_out_together(
    archive: psycopg.Connection, fiji: dict[int, tuple[int, Bounds]]
) -> None:
    """exclude_same_place: footprints that overlap, of either zone."""
    outlines = {}
    for patch_id, (srid, bounds) in fiji.items():
        longitude, latitude = ring(srid, bounds)
        outlines[patch_id] = on_map(longitude % 360, latitude, 0)
    crossing = [patch_id for patch_id, outline in outlines.items() if outline.bounds[0] < 180 < outline.bounds[2]]
    assert len(crossing) >= 8
    for chosen in crossing[:3]:
        row = archive.execute(
            "select array(select unnest(eo_internal.left_out(array[name], true)) order by 1) from eo.patch where patch_id = %s",
            (chosen,),
        ).fetchone()
        expected = [
            patch_id
            for patch_id, outline in outlines.items()
            if outline.intersection(outlines[chosen]).area > 0.001 * outlines[chosen].area
        ]
        assert row == (expected,)
        assert len(expected) > 1


def test_searches_by_likeness_with_an_area(archive: psycopg.Connection, fiji: dict[int, tuple[int, Bounds]]) -> None:
    """Packed patches know bounds only, and those of a footprint that is cut go around the world: what passes is tested."""
    far = write(archive, grid(32735, 500_000.0, 8_150_000.0, 1200.0, 8, 4), "zambia")
    ids = [*fiji, *far]
    codes = [f"{number % 16:016b}" for number, _ in enumerate(ids)]
    archive.execute("select eo.register_encoder('vectors', 1, 'spectral', '{B02}', %s, dimension => 4)", (NO_WEIGHTS,))
    archive.execute(
        "select eo.register_encoder('codes', 1, 'lsh', '{}', %s, bits => 16,"
        " parent_id => (select encoder_id from eo.encoder where name = 'vectors'))",
        (lsh_weights(16, 4),),
    )
    archive.execute(
        "select eo.store_codes((select encoder_id from eo.encoder where name = 'codes'), %s, %s, %s::varbit[])",
        (ids, [0] * len(ids), codes),
    )
    archive.execute("select eo.build_code_index()")
    for area in (
        "eo.rectangle(179.99, -17, -179.99, -16)",
        "eo.rectangle(-179.999, -16.71, -179.95, -16.6)",
        "st_makeenvelope(20, -18, 30, -16, 4326)",
        "st_point(180, -16.7, 4326)",
    ):
        passing = {
            patch_id
            for (patch_id,) in archive.execute(
                f"select patch_id from eo.search(eo.filter({area}), max_results => null)".encode()
            )
        }
        assert 0 < len(passing) < len(ids)
        expected = sorted(
            (code.count("1"), patch_id) for patch_id, code in zip(ids, codes, strict=True) if patch_id in passing
        )
        for scan in ("files", "sql"):
            archive.execute("select set_config('pgearth.code_scan', %s, false)", (scan,))
            for number in (5, 1000):
                found = archive.execute(
                    f"select distance, patch_id from eo.similar_to_code(%s::varbit, eo.filter(area => {area}), max_results => %s)".encode(),
                    ("0" * 16, number),
                ).fetchall()
                assert found == expected[:number], (area, scan)


def test_rectangles_are_valid(module_archive: psycopg.Connection) -> None:
    """Case: eo.rectangle(180, 0, -180, 1) was none. As wide and as high as asked for, however thin."""
    meridians = [-180.0, -179.99999999999997, -179.9, -90.0, 0.0, 1e-15, 90.0, 179.9, 179.99999999999997, 180.0]
    parallels = [(-90.0, 90.0), (0.0, 1.0), (1.0, 1.0000000000000002), (-90.0, -89.99999999999999), (89.99, 90.0)]
    for west in meridians:
        for east in meridians:
            if (west - east) in (0, 360):
                continue
            for south, north in parallels:
                row = module_archive.execute(
                    "select st_isvalid(r), st_srid(r), st_dimension(r), st_numgeometries(r), st_area(r), st_ymin(r), st_ymax(r)"
                    " from eo.rectangle(%s, %s, %s, %s) r",
                    (west, south, east, north),
                ).fetchone()
                assert row is not None
                valid, srid, dimension, parts, area, least, most = row
                across = east < west
                assert (valid, srid, dimension, least, most) == (True, 4326, 2, south, north)
                assert parts == (2 if across and west < 180 and east > -180 else 1)
                assert area == pytest.approx((east - west + 360 * across) * (north - south), rel=1e-3, abs=1e-25)
