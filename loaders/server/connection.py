"""Connections to the archive's database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PipelineStatus, TransactionStatus

from pgearth.loaders.server.cluster import Cluster, default_dsn
from pgearth.loaders.server.place import default_home
from pgearth.pyfuncs.errors import PgearthError

if TYPE_CHECKING:
    from sqlalchemy import URL

LIBPQ_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")


def dsn() -> str:
    """Connection string: PGEARTH_DSN, else empty if libpq's variables name one, else the private server's."""
    if configured := os.environ.get("PGEARTH_DSN"):
        return configured
    return "" if any(os.environ.get(name) for name in LIBPQ_VARIABLES) else default_dsn()


def require_server() -> None:
    """Raise PgearthError if the private server is meant and does not run."""
    if dsn() == default_dsn() and not Cluster(default_home()).running():
        raise PgearthError(
            f"The server of {default_home()} is not running.",
            "Start it with `pgearth server start`, or set PGEARTH_DSN.",
        )


def connect(**kwargs: Any) -> psycopg.Connection:
    """Connect to the archive; `kwargs` go to psycopg.connect.

    Raises PgearthError if the private server does not run, or the database has no archive.
    """
    require_server()
    connection = psycopg.connect(dsn(), **{"application_name": "pgearth", **kwargs})
    if connection.execute("select to_regclass('eo.load') is null").fetchone() == (True,):
        name = connection.info.dbname
        connection.close()
        raise PgearthError(f"The database {name} holds no archive yet.", "Run: pgearth migrate")
    return connection


@contextmanager
def session_lock(connection: psycopg.Connection, key: str) -> Iterator[bool]:
    """Hold an advisory lock of the session, of this name; yields False where another session holds it.

    What ends the block is raised as it is, also where an interrupt left the connection in the middle of a command: then
    the lock ends with the session.
    """
    query = "select pg_try_advisory_lock(hashtextextended(%s, 0))"
    if connection.execute(query, (key,)).fetchone() != (True,):
        yield False
        return
    try:
        yield True
    finally:
        if idle(connection):
            connection.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", (key,))


def idle(connection: psycopg.Connection) -> bool:
    """Whether a connection is in no transaction and in no command, and so can be used for another."""
    status = connection.pgconn.transaction_status, connection.pgconn.pipeline_status
    return status == (TransactionStatus.IDLE, PipelineStatus.OFF)


@contextmanager
def planner(connection: psycopg.Connection, **settings: str) -> Iterator[None]:
    """Plan what runs within, in one transaction, by these settings of PostgreSQL's planner.

    For bulk work: while a table is being filled, its statistics say that it is small, and plans that are best for a few
    rows take time that grows with the square of many. `enable_seqscan="off"` looks rows up by index, however small the
    table is believed to be; `enable_nestloop="off"` joins tables that are read whole.
    """
    with connection.transaction():
        before = {name: connection.execute("select current_setting(%s)", (name,)).fetchone() for name in settings}
        for name, value in settings.items():
            connection.execute("select set_config(%s, %s, true)", (name, value))
        yield
        for name, row in before.items():
            assert row is not None
            connection.execute("select set_config(%s, %s, true)", (name, row[0]))


def sqlalchemy_url() -> URL:
    """The archive's URL for SQLAlchemy and alembic. Raises PgearthError if the private server does not run."""
    from sqlalchemy import URL

    require_server()
    parameters = {name: str(value) for name, value in conninfo_to_dict(dsn()).items()}
    return URL.create(
        "postgresql+psycopg",
        username=parameters.pop("user", None),
        password=parameters.pop("password", None),
        database=parameters.pop("dbname", None),
        query={"application_name": "pgearth", **parameters},
    )
