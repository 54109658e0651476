"""Revisions of the schema: which this checkout knows, and at which a database is."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy
from alembic.script import ScriptDirectory

import pgearth.migrations
from pgearth import pyfuncs
from pgearth.pyfuncs.errors import PgearthError

BASE = "base"
HEAD = "head"


def known_revisions() -> dict[str, str]:
    """What each revision of this checkout is, by its number, oldest first."""
    scripts = list(ScriptDirectory(str(Path(pgearth.migrations.__file__).parent)).walk_revisions())
    return {script.revision: script.doc for script in reversed(scripts)}


def resolve(revision: str, known: list[str]) -> str:
    """The number of `revision`, which may be `head`, or `base`. Raises PgearthError if there is no such revision."""
    if revision == HEAD:
        return known[-1]
    if revision != BASE and revision not in known:
        raise PgearthError(
            f"There is no revision {revision}.", f"Revisions are {known[0]} to {known[-1]} (head), and base: no schema."
        )
    return revision


def current_revision(connection: sqlalchemy.Connection, known: list[str]) -> str:
    """The revision that the database is at; `base`: it has no schema. Raises PgearthError if that cannot be."""
    database = connection.exec_driver_sql("select current_database()").scalar()
    recorded = None
    if connection.exec_driver_sql("select to_regclass('public.pgearth_version') is not null").scalar():
        recorded = connection.exec_driver_sql("select max(version_num) from public.pgearth_version").scalar()
    has_schema = connection.exec_driver_sql(
        "select coalesce(to_regnamespace('eo'), to_regnamespace('eo_internal')) is not null"
    ).scalar()
    if recorded is None and has_schema:
        raise PgearthError(
            f"The database {database} has pgearth's schemas, but public.pgearth_version does not say their revision,"
            " as after a restore without data.",
            "Restore the data, too (docs/operations.md), or drop the schemas eo and eo_internal to begin anew.",
        )
    if recorded is None:
        return BASE
    if recorded not in known:
        version = (
            has_schema and connection.exec_driver_sql("select version from eo_internal.schema_version").scalar()
        ) or "unknown"
        raise PgearthError(
            f"The database {database} is at revision {recorded} (pgearth {version}), which is newer than this checkout:"
            f" pgearth {pyfuncs.__version__} knows {known[0]} to {known[-1]}.",
            "Use the newer checkout.",
        )
    if not has_schema:
        raise PgearthError(
            f"The database {database} is recorded to be at revision {recorded}, but has no schema eo.",
            "Restore a backup, or begin anew: drop table public.pgearth_version",
        )
    return str(recorded)


def require_newer(connection: sqlalchemy.Connection, numbers: list[str], target: str) -> str:
    """Return the revision of the database. Raises PgearthError unless it is newer than `target`."""
    current = current_revision(connection, numbers)
    if current == BASE or (target != BASE and target >= current):
        raise PgearthError(
            f"The database holds {describe(current)}: nothing is to be downgraded.",
            "Name an older revision, or base: no schema.",
        )
    return current


def describe(revision: str) -> str:
    """What a database at `revision` holds."""
    return "no archive" if revision == BASE else f"an archive at revision {revision}"
