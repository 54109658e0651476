"""An archive answers the same in every database, whatever its locale: case is folded and names are sorted by one rule.

Turkish has another capital of i, Lithuanian sorts y beside i, Estonian z after s: an ICU locale as the database's default
changes what lower() and `order by` do with plain ASCII.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.server.migrate import upgrade
from tests.sql.public_calls import SCENE, calls, fill

LOCALES = ["tr-TR", "lt-LT", "et-EE"]
VARYING = {"runtime"}
"""Functions that tell of the server as it is now."""


@contextmanager
def database(settings: SimpleNamespace, name: str, locale: str | None) -> Iterator[psycopg.Connection]:
    """A migrated database of an ICU locale, or else of bytes: locale C."""
    with psycopg.connect(
        host=settings.host, port=settings.port, user=settings.user, dbname="postgres", autocommit=True
    ) as server:
        provider = f"locale_provider icu icu_locale '{locale}'" if locale else "locale 'C' encoding 'UTF8'"
        server.execute(f"drop database if exists {name} with (force)".encode())
        server.execute(f"create database {name} {provider} template template0".encode())
        try:
            upgrade(f"postgresql+psycopg://{settings.user}@/{name}?host={settings.host}&port={settings.port}")
            with psycopg.connect(
                host=settings.host, port=settings.port, user=settings.user, dbname=name, autocommit=True
            ) as connection:
                load_nomenclature(connection)
                yield connection
        finally:
            server.execute(f"drop database {name} with (force)".encode())


@pytest.fixture(scope="module", params=LOCALES)
def localised(cluster: SimpleNamespace, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    with database(cluster, f"pgearth_{request.param[:2]}", request.param) as connection:
        yield connection


def test_turkish_folds_another_way(cluster: SimpleNamespace) -> None:
    """The other tests would prove nothing if it did not."""
    with database(cluster, "pgearth_turkish", "tr-TR") as connection:
        assert connection.execute("select lower('INLAND') = 'inland'").fetchone() == (False,)
    with database(cluster, "pgearth_lithuanian", "lt-LT") as connection:
        assert connection.execute("select 'y' < 'k'").fetchone() == (True,)


@pytest.mark.parametrize(
    "spelling",
    ["Inland waters", "inland waters", "INLAND WATERS", "CLC:512", "Sclerophyllous vegetation", "BEN19:inland waters"],
)
def test_labels_are_found_whatever_their_case(localised: psycopg.Connection, spelling: str) -> None:
    if spelling.startswith("BEN19"):
        with pytest.raises(errors.InvalidParameterValue) as caught:
            localised.execute("select eo.label_members(array[%s])", (spelling,))
        # The word of the hint is searched in names without their case, too.
        assert "Inland waters" in (caught.value.diag.message_hint or "")
    else:
        row = localised.execute("select cardinality(eo.label_members(array[%s]))", (spelling,)).fetchone()
        assert row is not None and row[0] > 0


@pytest.mark.parametrize(
    ("condition", "given", "expected"),
    [
        ("countries", "{INDIA,India,TÜRKİYE,turkiye,ICELAND,ÍSLAND,Lithuania,LITHUANIA}", ["IN", "IS", "LT", "TR"]),
        ("platforms", "{SENTINEL-2A,s2a}", ["sentinel-2a"]),
        ("splits", "{TRAINING,VALID}", ["train", "validation"]),
        ("sources", "{BIGEARTHNET-V1,SYNTHETIC}", ["bigearthnet-v1", "synthetic"]),
        ("seasons", "{WINTER}", ["winter"]),
    ],
)
def test_names_are_found_whatever_their_case(
    localised: psycopg.Connection, condition: str, given: str, expected: list[str]
) -> None:
    query = f"select (eo.filter({condition} => %s::text[])).{condition}::text[]"
    assert localised.execute(query.encode(), (given,)).fetchone() == (expected,)


def test_spellings_are_ascii(localised: psycopg.Connection) -> None:
    """For letters beyond ASCII are folded nowhere."""
    assert localised.execute("select spelling from eo.label_spelling where spelling ~ '[^ -~]'").fetchall() == []


def answers(connection: psycopg.Connection, sample: Path) -> dict[str, Any]:
    values = fill(connection, sample)
    found = {}
    for name, call in calls(values):
        if name in VARYING:
            continue
        with connection.transaction(force_rollback=True):
            if "collection" in name and name != "create_collection":
                connection.execute("select eo.create_collection('mine')")
            if name == "collection_patches":
                connection.execute(sql.SQL("select eo.add_to_collection('mine', {patch_ids})").format(**values))  # type: ignore[arg-type]
            found[f"{name} {len(found)}"] = connection.execute(
                sql.SQL("select f::text from {} f").format(call)
            ).fetchall()
    found["names"] = connection.execute("select patch_id, name from eo.patch order by patch_id").fetchall()
    found["places"] = connection.execute(
        "select name, country_codes, nuts_ids, label_ids from eo.patch order by patch_id"
    ).fetchall()
    found["layer"] = connection.execute(
        "select r_table_name from raster_columns where r_table_schema = 'eo_layers' order by 1"
    ).fetchall()
    return found


def test_every_function_answers_the_same(cluster: SimpleNamespace, localised: psycopg.Connection, sample: Path) -> None:
    with database(cluster, "pgearth_bytes", None) as connection:
        expected = answers(connection, sample)
    found = answers(localised, sample)
    assert SCENE.lower()[:20] in str(expected["layer"])
    assert [call for call, rows in expected.items() if found[call] != rows] == []
