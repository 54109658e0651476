"""Land cover and country against their definitions: PostGIS patch by patch, and shapely outside the database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pyogrio
import pytest
import shapely
from psycopg import errors

from loaders.corine import load_corine
from loaders.nuts import load_nuts
from loaders.patches import Patch, Product, write_patches, write_products

TIME = datetime(2018, 7, 1, tzinfo=UTC)
SIDE = 1200
# Grids of patches over the real polygons, past their edges, and over a border of three countries.
GRIDS = {
    "lanjaron": (32630, 452_500, 4_080_500, 10, 16),
    "muenster": (32632, 394_500, 5_743_600, 17, 21),
    "vaals": (32632, 285_000, 5_620_000, 12, 16),
}


def grid(name: str) -> Iterator[Patch]:
    srid, west, south, columns, rows = GRIDS[name]
    for row in range(rows):
        for column in range(columns):
            x, y = west + SIDE * column, south + SIDE * row
            yield Patch(f"{name}-{column}-{row}", name, "sentinel-2a", TIME, srid, x, y, x + SIDE, y + SIDE)


@pytest.fixture(scope="module")
def annotated(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    write_products(module_archive, [Product(name, "sentinel-2a", "L2A", TIME) for name in GRIDS])
    for name in GRIDS:
        with module_archive.transaction():
            write_patches(module_archive, name, grid(name))
    load_corine(module_archive, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
    load_corine(module_archive, sample / "corine" / "clc5_2018_muenster_de.gpkg")
    load_nuts(module_archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    module_archive.execute("call eo.annotate_land_cover(batch_size => 100)")
    module_archive.execute("call eo.annotate_country(batch_size => 100)")
    return module_archive


@pytest.mark.parametrize("name", ["lanjaron", "muenster"])
def test_land_cover_equals_one_query_per_patch(annotated: psycopg.Connection, name: str) -> None:
    """The definition: ST_Intersects per patch, ST_Area of ST_Intersection, with whole polygons in the patch's system."""
    srid = GRIDS[name][0]
    annotated.execute("drop table if exists whole")
    annotated.execute(
        "create temporary table whole as select label_id, st_makevalid(st_transform(geom, %s)) as geom from eo.corine"
        " where geom && st_transform(eo_internal.patch_extent(%s), 3035)",
        (srid, srid),
    )
    annotated.execute("create index on whole using gist (geom)")
    patches = annotated.execute(
        "select patch_id, st_makeenvelope(west, south, east, north, srid), label_ids, label_fraction from eo.patch where source = %s",
        (name,),
    ).fetchall()
    covered = 0
    for _, box, label_ids, fractions in patches:
        definition = annotated.execute(
            "select label_id, sum(st_area(st_intersection(geom, %(box)s::geometry))) / st_area(%(box)s::geometry) from whole"
            " where st_intersects(geom, %(box)s::geometry) group by label_id order by label_id",
            {"box": box},
        ).fetchall()
        if not definition:
            assert label_ids is None
            continue
        covered += 1
        assert label_ids == [label for label, _ in definition]
        np.testing.assert_allclose(fractions, [share for _, share in definition], atol=1e-6)
    assert covered > 100


@pytest.mark.parametrize(
    ("name", "file", "layer", "field"),
    [
        ("lanjaron", "clc2018_lanjaron_es.gpkg", "clc", "CODE_18"),
        ("muenster", "clc5_2018_muenster_de.gpkg", None, "CLC18"),
    ],
)
def test_land_cover_equals_shapely_outside_the_database(
    annotated: psycopg.Connection, sample: Path, name: str, file: str, layer: str | None, field: str
) -> None:
    """The files are in ETRS89 / UTM of the same zone, which PROJ takes for the same as WGS 84 / UTM here."""
    meta, _, geometries, values = pyogrio.raw.read(sample / "corine" / file, layer=layer, columns=[field])
    del meta
    polygons = shapely.make_valid(shapely.force_2d(shapely.from_wkb(geometries)))
    codes = np.array([int(code) for code in values[0]])
    tree = shapely.STRtree(polygons)
    compared = 0
    for west, south, east, north, label_ids, fractions in annotated.execute(
        "select west, south, east, north, label_ids, label_fraction from eo.patch where source = %s", (name,)
    ):
        box = shapely.box(west, south, east, north)
        near = tree.query(box, predicate="intersects")
        areas: dict[int, float] = {}
        for code, area in zip(codes[near], shapely.area(shapely.intersection(polygons[near], box)), strict=True):
            areas[code] = areas.get(code, 0) + area / SIDE**2
        stored = dict(zip(label_ids or [], fractions or [], strict=True))
        # The file's edges go through EPSG:3035 and back: a share below a square metre may come and go.
        for code in areas.keys() | stored.keys():
            assert stored.get(code, 0) == pytest.approx(areas.get(code, 0), abs=1e-5), (west, south, code)
        compared += bool(areas)
    assert compared > 100


def test_fractions_of_covered_patches_sum_to_one(annotated: psycopg.Connection) -> None:
    sums = [
        total
        for (total,) in annotated.execute(
            "select (select sum(f) from unnest(label_fraction) f) from eo.patch where label_ids is not null and source <> 'vaals'"
        )
    ]
    assert max(sums) <= 1 + 1e-5
    assert sum(total > 0.999 for total in sums) > 100


def test_countries_equal_one_query_per_patch(annotated: psycopg.Connection) -> None:
    borders = 0
    for box, srid, country_codes in annotated.execute(
        "select st_makeenvelope(west, south, east, north, srid), srid, country_codes from eo.patch where source = 'vaals'"
    ).fetchall():
        definition = annotated.execute(
            """
            select country_code from (
                select n.country_code, sum(st_area(st_intersection(st_transform(part.geom, %(srid)s), %(box)s::geometry))) as area
                from eo.nuts n, st_dump(n.geom) part
                where n.level = 0 and part.geom && st_transform(%(box)s::geometry, 4326)
                group by n.country_code
            ) share where area > 0 order by area desc
            """,
            {"box": box, "srid": srid},
        ).fetchall()
        assert country_codes == [code for (code,) in definition]
        borders += len(definition) > 1
    assert borders > 10
    found = annotated.execute(
        "select distinct unnest(country_codes) from eo.patch where source = 'vaals' order by 1"
    ).fetchall()
    assert found == [("BE",), ("DE",), ("NL",)]


def test_annotating_again_changes_nothing(annotated: psycopg.Connection) -> None:
    query = "select patch_id, xmin::text, label_ids, label_fraction, country_codes from eo.patch order by patch_id"
    before = annotated.execute(query).fetchall()
    annotated.execute("call eo.annotate_land_cover()")
    annotated.execute("call eo.annotate_country()")
    assert annotated.execute(query).fetchall() == before
    assert annotated.execute("select eo.derive_corine_parts() + eo.derive_nuts_parts()").fetchone() == (0,)


def test_an_interrupted_annotation_goes_on(annotated: psycopg.Connection, cluster: object) -> None:
    """Cancelled after its first batches, then called again: the same rows as in one run."""
    query = "select patch_id, label_ids, label_fraction from eo.patch where source = 'muenster' order by patch_id"
    complete = annotated.execute(query).fetchall()
    annotated.execute("update eo.patch set label_ids = null, label_fraction = null where source = 'muenster'")
    batches = 0

    def cancel(notice: psycopg.errors.Diagnostic) -> None:
        nonlocal batches
        batches += "annotated" in (notice.message_primary or "")
        if batches == 2:
            annotated.cancel_safe()

    annotated.add_notice_handler(cancel)
    try:
        with pytest.raises(errors.QueryCanceled):
            annotated.execute("call eo.annotate_land_cover(batch_size => 20)")
    finally:
        annotated.remove_notice_handler(cancel)
    row = annotated.execute("select count(label_ids) from eo.patch where source = 'muenster'").fetchone()
    assert row is not None and 0 < row[0] < len(complete)
    annotated.execute("call eo.annotate_land_cover(batch_size => 20)")
    assert annotated.execute(query).fetchall() == complete


def test_polygons_loaded_later_reach_old_patches(archive: psycopg.Connection, sample: Path) -> None:
    write_products(
        archive, [Product("lanjaron", "sentinel-2a", "L2A", TIME), Product("muenster", "sentinel-2a", "L2A", TIME)]
    )
    for name in ("lanjaron", "muenster"):
        with archive.transaction():
            write_patches(archive, name, grid(name))
    load_corine(archive, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
    archive.execute("call eo.annotate_land_cover()")
    assert archive.execute("select count(label_ids) from eo.patch where source = 'muenster'").fetchone() == (0,)
    load_corine(archive, sample / "corine" / "clc5_2018_muenster_de.gpkg")
    archive.execute("call eo.annotate_land_cover()")
    row = archive.execute("select count(label_ids) from eo.patch where source = 'muenster'").fetchone()
    assert row is not None and row[0] > 100


def test_nothing_to_annotate_with(archive: psycopg.Connection) -> None:
    for call, table in (("eo.annotate_land_cover()", "eo.corine"), ("eo.annotate_country()", "eo.nuts")):
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match=table) as caught:
            archive.execute(f"call {call}".encode())
        assert "pgearth load" in (caught.value.diag.message_hint or "")


def test_bad_batch_size(archive: psycopg.Connection) -> None:
    with pytest.raises(errors.InvalidParameterValue, match="not 0"):
        archive.execute("call eo.annotate_country(batch_size => 0)")
