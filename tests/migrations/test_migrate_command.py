"""`pgearth migrate` as a user runs it: what it says, asks and refuses, and that it is all or nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import make_conninfo
from pytest_postgresql.janitor import DatabaseJanitor

from pgearth.cli import main
from pgearth.loaders.server.revisions import known_revisions
from tests.migrations.catalogue import catalogue

*OLDER, HEAD = known_revisions()


@dataclass(frozen=True)
class Outcome:
    """What the command printed, and its exit code."""

    code: int
    output: str
    error: str


@pytest.fixture
def pgearth(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command in this process, on a database of this connection string."""

    def run(dsn: str, *arguments: str, answer: str = "") -> Outcome:
        monkeypatch.setenv("PGEARTH_DSN", dsn)
        monkeypatch.setattr(sys, "argv", ["pgearth", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(answer.encode())))
        capsys.readouterr()
        code: int | str | None = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return Outcome(int(code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def empty(cluster: SimpleNamespace) -> Iterator[psycopg.Connection]:
    """A connection to a database without anything of ours."""
    janitor = DatabaseJanitor(user=cluster.user, host=cluster.host, port=cluster.port, dbname="pgearth_command")
    janitor.drop()
    with janitor, psycopg.connect(dsn_of(cluster, "pgearth_command"), autocommit=True) as connection:
        yield connection


def dsn_of(cluster: SimpleNamespace, database: str, user: str | None = None) -> str:
    return make_conninfo(host=cluster.host, port=cluster.port, user=user or cluster.user, dbname=database)


def state(connection: psycopg.Connection) -> set[tuple[str, str, str]]:
    url = f"postgresql+psycopg://{connection.info.user}@/{connection.info.dbname}?host={connection.info.host}&port={connection.info.port}"
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as session:
        return catalogue(session)


def assert_one_message(outcome: Outcome, *words: str) -> None:
    """The command failed with one line and a hint, which hold these words."""
    assert outcome.code == 1
    assert len(outcome.error.splitlines()) == 2, outcome.error
    first, hint = outcome.error.splitlines()
    assert first.startswith("Error: ") and hint.startswith("Hint: ")
    for word in words:
        assert word in outcome.error


def test_it_says_what_is_and_what_it_does(empty: psycopg.Connection, pgearth: Callable[..., Outcome]) -> None:
    dsn = empty.info.dsn
    outcome = pgearth(dsn, "migrate", OLDER[-2])
    assert outcome.code == 0
    assert outcome.output.startswith("The database holds no archive.\nApplying 0001: Extensions")
    assert f"holds an archive at revision {OLDER[-2]} (pgearth " in outcome.output
    outcome = pgearth(dsn, "migrate")
    lines = outcome.output.splitlines()
    assert lines[0] == f"The database holds an archive at revision {OLDER[-2]}."
    assert [line.split(":")[0] for line in lines[1:3]] == [f"Applying {OLDER[-1]}", f"Applying {HEAD}"]
    assert lines[3].startswith(f"The database holds an archive at revision {HEAD} ")
    outcome = pgearth(dsn, "migrate")
    assert outcome.output.splitlines() == lines[3:]
    assert_one_message(
        pgearth(dsn, "migrate", OLDER[0]), f"revision {HEAD}", f"newer than {OLDER[0]}", f"migrate --down {OLDER[0]}"
    )
    assert_one_message(pgearth(dsn, "migrate", "base"), "migrate --down base")
    for unknown in ("13", "heads", "9999", "-1", "00"):
        assert_one_message(pgearth(dsn, "migrate", "--", unknown), f"no revision {unknown}", f"0001 to {HEAD}")
        assert_one_message(pgearth(dsn, "migrate", "--down", "--", unknown), f"no revision {unknown}")
    for not_older in (HEAD, "head"):
        assert "nothing is to be downgraded" in pgearth(dsn, "migrate", "--down", not_older).error


USERS_OBJECTS = """
create schema mine;
create table mine.note (patch_id bigint, cell text, constraint of_patch foreign key (patch_id, cell) references eo.patch);
create view mine.forest as select name from eo.map_nuts;
create function mine.patches() returns bigint language sql stable begin atomic select count(*) from eo.patch; end;
create materialized view mine.season as select season from eo.product;
"""


def test_a_downgrade_says_what_is_lost_and_asks(archive: psycopg.Connection, pgearth: Callable[..., Outcome]) -> None:
    dsn = archive.info.dsn
    archive.execute(USERS_OBJECTS.encode())
    archive.execute("insert into eo.feedback (message) values ('one'), ('two'), ('three')")
    archive.execute(
        "insert into eo.product (name, platform, level, sensing_time, footprint, bytes)"
        " values ('p', 'sentinel-2a', 'L2A', now(), st_multi(st_makeenvelope(7, 51, 8, 52, 4326)), 8)"
    )
    archive.execute(
        "insert into eo.load (loader, source, checksum, state) values ('product', 'x|fixed:120', '', 'done'), ('product', 'y|cell', '', 'done')"
    )
    labels = archive.execute("select count(*) from eo.label").fetchone() or (0,)
    before = state(archive)
    for answer in ("", "n\n"):
        outcome = pgearth(dsn, "migrate", "--down", "base", answer=answer)
        assert_one_message(Outcome(outcome.code, "", outcome.error), "Nothing was changed", "--yes")
        for line in (
            "  table eo.feedback: 3 rows",
            f"  table eo.label: {labels[0]} rows",
            "  constraint mine.note.of_patch",
            "  view mine.forest",
            "  function mine.patches()",
            "  materialized view mine.season",
        ):
            assert line in outcome.output.splitlines()
        assert not any(word in outcome.output for word in ("mine.note:", "mine.note.cell", "table eo.patch:"))
        assert state(archive) == before
    outcome = pgearth(dsn, "migrate", "--down", "0009", answer="n\n")
    assert "  column eo.product.bytes: 1 rows" in outcome.output.splitlines()
    assert "  1 of the 2 rows of eo.load" in outcome.output.splitlines()
    assert "  materialized view mine.season" in outcome.output.splitlines()
    assert "mine.patches" not in outcome.output and "eo.feedback" not in outcome.output
    assert state(archive) == before
    outcome = pgearth(dsn, "migrate", "--down", "0009", answer="y\n")
    assert outcome.code == 0, outcome.error
    assert outcome.output.endswith(
        "The database holds an archive at revision 0009.\n"
        "Its functions come from the checkout of that revision: pgearth migrate\n"
    )
    assert pgearth(dsn, "migrate").code == 0
    assert {line for line in state(archive) if line[0] != "column"} == {line for line in before if line[0] != "column"}
    outcome = pgearth(dsn, "migrate", "--down", "base", "--yes")
    assert outcome.code == 0, outcome.error
    assert "  table eo.feedback: 3 rows" in outcome.output.splitlines()
    assert outcome.output.splitlines()[-1] == "The database holds no archive."
    assert archive.execute("select to_regnamespace('eo'), to_regclass('mine.note')::text").fetchone() == (
        None,
        "mine.note",
    )


def test_a_newer_database_and_a_lost_record(archive: psycopg.Connection, pgearth: Callable[..., Outcome]) -> None:
    dsn = archive.info.dsn
    for arguments in (["migrate"], ["migrate", "0001"], ["migrate", "--down", "base", "--yes"]):
        archive.execute("update public.pgearth_version set version_num = '9999'")
        assert_one_message(pgearth(dsn, *arguments), "revision 9999", f"knows 0001 to {HEAD}", "newer checkout")
        archive.execute("update public.pgearth_version set version_num = %s", (HEAD,))
    archive.execute("delete from public.pgearth_version")
    for arguments in (["migrate"], ["migrate", "--down", "base", "--yes"]):
        assert_one_message(pgearth(dsn, *arguments), "without data", "docs/operations.md")
    archive.execute("insert into public.pgearth_version values (%s)", (HEAD,))
    assert pgearth(dsn, "migrate").code == 0
    archive.execute("drop schema eo, eo_internal cascade")
    assert_one_message(pgearth(dsn, "migrate"), "has no schema eo", "pgearth_version")


def test_two_at_once_one_waits(empty: psycopg.Connection, pgearth: Callable[..., Outcome]) -> None:
    """The second sees what the first did: nothing is left for it to do."""
    with psycopg.connect(empty.info.dsn) as other:
        other.execute("select pg_advisory_xact_lock(hashtextextended('pgearth migrate', 0))")
        first, second = start_migration(empty.info.dsn), start_migration(empty.info.dsn)
        wait_for(
            empty,
            "select count(*) = 2 from pg_locks where locktype = 'advisory' and not granted and database = (select oid from pg_database where datname = current_database())",
        )
        other.rollback()
    printed = sorted((process.communicate()[0] for process in (first, second)), key=len)
    assert (first.returncode, second.returncode) == (0, 0), printed
    assert all("Another migration of this database is running" in text for text in printed)
    assert "Applying 0001" in printed[1] and "Applying" not in printed[0]


def wait_for(connection: psycopg.Connection, question: str) -> None:
    while connection.execute(question).fetchone() != (True,):
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["kill the command", "end its session"])
def test_what_is_ended_in_the_middle_has_changed_nothing(
    archive: psycopg.Connection, pgearth: Callable[..., Outcome], how: str
) -> None:
    dsn = archive.info.dsn
    fresh = state(archive)
    assert pgearth(dsn, "migrate", "--down", "0009", "--yes").code == 0
    before = state(archive)
    with psycopg.connect(dsn) as reader:
        reader.execute("select from eo.encoder")  # which revision 0013 alters
        process = start_migration(dsn)
        wait_for(
            archive, "select exists (select from pg_locks where relation = 'eo.encoder'::regclass and not granted)"
        )
        if how == "kill the command":
            process.send_signal(signal.SIGKILL)
        else:
            archive.execute(
                "select pg_terminate_backend(pid) from pg_locks where relation = 'eo.encoder'::regclass and not granted"
            )
        printed = process.communicate()[0]
    assert process.returncode == (-signal.SIGKILL if how == "kill the command" else 1)
    assert "Traceback" not in printed
    wait_for(
        archive,
        "select not exists (select from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database()))",
    )
    assert state(archive) == before
    assert pgearth(dsn, "migrate").code == 0
    assert {line for line in state(archive) if line[0] != "column"} == {line for line in fresh if line[0] != "column"}


def start_migration(dsn: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from pgearth.cli import main; main()", "migrate"],
        env={**os.environ, "PGEARTH_DSN": dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused(
    cluster: SimpleNamespace, pgearth: Callable[..., Outcome], encoding: str
) -> None:
    name = f"pgearth_{encoding.lower()}"
    with psycopg.connect(dsn_of(cluster, "postgres"), autocommit=True) as admin:
        admin.execute(f"create database {name} encoding '{encoding}' locale 'C' template template0")
        try:
            for arguments in (["migrate"], ["migrate", "--down", "base", "--yes"]):
                assert_one_message(pgearth(dsn_of(cluster, name), *arguments), name, encoding, "UTF8", "createdb")
        finally:
            admin.execute(f"drop database {name}")


def test_a_server_that_cannot_be_reached(cluster: SimpleNamespace, pgearth: Callable[..., Outcome]) -> None:
    for dsn, word in (
        ("host=/nowhere dbname=pgearth", "/nowhere"),
        ("host=127.0.0.1 port=9 dbname=pgearth", "127.0.0.1"),
        ("host=127.0.0.1,127.0.0.1 port=9,10 dbname=pgearth", "127.0.0.1"),
        (dsn_of(cluster, "no such database"), "no such database"),
        (dsn_of(cluster, "postgres", "stranger"), "stranger"),
    ):
        for arguments in (["migrate"], ["migrate", "--down", "base"]):
            assert_one_message(pgearth(dsn, *arguments), word, "PGEARTH_DSN")


def test_a_server_that_only_reads(empty: psycopg.Connection, pgearth: Callable[..., Outcome]) -> None:
    empty.execute("alter database pgearth_command set default_transaction_read_only = on")
    assert_one_message(pgearth(empty.info.dsn, "migrate"), "can only be read", "primary")
