"""Applies sql/*.sql: functions, views, comments and privileges, all re-runnable."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import Connection

import pyfuncs

SQL_FOLDER = Path(__file__).parent.parent / "sql"
FILE_NAME = re.compile(r"^\d{3}_[a-z][a-z_]*\.sql$")
PYTHON = "030_python.sql"
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


@dataclass(frozen=True)
class SqlFile:
    """One file of sql/ with its text and checksum."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Checksum of the text, in hexadecimal."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def sql_files(folder: Path = SQL_FOLDER) -> list[SqlFile]:
    """Files of `folder` in the order in which they are applied.

    Raises ValueError when a name is not NNN_topic.sql or a number is used twice.
    """
    files = [SqlFile(path.name, path.read_text()) for path in sorted(folder.glob("*.sql"))]
    numbers: dict[str, str] = {}
    for file in files:
        if not FILE_NAME.match(file.name):
            raise ValueError(f"sql/{file.name}: the name must be NNN_topic.sql")
        if file.name[:3] in numbers:
            raise ValueError(f"sql/{file.name}: the number is taken by sql/{numbers[file.name[:3]]}")
        numbers[file.name[:3]] = file.name
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


def apply_sql_files(connection: Connection) -> None:
    """Apply files that differ from what the database has (all of them when one does), and privileges always.

    All of them, because a replaced function may be inlined or called by a later file's function. The PL/Python file is
    left out, and not recorded, where the database cannot have the language; so it is applied once it can.
    """
    python = has_plpython(connection)
    files = [file for file in sql_files() if python or file.name != PYTHON]
    rows = connection.exec_driver_sql("select name, sha256 from eo_internal.sql_file")
    stored = dict(tuple(row) for row in rows)
    if stored != {file.name: file.sha256 for file in files}:
        for file in files:
            run_sql(connection, file.text)
        connection.exec_driver_sql("delete from eo_internal.sql_file")
        for file in files:
            connection.exec_driver_sql(
                "insert into eo_internal.sql_file (name, sha256) values (%s, %s)", (file.name, file.sha256)
            )
    else:
        run_sql(connection, next(file.text for file in files if file.name == PRIVILEGES))
    connection.exec_driver_sql("update eo_internal.schema_version set version = %s", (pyfuncs.__version__,))
