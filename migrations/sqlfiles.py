"""Applies the files of sql/: functions, views, comments and privileges, all re-runnable."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import Connection

from pgearth import pyfuncs
from pgearth.migrations.functions import RETIRED_NAMES, created_names, drop_replaceable, replaceable
from pgearth.pyfuncs.errors import PgearthError

SQL_FOLDER = Path(__file__).parent.parent / "sql"
FILE_NAME = re.compile(r"(\d_[a-z][a-z_]*/(\d_)?|\d{3}_)[a-z][a-z_]*\.sql")
PYTHON = "0_python/"
PRIVILEGES = "999_privileges.sql"

# Managed clouds do not list the extension, or refuse it with one of these errors.
CREATE_PLPYTHON = """
do $$
begin
    create extension plpython3u;
exception when insufficient_privilege or feature_not_supported then
    raise notice 'plpython3u is refused by this server: %', sqlerrm;
end
$$
"""

HAS_PYTHON_FUNCTIONS = """
select exists (select from pg_proc p join pg_language l on l.oid = p.prolang
               where p.pronamespace = to_regnamespace('eo_internal') and l.lanname = 'plpython3u')
"""
WITHOUT_COMMENT = """
select exists (
    select from pg_proc p
    where p.pronamespace = 'eo'::regnamespace and p.proname = any (%s) and obj_description(p.oid, 'pg_proc') is null)
"""
INSUFFICIENT_PRIVILEGE = "42501"
DEPENDENT_OBJECTS_STILL_EXIST = "2BP01"
DEPENDENT_HINT = (
    "Nothing was changed. Keep their definitions (pg_dump --schema-only), drop them, run pgearth migrate,"
    " and make them again."
)


@dataclass(frozen=True)
class SqlFile:
    """One file of sql/: its path in there, its text and checksum."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Checksum of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def sql_files(folder: Path = SQL_FOLDER) -> list[SqlFile]:
    """Files of `folder` and its chapters in the order of their paths, in which they are applied.

    Raises ValueError for a name that is not N_chapter/topic.sql or N_chapter/N_topic.sql, and a number used twice.
    """
    files = [SqlFile(path.relative_to(folder).as_posix(), path.read_text()) for path in sorted(folder.rglob("*.sql"))]
    numbers: dict[str, str] = {}
    for file in files:
        if not (match := FILE_NAME.fullmatch(file.name)):
            raise ValueError(f"sql/{file.name}: the name must be N_chapter/topic.sql or N_chapter/N_topic.sql")
        if match.group(2) and (taken := numbers.setdefault(match.group(1), file.name)) != file.name:
            raise ValueError(f"sql/{file.name}: the number is taken by sql/{taken}")
    return files


def run_sql(connection: Connection, sql: str) -> None:
    """Run a script as it stands, by psycopg itself: SQLAlchemy would take `:name` and `%s` in bodies for parameters.

    Names in the script mean what they mean in pg_catalog and eo. A schema in which others may create, as public once
    let everybody, could hold functions and operators that fit a call better, and they would run as whoever migrates.
    """
    driver_connection = connection.connection.driver_connection
    assert isinstance(driver_connection, psycopg.Connection)
    found = driver_connection.execute("select current_setting('search_path')").fetchone()
    assert found is not None
    driver_connection.execute("set local search_path = pg_catalog, eo, pg_temp")
    driver_connection.execute(sql.encode())
    driver_connection.execute("select set_config('search_path', %s, true)", found)


def plpython_is_available(connection: Connection) -> bool:
    """Whether the server has the files of the extension plpython3u."""
    return bool(
        connection.exec_driver_sql(
            "select exists (select from pg_available_extensions where name = 'plpython3u')"
        ).scalar()
    )


def has_plpython(connection: Connection) -> bool:
    """Whether the database has the language plpython3u, which is created here where the server offers and allows it."""
    query = "select exists (select from pg_extension where extname = 'plpython3u')"
    if not connection.exec_driver_sql(query).scalar() and plpython_is_available(connection):
        run_sql(connection, CREATE_PLPYTHON)
    return bool(connection.exec_driver_sql(query).scalar())


def may_replace_plpython(connection: Connection) -> bool:
    """Whether the user is a superuser: nobody else makes functions in an untrusted language."""
    return bool(connection.exec_driver_sql("select rolsuper from pg_roles where rolname = current_user").scalar())


def has_python_functions(connection: Connection) -> bool:
    """Whether the database has functions of the PL/Python files."""
    return bool(connection.exec_driver_sql(HAS_PYTHON_FUNCTIONS).scalar())


def require_replaceable_python(connection: Connection) -> None:
    """Raise PgearthError if there are PL/Python functions, and the user could not make them again."""
    if has_python_functions(connection) and not may_replace_plpython(connection):
        raise PgearthError(
            "The database has PL/Python functions, which only a superuser may replace.",
            sqlstate=INSUFFICIENT_PRIVILEGE,
            hint="Run pgearth migrate as a superuser, or have one run: drop extension plpython3u cascade",
        )


def wanted_sql_files(connection: Connection) -> list[SqlFile]:
    """Files that the database is to have: without PL/Python's where it cannot have the language or its functions."""
    python = has_plpython(connection) and (may_replace_plpython(connection) or has_python_functions(connection))
    return [file for file in sql_files() if python or not file.name.startswith(PYTHON)]


def published_names() -> frozenset[str]:
    """Names of all functions, procedures and views that a file of sql/ ever created."""
    return RETIRED_NAMES.union(*(created_names(file.text) for file in sql_files()))


def drop_functions(connection: Connection) -> list[str]:
    """Drop what files of sql/ made, before revisions run; return what of the user's keeps which of it, in words.

    Raises PgearthError if there are PL/Python functions and the user could not make them again.
    """
    require_replaceable_python(connection)
    used = drop_replaceable(connection, replaceable(connection, published_names()))
    connection.exec_driver_sql("delete from eo_internal.sql_file")
    return used


def is_damaged(connection: Connection, files: list[SqlFile]) -> bool:
    """Whether something that `files` made is missing, as after a restore that went wrong in part or left out comments.

    Comments count, for they say which functions only eo_writer may call.
    """
    created = frozenset[str]().union(*(created_names(file.text) for file in files))
    missing = created - {thing.name for thing in replaceable(connection, created)}
    return bool(missing or connection.exec_driver_sql(WITHOUT_COMMENT, (list(created),)).scalar())


def apply_sql_files(connection: Connection) -> None:
    """Apply files that differ from what the database has (all of them when one does), and privileges always.

    All of them, because a replaced function may be inlined or called by a later file's function. The PL/Python files
    are left out, and not recorded, where the database cannot have the language; so they are applied once it can.
    Functions of older signatures go. Raises PgearthError if objects of a user's need one of these.
    """
    files = wanted_sql_files(connection)
    rows = connection.exec_driver_sql("select name, sha256 from eo_internal.sql_file")
    stored = dict(tuple(row) for row in rows)
    if stored != {file.name: file.sha256 for file in files} or is_damaged(connection, files):
        require_replaceable_python(connection)
        for file in files:
            if file.name != PRIVILEGES:
                run_sql(connection, file.text)
        connection.exec_driver_sql("select eo_internal.make_web_mercator_layers()")
        drop_older(connection)
        connection.exec_driver_sql("delete from eo_internal.sql_file")
        for file in files:
            connection.exec_driver_sql(
                "insert into eo_internal.sql_file (name, sha256) values (%s, %s)", (file.name, file.sha256)
            )
    run_sql(connection, next(file.text for file in files if file.name == PRIVILEGES))
    connection.exec_driver_sql("update eo_internal.schema_version set version = %s", (pyfuncs.__version__,))


def drop_older(connection: Connection) -> None:
    """Drop functions and views that the files, just applied, did not make again."""
    names = published_names()
    older = [thing for thing in replaceable(connection, names) if not thing.replaced]
    if used := drop_replaceable(connection, older):
        raise PgearthError(
            "Objects of yours need functions or views that pgearth has no more: " + "; ".join(used),
            sqlstate=DEPENDENT_OBJECTS_STILL_EXIST,
            hint=DEPENDENT_HINT,
        )
