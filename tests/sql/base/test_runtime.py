from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import psycopg

from pgearth import pyfuncs
from tests.stand_ins import NO_WEIGHTS


def test_runtime_reports_what_is_installed(archive: psycopg.Connection) -> None:
    rows = {component: (found, note) for component, found, note in archive.execute("select * from eo.runtime()")}
    assert set(rows) == {
        "PostgreSQL", "postgis", "postgis_raster", "vector", "plpython3u",
        "Python", "numpy", "torch", "device", "encoder process", "pgearth package", "pgearth schema",
    }  # fmt: skip
    assert rows["PostgreSQL"][0].startswith("15.")
    assert rows["Python"][0].startswith("3.11.")
    assert rows["numpy"][0] == version("numpy")
    assert rows["torch"][0].startswith("2.13.")
    assert rows["device"] == ("cpu", None)
    assert rows["encoder process"][0] == "stopped"
    assert rows["pgearth package"][0] == pyfuncs.__version__ == rows["pgearth schema"][0]
    assert rows["pgearth schema"][1] == "matches the package"


def test_python_of_the_server_is_the_environment_of_the_package(archive: psycopg.Connection) -> None:
    """Or its mirror, where the server cannot reach the environment itself."""
    row = archive.execute("select runtime from eo_internal.python_runtime()").fetchone()
    assert row is not None
    prefix = Path(row[0]["prefix"])
    assert (prefix / "pyvenv.cfg").read_text() == (Path(sys.prefix) / "pyvenv.cfg").read_text()
    assert prefix == Path(sys.prefix) or prefix.name == "python"


def test_another_version_is_reported_and_refused(archive: psycopg.Connection) -> None:
    with psycopg.connect(archive.info.dsn) as another:  # for a session remembers the version
        another.execute("select eo.register_encoder('x', 1, 'spectral', '{B02}', %s, dimension => 3)", (NO_WEIGHTS,))
    archive.execute("update eo_internal.schema_version set version = '9.9.9'")
    row = archive.execute("select version, note from eo.runtime() where component = 'pgearth schema'").fetchone()
    assert row == ("9.9.9", "does not match the package: run pgearth migrate, then open a new session")
    try:
        archive.execute("select eo.encode_image('\\x00'::bytea)")
        raise AssertionError("a call with the wrong version must fail")
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        assert "9.9.9" in str(error)
        assert "pgearth migrate" in (error.diag.message_hint or "")


def test_old_pgvector_is_warned_about(archive: psycopg.Connection) -> None:
    """The version cannot be changed here without another pgvector, so the catalogue row is."""
    notices: list[str] = []
    archive.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    archive.execute("select * from eo.runtime()").fetchall()
    assert notices == []
    archive.execute("update pg_extension set extversion = '0.8.0' where extname = 'vector'")
    rows = dict(archive.execute("select component, note from eo.runtime()").fetchall())
    assert rows["vector"] == "older than 0.8.3: see the warning"
    assert len(notices) == 1 and "0.8.0" in notices[0]
