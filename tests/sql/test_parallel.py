"""Every public function beside and above parallel plans: rows, and neither an error nor a crash.

In PostgreSQL 15 a query that PL/Python runs opens a subtransaction, which parallel mode forbids: the error unwound the
interpreter, and the next call in the session took the server down. So what reaches such a query is `parallel unsafe`
(tests/sql/test_catalogue.py derives that); here all of it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.sql.public_calls import CALLS, PROCEDURES, calls, check_that_no_function_is_left_out, fill

# Any table, however small, is read by workers: the planner is told that they cost nothing.
NATURAL = """
set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0;
set min_parallel_table_scan_size = 0; set min_parallel_index_scan_size = 0;
set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;
"""
FORCED = "set force_parallel_mode = on"
SHAPES = {
    # The call stands above the Gather; one row of the archive's is enough.
    "above": (
        NATURAL,
        "select (select count(*) from {call} f where p.patch_id > 0) from eo.patch p where p.name = {name}",
    ),
    # Two plans of one statement: the one's Gather puts the other in parallel mode, too.
    "beside": (NATURAL, "select (select count(*) from eo.patch where srid > 0), (select count(*) from {call} f)"),
    # The call runs in a worker.
    "below": (FORCED, "select count(*) from {call} f"),
}
"""Settings of a session, and a statement."""
SAFE = sql.SQL("eo.cell_of(public.st_point(-8, 53, 4326))")


@pytest.fixture(scope="module")
def values(module_archive: psycopg.Connection, sample: Path) -> dict[str, sql.Composable]:
    return fill(module_archive, sample)


@contextmanager
def session(archive: psycopg.Connection, settings: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(archive.info.dsn, autocommit=True) as connection:
        connection.execute(settings.encode())
        yield connection


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plans_are_parallel(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable], shape: str
) -> None:
    """The other tests would prove nothing if a parallel-safe function did not come to stand by a Gather."""
    settings, statement = SHAPES[shape]
    with session(module_archive, settings) as connection:
        plan = connection.execute(sql.SQL("explain " + statement).format(call=SAFE, name=values["name"]))  # type: ignore[arg-type]
        assert "Gather" in "\n".join(line for (line,) in plan)


def test_every_public_function_is_called(module_archive: psycopg.Connection) -> None:
    check_that_no_function_is_left_out(module_archive)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_function_by_a_parallel_plan(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable], shape: str, name: str
) -> None:
    settings, statement = SHAPES[shape]
    with session(module_archive, settings) as connection:
        for function, call in calls(values):
            if function != name:
                continue
            query = sql.SQL(statement).format(call=call, name=values["name"])  # type: ignore[arg-type]
            for _ in range(2):
                with connection.transaction(force_rollback=True):
                    connection.execute("select eo.create_collection('mine')")
                    assert connection.execute(query).fetchall()


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"runtime"}))
def test_answers_by_a_parallel_plan_are_the_same(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable], name: str
) -> None:
    """But for ids that are counted on, and what eo.runtime tells of the moment."""
    for function, call in calls(values):
        if function != name:
            continue
        query = sql.SQL("select f::text from {} f").format(call)
        answers = []
        for settings in ("set max_parallel_workers_per_gather = 0", FORCED):
            with session(module_archive, settings) as connection, connection.transaction(force_rollback=True):
                connection.execute("select eo.create_collection('mine')")
                answers.append(connection.execute(query).fetchall())
        if name in ("create_collection", "register_encoder"):
            assert len(answers[0]) == len(answers[1])
        else:
            assert answers[0] == answers[1]


@pytest.mark.parametrize("name", PROCEDURES)
@pytest.mark.parametrize("settings", [NATURAL, FORCED], ids=["natural", "forced"])
def test_a_procedure_with_parallel_plans(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable], settings: str, name: str
) -> None:
    with session(module_archive, settings) as connection:
        for _ in range(2):
            connection.execute(f"call eo.{name}({PROCEDURES[name]})".encode())


def test_the_statements_that_took_the_server_down(
    module_archive: psycopg.Connection, values: dict[str, sql.Composable]
) -> None:
    """As a reader, by default settings but for the size of the table, as first seen."""
    name = values["name"]
    with psycopg.connect(module_archive.info.dsn, autocommit=True, options="-c role=eo_reader") as reader:
        reader.execute("set min_parallel_table_scan_size = 0; set parallel_setup_cost = 0; set parallel_tuple_cost = 0")
        for _ in range(2):
            rows = reader.execute(
                sql.SQL(
                    "select p.name, (select count(*) from eo.similar(p.name, max_results => 3)) from eo.patch p where p.name = {}"
                ).format(name)
            ).fetchall()
            assert [count for _, count in rows] == [3]
            assert reader.execute(
                sql.SQL("select (select count(*) from eo.patch) > 20, (select count(*) from eo.similar({}))").format(
                    name
                )
            ).fetchall() == [(True, 10)]
