"""What a database must be like to hold an archive: the extensions lie in public."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import psycopg
import pytest
from click.testing import Result
from pytest_postgresql.janitor import DatabaseJanitor

from pgearth.pyfuncs.errors import PgearthError


@pytest.fixture
def empty_database(cluster: SimpleNamespace) -> Iterator[psycopg.Connection]:
    """A database without anything of ours."""
    janitor = DatabaseJanitor(user=cluster.user, host=cluster.host, port=cluster.port, dbname="pgearth_surroundings")
    janitor.drop()
    with (
        janitor,
        psycopg.connect(
            host=cluster.host, port=cluster.port, user=cluster.user, dbname="pgearth_surroundings", autocommit=True
        ) as connection,
    ):
        yield connection


def contents(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return connection.execute(
        "select oid, relname from pg_class where relnamespace not in ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace)"
        " union all select oid, nspname from pg_namespace order by 1"
    ).fetchall()


@pytest.mark.parametrize(
    ("statements", "message", "hint"),
    [
        ("create extension vector schema gis", "extension vector lies in the schema gis", "alter extension vector set"),
        ("create extension postgis schema gis", "extension postgis lies in the schema gis", "PostGIS cannot be moved"),
        (
            "set search_path = gis; create extension postgis schema gis; create extension postgis_raster schema gis; reset search_path",
            "extension postgis lies in the schema gis",
            "a database of its own",
        ),
        ("drop schema public", "no schema public", "create schema public"),
    ],
    ids=["vector", "postgis", "both of PostGIS", "no public"],
)
def test_extensions_elsewhere_are_named_before_anything_changes(
    empty_database: psycopg.Connection, run_pgearth: Callable[..., Result], statements: str, message: str, hint: str
) -> None:
    empty_database.execute(f"create schema gis; {statements}".encode())
    before = contents(empty_database)
    result = run_pgearth(empty_database, "migrate")
    assert isinstance(result.exception, PgearthError)
    assert message in str(result.exception)
    assert hint in result.exception.hint
    assert contents(empty_database) == before


def test_a_moved_extension_is_found_in_an_archive_too(
    empty_database: psycopg.Connection, run_pgearth: Callable[..., Result]
) -> None:
    """Moved after the first migration; the hint moves it back."""
    assert run_pgearth(empty_database, "migrate").exit_code == 0
    empty_database.execute("create schema gis; alter extension vector set schema gis")
    result = run_pgearth(empty_database, "migrate")
    assert isinstance(result.exception, PgearthError)
    empty_database.execute(result.exception.hint.removeprefix("Run: ").encode())
    assert run_pgearth(empty_database, "migrate").exit_code == 0
