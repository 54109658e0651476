"""A server for the run, a migrated template database, and a clone of it for each test (or each module)."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, settings
from pytest_postgresql import factories
from pytest_postgresql.janitor import DatabaseJanitor

CHECKOUT = Path(__file__).parent.parent

# The same examples in every run, however slow the machine; PGEARTH_EXAMPLES=N tries other ones, N for each property.
EXAMPLES = int(os.environ.get("PGEARTH_EXAMPLES", "0"))
if EXAMPLES:
    settings.register_profile("pgearth", deadline=None, max_examples=EXAMPLES)
else:
    settings.register_profile("pgearth", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pgearth")


@pytest.fixture(scope="session")
def sample() -> Path:
    """The folder of real sample data: $PGEARTH_SAMPLE, else shared/sample beside the checkout."""
    folder = Path(os.environ.get("PGEARTH_SAMPLE", CHECKOUT.parent / "shared" / "sample")).resolve()
    assert folder.is_dir(), f"{folder}: no sample data; set PGEARTH_SAMPLE"
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[SimpleNamespace]:
    """A server of the run's own, in a temporary folder; PGEARTH_TEST_HOST names a running one's socket folder instead."""
    from pgearth.loaders.server.cluster import Cluster

    running = os.environ.get("PGEARTH_TEST_HOST")
    if running:
        yield connection_settings(running, 5432, "postgres")
        return
    folder = Path(tempfile.mkdtemp(prefix="pgearth-test-"))
    server = Cluster(folder)
    try:
        server.start(durable=False)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            # Tests that need statistics analyze by themselves: what comes when it likes would make plans flip.
            connection.execute("alter system set autovacuum = off")
            connection.execute("select pg_reload_conf()")
        yield connection_settings(str(server.socket_directory), server.port, "postgres")
    finally:
        server.stop()
        server.remove()
        shutil.rmtree(folder, ignore_errors=True)


def connection_settings(host: str, port: int, user: str) -> SimpleNamespace:
    """The attributes that pytest-postgresql's noproc fixture reads from the fixture it depends on."""
    return SimpleNamespace(
        host=host, port=port, user=user, password=None, options="", maintenance_dbname="postgres", template_dbname=None
    )


def migrate_and_load_nomenclature(**connection: str | int | None) -> None:
    """Fill the template database: the schema at head and the nomenclatures."""
    from pgearth.loaders.reference.nomenclature import load_nomenclature
    from pgearth.loaders.server.migrate import upgrade

    url = f"postgresql+psycopg://{connection['user']}@/{connection['dbname']}?host={connection['host']}"
    upgrade(f"{url}&port={connection['port']}")
    with psycopg.connect(
        host=str(connection["host"]),
        port=int(connection["port"] or 5432),
        user=str(connection["user"]),
        dbname=str(connection["dbname"]),
        autocommit=True,
    ) as database:
        load_nomenclature(database)


archive_template = factories.postgresql_noproc(
    dbname="pgearth_test", depends_on="cluster", load=[migrate_and_load_nomenclature]
)
archive_connection = factories.postgresql("archive_template")


@pytest.fixture
def archive(archive_connection: psycopg.Connection) -> psycopg.Connection:
    """A connection (superuser, autocommit) to an archive of this test's own: at head, with nomenclatures, else empty."""
    archive_connection.autocommit = True
    return archive_connection


@pytest.fixture
def filled_with_pixels(archive: psycopg.Connection, sample: Path) -> None:
    """Put the real BigEarthNet v1 patches into `archive`, encoded and hashed."""
    from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
    from pgearth.loaders.models.encode import encode_archive

    load_bigearthnet(archive, sample / "bigearthnet-v1")
    with psycopg.connect(archive.info.dsn, autocommit=True) as reading:
        encode_archive(archive, reading)


@pytest.fixture(scope="module")
def module_archive(archive_template: SimpleNamespace, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection]:
    """Like `archive`, for all tests of a module: for tests that read what was loaded once."""
    name = f"{archive_template.dbname}_{request.module.__name__.rpartition('.')[2]}"
    janitor = DatabaseJanitor(
        user=archive_template.user,
        host=archive_template.host,
        port=archive_template.port,
        dbname=name,
        template_dbname=archive_template.template_dbname,
    )
    janitor.drop()
    with (
        janitor,
        psycopg.connect(
            host=archive_template.host,
            port=archive_template.port,
            user=archive_template.user,
            dbname=name,
            autocommit=True,
        ) as connection,
    ):
        yield connection


@pytest.fixture(scope="session")
def run_pgearth() -> Callable[..., Result]:
    """Call `run_pgearth(connection, *arguments)` runs the pgearth command, in this process, on that database."""

    def run(connection: psycopg.Connection, *arguments: str | Path) -> Result:
        from pgearth.cli import pgearth

        return CliRunner().invoke(
            pgearth, [str(argument) for argument in arguments], env={"PGEARTH_DSN": connection.info.dsn}
        )

    return run
