"""Products across the antimeridian and about the poles, loaded, found, exported and loaded again.

Oracle: pyproj and shapely on longitudes 0 to 360, about the poles on a map that has the pole in its middle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet as pq
import pygeohash
import pyproj
import pytest
import rasterio
import shapely
from click.testing import Result
from rasterio import Affine

from pgearth.loaders.archive.footprint import footprint
from pgearth.loaders.products.files import Given
from pgearth.loaders.products.load import Options, load_product
from tests.loaders.products.safe_product import SINCE_OFFSET, assemble_safe

Run = Callable[..., Result]


def outline_from_0(srid: int, bounds: tuple[float, float, float, float]) -> shapely.Geometry:
    """Native bounds on longitudes 0 to 360."""
    box = shapely.segmentize(shapely.box(*bounds), max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / 64)
    x, y = pyproj.Transformer.from_crs(srid, 4326, always_xy=True).transform(*np.array(box.exterior.coords).T)
    return shapely.Polygon(np.column_stack([np.asarray(x) % 360, y]))


def from_0(geometry: shapely.Geometry) -> shapely.Geometry:
    """A split geometry on longitudes 0 to 360, in one piece."""
    parts = [
        shapely.transform(part, lambda points: points + np.array((360, 0))) if part.bounds[2] <= 0 else part
        for part in shapely.get_parts(geometry)
    ]
    return shapely.union_all(parts)


@pytest.fixture
def fiji(archive: psycopg.Connection, sample: Path, tmp_path: Path) -> psycopg.Connection:
    """Case B5: tile 01KAB."""
    counts = load_product(archive, assemble_safe(sample, SINCE_OFFSET, tmp_path), Options(Given(), "fixed:30"))
    assert counts["patches"] == 96
    return archive


def test_a_tile_across_the_antimeridian(fiji: psycopg.Connection, sample: Path) -> None:
    rows = fiji.execute(
        "select patch_id, srid, west, south, east, north, ST_AsBinary(footprint), cell from eo.patch order by 1"
    ).fetchall()
    outlines = {}
    crossing = 0
    for patch_id, srid, west, south, east, north, wkb, cell in rows:
        stored = shapely.from_wkb(wkb)
        assert stored.is_valid and stored.bounds[0] >= -180 and stored.bounds[2] <= 180
        outlines[patch_id] = outline_from_0(srid, (west, south, east, north))
        assert from_0(stored).symmetric_difference(outlines[patch_id]).area < 2e-4 * outlines[patch_id].area
        crossing += len(stored.geoms) == 2
        longitude, latitude = np.array(outlines[patch_id].centroid.coords)[0]
        near = {pygeohash.encode(latitude, (longitude + 180) % 360 - 180, 5)}
        assert cell in near | set(
            fiji.execute("select array(select eo.cell_neighbours(%s))", (next(iter(near)),)).fetchone()[0]
        )
    assert crossing == 12
    for area, there in {
        "eo.circle(st_point(28, -16.8, 4326), 400000)": shapely.Point(28, -16.8).buffer(3),  # Zambia
        "eo.rectangle(179.9, -17, -179.9, -16.5)": shapely.box(179.9, -17, 180.1, -16.5),
        "eo.rectangle(179.5, -17, 179.99, -16.5)": shapely.box(179.5, -17, 179.99, -16.5),
        "eo.rectangle(-179.99, -17, -179.7, -16.5)": shapely.box(180.01, -17, 180.3, -16.5),
        "st_point(-179.96, -16.8, 4326)": shapely.Point(180.04, -16.8),
    }.items():
        expected = [patch_id for patch_id, outline in outlines.items() if outline.intersects(there)]
        found = fiji.execute(
            f"select patch_id from eo.search(eo.filter({area}), max_results => null)".encode()
        ).fetchall()
        assert [patch_id for (patch_id,) in found] == expected
        assert bool(expected) == ("28" not in area)
        products = fiji.execute(
            f"select count(*) from eo.select_products(eo.product_filter({area}))".encode()
        ).fetchone()
        assert products == (bool(expected),)
    # Every client draws parts, in either reference system of the map layers.
    assert fiji.execute(
        "select count(*), max(ST_XMax(d.geom) - ST_XMin(d.geom)) < 20000 from eo.map_patch_3857 m, ST_Dump(m.geom) d"
    ).fetchone() == (108, True)


def test_what_is_told_of_patches_beside_each_other(fiji: psycopg.Connection) -> None:
    """Neighbours across the antimeridian are 9 km apart, not 40,000."""
    names = [
        name for (name,) in fiji.execute("select name from eo.patch where tile_row = 5 order by tile_column limit 4")
    ]
    for one, other in pairwise(names):
        facts = {
            item: value
            for topic, item, _, _, value in fiji.execute("select * from eo.explain_similarity(%s, %s)", (one, other))
            if topic == "place"
        }
        assert facts["km between centres"] == pytest.approx(9, abs=0.05)
        assert facts["overlap, of the smaller footprint"] < 1e-3


def test_export_and_load_again(fiji: psycopg.Connection, run_pgearth: Run, tmp_path: Path) -> None:
    area = tmp_path / "area.geojson"  # in parts, as RFC 7946 says
    parts = [shapely.box(179.5, -17, 180, -16.3), shapely.box(-180, -17, -179.5, -16.3)]
    area.write_text(
        json.dumps(
            {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shapely.MultiPolygon(parts))}
        )
    )
    expected = fiji.execute(
        "select count(*) from eo.patches(eo.filter(eo.rectangle(179.5, -17, -179.5, -16.3)))"
    ).fetchone()
    result = run_pgearth(fiji, "export", tmp_path / "out", "--area", area)
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "out" / "metadata.parquet")
    assert (table.num_rows,) == expected
    geo = json.loads(pq.read_metadata(tmp_path / "out" / "metadata.parquet").metadata[b"geo"])["columns"]["geometry"]
    west, south, east, north = geo["bbox"]
    whole = shapely.union_all([from_0(geometry) for geometry in shapely.from_wkb(table["geometry"].to_pylist())])
    assert (west, south, east + 360, north) == pytest.approx(whole.bounds)
    document = json.loads(next((tmp_path / "out").glob("*/*_metadata.json")).read_text())
    assert document["footprint"]["type"] == "MultiPolygon" and len(document["footprint"]["coordinates"]) == 2
    patches = "select name, cell, ST_AsBinary(footprint), west from eo.patch where name = any (%s) order by 1"
    before = fiji.execute(patches, (table["name"].to_pylist(),)).fetchall()
    product = fiji.execute("select ST_AsBinary(footprint) from eo.product").fetchall()
    fiji.execute("delete from eo.patch; delete from eo.product; delete from eo.load")
    assert run_pgearth(fiji, "load", "export", tmp_path / "out").exit_code == 0
    assert fiji.execute(patches, (table["name"].to_pylist(),)).fetchall() == before
    assert fiji.execute("select ST_AsBinary(footprint) from eo.product").fetchall() == product


@pytest.mark.parametrize(
    "text",
    [
        "179.5,-17,-179.5,-16.3",
        "179.5,-17,180.5,-16.3",
        "-180.5,-17,-179.5,-16.3",
        "POLYGON((179.5 -17, 180.5 -17, 180.5 -16.3, 179.5 -16.3, 179.5 -17))",
        {
            "type": "Polygon",
            "coordinates": [[[179.5, -17], [180.5, -17], [180.5, -16.3], [179.5, -16.3], [179.5, -17]]],
        },
    ],
)
def test_ways_to_write_an_area(fiji: psycopg.Connection, run_pgearth: Run, tmp_path: Path, text: str | dict) -> None:
    if isinstance(text, dict):
        (tmp_path / "area.geojson").write_text(json.dumps(text))
        text = str(tmp_path / "area.geojson")
    result = run_pgearth(fiji, "export", tmp_path / "out", "--area", text, "--format", "geoparquet")
    assert result.exit_code == 0, result.output
    expected = fiji.execute(
        "select count(*) from eo.patches(eo.filter(eo.rectangle(179.5, -17, -179.5, -16.3)))"
    ).fetchone()
    assert (pq.read_table(tmp_path / "out" / "metadata.parquet").num_rows,) == expected


def test_an_area_with_a_leap_is_refused(fiji: psycopg.Connection, run_pgearth: Run, tmp_path: Path) -> None:
    """As ST_Buffer of a geography and many GeoJSON files have it: nobody can tell which way round."""
    leaps = [[[179.5, -17], [-179.5, -17], [-179.5, -16.3], [179.5, -16.3], [179.5, -17]]]
    (tmp_path / "area.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": leaps}))
    result = run_pgearth(fiji, "export", tmp_path / "out", "--area", tmp_path / "area.geojson")
    assert result.exit_code != 0 and "longer than 180 degrees" in str(result.exception)
    for centre in ("180, -17", "40, 89.9"):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="longer than 180 degrees") as caught:
            fiji.execute(
                f"select * from eo.search(eo.filter(st_buffer(st_point({centre})::geography, 30000)::geometry))".encode()
            )
        assert "eo.circle" in (caught.value.diag.message_hint or "")


# Grids of their own


def write_grid(folder: Path, crs: str, west: float, north: float, size: float, side: int = 64) -> Path:
    """A product of one band that says nothing of its footprint."""
    y, x = np.mgrid[:side, :side]
    folder.mkdir(parents=True)
    with rasterio.open(
        folder / "B02.tif", "w", driver="GTiff", height=side, width=side, count=1, dtype="uint16", crs=crs, nodata=0,
        transform=Affine(size, 0, west, 0, -size, north),
    ) as file:  # fmt: skip
        file.write((1000 + 10 * x + y).astype("uint16"), 1)
    return folder


GIVEN = Given("grid", datetime(2020, 6, 20, 22, 10, tzinfo=UTC), "sentinel-2a", scale=0.0001, offset=0)
GRIDS = {
    "degrees that go on beyond 180": ("EPSG:4326", 179.9, -16.9, 0.2 / 64),
    "degrees that go on beyond -180": ("EPSG:4326", -180.1, -16.9, 0.2 / 64),
    "degrees from 0 to 360": ("EPSG:4326", 200.0, -16.9, 0.2 / 64),
    "web Mercator": ("EPSG:3857", 20_027_508.0, -1_900_000.0, 300.0),
    "the pole inside": ("EPSG:32661", 1_993_600.0, 2_009_600.0, 300.0),
    "the pole as a corner": ("EPSG:3031", 0.0, 0.0, 300.0),
    "the pole on an edge": ("EPSG:3413", -9_600.0, 19_200.0, 300.0),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_without_a_footprint(archive: psycopg.Connection, tmp_path: Path, name: str) -> None:
    crs, west, north, size = GRIDS[name]
    load_product(archive, write_grid(tmp_path / "p", crs, west, north, size), Options(GIVEN, "fixed:16", ("B02",)))
    row = archive.execute(
        """
        select count(*), bool_and(ST_IsValid(p.footprint)), bool_and(ST_Area(ST_Difference(p.footprint, q.footprint)) < 2e-3 * ST_Area(p.footprint)),
               ST_Area(q.footprint) / ST_Area(ST_Union(p.footprint)), ST_XMin(q.footprint) >= -180, ST_XMax(q.footprint) <= 180
        from eo.product q, eo.patch p group by q.product_id
        """
    ).fetchone()
    assert row is not None
    assert row == (16, True, True, pytest.approx(1, abs=2e-3), True, True)
    to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    for column in range(4):
        for line in range(4):
            x, y = west + (16 * column + 8) * size, north - (16 * line + 8) * size
            longitude, latitude = to_degrees.transform(x, y)
            point = ((longitude + 180) % 360 - 180, latitude)
            found = archive.execute(
                "select tile_column, tile_row from eo.patches(eo.filter(st_point(%s, %s, 4326)))", point
            ).fetchall()
            assert found == [(column, line)]


@pytest.mark.parametrize(
    "name", ["degrees that go on beyond 180", "degrees that go on beyond -180", "degrees from 0 to 360"]
)
def test_cells_of_a_grid_that_goes_on(archive: psycopg.Connection, tmp_path: Path, name: str) -> None:
    crs, west, north, size = GRIDS[name]
    load_product(archive, write_grid(tmp_path / "p", crs, west, north, size), Options(GIVEN, "cell:5:16", ("B02",)))
    expected = {
        pygeohash.encode(y, (x + 180) % 360 - 180, 5)
        for x in np.arange(west + size / 2, west + 64 * size, size)
        for y in np.arange(north - size / 2, north - 64 * size, -size)
    }
    rows = archive.execute(
        "select p.cell, p.west, p.north, (ST_SummaryStats(r.rast)).count, ST_Value(r.rast, 8, 8)"
        " from eo.patch p join eo.patch_raster r using (patch_id, cell)"
    ).fetchall()
    assert {cell for cell, *_ in rows} == expected
    whole = [row for row in rows if row[3] == 256]
    assert len(whole) > 8
    for _, cell_west, cell_north, _, value in whole:
        x = (cell_west + 7.5 * 360 / 2**13 / 16 - west) % 360 / size
        y = (north - cell_north + 7.5 * 180 / 2**12 / 16) / size
        assert value == pytest.approx(1000 + 10 * (x - 0.5) + (y - 0.5), abs=2)


# Outlines


@pytest.mark.parametrize(
    ("outline", "expected"),
    [
        (shapely.box(-180, -90, 180, 90), 360 * 180),
        (shapely.box(0, -90.25, 360, 90.25), 360 * 180),
        (shapely.box(190, 10, 200, 20), 100),
        (shapely.box(170, 10, 190, 20), 200),
        (shapely.box(170, 10, 190, 20).difference(shapely.box(178, 12, 183, 15)), 185),
        (
            shapely.Polygon(
                [(170, 10), (-170, 10), (-170, 20), (170, 20)], [[(178, 12), (-177, 12), (-177, 15), (178, 15)]]
            ),
            185,
        ),
        (shapely.Polygon([(x, 80) for x in (0, 90, 180, -90)]), 3600),
        (shapely.Polygon([(x, 80) for x in (0, -90, 180, 90)]), 3600),
        (shapely.Polygon([(x, -80) for x in (-120, 0, 120)]), 3600),
        (shapely.Polygon([(x, 80) for x in (0, 90, 180, -90)], [[(x, 85) for x in (0, 90, 180, -90)]]), 1800),
        (shapely.Polygon([(170, 80), (-170, 80), (77, 90)]), 200),
        (shapely.Polygon([(179, 10), (180, 10), (-180, 20), (179, 20)]), 10),
    ],
)
def test_outlines(outline: shapely.Geometry, expected: float) -> None:
    wkb = footprint(outline)
    assert wkb is not None
    found = shapely.from_wkb(wkb)
    assert found.geom_type == "MultiPolygon" and found.is_valid
    assert found.area == pytest.approx(expected)
    west, south, east, north = found.bounds
    assert west >= -180 and east <= 180 and south >= -90 and north <= 90
