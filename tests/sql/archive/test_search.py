"""Filters, pages and counts, against brute force in Python over the real catalogue's label sets all over the globe."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow.parquet
import pygeohash
import pyproj
import pytest
import shapely
from psycopg import errors

START = datetime(2017, 6, 1, tzinfo=UTC)
GEOD = pyproj.Geod(ellps="WGS84")
Row = dict[str, Any]


def places(number: int) -> Iterator[tuple[float, float]]:
    """Points all over the globe, but most of them where areas are hard: at the antimeridian and at the poles."""
    generator = np.random.default_rng(11)
    for n in range(number):
        longitude, latitude = generator.uniform(-180, 180), np.degrees(np.arcsin(generator.uniform(-1, 1)))
        if n % 4 == 1:
            longitude = (180 + generator.normal(0, 3) + 180) % 360 - 180
        elif n % 4 == 2:
            latitude = np.copysign(90 - abs(generator.normal(0, 6)), latitude)
        elif n % 4 == 3:
            longitude, latitude = generator.uniform(0, 20), generator.uniform(45, 60)
        yield float(np.clip(longitude, -179.999, 179.999)), float(np.clip(latitude, -89.99, 89.99))


@pytest.fixture(scope="module")
def rows(module_archive: psycopg.Connection, sample: Path) -> list[Row]:
    """A patch the size of a point for each set of labels that occurs in the real catalogue; returns what is stored."""
    table = pyarrow.parquet.read_table(sample / "bigearthnet-v2" / "metadata.parquet", columns=["labels"])
    sets = sorted({tuple(sorted(labels)) for labels in table["labels"].to_pylist()})
    assert len(sets) > 4000
    ids = dict(module_archive.execute("select name, label_id from eo.label where scheme = 'ben19'").fetchall())
    classes = [label_id for (label_id,) in module_archive.execute("select label_id from eo.label where scheme = 'scl'")]
    generator = random.Random(3)
    generator.shuffle(sets)
    module_archive.execute(
        "insert into eo.product (product_id, name, platform, level, sensing_time) values (1, 'p', 'sentinel-2a', 'L2A', %s)",
        (START,),
    )
    stored: list[Row] = []
    for n, ((x, y), labels) in enumerate(zip(places(len(sets)), sets, strict=True)):
        stored.append(
            {
                "patch_id": 7 * n + 1,  # with gaps, as after deletions
                "x": x,
                "y": y,
                "label_ids": sorted(ids[label] for label in labels),
                "sensing_time": START + timedelta(hours=n),
                "scene_class_ids": None if n % 3 == 0 else sorted(generator.sample(classes, 1 + n % 3)),
                "country_codes": ["FI" if 2 * n < len(sets) else "PT"],
                "cell": pygeohash.encode(y, x, 12),
            }
        )
    with module_archive.cursor() as cursor:
        cursor.executemany(
            """
            insert into eo.patch
                (patch_id, cell, name, source, product_id, platform, sensing_time, footprint, srid, west, south, east,
                 north, label_ids, scene_class_ids, country_codes)
            values (%(patch_id)s, left(%(cell)s, 5), %(patch_id)s::text, 'test', 1, 'sentinel-2a', %(sensing_time)s,
                    eo_internal.footprint(%(x)s - 1e-9, %(y)s - 1e-9, %(x)s + 1e-9, %(y)s + 1e-9, 4326), 4326,
                    %(x)s - 1e-9, %(y)s - 1e-9, %(x)s + 1e-9, %(y)s + 1e-9,
                    %(label_ids)s, %(scene_class_ids)s, %(country_codes)s)
            """,
            stored,
        )
    module_archive.execute("vacuum analyze eo.patch")
    return stored


@pytest.fixture
def found(module_archive: psycopg.Connection) -> Callable[..., list[int]]:
    """Call `found(area="SQL", labels=[...])`: ids that eo.search finds, in its order; `area` is an expression."""

    def search(area: str | None = None, **filters: object) -> list[int]:
        given = [f"area => {area}"] if area else []
        arguments = ", ".join([*given, *(f"{key} => %({key})s" for key in filters)])
        query = f"select patch_id from eo.search(eo.filter({arguments}), max_results => null)"
        return [patch_id for (patch_id,) in module_archive.execute(query.encode(), filters)]

    return search


def box(west: float, south: float, east: float, north: float) -> str:
    return shapely.box(west, south, east, north).wkt


HOLE = shapely.box(-2e6, -2e6, 2e6, 2e6).difference(shapely.box(-5e5, -5e5, 5e5, 5e5)).wkt
PROJECTED = {
    "across the antimeridian, UTM 60 north": (32660, box(200_000, 6_900_000, 1_200_000, 7_600_000)),
    "across the antimeridian, UTM 1 south": (32701, box(0, 7_000_000, 700_000, 8_500_000)),
    "across the antimeridian, web Mercator": (3857, box(1.9e7, -5e6, 2.1e7, 5e6)),
    "the north pole inside": (3995, box(-2e6, -1.5e6, 1e6, 3e6)),
    "the south pole inside": (3031, "POLYGON((-1e6 -2e6, 3e6 0, -1e6 2e6, -1e6 -2e6))"),
    "the south pole as a corner": (3031, box(0, 0, 3e6, 3e6)),
    "the south pole on an edge": (3031, box(-2e6, 0, 2e6, 3e6)),
    "the south pole a nanometre inside of an edge": (3031, "POLYGON((-100 -1e-9, 1e6 -1e-9, 1e6 1e6, -3e6 1e6, -3e6 -1e-9, -100 -1e-9))"),
    "the north pole a metre inside of an edge": (3995, box(-3e6, -1, 2e6, 2e6)),
    "the north pole a kilometre outside of an edge": (3995, box(-3e6, 1000, 2e6, 2e6)),
    "the north pole in a hole": (3995, HOLE),
    "the north pole in a hole of a part": (3995, shapely.MultiPolygon([shapely.from_wkt(HOLE), shapely.box(25e5, 0, 4e6, 3e6)]).wkt),
    "beside the pole, across the antimeridian": (3995, box(-2e6, 1e5, 2e6, 3e6)),
    "bent edges": (3035, box(3_000_000, 2_000_000, 5_500_000, 4_500_000)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROJECTED)
def test_projected_area(found: Callable[..., list[int]], rows: list[Row], name: str) -> None:
    """Oracle: the points, brought to the area's reference system instead of the area to theirs."""
    srid, wkt = PROJECTED[name]
    area = shapely.from_wkt(wkt)
    transformer = pyproj.Transformer.from_crs(4326, srid, always_xy=True)
    x, y = transformer.transform([row["x"] for row in rows], [row["y"] for row in rows])
    if srid == 3857:  # the area goes on beyond the antimeridian
        x = np.where(np.array(x) < 0, np.array(x) + 2 * 20037508.342789244, x)
    else:  # UTM is no map of the other side of the globe
        zone = pyproj.CRS(srid).area_of_use
        assert zone is not None
        near = [srid not in (32660, 32701) or abs((row["x"] - (zone.west + 3) + 180) % 360 - 180) < 30 for row in rows]
        x = np.where(near, x, np.inf)
    points = shapely.points(np.where(np.isfinite(x), x, 1e12), np.where(np.isfinite(x), y, 1e12))
    inside = shapely.contains(area, points)
    sure = shapely.distance(area.boundary, points) > np.sqrt(area.area) * 1e-3
    result = set(found(area=f"st_geomfromtext('{wkt}', {srid})"))
    expected = {row["patch_id"] for row, within in zip(rows, inside & sure, strict=True) if within}
    unsure = {row["patch_id"] for row, certain in zip(rows, sure, strict=True) if not certain}
    assert len(expected) > 20
    assert result - unsure == expected


@pytest.mark.parametrize(
    ("x", "y", "radius"),
    [
        (10, 50, 300_000),
        (180, -17, 500_000),
        (-179.9, 60, 1_500_000),
        (30, 89.5, 100_000),
        (30, 88, 600_000),
        (0, 90, 800_000),
        (77, -90, 800_000),
        (100, -80, 1_113_000),
        (-75, 20, 10_000_000),
    ],
)
def test_circle(found: Callable[..., list[int]], rows: list[Row], x: float, y: float, radius: float) -> None:
    distance = np.array([GEOD.inv(x, y, row["x"], row["y"])[2] for row in rows])
    result = set(found(area=f"eo.circle(st_point({x}, {y}, 4326), {radius})"))
    assert {row["patch_id"] for row, d in zip(rows, distance, strict=True) if d < 0.999 * radius} <= result
    assert result <= {row["patch_id"] for row, d in zip(rows, distance, strict=True) if d < 1.001 * radius}
    assert len(result) > 5


@pytest.mark.parametrize("radius", [10, 1_000, 100_000, 1_000_000])
@pytest.mark.parametrize(("x", "y"), [(7.6, 51.9), (-70, -33), (140, 5), (20, -75), (20, 80.9)])
def test_circle_is_as_near_as_its_comment_says(
    module_archive: psycopg.Connection, x: float, y: float, radius: float
) -> None:
    row = module_archive.execute("select st_asbinary(eo.circle(st_point(%s, %s, 4326), %s))", (x, y, radius)).fetchone()
    assert row is not None
    outline = shapely.segmentize(shapely.from_wkb(row[0]), radius / 1e8).exterior
    longitude, latitude = np.array(outline.coords).T
    distance = GEOD.inv(np.full_like(longitude, x), np.full_like(latitude, y), longitude, latitude)[2] / radius
    most = 5e-5 if abs(y) < 70 else 2e-3
    assert distance.min() > 1 - most
    assert distance.max() < 1 + most


@pytest.mark.parametrize(
    ("west", "south", "east", "north"),
    [(5, 45, 15, 55), (170, -30, -170, 30), (-180, 60, 180, 90), (-100, -90, 100, -80), (179, 80, -179, 90), (20, 0, 10, 60)],
)  # fmt: skip
def test_rectangle(
    found: Callable[..., list[int]], rows: list[Row], west: float, south: float, east: float, north: float
) -> None:
    result = found(area=f"eo.rectangle({west}, {south}, {east}, {north})")
    expected = [
        row["patch_id"]
        for row in rows
        if south <= row["y"] <= north
        and (west <= row["x"] <= east if west < east else row["x"] >= west or row["x"] <= east)
    ]
    assert result == expected
    assert result


@pytest.mark.parametrize(
    "area",
    [
        "st_makeenvelope(170, -30, 190, 30, 4326)",
        "st_makeenvelope(-190, -30, -170, 30, 4326)",
        "st_makeenvelope(170, -30, 190, 30, 4258)",
        "st_union(st_makeenvelope(170, -30, 180, 30, 4326), st_makeenvelope(-180, -30, -170, 30, 4326))",
        "st_setsrid(st_geomfromtext('CURVEPOLYGON((170 -30, 190 -30, 190 30, 170 30, 170 -30))'), 4326)",
        "st_force3d(st_makeenvelope(170, -30, 190, 30, 4326))",
        "eo_internal.search_area(eo.rectangle(170, -30, -170, 30))",
    ],
)
def test_ways_to_write_an_area_across_the_antimeridian(
    found: Callable[..., list[int]], rows: list[Row], area: str
) -> None:
    expected = [row["patch_id"] for row in rows if abs(row["x"]) >= 170 and abs(row["y"]) <= 30]
    assert found(area=area) == expected
    assert expected


def test_the_whole_globe(found: Callable[..., list[int]], rows: list[Row]) -> None:
    every = [row["patch_id"] for row in rows]
    for area in ("st_makeenvelope(-180, -90, 180, 90, 4326)", "st_makeenvelope(0, -90, 360, 90, 4326)"):
        assert found(area=area) == every, area
    assert found(area="'SRID=4326;POLYGON EMPTY'::geometry") == []
    assert found() == every


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("eo.search(eo.filter(st_makeenvelope(0, 0, 1, 1)))", "no SRID"),
        ("eo.search(eo.filter(area => 'SRID=4326;POLYGON((0 0, 1 1, 1 0, 0 1, 0 0))'))", "not valid: Self-intersection"),
        ("eo.search(eo.filter(st_makeenvelope(170, 0, -170, 1, 4326)))", "longer than 180 degrees of longitude"),
        ("eo.search(eo.filter(st_makeenvelope(50, 40, 51, 400, 4326)))", "beyond longitude"),
        ("eo.search(eo.filter(st_makeenvelope(-400, 40, 51, 50, 4326)))", "beyond longitude"),
        ("eo.rectangle(0, 10, 10, 10)", "no rectangle"),
        ("eo.rectangle(10, 0, 10, 10)", "no rectangle"),
        ("eo.rectangle(170, 0, 190, 10)", "no rectangle"),
        ("eo.rectangle(180, 0, -180, 1)", "no rectangle"),
        ("eo.rectangle(180, -90, -180, 90)", "no rectangle"),
        ("eo.rectangle(0, 10, 10, 9)", "no rectangle"),
        ("eo.rectangle(0, 10, 10, 'infinity')", "no rectangle"),
        ("eo.rectangle('nan', 0, 1, 10)", "no rectangle"),
        ("eo.circle(st_point(0, 0), 10)", "no point with an SRID"),
        ("eo.circle('SRID=4326;POINT EMPTY', 10)", "no point with an SRID"),
        ("eo.circle(st_makeenvelope(0, 0, 1, 1, 4326), 10)", "no point with an SRID"),
        ("eo.circle(st_point(0, 0, 4326), 0)", "not 0"),
        ("eo.circle(st_point(0, 0, 4326), 10000001)", "not 10000001"),
        ("eo.circle(st_point(0, 90, 4326), 1e-9)", "not 1e-09"),
        ("eo.circle(st_point(180, 0, 4326), 0.0009)", "not 0.0009"),
        ("eo.circle(st_point(0, 0, 4326), 'nan')", "not NaN"),
        ("eo.search(eo.filter(cells => '{u1j,abc}'))", '"abc" is no geohash'),
        ("eo.search(eo.filter(cells => '{0123456789012}'))", "no geohash"),
        ("eo.search(eo.filter(scene_classes => '{Vegetatoin}'))", 'no scene class "Vegetatoin"'),
        ("eo.search(eo.filter(scene_classes => '{Coniferous forest}'))", 'no scene class "Coniferous forest"'),
        ("eo.search(eo.filter(seasons => '{monsoon}'))", 'no season "monsoon"'),
    ],
)  # fmt: skip
def test_bad_arguments(module_archive: psycopg.Connection, rows: list[Row], call: str, message: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=message) as caught:
        module_archive.execute(f"select * from {call}".encode())
    assert caught.value.diag.message_hint


def test_suggestion_for_a_scene_class(module_archive: psycopg.Connection, rows: list[Row]) -> None:
    with pytest.raises(errors.InvalidParameterValue) as caught:
        module_archive.execute("select * from eo.search(eo.filter(scene_classes => '{Vegetatoin}'))")
    row = module_archive.execute("select name from eo.label where scheme = 'scl' and code = '4'").fetchone()
    assert row is not None
    assert row[0] in (caught.value.diag.message_hint or "")


def test_scene_classes(module_archive: psycopg.Connection, found: Callable[..., list[int]], rows: list[Row]) -> None:
    names = {
        code: (label_id, name)
        for code, label_id, name in module_archive.execute(
            "select code, label_id, name from eo.label where scheme = 'scl'"
        )
    }
    for codes in (["4"], ["8", "9"], ["3", "10", "11"]):
        wanted = {names[code][0] for code in codes}
        expected = [row["patch_id"] for row in rows if wanted & set(row["scene_class_ids"] or [])]
        assert expected
        assert found(scene_classes=codes) == expected
        assert found(scene_classes=["scl:" + code for code in codes]) == expected
        assert found(scene_classes=[names[code][1].upper() for code in codes]) == expected


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 9, 12])
def test_cells(found: Callable[..., list[int]], rows: list[Row], length: int) -> None:
    cells = [rows[n]["cell"][:length] for n in (3, 500, 2000)]
    expected = [row["patch_id"] for row in rows if row["cell"].startswith(tuple(cells))]
    assert found(cells=cells) == expected
    mixed = [cells[0], rows[1000]["cell"][:2]]
    assert found(cells=mixed) == [row["patch_id"] for row in rows if row["cell"].startswith(tuple(mixed))]


def test_patch_ids_and_several_filters(found: Callable[..., list[int]], rows: list[Row]) -> None:
    chosen = [row["patch_id"] for row in rows[::5]]
    assert found(patch_ids=[*chosen, 3, -1]) == chosen
    assert found(patch_ids=[]) == found(labels=[]) == found(cells=[]) == found(scene_classes=[]) == []
    result = found(
        "eo.rectangle(0, 40, 20, 70)", patch_ids=chosen, countries=["PT"], from_time=START + timedelta(days=10)
    )
    assert result == [
        row["patch_id"]
        for row in rows[::5]
        if 0 <= row["x"] <= 20 and 40 <= row["y"] <= 70 and row["country_codes"] == ["PT"]
        and row["sensing_time"] >= START + timedelta(days=10)
    ]  # fmt: skip
    assert result


def test_label_match_on_the_real_label_sets(
    module_archive: psycopg.Connection, found: Callable[..., list[int]], rows: list[Row]
) -> None:
    """Up to five labels of any level; a label's descendants are those whose CORINE classes are among its own."""
    clc = {
        (scheme + ":" + code): (label_id, frozenset(codes))
        for scheme, code, label_id, codes in module_archive.execute(
            "select scheme, code, label_id, clc_codes from eo.label where clc_codes is not null"
        )
    }
    descendants = {key: {other for other, inner in clc.values() if inner <= codes} for key, (_, codes) in clc.items()}
    by_id = {label_id: key for key, (label_id, _) in clc.items()}
    ancestors = {
        label: [key for key in descendants if label in descendants[key]] for row in rows for label in row["label_ids"]
    }
    generator = random.Random(5)
    hits: Counter[str] = Counter()
    for n in range(45):
        match = ("some", "at_least", "exactly")[n % 3]
        if n % 5:
            # From a patch that exists, so that "exactly" finds something, each label itself or an ancestor.
            labels = [generator.choice(ancestors[label]) for label in generator.choice(rows)["label_ids"][:5]]
        else:
            labels = generator.sample([by_id[label] for label in ancestors], generator.randint(1, 5))
        groups = [descendants[label] for label in labels]
        expected = []
        for row in rows:
            present = [bool(group & set(row["label_ids"])) for group in groups]
            covered = all(any(label in group for group in groups) for label in row["label_ids"])
            if {"some": any(present), "at_least": all(present), "exactly": all(present) and covered}[match]:
                expected.append(row["patch_id"])
        assert found(labels=labels, label_match=match) == expected, (labels, match)
        hits[match] += bool(expected)
    assert min(hits[match] for match in ("some", "at_least", "exactly")) >= 10


@pytest.mark.parametrize(
    ("filters", "pages"),
    [
        ("", 40),
        ("labels => '{clc:2}', label_match => 'exactly'", None),
        ("countries => '{FI}'", None),
        ("labels => '{Coastal wetlands}', from_time => '2017-12-01'", None),
        ("area => eo.rectangle(170, -90, -170, 90)", None),
        ("patch_ids => '{1,8,15,22,38151}'", None),
    ],
)
def test_pages_are_the_whole_in_order(
    module_archive: psycopg.Connection, rows: list[Row], filters: str, pages: int | None
) -> None:
    """A size at which full, part-filled and empty first windows of ids all occur."""
    every = [
        patch_id
        for (patch_id,) in module_archive.execute(
            f"select patch_id from eo.patches(eo.filter({filters})) order by patch_id".encode()
        )
    ]
    assert every
    for size in (3, 50):
        seen: list[int] = []
        for _ in range(pages or 10_000):
            page = module_archive.execute(
                f"select patch_id from eo.search(eo.filter({filters}), max_results => %s, after_patch_id => %s)".encode(),
                (size, seen[-1] if seen else None),
            ).fetchall()
            seen += [patch_id for (patch_id,) in page]
            if len(page) < size:
                break
        assert seen == every[: len(seen)]
        assert len(seen) == len(every) or len(seen) == size * (pages or 0)


def buffers(archive: psycopg.Connection, query: str) -> int:
    archive.execute(query.encode())
    row = archive.execute(f"explain (analyze, buffers, format json) {query}".encode()).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_a_late_page_costs_what_the_first_does(module_archive: psycopg.Connection, rows: list[Row]) -> None:
    page = "select * from eo.search(eo.filter(labels => '{{clc:3}}'), max_results => 10{})"
    first = buffers(module_archive, page.format(""))
    late = buffers(module_archive, page.format(f", after_patch_id => {rows[-500]['patch_id']}"))
    every = buffers(module_archive, "select * from eo.search(eo.filter(labels => '{clc:3}'), max_results => null)")
    assert late <= first + 10
    assert first < every / 4


def test_an_empty_page_does_not_read_the_archive(module_archive: psycopg.Connection, rows: list[Row]) -> None:
    """Half the patches are Finnish, half are later, none is both, which no statistics tell: the planner walks the key."""
    later = rows[len(rows) // 2 + 1]["sensing_time"]
    filters = f"countries => '{{FI}}', from_time => '{later}'"
    with module_archive.transaction():
        # As it is in an archive that is not this small.
        module_archive.execute("set local enable_seqscan = off")
        walk = f"select * from eo.patches(eo.filter({filters})) order by patch_id limit 5"
        assert "patch_pkey" in str(module_archive.execute(f"explain {walk}".encode()).fetchall())
        assert module_archive.execute(f"select * from eo.search(eo.filter({filters}))".encode()).fetchall() == []
        search = buffers(module_archive, f"select * from eo.search(eo.filter({filters}), max_results => 5)")
        assert search < 0.7 * buffers(module_archive, walk)


def plan(archive: psycopg.Connection, filters: str) -> str:
    return "\n".join(
        line for (line,) in archive.execute(f"explain select * from eo.patches(eo.filter({filters}))".encode())
    )


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ("area => eo.circle(st_point(10, 50, 4326), 30000)", "patch_footprint"),
        ("area => st_transform(st_makeenvelope(9, 50, 9.2, 50.2, 4326), 32632)", "patch_footprint"),
        ("cells => '{u1j,u2,u33}'", "patch_cell_prefix"),
        ("cells => '{u1j2k7}'", "patch_cell_prefix"),
        ("scene_classes => '{11}'", "patch_scene_class_ids"),
        ("patch_ids => '{5,10,15}'", "patch_pkey"),
        ("labels => '{Coastal wetlands}'", "patch_label_ids"),
        ("labels => '{Coastal wetlands,clc:2}', label_match => 'at_least'", "patch_label_ids"),
        ("from_time => '2017-06-03', to_time => '2017-06-04'", "patch_sensing_time"),
        ("countries => '{FI}'", "patch_country_codes"),
    ],
)
def test_the_index_is_used(module_archive: psycopg.Connection, rows: list[Row], filters: str, index: str) -> None:
    """In an archive as small as this one reading all of it would often be cheaper."""
    with module_archive.transaction():
        module_archive.execute("set local enable_seqscan = off")
        text = plan(module_archive, filters)
    assert index in text
    # Helpers are folded to constants: none is left to be called for each patch.
    for helper in (
        "inlined",
        "search_area",
        "inner_box",
        "label_ids(",
        "label_groups",
        "cell_prefixes",
        "seasons(",
        "filter(",
    ):
        assert helper not in text


@pytest.mark.parametrize(
    "argument", ["area => (select eo.rectangle(0, 40, 20, 60))", "labels => (select '{clc:3}'::text[])"]
)
def test_subqueries_as_arguments(module_archive: psycopg.Connection, rows: list[Row], argument: str) -> None:
    """eo.search takes them; eo.patches would work its helpers out for every patch, so it says no."""
    with pytest.raises(errors.FeatureNotSupported) as caught:
        module_archive.execute(f"select count(*) from eo.patches(eo.filter({argument}))".encode())
    assert "eo.search" in (caught.value.diag.message_hint or "")
    value = argument.replace("(select ", "")[:-1]
    assert (
        module_archive.execute(
            f"select patch_id from eo.search(eo.filter({argument}), max_results => null)".encode()
        ).fetchall()
        == module_archive.execute(f"select patch_id from eo.patches(eo.filter({value})) order by 1".encode()).fetchall()
        != []
    )


def test_prepared_statements_keep_custom_plans(module_archive: psycopg.Connection, rows: list[Row]) -> None:
    """A generic plan would call the helpers for every patch: their cost keeps the server from choosing one."""
    module_archive.execute("prepare search (text[]) as select count(*) from eo.patches(eo.filter(labels => $1))")
    for _ in range(8):
        module_archive.execute("execute search ('{clc:3}')")
    assert module_archive.execute(
        "select generic_plans from pg_prepared_statements where name = 'search'"
    ).fetchone() == (0,)
    module_archive.execute("deallocate search")


@pytest.mark.parametrize(
    "filters",
    [
        "labels => '{Coniferous forest}'",
        "labels => '{clc:2,clc:3}', label_match => 'at_least'",
        "area => eo.rectangle(-30, 30, 40, 90)",
        "from_time => '2017-10-01'",
        "seasons => '{summer}', scene_classes => '{4}'",
    ],
)
def test_estimated_count_is_near(module_archive: psycopg.Connection, rows: list[Row], filters: str) -> None:
    """The planner sees what the filter means, so that it can choose by it."""
    row = module_archive.execute(
        f"select eo.count_patches(eo.filter({filters}), exact => true), eo.count_patches(eo.filter({filters}), exact => false)".encode()
    ).fetchone()
    assert row is not None
    assert 0.5 < row[1] / row[0] < 2


def test_a_count_is_an_estimate_only_where_it_is_asked_for(module_archive: psycopg.Connection, rows: list[Row]) -> None:
    label = "labels => '{Coniferous forest}'"
    exact, given_null, estimate = (
        module_archive.execute(f"select eo.count_patches(eo.filter({label}), exact => {exact})".encode()).fetchone()
        for exact in ("true", "null", "false")
    )
    assert given_null == exact != estimate


def test_label_statistics_of_results(module_archive: psycopg.Connection, rows: list[Row]) -> None:
    chosen = rows[100:400]
    counts = Counter(label for row in chosen for label in row["label_ids"])
    found = module_archive.execute(
        "select label_id, patches, fraction from eo.label_statistics(eo.filter(patch_ids => %s))",
        ([row["patch_id"] for row in chosen],),
    ).fetchall()
    assert {label: count for label, count, _ in found} == counts
    assert all(abs(fraction - count / len(chosen)) < 1e-12 for _, count, fraction in found)
    by_country = module_archive.execute(
        "select value, patches from eo.patch_statistics('country', eo.filter(patch_ids => %s))",
        ([row["patch_id"] for row in chosen],),
    ).fetchall()
    assert dict(by_country) == Counter(row["country_codes"][0] for row in chosen)
