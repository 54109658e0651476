"""Labels and filters, against brute force in Python on random label sets."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import shapely
from psycopg import errors

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products

START = datetime(2017, 6, 1, tzinfo=UTC)
PATCHES = 400


@pytest.fixture(scope="module")
def labelled(module_archive: psycopg.Connection) -> psycopg.Connection:
    """Patches on a grid in UTM 32 with random BEN-19, BEN-43 or CLC labels, dates, splits, countries."""
    generator = random.Random(7)
    by_scheme = {
        scheme: [
            label
            for (label,) in module_archive.execute(
                "select label_id from eo.label where scheme = %s and (scheme <> 'clc' or level = 3) order by 1",
                (scheme,),
            )
        ]
        for scheme in ("ben19", "ben43", "clc")
    }
    write_products(
        module_archive,
        [
            Product(f"product-{number}", f"sentinel-2{'ab'[number]}", "L2A", START, cloud_cover=cloud)
            for number, cloud in enumerate((5.0, 50.0))
        ],
    )
    patches = [
        Patch(
            name=f"patch-{number}",
            product=f"product-{number % 2}",
            platform=f"sentinel-2{'ab'[number % 2]}",
            sensing_time=START + timedelta(days=number),
            srid=32632,
            west=400_000 + 1200 * (number % 20),
            south=5_700_000 + 1200 * (number // 20),
            east=401_200 + 1200 * (number % 20),
            north=5_701_200 + 1200 * (number // 20),
            label_ids=None
            if number % 50 == 0
            else sorted(generator.sample(by_scheme[("ben19", "ben43", "clc")[number % 3]], generator.randint(1, 4))),
            country=("DE", "NL", None)[number % 3],
            split=("train", "validation", "test")[number % 3],
            seasonal_snow=(True, False, None)[number % 3],
            cloud_or_shadow=number % 5 == 0,
        )
        for number in range(PATCHES)
    ]
    with module_archive.transaction():
        assert write_patches(module_archive, "test", patches) == PATCHES
    return module_archive


def clc_sets(archive: psycopg.Connection) -> dict[int, frozenset[str]]:
    return {
        label_id: frozenset(codes)
        for label_id, codes in archive.execute("select label_id, clc_codes from eo.label where clc_codes is not null")
    }


def brute_force(archive: psycopg.Connection, labels: list[str], match: str) -> set[str]:
    """A label means its CLC classes; another label is a descendant when its classes are among them."""
    sets = clc_sets(archive)
    selected = [
        {
            label_id
            for (label_id,) in archive.execute(
                "select label_id from eo.label where name = %s or scheme || ':' || code = %s", (name, name)
            )
        }
        for name in labels
    ]
    groups = [{other for other in sets for one in group if sets[other] <= sets[one]} for group in selected]
    found = set()
    for name, label_ids in archive.execute("select name, label_ids from eo.patch where label_ids is not null"):
        hits = [bool(group & set(label_ids)) for group in groups]
        covered = all(any(label in group for group in groups) for label in label_ids)
        if {"some": any(hits), "at_least": all(hits), "exactly": all(hits) and covered}[match]:
            found.add(name)
    return found


@pytest.mark.parametrize("match", ["some", "at_least", "exactly"])
@pytest.mark.parametrize(
    "labels",
    [
        ["Pastures"],
        ["ben19:2"],
        ["clc:3"],
        ["clc:1", "clc:2"],
        ["Arable land", "Coniferous forest"],
        ["ben19:11", "clc:32"],
        ["clc:1", "clc:2", "clc:3", "clc:4", "clc:5"],
    ],
    ids=" + ".join,
)
def test_label_match(labelled: psycopg.Connection, labels: list[str], match: str) -> None:
    found = labelled.execute(
        "select name from eo.search(eo.filter(labels => %s, label_match => %s), max_results => null)", (labels, match)
    )
    assert {name for (name,) in found} == brute_force(labelled, labels, match)


def test_label_match_finds_something(labelled: psycopg.Connection) -> None:
    for match in ("some", "at_least", "exactly"):
        assert brute_force(labelled, ["Arable land"], match), match


def test_spellings_and_codes_mean_the_same(labelled: psycopg.Connection) -> None:
    members = {
        spelling: labelled.execute("select eo.label_members(array[%s])", (spelling,)).fetchone()
        for spelling in (
            "Transitional woodland-shrub", "Transitional woodland/shrub", "transitional woodland, SHRUB", "324", "clc:324",
        )
    }  # fmt: skip
    assert len(set(map(str, members.values()))) == 1


def test_unknown_label(labelled: psycopg.Connection) -> None:
    with pytest.raises(errors.InvalidParameterValue, match='no label "Coniferos forest"') as caught:
        labelled.execute("select * from eo.search(eo.filter(labels => array['Coniferos forest']))")
    assert "Coniferous forest" in (caught.value.diag.message_hint or "")


def test_other_filters(labelled: psycopg.Connection) -> None:
    def names(**filters: object) -> set[str]:
        arguments = ", ".join(f"{key} => %({key})s" for key in filters)
        return {
            name
            for (name,) in labelled.execute(
                f"select name from eo.search(eo.filter({arguments}), max_results => null)".encode(), filters
            )
        }

    def expected(condition: str) -> set[str]:
        return {name for (name,) in labelled.execute(f"select name from eo.patch where {condition}".encode())}

    for filters, condition in [
        (
            {"from_time": START + timedelta(days=10), "to_time": START + timedelta(days=20)},
            "extract(epoch from sensing_time) >= extract(epoch from timestamptz '2017-06-11Z') and sensing_time < '2017-06-21Z'",
        ),
        ({"platforms": ["sentinel-2b"]}, "platform = 'sentinel-2b'"),
        (
            {"seasons": ["winter", "spring"]},
            "extract(month from sensing_time at time zone 'UTC') in (12, 1, 2, 3, 4, 5)",
        ),
        ({"countries": ["DE"]}, "source_country = 'DE'"),
        ({"splits": ["test"]}, "split = 'test'"),
        ({"sources": ["synthetic"]}, "false"),
        ({"seasonal_snow": False}, "not seasonal_snow"),
        ({"cloud_or_shadow": True}, "cloud_or_shadow"),
        ({"max_cloud": 20}, "product_id in (select product_id from eo.product where cloud_cover <= 20)"),
    ]:
        found = names(**filters)
        assert found == expected(condition), filters
        assert len(found) < PATCHES


def test_area_in_any_srid(labelled: psycopg.Connection) -> None:
    boxes = {
        name: shapely.from_wkb(wkb)
        for name, wkb in labelled.execute("select name, st_asbinary(footprint) from eo.patch")
    }
    for area, srid in [
        ("POLYGON((7.57 51.45, 7.7 51.45, 7.65 51.52, 7.57 51.45))", 4326),
        ("POLYGON((403000 5703000, 409000 5703500, 405000 5710000, 403000 5703000))", 32632),
        ("POINT(405000 5705000)", 32632),
    ]:
        row = labelled.execute(
            "select st_asbinary(st_transform(st_geomfromtext(%s, %s), 4326))", (area, srid)
        ).fetchone()
        assert row is not None
        shape = shapely.from_wkb(row[0])
        found = {
            name
            for (name,) in labelled.execute(
                "select name from eo.search(eo.filter(area => st_geomfromtext(%s, %s)), max_results => null)",
                (area, srid),
            )
        }
        assert found == {name for name, box in boxes.items() if box.intersects(shape)}
        assert found


def test_pages_have_a_stable_order_and_miss_nothing(labelled: psycopg.Connection) -> None:
    seen: list[int] = []
    while page := labelled.execute(
        "select patch_id from eo.search(eo.filter(labels => array['clc:3']), max_results => 17, after_patch_id => %s)",
        (seen[-1] if seen else None,),
    ).fetchall():
        seen += [patch_id for (patch_id,) in page]
    every = labelled.execute(
        "select patch_id from eo.search(eo.filter(labels => array['clc:3']), max_results => null)"
    ).fetchall()
    assert seen == sorted(patch_id for (patch_id,) in every)


def test_label_statistics(labelled: psycopg.Connection) -> None:
    statistics = labelled.execute(
        "select label_id, patches, fraction, color from eo.label_statistics(eo.filter(labels => array['clc:3'], splits => array['train']))"
    ).fetchall()
    chosen = labelled.execute(
        "select label_ids from eo.search(eo.filter(labels => array['clc:3'], splits => array['train']), max_results => null)"
    ).fetchall()
    counts: dict[int, int] = {}
    for (label_ids,) in chosen:
        for label_id in label_ids:
            counts[label_id] = counts.get(label_id, 0) + 1
    assert {label: count for label, count, _, _ in statistics} == counts
    assert all(abs(fraction - count / len(chosen)) < 1e-12 for _, count, fraction, _ in statistics)
    assert [count for _, count, _, _ in statistics] == sorted(counts.values(), reverse=True)
    assert all(color.startswith("#") for _, _, _, color in statistics)


@pytest.mark.parametrize(
    "filters", ["", "labels => '{clc:3}'", "countries => '{DE}', splits => '{train}'", "sources => '{synthetic}'"]
)
def test_count_patches(labelled: psycopg.Connection, filters: str) -> None:
    labelled.execute("analyze eo.patch")
    names = labelled.execute(
        f"select name from eo.search(eo.filter({filters}), max_results => null)".encode()
    ).fetchall()
    assert labelled.execute(f"select eo.count_patches(eo.filter({filters}))".encode()).fetchone() == (len(names),)
    row = labelled.execute(f"select eo.count_patches(eo.filter({filters}), exact => false)".encode()).fetchone()
    assert row is not None
    if not filters:
        assert row == (PATCHES,)
    else:
        assert 1 <= row[0] <= PATCHES


@pytest.mark.parametrize(
    ("by", "column"),
    [
        ("country", "source_country"),
        ("season", "season::text"),
        ("platform", "platform"),
        ("split", "split"),
        ("source", "source"),
    ],
)
def test_patch_statistics(labelled: psycopg.Connection, by: str, column: str) -> None:
    found = labelled.execute(
        "select value, patches, fraction from eo.patch_statistics(%s, eo.filter(labels => '{clc:3}'))", (by,)
    ).fetchall()
    rows = labelled.execute(f"select {column} from eo.patches(eo.filter(labels => '{{clc:3}}'))".encode()).fetchall()
    expected = Counter(value for (value,) in rows)
    assert {value: count for value, count, _ in found} == expected
    assert all(abs(fraction - count / len(rows)) < 1e-12 for _, count, fraction in found)
    assert [count for _, count, _ in found] == sorted(expected.values(), reverse=True)


def test_patch_statistics_by_something_else(labelled: psycopg.Connection) -> None:
    with pytest.raises(errors.InvalidParameterValue, match='"colour"'):
        labelled.execute("select * from eo.patch_statistics('colour')")


def test_label_index_is_used(labelled: psycopg.Connection) -> None:
    labelled.execute("analyze eo.patch")
    with labelled.transaction():
        labelled.execute("set local enable_seqscan = off")
        plan = str(
            labelled.execute("explain select * from eo.patches(eo.filter(labels => array['ben19:0']))").fetchall()
        )
    assert "patch_label_ids" in plan


def test_season_follows_the_hemisphere(archive: psycopg.Connection) -> None:
    write_products(archive, [Product("p", "sentinel-2a", "L2A", START)])
    patches = [
        Patch(
            f"{hemisphere}-{month}",
            "p",
            "sentinel-2a",
            datetime(2018, month, 15, tzinfo=UTC),
            srid,
            500_000,
            south,
            501_200,
            south + 1200,
        )
        for hemisphere, srid, south in (("north", 32633, 5_000_000), ("south", 32733, 5_000_000))
        for month in range(1, 13)
    ]
    with archive.transaction():
        write_patches(archive, "test", patches)
    seasons = dict(archive.execute("select name, season from eo.patch").fetchall())
    north = ["winter"] * 2 + ["spring"] * 3 + ["summer"] * 3 + ["autumn"] * 3 + ["winter"]
    assert [seasons[f"north-{month}"] for month in range(1, 13)] == north
    assert [seasons[f"south-{month}"] for month in range(1, 13)] == north[6:] + north[:6]
