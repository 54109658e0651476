"""Packed codes where rows come from another server: by a dump, by replication, as a copy of the files, as a template."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.server.account import run_as
from pgearth.loaders.server.cluster import Cluster
from pgearth.loaders.server.environment import python_environment
from pgearth.loaders.server.migrate import upgrade
from tests.sql.similarity.test_packed_codes import (
    CODE,
    REASON,
    assert_same,
    fill,
    patch_ids,
    random_codes,
    serves,
    store,
)

FINNISH = "update eo.patch set country_codes = '{FI}' where patch_id % 100 = 1"


def connect(server: Cluster, database: str = "pgearth") -> psycopg.Connection:
    return psycopg.connect(server.dsn(database), autocommit=True)


def migrate(server: Cluster, database: str = "pgearth") -> None:
    url = f"postgresql+psycopg://{server.user}@/{database}?host={server.socket_directory}&port={server.port}"
    upgrade(url)


def command(name: str, server: Cluster, *arguments: str | Path, role: str = "origin") -> str:
    """Run a client program of PostgreSQL against a server; return what it printed."""
    where = ["--host", str(server.socket_directory), "--port", str(server.port), "--username", server.user]
    environment = {**os.environ, "PGOPTIONS": f"-c session_replication_role={role}"}
    done = subprocess.run([name, *where, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def old_server() -> Iterator[Cluster]:
    """A server whose transaction numbers are beyond 12 billion, with an archive that is packed and changed since."""
    with own_server() as server:
        server.stop()
        reset = run_as(server.account, server._binary("pg_resetwal"), "-e", "3", "-D", server.data)
        assert reset.returncode == 0, reset.stderr
        server.start(durable=False)
        migrate(server)
        with connect(server) as connection:
            assert connection.execute("select pg_current_xact_id()::text::numeric > 12e9").fetchone() == (True,)
            load_nomenclature(connection)
            fill(connection)
            ids = patch_ids(connection)
            store(connection, ids, CODE + random_codes(np.random.default_rng(1), len(ids) - 1))
            connection.execute("select eo.build_code_index()")
            connection.execute(FINNISH)
            assert not serves(connection)
        yield server


@pytest.fixture(scope="module")
def new_server() -> Iterator[Cluster]:
    """A server of low transaction numbers that knows the roles."""
    with own_server() as server:
        migrate(server)
        yield server


class own_server:  # noqa: N801 (a context manager)
    """A private cluster in a temporary folder, which is removed at the end."""

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="pgearth-test-"))
        self.server = Cluster(self.folder)
        self.server.start(durable=False)
        with connect(self.server, "postgres") as connection:
            connection.execute("alter system set wal_level = logical")
        self.server.stop()
        self.server.start(durable=False)
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self.server.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


def copy_database(server: Cluster, name: str) -> None:
    with connect(server, "postgres") as maintenance:
        maintenance.execute("select pg_terminate_backend(pid, 60000) from pg_stat_activity where datname = 'pgearth'")
        maintenance.execute(sql.SQL("create database {} template pgearth").format(sql.Identifier(name)))


@pytest.fixture
def dump(old_server: Cluster, tmp_path: Path) -> Path:
    command("pg_dump", old_server, "--format=custom", f"--file={tmp_path / 'dump'}", "pgearth")
    return tmp_path / "dump"


def assert_restored_archive_packs(server: Cluster, database: str) -> None:
    """Right at once, packed when asked to be, and from then on no change is missed."""
    with connect(server, database) as restored:
        assert restored.execute(
            "select count(*) > 0 from eo_internal.patch_change where seen_by = '{}'"
        ).fetchone() == (True,)
        assert not serves(restored)
        assert "not on this server" in restored.execute(REASON).fetchone()[0]
        assert_same(restored)
        restored.execute("select eo.build_code_index()")
        assert serves(restored)
        assert_same(restored)
        assert restored.execute("select count(*) from eo_internal.patch_change").fetchone() == (0,)
        with psycopg.connect(server.dsn(database)) as replica:
            replica.execute("set session_replication_role = replica")
            replica.execute("update eo.patch set country_codes = '{SE}' where patch_id % 50 = 1")
        assert not serves(restored)
        assert_same(restored)
        restored.execute("select eo.build_code_index()")
        assert serves(restored)


def test_a_dump_of_a_server_with_higher_numbers(new_server: Cluster, dump: Path) -> None:
    command("createdb", new_server, "restored")
    command("pg_restore", new_server, "--exit-on-error", "--dbname=restored", dump)
    assert_restored_archive_packs(new_server, "restored")


@pytest.mark.parametrize("triggers", ["disabled", "of a replica"])
def test_only_the_data_of_a_dump(new_server: Cluster, dump: Path, triggers: str) -> None:
    """Into the schema that this package makes, whose triggers pg_restore switches off and leaves in another state."""
    database = f"data_{triggers[0]}"
    command("createdb", new_server, database)
    migrate(new_server, database)
    listing = command("pg_restore", new_server, "--list", "--data-only", dump).splitlines()
    # The names of countries and places come with the schema.
    wanted = [line for line in listing if re.search("(TABLE DATA|SEQUENCE SET) eo (?!country|place_name|.*__)", line)]
    (dump.parent / "list").write_text("\n".join(wanted))
    options = ["--exit-on-error", "--data-only", "--use-list", dump.parent / "list", f"--dbname={database}", dump]
    if triggers == "disabled":
        command("pg_restore", new_server, "--disable-triggers", *options)
    else:
        command("pg_restore", new_server, *options, role="replica")
    assert_restored_archive_packs(new_server, database)


def test_data_put_back_over_what_was_packed(old_server: Cluster, new_server: Cluster, dump: Path) -> None:
    """The same database, its files still there: an older dump's patches, restored without triggers, are not mistaken."""
    command("createdb", new_server, "over")
    command("pg_restore", new_server, "--exit-on-error", "--dbname=over", dump)
    with connect(new_server, "over") as connection:
        connection.execute("update eo.patch set country_codes = '{SE}'")
        connection.execute("select eo.build_code_index()")
        assert serves(connection)
        kept = connection.execute("select * from eo.code_index").fetchall()
        connection.execute("set session_replication_role = replica")
        connection.execute("delete from eo.patch")
        connection.execute("reset session_replication_role")
        command(
            "pg_restore", new_server, "--exit-on-error", "--data-only", "--disable-triggers", "--table=patch",
            "--dbname=over", dump,
        )  # fmt: skip
        assert connection.execute("select * from eo.code_index").fetchall() == kept
        assert not serves(connection)
        assert_same(connection)
        found = connection.execute(
            "select count(*) from eo.similar_to_code(%s::varbit, eo.filter(countries => '{FI}'), max_results => 9)",
            CODE,
        )
        assert found.fetchone() == (4,)


def test_a_database_made_from_a_template_and_renamed(old_server: Cluster) -> None:
    """The same rows, another number, and so no files: built again they serve; the template's are as they were."""
    with connect(old_server) as connection:
        connection.execute("select eo.build_code_index()")
        assert serves(connection)
    copy_database(old_server, "copied")
    with connect(old_server, "copied") as copied:
        assert not serves(copied)
        assert_same(copied)
        copied.execute(FINNISH.replace("FI", "SE"))
        copied.execute("select eo.build_code_index()")
        assert serves(copied)
        assert_same(copied)
    with connect(old_server, "postgres") as maintenance:
        maintenance.execute("alter database copied rename to renamed")
    with connect(old_server, "renamed") as renamed:
        assert serves(renamed)
        assert_same(renamed)
    with connect(old_server) as connection:
        assert serves(connection)
        connection.execute(FINNISH)


def test_a_logical_subscriber(old_server: Cluster) -> None:
    """What replication applies fires row triggers only, and no ordinary ones."""
    copy_database(old_server, "publisher")
    copy_database(old_server, "subscriber")
    with connect(old_server, "publisher") as publisher, connect(old_server, "subscriber") as subscriber:
        subscriber.execute("select eo.build_code_index()")
        assert serves(subscriber)
        publisher.execute("create publication archive for table eo.patch, eo.patch_bucket, eo.bucket")
        publisher.execute("select pg_create_logical_replication_slot('archive', 'pgoutput')")
        subscriber.execute(
            sql.SQL(
                "create subscription archive connection {} publication archive"
                " with (create_slot = false, slot_name = 'archive', copy_data = false)"
            ).format(make_conninfo(old_server.dsn("publisher")))
        )
        try:
            for change, arrived in (
                (
                    "update eo.patch set country_codes = '{SE}' where patch_id % 50 = 2",
                    "'{SE}' = any (select country_codes from eo.patch)",
                ),
                (
                    "update eo.patch_bucket set bucket_no = 0 where patch_id % 50 = 3",
                    "(select bool_and(bucket_no = 0) from eo.patch_bucket where patch_id % 50 = 3)",
                ),
            ):
                assert serves(subscriber)
                publisher.execute(change.encode())
                wait_for(subscriber, arrived)
                assert not serves(subscriber)
                assert_same(subscriber)
                subscriber.execute("select eo.build_code_index()")
        finally:
            subscriber.execute("drop subscription archive")


def wait_for(connection: psycopg.Connection, condition: str) -> None:
    while connection.execute(f"select {condition}".encode()).fetchone() != (True,):
        time.sleep(0.05)


def test_a_standby_does_without_the_files_of_later_builds(old_server: Cluster) -> None:
    """It has the files that were there when it was copied, and then none."""
    with (old_server.folder / "pg_hba.conf").open("a") as file:
        file.write("local replication all peer map=pgearth\n")
    with connect(old_server) as primary:
        primary.execute("select pg_reload_conf()")
        primary.execute("select eo.build_code_index()")
        folder = Path(tempfile.mkdtemp(prefix="pgearth-test-"))
        os.chown(folder, old_server.account.pw_uid, old_server.account.pw_gid)
        copied = run_as(
            old_server.account,
            old_server._binary("pg_basebackup"), "--write-recovery-conf", "--checkpoint=fast", "--pgdata", folder / "data",
            "--dbname", old_server.dsn("postgres"),
        )  # fmt: skip
        assert copied.returncode == 0, copied.stderr
        # Its settings include a file beside the data; the socket is its own.
        settings = (old_server.folder / "pgearth.conf").read_text()
        (folder / "pgearth.conf").write_text(f"{settings}unix_socket_directories = '{folder}'\n")
        control = (old_server._binary("pg_ctl"), "-D", folder / "data", "-w")
        path = f"{python_environment(old_server) / 'bin'}:{os.environ['PATH']}"
        started = run_as(old_server.account, *control, "-l", folder / "log", "start", environment={"PATH": path})
        try:
            assert started.returncode == 0, (folder / "log").read_text()
            dsn = make_conninfo(host=str(folder), port=old_server.port, dbname="pgearth", user=old_server.user)
            with psycopg.connect(dsn, autocommit=True) as standby:
                assert serves(standby)
                assert_same(standby)
                for built in (False, True):
                    primary.execute(FINNISH.replace("FI", "SE"))
                    if built:
                        primary.execute("select eo.build_code_index()")
                    (position,) = primary.execute("select pg_current_wal_insert_lsn()").fetchone()
                    wait_for(standby, f"pg_last_wal_replay_lsn() >= '{position}'")
                    assert not serves(standby)
                    assert_same(standby)
        finally:
            run_as(old_server.account, *control, "-m", "immediate", "stop")
            shutil.rmtree(folder, ignore_errors=True)
