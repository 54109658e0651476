"""The one filter: its constructor and its JSON form, and that nothing else declares its conditions."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.pyfuncs.queries import FILTERS

START = datetime(2017, 6, 1, 10, tzinfo=UTC)
PATCHES = 600
SQUARE = {"type": "Polygon", "coordinates": [[[9, 51.5], [9.2, 51.5], [9.2, 51.7], [9, 51.7], [9, 51.5]]]}


@pytest.fixture(scope="module")
def archive(module_archive: psycopg.Connection) -> psycopg.Connection:
    """Patches on a grid in UTM 32, of few times, with labels of three nomenclatures."""
    generator = random.Random(11)
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
    write_products(module_archive, [Product("product", "sentinel-2a", "L2A", START, mgrs_tile="32UNC", cloud_cover=5)])
    order = generator.sample(range(PATCHES), PATCHES)
    patches = [
        Patch(
            name=f"patch-{number}",
            product="product",
            platform="sentinel-2a",
            sensing_time=START + timedelta(days=order[number] // 9),  # nine have the same time
            srid=32632,
            west=500_000 + 1200 * (number % 30),
            south=5_700_000 + 1200 * (number // 30),
            east=501_200 + 1200 * (number % 30),
            north=5_701_200 + 1200 * (number // 30),
            label_ids=None
            if number % 50 == 0
            else sorted(
                generator.sample(by_scheme[("ben19", "ben19", "ben43", "clc")[number % 4]], generator.randint(1, 4))
            ),
            country=("DE", "NL", None)[number % 3],
            split=("train", "validation", "test")[number % 3],
            seasonal_snow=(True, False, None)[number % 3],
            cloud_or_shadow=number % 5 == 0,
        )
        for number in range(PATCHES)
    ]
    with module_archive.transaction():
        write_patches(module_archive, "test", patches)
    module_archive.execute("vacuum analyze eo.patch")
    return module_archive


def ids(archive: psycopg.Connection, query: str, *parameters: Any) -> list[int]:
    return [row[0] for row in archive.execute(query.encode(), parameters)]


BOTH_FORMS = [
    ({}, ""),
    ({"labels": ["clc:3"]}, "labels => '{clc:3}'"),
    ({"labels": ["clc:3", "clc:2"], "label_match": "at_least"}, "labels => '{clc:3,clc:2}', label_match => 'at_least'"),
    ({"area": SQUARE}, "area => st_geomfromgeojson('" + json.dumps(SQUARE) + "')"),
    ({"area": {"type": "Feature", "properties": {}, "geometry": SQUARE}}, "area => eo.rectangle(9, 51.5, 9.2, 51.7)"),
    (
        {"area": {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": SQUARE}]}},
        "area => eo.rectangle(9, 51.5, 9.2, 51.7)",
    ),
    ({"from_time": "2017-06-20", "to_time": "2017-07-01T12:00:00+02:00"}, "from_time => '2017-06-20Z', to_time => '2017-07-01 10:00Z'"),
    ({"countries": ["DE"], "seasonal_snow": True}, "countries => '{DE}', seasonal_snow => true"),
    ({"cloud_or_shadow": False, "max_cloud": 4.5}, "cloud_or_shadow => false, max_cloud => 4.5"),
    ({"splits": ["test"], "sources": ["test"], "platforms": []}, "splits => '{test}', sources => '{test}', platforms => '{}'"),
    ({"cells": ["u1"], "seasons": ["summer"]}, "cells => '{u1}', seasons => '{summer}'"),
    ({"names": ["patch-7", "patch-8", "none"], "labels": None}, "names => '{patch-7,patch-8,none}'"),
    ({"patch_ids": [1, 2, 3]}, "patch_ids => '{1,2,3}'"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "arguments"), BOTH_FORMS)
def test_the_json_form_means_the_same(archive: psycopg.Connection, document: dict[str, Any], arguments: str) -> None:
    by_arguments = ids(archive, f"select patch_id from eo.patches(eo.filter({arguments})) order by 1")
    assert (
        ids(archive, "select patch_id from eo.patches(eo.filter(%s::jsonb)) order by 1", json.dumps(document))
        == by_arguments
    )
    assert (
        ids(archive, "select patch_id from eo.search(eo.filter(%s::jsonb), null)", json.dumps(document)) == by_arguments
    )
    assert ids(archive, "select eo.count_patches(eo.filter(%s::jsonb))", json.dumps(document)) == [len(by_arguments)]
    assert by_arguments or document.get("platforms") == [] or "max_cloud" in document


def test_the_json_form_is_planned_alike(archive: psycopg.Connection) -> None:
    plans = [
        "\n".join(line for (line,) in archive.execute(f"explain select * from eo.patches({call})".encode()))
        for call in (
            "eo.filter(names => '{patch-7}', countries => '{DE}')",
            """eo.filter('{"names": ["patch-7"], "countries": ["DE"]}'::jsonb)""",
        )
    ]
    assert plans[0] == plans[1]
    assert "eo.filter" not in plans[0], "folded"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("null", "a JSON object, not null"),
        ('["FI"]', "a JSON object"),
        ('{"aera": null}', 'no filter "aera"'),
        ('{"Labels": []}', 'no filter "Labels"'),
        ('{"labels": "forest"}', "labels cannot be"),
        ('{"labels": ["a", 1]}', "labels cannot be"),
        ('{"labels": {"a": "b"}}', "labels cannot be"),
        ('{"labels": [["a"]]}', "labels cannot be"),
        ('{"patch_ids": [1.5]}', "patch_ids cannot be"),
        ('{"patch_ids": ["1"]}', "patch_ids cannot be"),
        ('{"patch_ids": 1}', "patch_ids cannot be"),
        ('{"seasonal_snow": "true"}', "seasonal_snow cannot be"),
        ('{"max_cloud": "20"}', "max_cloud cannot be"),
        ('{"label_match": "all"}', "label_match cannot be"),
        ('{"label_match": ["some"]}', "label_match cannot be"),
        ('{"from_time": "yesterday"}', "from_time cannot be"),
        ('{"from_time": 2017}', "from_time cannot be"),
        ('{"to_time": "2017-13-01"}', "to_time cannot be"),
        ('{"to_time": "13/06/2017"}', "to_time cannot be"),
        ('{"area": "POINT(9 50)"}', "area cannot be"),
        ('{"area": [9, 50]}', "area cannot be"),
        ('{"area": {"type": "Point"}}', "nested otherwise"),
        ('{"area": {"type": "point", "coordinates": [9, 50]}}', "no type that is a geometry's"),
        ('{"area": {"type": "Point", "coordinates": [9]}}', "not two numbers"),
        ('{"area": {"type": "Point", "coordinates": ["9", 50]}}', "no number"),
        ('{"area": {"type": "Point", "coordinates": [1e300, 50]}}', "nowhere"),
        ('{"area": {"type": "LineString", "coordinates": [[9, 50]]}}', "too few"),
        ('{"area": {"type": "Polygon", "coordinates": [[[9, 50], [10, 50], [10, 51], [9, 51]]]}}', "not closed"),
        ('{"area": {"type": "Polygon", "coordinates": [[9, 50], [10, 50], [10, 51], [9, 50]]}}', "too few"),
        ('{"area": {"type": "GeometryCollection"}}', "no type that is a geometry's"),
        ('{"area": {"type": "Feature"}}', "no type that is a geometry's"),
        ('{"area": {"type": "Point", "coordinates": [500000, 0], "crs": {"type": "name", "properties": {"name": "EPSG:32632"}}}}', "its crs"),
        ('{"labels": ["no such label"]}', 'no label "no such label"'),
    ],
)  # fmt: skip
def test_bad_documents(archive: psycopg.Connection, document: str, message: str) -> None:
    with pytest.raises(errors.InvalidParameterValue, match=re.escape(message)) as caught:
        archive.execute("select * from eo.search(eo.filter(%s::jsonb))", (document,))
    assert caught.value.diag.message_hint


@pytest.mark.parametrize(
    "filters",
    [
        "eo.filter(area => null)",
        "eo.filter(area => (select geom from eo.nuts where name = 'Bavaria'))",
        "eo.filter(null::geometry)",
        """eo.filter('{"area": null}'::jsonb)""",
        """eo.filter('{"area": {"type": "FeatureCollection", "features": []}}'::jsonb)""",
        "eo.filter(labels => array[(select name from eo.label where false)])",
        "eo.filter(labels => array['clc:3', null], label_match => 'at_least')",
        "eo.filter(names => '{null}')",
        "eo.filter(cells => '{u1,null}')",
        "eo.filter(scene_classes => '{null}')",
        "eo.filter(patch_ids => '{null}')",
        "eo.filter(patch_ids => array[1, null])",
    ],
)
def test_what_found_nothing_does_not_let_everything_pass(archive: psycopg.Connection, filters: str) -> None:
    for call in (f"eo.search({filters})", f"eo.count_patches({filters})", f"eo.label_statistics({filters})"):
        with pytest.raises(errors.NullValueNotAllowed) as caught:
            archive.execute(f"select * from {call}".encode())
        assert "found nothing" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    ("from_time", "to_time"),
    [
        ("2017-07-01", "2017-06-01"),
        ("2017-06-13", "2017-06-13"),
        ("infinity", "2017-06-13"),
        ("2017-06-13T10:00:00+02:00", "2017-06-13T08:00:00Z"),
    ],
)
def test_times_that_are_none(archive: psycopg.Connection, from_time: str, to_time: str) -> None:
    for call in ("eo.count_patches(eo.filter({}))", "eo.select_products(eo.product_filter({}))"):
        with pytest.raises(errors.InvalidParameterValue, match="no time is from") as caught:
            archive.execute(f"select {call.format('from_time => %s, to_time => %s')}".encode(), (from_time, to_time))
        assert "exclusive" in (caught.value.diag.message_hint or "")
    for times in (
        "from_time => '-infinity', to_time => 'infinity'",
        "from_time => '2017-06-13', to_time => '2017-06-13 00:00:01'",
    ):
        archive.execute(f"select eo.filter({times}), eo.product_filter({times})".encode())


def test_a_time_that_the_execution_knows_is_compared_without_a_call(archive: psycopg.Connection) -> None:
    """It would be called for each patch."""
    plan = archive.execute(
        "explain (verbose) select from eo.patches(eo.filter(from_time => now() - interval '7 days', to_time => now()))"
    ).fetchall()
    assert "given_from_time" not in str(plan)
    assert "CASE WHEN" in str(plan)
    with pytest.raises(errors.InvalidParameterValue, match="no time is from"):
        archive.execute("select from eo.patches(eo.filter(from_time => now(), to_time => now() - interval '7 days'))")


@pytest.mark.parametrize("area", ["SRID=3857;POINT(1000000 6000000)", "POINT(9 50)"])
@pytest.mark.parametrize(
    ("type_", "query"),
    [
        ("filter", "select eo.count_patches({})"),
        ("filter", "select * from eo.search({})"),
        ("filter", "select name from eo.patches({})"),
        ("product_filter", "select * from eo.select_products({})"),
    ],
)
def test_a_row_made_by_hand_with_an_area_elsewhere(
    archive: psycopg.Connection, type_: str, query: str, area: str
) -> None:
    """Its numbers would be compared with degrees."""
    made = f"jsonb_populate_record(null::eo.{type_}, jsonb_build_object('area', '{area}'))"
    row = archive.execute(f"select {made}::text".encode()).fetchone()
    assert row is not None
    with pytest.raises(
        errors.InvalidParameterValue, match=r"the filter's area has the SRID (3857|0), not 4326"
    ) as caught:
        archive.execute(query.format(f"'{row[0]}'::eo.{type_}").encode())
    assert caught.value.diag.message_hint


def test_no_filter_lets_everything_pass(archive: psycopg.Connection) -> None:
    for filters in ("", "null", "eo.filter()", "eo.filter(label_match => 'exactly')", "eo.filter('{}'::jsonb)"):
        assert ids(archive, f"select eo.count_patches({filters})") == [PATCHES]
        assert len(ids(archive, f"select patch_id from eo.search({filters or 'null'}, null)")) == PATCHES


def test_products_are_filtered_alike(archive: psycopg.Connection) -> None:
    with pytest.raises(errors.NullValueNotAllowed):
        archive.execute("select * from eo.product_statistics(eo.product_filter(area => null))")
    row = archive.execute(
        "select products from eo.product_statistics(eo.product_filter(max_cloud => 6)) where platform is null and season is null"
    ).fetchone()
    assert row == (1,)


# Order


@pytest.mark.parametrize("order", ["oldest", "newest"])
@pytest.mark.parametrize(
    "filters",
    ["", "labels => '{clc:3}'", "names => '{patch-3,patch-300}'", "splits => '{test}', cloud_or_shadow => true"],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pages_by_time(archive: psycopg.Connection, order: str, filters: str, size: int) -> None:
    direction = "desc" if order == "newest" else "asc"
    every = ids(
        archive,
        f"select patch_id from eo.patches(eo.filter({filters})) order by sensing_time {direction}, patch_id {direction}",
    )
    assert every
    seen: list[int] = []
    pages = 0
    while len(page := ids(
        archive,
        f"select patch_id from eo.search(eo.filter({filters}), %s, %s, %s)",
        size, seen[-1] if seen else None, order,
    )):  # fmt: skip
        seen += page
        pages += 1
        if pages == 60:
            every = every[: len(seen)]
            break
    assert seen == every
    assert (
        ids(archive, f"select patch_id from eo.search(eo.filter({filters}), null, null, %s)", order)[: len(every)]
        == every
    )


def test_the_next_page_by_time_reads_no_more_than_the_first(archive: psycopg.Connection) -> None:
    """Whatever was passed over: constant cost, counted in buffers."""

    def buffers(after: int | None) -> int:
        row = archive.execute(
            "explain (analyze, buffers, format json) select * from eo.search(eo.filter(), 5, %s, 'oldest')", (after,)
        ).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])

    order = ids(archive, "select patch_id from eo.search(eo.filter(), null, null, 'oldest')")
    buffers(None)
    assert buffers(order[550]) <= buffers(None) + 20


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("order_by => 'cloud'", errors.InvalidParameterValue),
        ("order_by => null", errors.InvalidParameterValue),
        ("max_results => -1", errors.InvalidParameterValue),
        ("order_by => 'newest', after_patch_id => -5", errors.NoDataFound),
    ],
)
def test_bad_orders(archive: psycopg.Connection, arguments: str, error: type[psycopg.Error]) -> None:
    with pytest.raises(error) as caught:
        archive.execute(f"select * from eo.search({arguments})".encode())
    assert caught.value.diag.message_hint


# Columns


def test_columns_of_search(archive: psycopg.Connection) -> None:
    rows = archive.execute(
        """
        select s.name = p.name and s.cell = p.cell and s.sensing_time = p.sensing_time and s.platform = p.platform
               and s.season = p.season and s.source = p.source and s.split = p.split and s.product_id = p.product_id
               and s.countries is not distinct from p.country_codes and s.footprint = p.footprint
               and s.label_ids is not distinct from p.label_ids and s.seasonal_snow is not distinct from p.seasonal_snow
               and s.cloud_or_shadow = p.cloud_or_shadow
               and s.labels is not distinct from coalesce(
                   (select array_agg(l.name order by number)
                    from unnest(p.label_ids) with ordinality as i (label_id, number) join eo.label l using (label_id)), '{}')
        from eo.search(max_results => null) s
        join eo.patch p using (patch_id)
        """
    ).fetchall()
    assert rows == [(True,)] * PATCHES


def test_a_users_own_column_breaks_nothing(archive: psycopg.Connection) -> None:
    """Case C3: of any table, before or after the functions were made and called."""
    try:
        archive.execute("alter table eo.patch add column mine text; alter table eo.product add column mine text")
        archive.execute("alter table eo.label add column mine text; alter table eo.encoder add column mine text")
        for call in (
            "eo.search()",
            "eo.patches()",
            "eo.select_products()",
            "eo.product_statistics()",
            "eo.label_statistics()",
            "eo.unannotated_cells('{country}')",
            "eo.patch_statistics('season')",
        ):
            assert archive.execute(f"select * from {call}".encode()).fetchall(), call
        archive.execute("call eo.annotate()")
    finally:
        archive.execute("alter table eo.patch drop column mine; alter table eo.product drop column mine")
        archive.execute("alter table eo.label drop column mine; alter table eo.encoder drop column mine")


# Statistics


@pytest.mark.parametrize("nomenclature", ["ben19", "ben43", "clc", "nlcd"])
@pytest.mark.parametrize("filters", ["", "labels => '{clc:3}', splits => '{train}'"])
def test_a_statistic_tells_what_a_search_finds(archive: psycopg.Connection, nomenclature: str, filters: str) -> None:
    """Case B16: one nomenclature, each class once, with as many patches as a search for it has."""
    rows = archive.execute(
        f"select scheme, code, patches, fraction from eo.label_statistics(eo.filter({filters}), %s)".encode(),
        (nomenclature,),
    ).fetchall()
    [passing] = ids(archive, f"select eo.count_patches(eo.filter({filters}))")
    chosen = set(ids(archive, f"select patch_id from eo.patches(eo.filter({filters}))"))
    classes = archive.execute(
        "select code from eo.label l where scheme = %s and level = (select max(level) from eo.label where scheme = l.scheme)",
        (nomenclature,),
    ).fetchall()
    expected = {
        code: len(chosen & set(ids(archive, "select patch_id from eo.patches(eo.filter(labels => array[%s]))", f"{nomenclature}:{code}")))
        for (code,) in classes
    }  # fmt: skip
    assert {code: patches for _, code, patches, _ in rows} == {code: n for code, n in expected.items() if n}
    assert all(scheme == nomenclature and abs(share - patches / passing) < 1e-12 for scheme, _, patches, share in rows)
    assert nomenclature == "nlcd" or rows


def test_the_nomenclature_that_most_labels_are_of_is_shown(archive: psycopg.Connection) -> None:
    assert archive.execute("select distinct scheme from eo.label_statistics()").fetchall() == [("ben19",)]
    some = archive.execute(
        "select distinct scheme from eo.label_statistics(eo.filter(patch_ids => array("
        "select patch_id from eo.patch where label_ids[1] < 1000)))"
    ).fetchall()
    assert some == [("clc",)]
    with pytest.raises(errors.UndefinedObject, match="corine") as caught:
        archive.execute("select * from eo.label_statistics(nomenclature => 'corine')")
    assert "clc" in (caught.value.diag.message_hint or "")


# One place


def test_nothing_else_declares_the_conditions(archive: psycopg.Connection) -> None:
    """A condition more is an attribute of the type, an argument of its constructor and a condition of eo.patches."""
    lists = archive.execute(
        """
        select p.oid::regproc::text, count(*)
        from pg_proc p, unnest(p.proargnames[:p.pronargs]) as argument
        where p.pronamespace in ('eo'::regnamespace, 'eo_internal'::regnamespace)
          and argument in (select attname from pg_attribute where attrelid = 'eo.filter'::regclass and attnum > 0)
        group by p.oid
        having count(*) > 3
        """
    ).fetchall()
    assert dict(lists).keys() == {"eo.filter", "eo.product_filter"}


def test_python_knows_the_same_conditions(archive: psycopg.Connection) -> None:
    declared = archive.execute(
        "select a.name, format_type(a.type, null)::text from pg_proc p, unnest(p.proargnames, p.proargtypes::oid[]) as a (name, type)"
        " where p.pronamespace = 'eo'::regnamespace and p.proname = 'filter' and p.pronargs > 1"
    ).fetchall()
    known = {
        name: archive.execute("select %s::regtype::text", (type_name,)).fetchone()
        for name, type_name in FILTERS.items()
    }
    assert known == {name: (type_name,) for name, type_name in declared}
    attributes = archive.execute(
        "select attname from pg_attribute where attrelid = 'eo.filter'::regclass and attnum > 0 order by attnum"
    ).fetchall()
    assert attributes == [(name,) for name, _ in declared]
    arguments = archive.execute(
        "select proargnames from pg_proc where oid = 'eo.filter(jsonb)'::regprocedure"
    ).fetchone()
    assert arguments == (["document"],)


def test_every_function_that_is_asked_about_patches_takes_it(archive: psycopg.Connection) -> None:
    taking = {
        name
        for (name,) in archive.execute(
            "select distinct proname from pg_proc where pronamespace = 'eo'::regnamespace"
            " and 'eo.filter'::regtype = any (proargtypes::oid[]) and proargnames @> '{filter}'"
        )
    }
    assert taking == {
        "patches", "search", "count_patches", "label_statistics", "patch_statistics", "similar", "similar_to_code", "similar_to_image",
        "similar_to_examples", "similar_to_vector", "similar_to_segments", "similar_segments", "similar_change", "within_distance",
    }  # fmt: skip
