"""Collections and feedback: each role has its own, whatever it tries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import errors, sql

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products

TIME = datetime(2018, 7, 1, tzinfo=UTC)


@pytest.fixture
def patch_ids(archive: psycopg.Connection) -> list[int]:
    """Ten patches, and two people who are readers."""
    write_products(archive, [Product("p", "sentinel-2a", "L2A", TIME)])
    with archive.transaction():
        write_patches(
            archive,
            "test",
            [
                Patch(
                    f"patch-{n}",
                    "p",
                    "sentinel-2a",
                    TIME,
                    32633,
                    5e5 + 1200 * n,
                    5e6,
                    5e5 + 1200 * n + 1200,
                    5e6 + 1200,
                )
                for n in range(10)
            ],
        )
    for person in ("pgearth_ann", "pgearth_bob"):
        archive.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(person)))
        archive.execute(sql.SQL("create role {} in role eo_reader").format(sql.Identifier(person)))
    return [patch_id for (patch_id,) in archive.execute("select patch_id from eo.patch order by 1")]


@contextmanager
def acting_as(archive: psycopg.Connection, person: str) -> Iterator[None]:
    archive.execute(sql.SQL("set role {}").format(sql.Identifier(person)))
    try:
        yield
    finally:
        archive.execute("reset role")


def contents(archive: psycopg.Connection, *names: str) -> list[int]:
    return [
        patch_id for (patch_id,) in archive.execute("select patch_id from eo.collection_patches(%s)", (list(names),))
    ]


def test_results_of_several_searches(archive: psycopg.Connection, patch_ids: list[int]) -> None:
    with acting_as(archive, "pgearth_ann"):
        archive.execute("select eo.create_collection('one', 'first'), eo.create_collection('two')")
        assert archive.execute("select eo.add_to_collection('one', %s)", (patch_ids[:4],)).fetchone() == (4,)
        assert archive.execute("select eo.add_to_collection('one', %s)", (patch_ids[2:6],)).fetchone() == (2,)
        archive.execute("select eo.add_to_collection('two', array(select patch_id from eo.search(max_results => 8)))")
        assert contents(archive, "one") == patch_ids[:6]
        assert contents(archive, "two", "one") == patch_ids[:8]
        assert archive.execute("select eo.remove_from_collection('one', %s)", (patch_ids[1:9],)).fetchone() == (5,)
        assert contents(archive, "one") == patch_ids[:1]
        archive.execute("select eo.drop_collection('two')")
        assert archive.execute("select name, description, owner from eo.collection").fetchall() == [
            ("one", "first", "pgearth_ann")
        ]
    archive.execute("delete from eo.patch where patch_id = %s", (patch_ids[0],))
    assert archive.execute("select count(*) from eo.collection_patch").fetchone() == (0,)


def test_a_collection_as_a_filter(archive: psycopg.Connection, patch_ids: list[int]) -> None:
    """What a collection holds goes back into every search and statistic as patch_ids."""
    archive.execute("update eo.patch set label_ids = array[311] where patch_id = any (%s)", (patch_ids[:3],))
    own = "patch_ids => array(select patch_id from eo.collection_patches('{mine}'))"
    with acting_as(archive, "pgearth_ann"):
        archive.execute("select eo.create_collection('mine')")
        archive.execute("select eo.add_to_collection('mine', %s)", (patch_ids[2:7],))
        found = archive.execute(
            f"select patch_id from eo.search(eo.filter({own}), max_results => null)".encode()
        ).fetchall()
        assert [patch_id for (patch_id,) in found] == patch_ids[2:7]
        statistics = archive.execute(
            f"select code, patches, fraction from eo.label_statistics(eo.filter({own}))".encode()
        )
        assert statistics.fetchall() == [("311", 1, 0.2)]
        assert archive.execute(f"select eo.count_patches(eo.filter({own}))".encode()).fetchone() == (5,)


def test_nobody_sees_or_changes_another_ones(archive: psycopg.Connection, patch_ids: list[int]) -> None:
    with acting_as(archive, "pgearth_ann"):
        archive.execute("select eo.create_collection('mine')")
        archive.execute("select eo.add_to_collection('mine', %s)", (patch_ids[:3],))
        archive.execute("insert into eo.feedback (message) values ('more clouds, please')")
    row = archive.execute("select collection_id from eo.collection").fetchone()
    assert row is not None
    with acting_as(archive, "pgearth_bob"):
        for table in ("collection", "collection_patch", "feedback"):
            query = sql.SQL("select count(*) from eo.{}").format(sql.Identifier(table))
            assert archive.execute(query).fetchone() == (0,), table
        for call in (
            "select * from eo.collection_patches('{mine}')",
            "select eo.drop_collection('mine')",
            "select eo.add_to_collection('mine', '{1}')",
            "select eo.remove_from_collection('mine', '{1}')",
        ):
            with pytest.raises(errors.NoDataFound, match='no collection "mine"'):
                archive.execute(call.encode())
        for statement in (
            "insert into eo.collection (owner, name) values ('pgearth_ann', 'forged')",
            f"insert into eo.collection_patch (collection_id, patch_id, cell) select {row[0]}, patch_id, cell from eo.patch limit 1",
            "insert into eo.feedback (author, message) values ('pgearth_ann', 'forged')",
        ):
            with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
                archive.execute(statement.encode())
        assert archive.execute("delete from eo.collection").rowcount == 0
        assert archive.execute("update eo.collection_patch set added_at = now()").rowcount == 0
        archive.execute("select eo.create_collection('mine')")
        assert contents(archive, "mine") == []
    with acting_as(archive, "pgearth_ann"):
        assert contents(archive, "mine") == patch_ids[:3]


@pytest.mark.parametrize(
    ("statement", "error", "message"),
    [
        ("select eo.create_collection('twice')", errors.UniqueViolation, 'collection "twice" already'),
        ("select eo.create_collection('')", errors.InvalidParameterValue, "no name"),
        ("select eo.add_to_collection('twice', '{1, 999999}')", errors.NoDataFound, "no patch 999999"),
        ("select eo.add_to_collection('none', '{1}')", errors.NoDataFound, 'no collection "none"'),
        ("insert into eo.feedback (message) values ('   ')", errors.CheckViolation, "feedback_message_check"),
        (
            "insert into eo.feedback (message) values (repeat('x', 10001))",
            errors.CheckViolation,
            "feedback_message_check",
        ),
    ],
)
def test_bad_input(
    archive: psycopg.Connection, patch_ids: list[int], statement: str, error: type[Exception], message: str
) -> None:
    with acting_as(archive, "pgearth_ann"):
        archive.execute("select eo.create_collection('twice')")
        with pytest.raises(error, match=message):
            archive.execute(statement.encode())
        assert contents(archive, "twice") == []
