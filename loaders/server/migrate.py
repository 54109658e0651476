"""Upgrades and downgrades of a database's schema, each one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import alembic.command
import alembic.config
import sqlalchemy
from psycopg import errors

import pgearth.migrations
from pgearth.loaders.server.installation import OLDEST_VERSION
from pgearth.loaders.server.inventory import inventory, row_counts, say
from pgearth.loaders.server.revisions import (
    BASE,
    HEAD,
    current_revision,
    describe,
    known_revisions,
    require_newer,
    resolve,
)
from pgearth.loaders.server.rights import require_rights
from pgearth.migrations.sqlfiles import DEPENDENT_HINT, drop_functions, has_python_functions
from pgearth.migrations.surroundings import obstacle
from pgearth.pyfuncs.errors import PgearthError

# Every statement below a migration is one transaction; a second migration of the database waits for its end.
TRY_LOCK = "select pg_try_advisory_xact_lock(hashtextextended('pgearth migrate', 0))"
LOCK = "select pg_advisory_xact_lock(hashtextextended('pgearth migrate', 0))"

DATABASE = """
select current_database(), getdatabaseencoding(), current_setting('server_version_num')::integer / 10000,
       current_setting('transaction_read_only')::boolean,
       array(select name from unnest('{postgis,postgis_raster,vector}'::text[]) as name
             where name not in (select extname from pg_extension union all select name from pg_available_extensions))
"""

# Refused while functions of pgearth depend on those of PostGIS; nothing is done where there is nothing newer.
UPGRADE_EXTENSIONS = (
    "set local client_min_messages = warning",
    "select public.postgis_extensions_upgrade()",
    "alter extension vector update",
)

Report = Callable[[str], object]


def upgrade(url: sqlalchemy.URL | str, revision: str = HEAD, report: Report = str, *, extensions: bool = False) -> str:
    """Upgrade the database at `url` to `revision` in one transaction, and return the number of this revision.

    At head, functions, roles and privileges are made whole. `extensions`: PostGIS and pgvector are upgraded first.
    Raises PgearthError for a revision that is older than the database's, and for whatever else stands in the way.
    """
    known = known_revisions()
    numbers = list(known)
    target = resolve(revision, numbers)
    if target == BASE:
        raise PgearthError("base, no schema, is nothing to upgrade to.", "To remove it: pgearth migrate --down base")
    with transaction(url, report) as connection:
        current = current_revision(connection, numbers)
        if current != BASE and target < current:
            raise PgearthError(
                f"The database holds {describe(current)}, which is newer than {revision}.",
                f"To downgrade it: pgearth migrate --down {revision}",
            )
        pending = [number for number in numbers if (current == BASE or number > current) and number <= target]
        require_rights(connection, current)
        if pending:
            report(f"The database holds {describe(current)}.")
        for number in pending:
            report(f"Applying {number}: {known[number]}")
        used = drop_functions(connection) if (pending or extensions) and current != BASE else []
        with explained(used):
            if extensions and current != BASE:
                for statement in UPGRADE_EXTENSIONS:
                    connection.exec_driver_sql(statement)
            alembic.command.upgrade(configuration(connection), target)
        if target == numbers[-1] and not has_python_functions(connection):
            report("PL/Python is missing: functions that encode, hash or draw, see docs/without_python.md.")
    return target


def downgrade(url: sqlalchemy.URL | str, revision: str, report: Report = str) -> None:
    """Downgrade the database at `url` to `revision` in one transaction; an older checkout then brings its functions."""
    numbers = list(known_revisions())
    target = resolve(revision, numbers)
    with transaction(url, report) as connection:
        require_newer(connection, numbers, target)
        step_down(connection, target)


def losses(url: sqlalchemy.URL | str, revision: str, report: Report = str) -> list[str]:
    """What a downgrade of the database at `url` to `revision` would delete, in words: it is done, and undone."""
    numbers = list(known_revisions())
    target = resolve(revision, numbers)
    with transaction(url, report) as connection:
        report(f"The database holds {describe(require_newer(connection, numbers, target))}.")
        things, rows = inventory(connection), row_counts(connection)
        savepoint = connection.begin_nested()
        step_down(connection, target)
        left, rows_left = inventory(connection), row_counts(connection)
        savepoint.rollback()
        lost = [thing for thing in things if thing not in left]
        return say(connection, lost, {name: (rows[name], rows_left.get(name, 0)) for name in rows})


def step_down(connection: sqlalchemy.Connection, target: str) -> None:
    """Drop the functions, and run the downgrades to `target`."""
    used = drop_functions(connection)
    with explained(used):
        alembic.command.downgrade(configuration(connection), target)


def configuration(connection: sqlalchemy.Connection) -> alembic.config.Config:
    """Alembic's configuration for `connection`, without a file."""
    config = alembic.config.Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(pgearth.migrations.__file__).parent))
    return config


@contextmanager
def transaction(url: sqlalchemy.URL | str, report: Report) -> Iterator[sqlalchemy.Connection]:
    """A transaction on the database at `url`, with no other migration beside it.

    Raises PgearthError where it cannot be had, and psycopg's errors as such.
    """
    engine = sqlalchemy.create_engine(
        url,
        poolclass=sqlalchemy.NullPool,
        isolation_level="READ COMMITTED",  # after waiting, it sees what the other migration did
        connect_args={"client_encoding": "utf8"},
    )
    try:
        connection = engine.connect()
    except sqlalchemy.exc.OperationalError as error:
        raise PgearthError(
            f"The database cannot be reached: {' '.join(str(error.orig).split())}",
            "Check that the server runs, and what PGEARTH_DSN or libpq's PG* variables name.",
        ) from error
    with unwrapped(), connection, connection.begin():
        # In public, others may have put what looks like a function or a table of the system.
        connection.exec_driver_sql("set local search_path = pg_catalog, pg_temp")
        require_suitable(connection)
        if fault := obstacle(connection):
            raise PgearthError(fault.message, fault.hint)
        if not connection.exec_driver_sql(TRY_LOCK).scalar():
            report("Another migration of this database is running; this one waits for its end.")
            connection.exec_driver_sql(LOCK)
        yield connection


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise psycopg's errors instead of SQLAlchemy's."""
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        raise error.orig or error from None


def require_suitable(connection: sqlalchemy.Connection) -> None:
    """Raise PgearthError unless the database can hold an archive."""
    name, encoding, version, read_only, unavailable = connection.exec_driver_sql(DATABASE).one()
    if encoding != "UTF8":
        raise PgearthError(
            f"The database {name} has the encoding {encoding}; an archive needs UTF8.",
            "Make another: createdb --encoding=UTF8 --template=template0 NAME",
        )
    if version < OLDEST_VERSION:
        raise PgearthError(
            f"The server is PostgreSQL {version}; pgearth needs {OLDEST_VERSION} or newer.",
            "Upgrade the server, or name another in PGEARTH_DSN.",
        )
    if read_only:
        raise PgearthError(
            f"The database {name} can only be read: its server is a standby, or default_transaction_read_only is on.",
            "Run pgearth migrate on the primary, or without the setting.",
        )
    if unavailable:
        raise PgearthError(
            f"The server lacks the extension {', '.join(unavailable)}.",
            "docker/install-server.sh installs PostgreSQL with all that pgearth needs (Debian).",
        )


@contextmanager
def explained(used: list[str]) -> Iterator[None]:
    """Say what to do about errors for want of rights, or because of a user's objects; `used` says what they need."""
    try:
        with unwrapped():
            yield
    except (
        errors.DependentObjectsStillExist,
        errors.InvalidFunctionDefinition,
        errors.InvalidTableDefinition,
        errors.AmbiguousFunction,
    ) as error:
        reason = "\n".join(filter(None, [error.diag.message_primary, error.diag.message_detail]))
        if used:
            reason += f"\nObjects of yours need what this version changes: {'; '.join(used)}"
        raise PgearthError(reason, DEPENDENT_HINT) from error
    except errors.InsufficientPrivilege as error:
        raise PgearthError(
            error.diag.message_primary or str(error), "Run pgearth migrate as a superuser, or see docs/operations.md."
        ) from error
