"""Land cover and country against their definitions: PostGIS patch by patch, and shapely outside the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pyogrio
import pytest
import shapely
from psycopg import errors
from rasterio import Affine
from rasterio.features import rasterize

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.reference.corine import load_corine
from pgearth.loaders.reference.nuts import load_nuts

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
    module_archive.execute("call eo.annotate(batch_size => 100)")
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
    query = "select patch_id, xmin::text, label_ids, label_fraction, country_codes, nuts_ids from eo.patch order by patch_id"
    before = annotated.execute(query).fetchall()
    assert annotated.execute("call eo.annotate()").fetchone() == (0,)
    assert annotated.execute('call eo.annotate("replace" => true)').fetchone() == (0,)
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
            annotated.execute("call eo.annotate(source => 'muenster', batch_size => 20)")
    finally:
        annotated.remove_notice_handler(cancel)
    row = annotated.execute("select count(label_ids) from eo.patch where source = 'muenster'").fetchone()
    assert row is not None and 0 < row[0] < len(complete)
    annotated.execute("call eo.annotate(source => 'muenster', batch_size => 20)")
    assert annotated.execute(query).fetchall() == complete


def test_polygons_loaded_later_reach_old_patches(archive: psycopg.Connection, sample: Path) -> None:
    write_products(
        archive, [Product("lanjaron", "sentinel-2a", "L2A", TIME), Product("muenster", "sentinel-2a", "L2A", TIME)]
    )
    for name in ("lanjaron", "muenster"):
        with archive.transaction():
            write_patches(archive, name, grid(name))
    load_corine(archive, sample / "corine" / "clc2018_lanjaron_es.gpkg", "clc")
    archive.execute("call eo.annotate()")
    assert archive.execute("select count(label_ids) from eo.patch where source = 'muenster'").fetchone() == (0,)
    load_corine(archive, sample / "corine" / "clc5_2018_muenster_de.gpkg")
    archive.execute("call eo.annotate()")
    row = archive.execute("select count(label_ids) from eo.patch where source = 'muenster'").fetchone()
    assert row is not None and row[0] > 100


def test_nothing_to_annotate_with(archive: psycopg.Connection) -> None:
    for call, table in (("eo.annotate('{land_cover}')", "eo.corine"), ("eo.annotate('{country}')", "eo.nuts")):
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match=table) as caught:
            archive.execute(f"call {call}".encode())
        assert "pgearth load" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("batch_size => 0", "not 0"),
        ("'{landcover}'", "{landcover}"),
        ("rule => 'any'", '"any"'),
        ("minimal_overlap => 1.5", "1.5"),
        ("rule => 'bigearthnet-v2', minimal_overlap => 0.1", "0.1"),
    ],
)
def test_bad_arguments(archive: psycopg.Connection, arguments: str, message: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=message) as caught:
        archive.execute(f"call eo.annotate({arguments})".encode())
    assert caught.value.diag.message_hint


def test_places_equal_one_query_per_patch(annotated: psycopg.Connection) -> None:
    """Places of level 3, by area; their country's code is theirs, and levels 1 and 2 are their first characters."""
    several = 0
    for box, srid, nuts_ids, country_codes in annotated.execute(
        "select st_makeenvelope(west, south, east, north, srid), srid, nuts_ids, country_codes from eo.patch where source = 'vaals'"
    ).fetchall():
        definition = annotated.execute(
            """
            select nuts_id, country_code from (
                select nuts_id, country_code, st_area(st_intersection(st_transform(geom, %(srid)s), %(box)s::geometry)) as area
                from eo.nuts
                where level = 3 and geom && st_transform(%(box)s::geometry, 4326)
            ) share where area > 0 order by area desc
            """,
            {"box": box, "srid": srid},
        ).fetchall()
        assert nuts_ids == [nuts_id for nuts_id, _ in definition]
        assert set(country_codes) == {country for _, country in definition}
        several += len(nuts_ids) > 1
    assert several > 30
    parents = annotated.execute(
        "select count(*) from eo.patch, unnest(nuts_ids) n where source = 'vaals'"
        " and not exists (select from eo.nuts where nuts_id = left(n, 4) and level = 2)"
    ).fetchone()
    assert parents == (0,)


def test_a_country_without_places_of_level_3(archive: psycopg.Connection, sample: Path) -> None:
    load_nuts(archive, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    archive.execute("delete from eo.nuts where country_code = 'NL' and level > 0")
    write_products(archive, [Product("vaals", "sentinel-2a", "L2A", TIME)])
    with archive.transaction():
        write_patches(archive, "vaals", grid("vaals"))
    archive.execute("call eo.annotate()")
    found = archive.execute(
        "select country_codes, bool_and(not exists (select from unnest(nuts_ids) n where n like 'NL%')), bool_and(nuts_ids = '{}')"
        " from eo.patch group by 1 order by 1"
    ).fetchall()
    assert (["NL"], True, True) in found
    assert (["NL", "DE"], True, False) in found
    assert archive.execute("select count(*) from eo.unannotated_cells()").fetchone() == (0,)


def test_touching_is_not_sharing(archive: psycopg.Connection) -> None:
    """A polygon that only touches a patch, at an edge or a corner, is no label of it."""
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    x, y = 4_321_000, 3_210_000  # EPSG:3035 itself, so that nothing is rounded
    with archive.transaction():
        write_patches(archive, "s", [Patch("p", "p", "sentinel-2a", TIME, 3035, x, y, x + SIDE, y + SIDE)])
    boxes = {
        111: (x - 50, y, x, y + 50),
        112: (x + SIDE, y + SIDE, x + SIDE + 50, y + SIDE + 50),
        211: (x, y, x + 600, y + 600),
    }
    for code, box in boxes.items():
        archive.execute(
            "insert into eo.corine (source, label_id, geom) values ('t', %s, st_multi(st_makeenvelope(%s, %s, %s, %s, 3035)))",
            (code, *box),
        )
    archive.execute("call eo.annotate()")
    assert archive.execute("select label_ids, label_fraction from eo.patch").fetchone() == ([211], [0.25])


def test_several_patches_of_a_place(archive: psycopg.Connection, sample: Path) -> None:
    """Annotated like one alone; labels of the data set stay, and give way with "replace" only."""
    write_products(archive, [Product("muenster", "sentinel-2a", "L2A", TIME)])
    own = list(grid("muenster"))[100:200]
    again = [replace(patch, name=f"{patch.name}-again") for patch in own]
    given = [replace(patch, name=f"{patch.name}-given", label_ids=[523]) for patch in own]
    with archive.transaction():
        write_patches(archive, "s", [*own, *again, *given])
    load_corine(archive, sample / "corine" / "clc5_2018_muenster_de.gpkg")
    archive.execute("call eo.annotate(batch_size => 50)")
    query = """
        select a.label_ids = b.label_ids and a.label_fraction = b.label_fraction, c.label_ids = '{523}' and c.label_fraction is null,
               a.label_ids = c.label_ids, count(*)
        from eo.patch a join eo.patch b on b.name = a.name || '-again' join eo.patch c on c.name = a.name || '-given'
        group by 1, 2, 3
    """
    assert archive.execute(query).fetchall() == [(True, True, False, 100)]
    assert archive.execute('call eo.annotate("replace" => true)').fetchone() == (100,)
    assert archive.execute(query).fetchall() == [(True, False, True, 100)]


def test_minimal_overlap(annotated: psycopg.Connection) -> None:
    """Classes below the share are left out, and a patch of nothing else has no labels."""
    query = "select name, label_ids, label_fraction from eo.patch where source = 'muenster' order by name"
    before = annotated.execute(query).fetchall()
    annotated.execute(
        "call eo.annotate('{land_cover}', minimal_overlap => 0.4, source => 'muenster', \"replace\" => true)"
    )
    fewer = without = 0
    for (_, labels, fractions), (_, kept, kept_fractions) in zip(
        before, annotated.execute(query).fetchall(), strict=True
    ):
        expected = [(label, share) for label, share in zip(labels or [], fractions or [], strict=True) if share >= 0.4]
        assert list(zip(kept or [], kept_fractions or [], strict=True)) == expected
        fewer += len(expected) < len(labels or [])
        without += bool(labels) and kept is None
    assert fewer > 100 and without > 0
    annotated.execute("call eo.annotate('{land_cover}', source => 'muenster', \"replace\" => true)")
    assert annotated.execute(query).fetchall() == before


def test_bigearthnet_rule_equals_rasterio(annotated: psycopg.Connection, sample: Path) -> None:
    """Pixels of 10 m, burnt by rasterio from the file itself; labels where over 75 % is of classes of BigEarthNet-19."""
    archive = annotated
    cells = [
        cell
        for (cell,) in archive.execute(
            "select distinct cell from eo.patch where source = 'lanjaron' order by 1"
        ).fetchall()
    ][::2]
    archive.execute(
        "call eo.annotate('{land_cover}', rule => 'bigearthnet-v2', cells => %s, \"replace\" => true)", (cells,)
    )
    _, _, wkb, values = pyogrio.raw.read(
        sample / "corine" / "clc2018_lanjaron_es.gpkg", layer="clc", columns=["CODE_18"]
    )
    polygons = shapely.force_2d(shapely.from_wkb(wkb))
    codes = [int(code) for code in values[0]]
    named = {
        int(code)
        for (code,) in archive.execute("select unnest(clc_codes) from eo.label where scheme = 'ben19'").fetchall()
    }
    rows = archive.execute(
        "select west, south, east, north, label_ids, label_fraction from eo.patch where cell = any (%s)", (cells,)
    ).fetchall()
    tree = shapely.STRtree(polygons)
    labelled = unlabelled = 0
    for west, south, east, north, label_ids, fractions in rows:
        near = sorted(tree.query(shapely.box(west, south, east, north)))
        pixels = rasterize(
            [(polygons[n], codes[n]) for n in near] or [(shapely.box(west, south, east, north), 0)],
            out_shape=(120, 120),
            transform=Affine(10, 0, west, 0, -10, north),
            dtype="uint16",
        )
        present, counts = np.unique(pixels[pixels > 0], return_counts=True)
        share = dict(zip(present.tolist(), (counts / 120**2).tolist(), strict=True))
        covered = sum(part for code, part in share.items() if code in named)
        if covered > 0.751:
            stored = dict(zip(label_ids, fractions, strict=True))
            # A pixel whose centre is on an edge may fall to either side on the way to EPSG:3035 and back.
            for code in share.keys() | stored.keys():
                assert stored.get(code, 0) == pytest.approx(share.get(code, 0), abs=2.5 / 120**2), (west, south)
            labelled += 1
        elif covered < 0.749:
            assert label_ids is None
            unlabelled += bool(share)
    assert labelled > 30 and unlabelled > 3


def test_scene_classes_of_a_stored_band(archive: psycopg.Connection) -> None:
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    x, y = 600_000, 5_700_000
    names = ["clear", "cloudy", "snowy", "without pixels", "known"]
    with archive.transaction():
        write_patches(
            archive,
            "s",
            [
                Patch(
                    name,
                    "p",
                    "sentinel-2a",
                    TIME,
                    32632,
                    x,
                    y,
                    x + 40,
                    y + 40,
                    scene_class_ids=[2004] if name == "known" else None,
                )
                for name in names
            ],
        )
    for name, pixels in {
        "clear": [4, 4, 5, 5],
        "cloudy": [9, 4, 4, 4],
        "snowy": [11, 11, 0, 4],
        "known": [9, 9, 9, 9],
    }.items():
        archive.execute(
            """
            insert into eo.patch_raster (patch_id, resolution, cell, bands, rast)
            select patch_id, 20, cell, '{B05,SCL}', st_setvalues(st_addband(st_addband(
                st_makeemptyraster(2, 2, west, north, 20, -20, 0, 0, srid), '16BUI'::text, 7), '16BUI'::text, 0, 0), 2, 1, 1, %s::double precision[][])
            from eo.patch where name = %s
            """,
            ([pixels[:2], pixels[2:]], name),
        )
    assert archive.execute("call eo.annotate()").fetchone() == (3,)
    query = "select name, scene_class_ids, scene_class_fraction, cloud_or_shadow, seasonal_snow from eo.patch order by patch_id"
    rows = {name: tuple(rest) for name, *rest in archive.execute(query).fetchall()}
    assert rows["clear"] == ([2004, 2005], [0.5, 0.5], False, False)
    assert rows["cloudy"] == ([2004, 2009], [0.75, 0.25], True, False)
    assert rows["snowy"] == ([2004, 2011], pytest.approx([1 / 3, 2 / 3]), False, True)
    assert rows["without pixels"] == (None, None, None, None)
    assert rows["known"] == ([2004], None, None, None)
    assert archive.execute("select * from eo.unannotated_cells()").fetchall() == []
    # Pixels that are no longer classified: replaced, the patch has no scene classes; without, it keeps them.
    archive.execute("update eo.patch_raster set rast = st_setvalues(rast, 2, 1, 1, 2, 2, 0)")
    assert archive.execute("call eo.annotate()").fetchone() == (0,)
    assert archive.execute('call eo.annotate("replace" => true)').fetchone() == (4,)
    rows = archive.execute(query).fetchall()
    assert [row[1:] for row in rows] == [(None, None, None, None)] * 5


def test_annotated_patches_are_not_read_again(annotated: psycopg.Connection) -> None:
    """New patches are found by indexes that hold no others: reading them takes no more pages than there are of them."""
    annotated.execute("vacuum analyze eo.patch")
    with annotated.transaction(force_rollback=True):
        annotated.execute("set local enable_seqscan = off")
        for what, index in (("land_cover", "patch_without_labels"), ("country", "patch_without_places")):
            cells = "select 'u1h2k' union all select 'ezz00'"
            for query in (
                f"select * from eo_internal.unannotated('{{{what}}}', null, false)",
                f"select p.* from ({cells}) c (cell) join eo_internal.unannotated('{{{what}}}', null, false) p on p.cell = c.cell",
            ):
                plan = "\n".join(line for (line,) in annotated.execute(f"explain {query}"))
                assert index in plan and "patch_pkey" not in plan and "Seq Scan on patch" not in plan
