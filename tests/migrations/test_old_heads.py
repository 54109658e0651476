"""Every older head, with data, upgrades to the schema that a fresh database has: no head is a downgraded newer one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy

from pgearth.loaders.server.migrate import upgrade
from pgearth.migrations.functions import created_names
from pgearth.migrations.sqlfiles import published_names
from pgearth.pyfuncs.errors import PgearthError
from tests.migrations.catalogue import catalogue
from tests.migrations.old_heads import Head, old_heads, run

HEADS = {head.commit: head for head in old_heads()}
BEFORE_FILTERS = HEADS["c947e95"]
BEFORE_LEARNING = HEADS["4e88c79"]
# What the checkouts of their time could upgrade, step by step: some revisions changed after they were published.
PATHS = [
    [
        "0764127",
        "68df408",
        "eac510f",
        "51404f3",
        "328a164",
        "082a3da",
        "0616386",
        "c4e39ed",
        "ec8734c",
        "c947e95",
        "5138c39",
    ],
    ["0d0b530", "84eb18b", "5c4be08", "4e88c79", "38a58f7"],
]

FILL = """
insert into eo.label (label_id, scheme, code, level, name, color)
values (1, 'clc', '3', 1, 'Forests', '#00FF00'), (2, 'clc', '311', 3, 'Broad-leaved forest', '#80FF00');
insert into eo.label_closure values (1, 1), (1, 2), (2, 2);
insert into eo.label_spelling values ('clc', 'Forests', 1);
insert into eo.product (name, platform, level, sensing_time, mgrs_tile, cloud_cover, footprint, metadata)
values ('summer', 'sentinel-2a', 'L2A', '2017-07-01 10:00Z', '32UMC', 3.5,
        st_multi(st_makeenvelope(7, 51, 8, 52, 4326)), '{"a": 1}'),
       ('south', 'landsat-8', 'L2SP', '2017-07-01 10:00Z', null, null, st_multi(st_makeenvelope(20, -34, 21, -33, 4326)), null);
insert into eo.patch (cell, name, source, product_id, platform, sensing_time, footprint, srid, west, south, east, north, label_ids,
                      label_fraction, scene_class_ids, country_codes, cloud_or_shadow, metadata)
select 'u1jq' || digit, 'patch' || digit, case digit when 1 then 'scene' else 'synthetic' end, 1, 'sentinel-2a', '2017-07-01 10:00Z',
       st_makeenvelope(7.5, 51.5, 7.52, 51.51, 4326), 32632, 400000 + 1200 * digit, 5700000, 401200 + 1200 * digit, 5701200,
       '{1,2}', '{0.25,0.75}', '{4}', '{DE}', false, '{"b": [1, 2]}'
from generate_series(1, 5) as digit;
update eo.patch set pair_id = patch_id, pair_name = name where name = 'patch3';
insert into eo.patch_raster (patch_id, resolution, cell, bands, rast)
select patch_id, 10, cell, '{B02}', st_addband(st_makeemptyraster(4, 4, west, north, 10, -10, 0, 0, srid), '16BUI'::text, patch_id, 0)
from eo.patch;
insert into eo.corine (source, label_id, geom) values ('a.gpkg', 2, st_multi(st_makeenvelope(4100000, 3100000, 4101000, 3101000, 3035)));
insert into eo.nuts (nuts_id, level, country_code, name, geom) values ('DE', 0, 'DE', 'Deutschland', st_multi(st_makeenvelope(6, 47, 15, 55, 4326)));
select eo_internal.ensure_partition('eo.corine_part', 32632), eo_internal.ensure_partition('eo.nuts_part', 32632);
insert into eo.corine_part (srid, corine_id, label_id, geom) values (32632, 1, 2, st_makeenvelope(400000, 5700000, 401000, 5701000, 32632));
insert into eo.nuts_part (srid, nuts_id, level, country_code, geom)
values (32632, 'DE', 0, 'DE', st_makeenvelope(400000, 5700000, 401000, 5701000, 32632));
insert into eo.encoder (name, version, architecture, bands, weights, weights_sha256, dimension)
values ('spectral', 1, 'spectral', '{B02}', 'x', encode(sha256('x'), 'hex'), 3);
insert into eo.encoder (name, version, architecture, bands, weights, weights_sha256, bits, parent_id)
values ('lsh', 1, 'lsh', '{}', 'y', encode(sha256('y'), 'hex'), 8, 1);
select eo_internal.ensure_partition('eo.embedding', 1);
insert into eo.embedding (patch_id, encoder_id, cell, embedding) select patch_id, 1, cell, '[1,2,3]' from eo.patch;
insert into eo.bucket values (2, 0, b'00001111'), (2, 1, b'10001111');
insert into eo.patch_bucket (patch_id, segment, encoder_id, cell, bucket_no) select patch_id, 0, 2, cell, patch_id % 2 from eo.patch;
insert into eo.load (loader, source, checksum, state, rows) values ('scene', 'x.SAFE', 'abc', 'done', 1), ('corine', 'a.gpkg', 'def', 'done', 1);
"""
FILL_SINCE = {
    "0004": "insert into eo.collection (name) values ('mine'); insert into eo.feedback (message) values ('well done');"
    " insert into eo.collection_patch (collection_id, patch_id, cell) select 1, patch_id, cell from eo.patch limit 2",
    "0005": "insert into eo.code_index (encoder_id, version, buckets, patches, bytes, snapshot)"
    " values (2, '7a0b0f0e-0000-4000-8000-000000000000', 2, 5, 100, pg_current_snapshot()::text)",
    "0007": """update eo.encoder set segmentation = '{"method": "grid", "side": 2}' where name = 'lsh'""",
    "0010": "update eo.product set relative_orbit = 8, bytes = 5; update eo.patch set nuts_ids = '{DEA33}';"
    " update eo.patch_raster set band_mean = '{1.5}'",
    "0013": "insert into eo.evaluation (encoder_id, k, relevance, scheme, queries, archive, seed, metrics)"
    " values (2, 10, 'any', 'clc', '{}', '{}', 1, '{}'); update eo.encoder set current_since = created_at",
}
CHANGED_SINCE = [
    ("0015", "snapshot)", "codes_guard)"),
    (
        "0016",
        "st_makeenvelope(7.5, 51.5, 7.52, 51.51, 4326)",
        "st_multi(st_makeenvelope(7.5, 51.5, 7.52, 51.51, 4326))",
    ),
    ("0022", "eo.corine_part", "eo_internal.corine_part"),
    ("0022", "eo.nuts_part", "eo_internal.nuts_part"),
]
"""What to write instead of what since a revision."""
PARTITIONS = """
select eo_internal.ensure_partition('eo_internal.corine_part', 32632), eo_internal.ensure_partition('eo_internal.nuts_part', 32632),
       eo_internal.ensure_partition('eo.embedding', 1)
"""
# Derived tables, which are made again: revision 0011 empties the first.
DERIVED = {"eo.nuts_part", "eo.patch_change", "eo.code_index"}
Rows = dict[str, list[dict[str, Any]]]


class Databases:
    """Databases of the cluster, made of templates and dropped at the end."""

    def __init__(self, cluster: SimpleNamespace) -> None:
        self.server = {"host": cluster.host, "port": cluster.port, "user": cluster.user}
        self.made: set[str] = set()

    def execute(self, statement: str) -> None:
        with psycopg.connect(**self.server, dbname="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, name: str, template: str = "template1") -> str:
        """Make a database in place of any of this name, and return its URL."""
        self.drop(name)
        self.execute(f"create database {name} template {template}")
        self.made.add(name)
        return "postgresql+psycopg://{user}@/{name}?host={host}&port={port}".format(name=name, **self.server)

    def drop(self, name: str) -> None:
        self.execute(f"drop database if exists {name} with (force)")


@pytest.fixture(scope="module")
def databases(cluster: SimpleNamespace) -> Iterator[Databases]:
    databases = Databases(cluster)
    with begin(databases.create("old_extensions")) as connection:
        for extension in ("postgis", "postgis_raster", "vector", "plpython3u"):
            connection.exec_driver_sql(f"create extension {extension}")
    try:
        yield databases
    finally:
        for name in databases.made:
            databases.drop(name)


@contextmanager
def begin(url: str) -> Iterator[sqlalchemy.Connection]:
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).begin() as connection:
        yield connection


@pytest.fixture(scope="module")
def fresh(databases: Databases) -> set[tuple[str, str, str]]:
    """The catalogue of a database that was empty, with the partitions that FILL makes."""
    url = databases.create("old_fresh", "old_extensions")
    upgrade(url)
    with begin(url) as connection:
        connection.exec_driver_sql(PARTITIONS)
    upgrade(url)
    with begin(url) as connection:
        return catalogue(connection)


def make(databases: Databases, head: Head) -> str:
    """A database as it was at `head`, with data."""
    url = databases.create("old_head", "old_extensions")
    with begin(url) as connection:
        head.apply(connection)
        fill(connection, head)
    return url


def fill(connection: sqlalchemy.Connection, head: Head) -> None:
    statements = [FILL] + [statement for revision, statement in FILL_SINCE.items() if revision <= head.revision]
    changes = [(old, new) for revision, old, new in CHANGED_SINCE if revision <= head.revision]
    if "'product'" in head.revisions.get("0012", ""):
        changes.append(("'scene'", "'product'"))
    for statement in statements:
        for old, new in changes:
            statement = statement.replace(old, new)
        run(connection, statement)


def rows(connection: sqlalchemy.Connection) -> Rows:
    """By the names that tables had before revision 0022, which moved some."""
    tables = connection.exec_driver_sql(
        "select 'eo.' || relname, oid::regclass::text from pg_class"
        " where relnamespace in ('eo'::regnamespace, 'eo_internal'::regnamespace) and relkind in ('r', 'p') and not relispartition"
        " and relname not in ('schema_version', 'sql_file')"
    )
    found = {
        table: [row for (row,) in connection.exec_driver_sql(f"select to_jsonb(t) from {place} t")]
        for table, place in tables.all()
    }
    # What a footprint covers, whatever its type.
    for table, key in (("eo.patch", "patch_id"), ("eo.product", "product_id")):
        covered = dict(
            map(tuple, connection.exec_driver_sql(f"select {key}, st_astext(st_multi(footprint)) from {table}"))
        )
        found[table] = [row | {"footprint": covered[row[key]]} for row in found[table]]
    return found


def assert_kept(before: Rows, after: Rows) -> None:
    """Every row is there with what it had, but for what revisions 0012 and 0024 renamed."""
    for table, old_rows in before.items():
        if table in DERIVED:
            continue
        for old in old_rows:
            if old.get("source") == "scene":
                old = old | {"source": "product"}
            elif old.get("loader") == "scene":
                old = old | {"loader": "product", "source": f"{old['source']}|fixed:120"}
            old = {{"region_id": "place_id"}.get(column, column): value for column, value in old.items()}
            assert any(old.items() <= new.items() for new in after[table]), f"{table}: {old}"


def test_every_name_of_an_older_head_is_known() -> None:
    """A function that a file made once is dropped by every upgrade: RETIRED_NAMES has those that none makes now."""
    assert len(HEADS) >= 18
    old = frozenset[str]().union(*(created_names(file.text) for head in HEADS.values() for file in head.sql))
    assert len(old) > 100
    assert old <= published_names()


@pytest.mark.parametrize("commit", HEADS)
def test_an_older_head_upgrades_to_the_fresh_schema(
    databases: Databases, fresh: set[tuple[str, str, str]], commit: str
) -> None:
    url = make(databases, HEADS[commit])
    with begin(url) as connection:
        before = rows(connection)
    assert sum(map(len, before.values())) > 30
    upgrade(url)
    with begin(url) as connection:
        assert catalogue(connection) == fresh
        assert_kept(before, rows(connection))
        assert (
            connection.exec_driver_sql("select count(*) from eo.patches(eo.filter(labels => '{Forests}'))").scalar()
            == 5
        )
        assert connection.exec_driver_sql(
            "select name from eo.similar('patch2', max_results => 2)"
        ).scalars().all() == [
            "patch4",
            "patch1",
        ]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[-1])
def test_a_database_that_went_through_older_heads(
    databases: Databases, fresh: set[tuple[str, str, str]], path: list[str]
) -> None:
    url = make(databases, HEADS[path[0]])
    with begin(url) as connection:
        before = rows(connection)
    for commit in path[1:]:
        with begin(url) as connection:
            HEADS[commit].apply(connection)
    upgrade(url)
    with begin(url) as connection:
        assert catalogue(connection) == fresh
        assert_kept(before, rows(connection))


USERS_OBJECTS = """
create schema mine;
create view mine.region as select name, geom from eo.map_nuts;
create view mine.of_the_region as select name from mine.region;
create materialized view mine.cells as select eo.cell_of(st_centroid(geom)) as cell from eo.nuts;
create function mine.forests() returns integer language sql stable begin atomic
    select cardinality(eo.label_members(array['Forests']));
end;
create table mine.place (
    patch_id bigint,
    patch_cell text,
    region eo.map_nuts,
    geom geometry check (eo.cell_of(geom) <> ''),
    cell text default eo.cell_of(st_point(7, 51, 4326)),
    foreign key (patch_id, patch_cell) references eo.patch
);
insert into mine.place (geom) values (st_point(7, 51, 4326));
create index on mine.place (eo.cell_of(geom));
create policy near on mine.place using (eo.cell_of(geom) like 'u1%');
"""
MINE = """
select 'relation', oid::bigint, pg_get_viewdef(oid) from pg_class where relnamespace = 'mine'::regnamespace and relkind = 'v'
union all select 'relation', oid::bigint, null from pg_class where relnamespace = 'mine'::regnamespace and relkind <> 'v'
union all select 'function', oid::bigint, pg_get_functiondef(oid) from pg_proc where pronamespace = 'mine'::regnamespace
union all select 'default', d.oid::bigint, pg_get_expr(adbin, adrelid) from pg_attrdef d join pg_class c on c.oid = adrelid
where relnamespace = 'mine'::regnamespace
union all select 'constraint', oid::bigint, pg_get_constraintdef(oid) from pg_constraint where connamespace = 'mine'::regnamespace
union all select 'policy', p.oid::bigint, pg_get_expr(polqual, polrelid) from pg_policy p join pg_class c on c.oid = polrelid
where relnamespace = 'mine'::regnamespace
order by 1, 2
"""


def test_what_a_user_made_of_what_stays_is_left_alone(databases: Databases, fresh: set[tuple[str, str, str]]) -> None:
    url = make(databases, BEFORE_LEARNING)
    with begin(url) as connection:
        run(connection, USERS_OBJECTS)
        before = connection.exec_driver_sql(MINE).all()
    assert len(before) >= 9
    upgrade(url)
    with begin(url) as connection:
        assert connection.exec_driver_sql(MINE).all() == before
        assert catalogue(connection) == fresh
        assert connection.exec_driver_sql("select mine.forests(), count(*) from mine.of_the_region").one() == (2, 1)


@pytest.mark.parametrize(
    ("commit", "query", "needed"),
    [
        # An older signature that a revision drops, two that only drop_functions does.
        ("c947e95", "select name from eo.patches(labels => '{Forests}')", "eo.patches("),
        ("0616386", "select eo_internal.labels_match('{1}'::smallint[], null, 'some')", "eo_internal.labels_match("),
        ("84eb18b", "select eo.derive_corine_parts() as parts", "eo.derive_corine_parts("),
    ],
)
def test_what_a_user_made_of_what_goes_is_named_and_nothing_is_changed(
    databases: Databases, fresh: set[tuple[str, str, str]], commit: str, query: str, needed: str
) -> None:
    url = make(databases, HEADS[commit])
    with begin(url) as connection:
        run(connection, f"create schema mine; create view mine.thing as {query}")
        before, mine = catalogue(connection), connection.exec_driver_sql(MINE).all()
    with pytest.raises((PgearthError, PgearthError)) as caught:
        upgrade(url)
    assert f"view mine.thing needs {needed}" in str(caught.value)
    assert "Nothing was changed" in str(caught.value.hint)
    with begin(url) as connection:
        assert catalogue(connection) == before
        assert connection.exec_driver_sql(MINE).all() == mine
        run(connection, "drop schema mine cascade")
    upgrade(url)
    with begin(url) as connection:
        assert catalogue(connection) == fresh
