"""Older heads of the schema, as collect_heads.py took them from git history, applied as their checkouts did."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import psycopg
import sqlalchemy
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

import pgearth.migrations.sqlfiles
from pgearth.migrations.sqlfiles import SqlFile

DATA = Path(__file__).parent / "data" / "heads.json.xz"
VERSIONS = "migrations/versions/"


@dataclass(frozen=True)
class Head:
    """The revisions and the files of sql/ that a commit had."""

    commit: str
    revisions: dict[str, str]
    sql: list[SqlFile]

    @property
    def revision(self) -> str:
        """The newest revision."""
        return max(self.revisions)

    def apply(self, connection: sqlalchemy.Connection) -> None:
        """Do what `pgearth migrate` of that checkout did to a database that is empty or has an older head."""
        connection.exec_driver_sql(
            "create table if not exists public.pgearth_version (version_num varchar(32) primary key)"
        )
        current = connection.exec_driver_sql("select max(version_num) from public.pgearth_version").scalar() or ""
        # As they were written, revisions import from migrations.
        modules = {"migrations": pgearth.migrations, "migrations.sqlfiles": pgearth.migrations.sqlfiles}
        with patch.dict(sys.modules, modules), Operations.context(MigrationContext.configure(connection)):
            for revision, text in sorted(self.revisions.items()):
                if revision > current:
                    module = ModuleType(f"revision_{revision}")
                    exec(text, module.__dict__)
                    module.run_sql = run  # type: ignore[attr-defined]
                    module.upgrade()
        connection.exec_driver_sql("delete from public.pgearth_version")
        connection.exec_driver_sql("insert into public.pgearth_version values (%s)", (self.revision,))
        run(connection, "create extension if not exists plpython3u")
        connection.exec_driver_sql("delete from eo_internal.sql_file")
        for file in self.sql:
            run(connection, file.text)
            connection.exec_driver_sql("insert into eo_internal.sql_file values (%s, %s)", (file.name, file.sha256))


def run(connection: sqlalchemy.Connection, text: str) -> None:
    """Run a script as it stands, as pgearth.migrations.sqlfiles.run_sql did in those checkouts."""
    driver_connection = connection.connection.driver_connection
    assert isinstance(driver_connection, psycopg.Connection)
    driver_connection.execute(text.encode())


def old_heads() -> Iterator[Head]:
    """All older heads, oldest first."""
    collected = json.loads(lzma.decompress(DATA.read_bytes()))
    for commit, names in collected["heads"].items():
        texts = {name: collected["texts"][digest] for name, digest in names.items()}
        yield Head(
            commit,
            {name.removeprefix(VERSIONS)[:4]: text for name, text in texts.items() if name.startswith(VERSIONS)},
            [SqlFile(name.removeprefix("sql/"), text) for name, text in sorted(texts.items()) if name.endswith(".sql")],
        )
