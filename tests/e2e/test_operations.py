"""The guide to backup, restore and upgrade: every command of it is run, on two servers, and what was found before is found after."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import errors

from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.server.account import run_as
from pgearth.loaders.server.cluster import Cluster
from tests.conftest import CHECKOUT
from tests.migrations.catalogue import catalogue

GUIDE = (CHECKOUT / "docs" / "operations.md").read_text()
SECTIONS = {
    section.partition("\n")[0]: re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    for section in re.split(r"^##? ", GUIDE, flags=re.M)[1:]
}
PASSWORD = "test"
MEGABYTE = 1 << 20

PATCH = "S2A_MSIL2A_20170617T113321_4_55"
CODE = f"(select code from eo.patch p join eo.patch_bucket using (patch_id) join eo.bucket using (encoder_id, bucket_no) where p.name = '{PATCH}' and segment = 0)"
VECTOR = f"(select embedding from eo.patch p join eo.embedding using (patch_id) where p.name = '{PATCH}')"
# Asked by a reader.
SEARCHES = [
    "select name from eo.search(eo.filter(area => st_makeenvelope(-30, 30, 40, 70, 4326))) order by 1",
    "select eo.count_patches(eo.filter(labels => '{clc:3}'))",
    "select * from eo.label_statistics()",
    "select * from eo.patch_statistics('season')",
    "select * from eo.product_statistics()",
    f"select patch_id, distance from eo.similar('{PATCH}', max_results => 5)",
    f"select patch_id, distance from eo.similar('{PATCH}', eo.filter(seasons => '{{summer}}'), max_results => 5)",
    f"select patch_id, distance from eo.similar_to_code({CODE}, eo.filter(labels => '{{clc:3}}'), 4)",
    f"select patch_id, distance from eo.within_distance({CODE}, 60)",
    f"select patch_id, distance from eo.similar_to_vector({VECTOR}, max_results => 5)",
    f"select patch_id, distance from eo.similar_segments('{PATCH}')",
    f"select patch_id from eo.similar_to_examples(array['{PATCH}'], max_results => 5)",
    "select patch_id, resolution, bands, band_mean, st_aswkb(rast) from eo.patch_raster order by 1, 2",
    "select count(*), sum(st_area(geom)) from eo.map_patch",
    "select name, patches from eo.map_cell c join eo.patch p using (cell) order by 1",
    "select count(*), sum(st_width(rast)) from eo_layers.mine",
]
ANSWERS_OF_PYTHON = [
    f"select eo.hash({VECTOR})",
    f"select eo.rgb('{PATCH}')",
    "select component, version from eo.runtime() where component not like 'packed codes%' and component <> 'pgearth schema' order by 1",
]


@dataclass(frozen=True)
class Server:
    """Where commands and connections find a server."""

    environment: dict[str, str]

    def connect(self, database: str) -> psycopg.Connection:
        names = {"PGHOST": "host", "PGPORT": "port", "PGUSER": "user", "PGPASSWORD": "password"}
        settings: dict[str, Any] = {names[name]: value for name, value in self.environment.items()}
        return psycopg.connect(**settings, dbname=database, autocommit=True)

    def run(self, blocks: list[str], folder: Path, database: str = "postgres", **environment: str) -> str:
        """Run blocks of the guide as one script, which no command of it may fail; return what it printed."""
        assert blocks
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", "-euo", "pipefail"],
            input="".join(blocks),
            cwd=folder,
            env={**inherited, "PATH": path, **self.environment, "PGDATABASE": database, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


def server(host: str, port: int, user: str = "postgres", password: str = "") -> Server:
    return Server(
        {"PGHOST": host, "PGPORT": str(port), "PGUSER": user} | ({"PGPASSWORD": password} if password else {})
    )


@pytest.fixture(scope="module")
def old(cluster: SimpleNamespace) -> Iterator[Server]:
    """The server of the archive."""
    old = server(cluster.host, cluster.port, cluster.user)
    yield old
    with old.connect("postgres") as admin:
        for name in ("restored", "sections", "bare"):
            admin.execute(f"drop database if exists {name} with (force)")


@pytest.fixture(scope="module")
def archive_name(module_archive: psycopg.Connection, sample: Path) -> str:
    """A database with real patches, encoded, a raster layer and a collection."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    with psycopg.connect(module_archive.info.dsn, autocommit=True) as reading:
        encode_archive(module_archive, reading, segments="grid:2")
    module_archive.execute("select eo.build_code_index()")
    module_archive.execute(
        "create table eo_layers.mine as select patch_id::integer as rid, rast from eo.patch_raster limit 3"
    )
    module_archive.execute("alter table eo_layers.mine owner to eo_owner")
    module_archive.execute("grant select on eo_layers.mine to eo_reader")
    module_archive.execute("select eo.create_collection('mine')")
    return module_archive.info.dbname


@pytest.fixture(scope="module")
def folder(old: Server, archive_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the backups of the archive."""
    folder = tmp_path_factory.mktemp("backup")
    old.run(SECTIONS["Backup"], folder, archive_name)
    assert {path.name for path in folder.iterdir()} == {"archive.dump", "archive.folder", "roles.sql"}
    assert "CREATE ROLE eo_writer" in (folder / "roles.sql").read_text()
    return folder


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[Cluster]:
    """A second server, which has never seen an archive; it listens on TCP, for roles that no OS user has."""
    home = Path(tempfile.mkdtemp(prefix="pgearth-other-"))
    cluster = Cluster(home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGEARTH_PASSWORD", PASSWORD)
            cluster.start(durable=False, listen=f"127.0.0.1:{port}", memory=512 * MEGABYTE)
        yield cluster
    finally:
        cluster.remove()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def other(other_cluster: Cluster) -> Iterator[Server]:
    """The second server, emptied at the end."""
    yield server(str(other_cluster.socket_directory), other_cluster.port)
    with server(str(other_cluster.socket_directory), other_cluster.port).connect("postgres") as admin:
        for name in ("archive", "managed", "refused"):
            admin.execute(f"drop database if exists {name} with (force)")
        for (role,) in admin.execute("select rolname from pg_roles where rolname ~ '^eo_|keeper'").fetchall():
            admin.execute(f"drop role {role}")


def answers(connection: psycopg.Connection, queries: list[str]) -> list[list[tuple[Any, ...]]]:
    """What a reader is answered."""
    with connection.transaction(force_rollback=True):
        connection.execute("set local role eo_reader")
        return [connection.execute(query).fetchall() for query in queries]


@pytest.fixture(scope="module")
def before(module_archive: psycopg.Connection, archive_name: str) -> list[list[tuple[Any, ...]]]:
    found = answers(module_archive, SEARCHES + ANSWERS_OF_PYTHON)
    assert all(found)
    return found


def definitions(connection: psycopg.Connection) -> set[tuple[str, str, str]]:
    """The catalogue, without who made the database (default privileges) and without bodies, which pg_dump may write anew."""
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(connection.info.dsn, password=PASSWORD),
        poolclass=sqlalchemy.NullPool,
    )
    with engine.connect() as session:
        return {
            (kind, name, re.sub(r"BEGIN ATOMIC.*\nEND\n", "", definition or "", flags=re.S))
            for kind, name, definition in catalogue(session)
            if (kind, name) != ("default privileges", "postgres f")
        }


def test_every_block_of_the_guide_is_run() -> None:
    """Each section that has commands is named by a test of this module."""
    tests = Path(__file__).read_text()
    with_commands = {title for title, blocks in SECTIONS.items() if blocks}
    assert len(with_commands) >= 10
    assert {title for title in with_commands if f'SECTIONS["{title}"]' not in tests} == set()
    assert GUIDE.count("```") == 2 * sum(map(len, SECTIONS.values())), "another kind of block is run by nobody"


def test_variables_of_the_private_server(old: Server, tmp_path: Path) -> None:
    (tmp_path / ".pgearth").mkdir()
    (tmp_path / ".pgearth" / "run").symlink_to(old.environment["PGHOST"])
    printed = old.run(
        [*SECTIONS["Backup, restore, upgrade"], "psql -At --command='select current_database()'"], tmp_path
    )
    assert printed == "pgearth\n"


def test_another_name(
    old: Server, folder: Path, module_archive: psycopg.Connection, before: list[list[tuple[Any, ...]]]
) -> None:
    old.run(SECTIONS["Restore under another name"], folder)
    with old.connect("restored") as restored:
        assert answers(restored, SEARCHES + ANSWERS_OF_PYTHON) == before
        assert definitions(restored) == definitions(module_archive)
        packed = restored.execute("select note from eo.runtime() where component like 'packed codes%'").fetchall()
        assert packed == [(None,)]
        styles = restored.execute("select distinct f_table_catalog from layer_styles").fetchall()
        assert styles == [("restored",)]
    printed = old.run(SECTIONS["Sizes"], folder, "restored")
    assert re.search(r"^ eo\.patch_raster +\| \d+ kB", printed, re.M) and re.search(r"^ lsh +\| +1 \|", printed, re.M)
    old.run(SECTIONS["Vacuum and analyze"], folder, "restored")
    upgrade, downgrade = SECTIONS["Upgrade pgearth"]
    assert "pgearth schema" in old.run([upgrade], folder, "restored")
    assert "an archive at revision 0012" in old.run([downgrade], folder, "restored")
    old.run([upgrade], folder, "restored")
    with old.connect("restored") as restored:
        assert answers(restored, SEARCHES + ANSWERS_OF_PYTHON) == before


def test_another_server_without_the_roles(
    other: Server, folder: Path, module_archive: psycopg.Connection, before: list[list[tuple[Any, ...]]]
) -> None:
    other.run(SECTIONS["Restore on another server"], folder)
    with other.connect("archive") as restored:
        assert answers(restored, SEARCHES + ANSWERS_OF_PYTHON) == before
        assert definitions(restored) == definitions(module_archive)


def test_a_restore_with_errors_is_made_whole(
    other: Server, folder: Path, module_archive: psycopg.Connection, before: list[list[tuple[Any, ...]]]
) -> None:
    """Without the two options there are hundreds of errors; without comments, nothing would say who may call what."""
    script = "createdb archive; ! pg_restore --no-comments --dbname=archive archive.dump 2>errors; grep -c 'role \"eo_owner\" does not exist' errors"
    assert int(other.run([script], folder)) > 100
    with other.connect("archive") as restored, pytest.raises(psycopg.Error, match="eo_reader"):
        answers(restored, SEARCHES)
    other.run(["pgearth migrate"], folder, "archive")
    with other.connect("archive") as restored:
        # Packed codes are missing: plain SQL answers.
        assert answers(restored, SEARCHES + ANSWERS_OF_PYTHON) == before
        kinds = {"relation", "column", "type", "schema"}  # whose comments revisions made
        assert {line for line in definitions(restored) if line[0] not in kinds} == {
            line for line in definitions(module_archive) if line[0] not in kinds
        }


def test_without_superuser_rights(
    other: Server, other_cluster: Cluster, folder: Path, before: list[list[tuple[Any, ...]]]
) -> None:
    prepare, restore = SECTIONS["Restore without superuser rights"]
    other.run([prepare], folder)
    with other.connect("postgres") as admin:
        admin.execute(f"alter role keeper password '{PASSWORD}'")
    keeper = server("127.0.0.1", other_cluster.port, "keeper", PASSWORD)
    printed = keeper.run([restore], folder)
    assert "PL/Python is missing" in printed
    with other.connect("managed") as restored:
        assert answers(restored, SEARCHES) == before[: len(SEARCHES)]
        for query in ANSWERS_OF_PYTHON[:2]:
            with pytest.raises(errors.FeatureNotSupported, match="needs PL/Python"):
                answers(restored, [query])
        owners = restored.execute(
            "select distinct pg_get_userbyid(relowner) from pg_class where relnamespace::regnamespace::text ~ '^eo'"
            " union select pg_get_userbyid(proowner) from pg_proc where pronamespace::regnamespace::text ~ '^eo'"
            " union select pg_get_userbyid(nspowner) from pg_namespace where nspname ~ '^eo'"
        ).fetchall()
        assert owners == [("eo_owner",)]
    # A superuser adds what is missing; then the keeper may still bring roles and privileges up to date.
    other.run(["pgearth migrate"], folder, "managed")
    keeper.run(["pgearth migrate"], folder, "managed")
    with other.connect("managed") as restored:
        assert answers(restored, SEARCHES + ANSWERS_OF_PYTHON) == before
    refused = "! pgearth migrate --down 0012 --yes 2>&1"
    printed = keeper.run([refused], folder, "managed")
    assert "PL/Python functions, which only a superuser may replace" in printed and "Traceback" not in printed


def test_a_role_that_may_not_migrate_is_told_what_it_lacks(other: Server, other_cluster: Cluster, folder: Path) -> None:
    with other.connect("postgres") as admin:
        admin.execute(f"create role keeper login password '{PASSWORD}'")
        admin.execute("create database refused encoding 'UTF8' template template0")
    keeper = server("127.0.0.1", other_cluster.port, "keeper", PASSWORD)
    printed = keeper.run(["! pgearth migrate 2>&1"], folder, "refused")
    error, hint = printed.splitlines()
    assert error.startswith(
        "Error: The role keeper may not migrate the database refused: the extension postgis is missing"
    )
    statements = hint.removeprefix("Hint: Have a superuser run there: ")
    assert "create role eo_owner nologin" in statements and "grant eo_owner to keeper" in statements
    with other.connect("refused") as superuser:
        superuser.execute(statements.encode())
        superuser.execute("grant insert on spatial_ref_sys to keeper")
    printed = keeper.run(["pgearth migrate"], folder, "refused")
    assert "PL/Python is missing" in printed
    with other.connect("refused") as superuser:
        superuser.execute("alter table eo.load owner to postgres")
    printed = keeper.run(["! pgearth migrate 2>&1"], folder, "refused")
    assert printed.splitlines()[0] == "Error: Parts of the archive belong to postgres, of which keeper is no member."
    other.run(["pgearth migrate"], folder, "refused")
    assert "an archive at revision" in keeper.run(["pgearth migrate"], folder, "refused")


def test_sections(
    old: Server, folder: Path, module_archive: psycopg.Connection, before: list[list[tuple[Any, ...]]]
) -> None:
    create, pre_data, *rest = "".join(SECTIONS["Schema first, data later"]).splitlines(keepends=True)
    old.run([create, pre_data], folder)
    printed = old.run(["! pgearth migrate 2>&1"], folder, "sections")
    assert "does not say their revision" in printed and "Traceback" not in printed
    old.run(rest, folder)
    with old.connect("sections") as restored:
        assert answers(restored, SEARCHES + ANSWERS_OF_PYTHON) == before
        assert definitions(restored) == definitions(module_archive)


def test_data_alone(
    old: Server, folder: Path, module_archive: psycopg.Connection, before: list[list[tuple[Any, ...]]]
) -> None:
    """Nothing that a revision inserts may stand in the way of the dump's."""
    old.run(SECTIONS["Data alone"], folder)
    with old.connect("bare") as restored:
        assert answers(restored, SEARCHES + ANSWERS_OF_PYTHON) == before
        assert definitions(restored) == definitions(module_archive)
        for table in ("eo.country", "eo.country_name", "eo.place_name"):
            query = f"select count(*) from {table}".encode()
            assert restored.execute(query).fetchone() == module_archive.execute(query).fetchone()


def test_a_new_postgresql(
    other: Server, other_cluster: Cluster, folder: Path, before: list[list[tuple[Any, ...]]]
) -> None:
    """By pg_upgrade from the installed version to itself, which it allows."""
    upgrade, start = SECTIONS["Upgrade PostgreSQL and its extensions"]
    other.run(SECTIONS["Restore on another server"], folder)
    other_cluster.stop()
    home, binaries, owner = other_cluster.folder, other_cluster._binary("pg_upgrade").parent, other_cluster.account
    (home / "new").mkdir()
    os.chown(home / "new", owner.pw_uid, owner.pw_gid)
    made = run_as(
        owner,
        binaries / "initdb",
        "-D",
        home / "new",
        "-U",
        "postgres",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    )
    assert made.returncode == 0, made.stderr
    work = home / "upgrade"
    work.mkdir()
    os.chown(work, owner.pw_uid, owner.pw_gid)
    places = {"OLD_BIN": binaries, "NEW_BIN": binaries, "OLD_DATA": home / "data", "NEW_DATA": home / "new"}
    as_owner = ["runuser", "-u", owner.pw_name, "--"] if os.geteuid() != owner.pw_uid else []
    done = subprocess.run(
        [*as_owner, "bash", "-euo", "pipefail", "-c", upgrade],
        cwd=work,
        env={"PATH": os.environ["PATH"], **{name: str(place) for name, place in places.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (home / "data").rename(home / "old")
    (home / "new").rename(home / "data")
    with (home / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("\ninclude = '../pgearth.conf'\n")
    other_cluster.start(durable=False, memory=512 * MEGABYTE)
    after = server(str(other_cluster.socket_directory), other_cluster.port)
    after.run([start], folder, "archive")
    with after.connect("archive") as upgraded:
        assert answers(upgraded, SEARCHES + ANSWERS_OF_PYTHON) == before
