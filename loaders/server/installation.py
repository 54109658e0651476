"""The PostgreSQL that is installed on this machine."""

from __future__ import annotations

from pathlib import Path

from pgearth.pyfuncs.errors import PgearthError

POSTGRESQL_FOLDER = Path("/usr/lib/postgresql")
EXTENSION_FOLDER = "/usr/share/postgresql/{version}/extension"
EXTENSIONS = ("plpython3u", "postgis", "postgis_raster", "vector")
OLDEST_VERSION = 15
INSTALL_HINT = "Run docker/install-server.sh as root; it installs PostgreSQL, PostGIS, plpython3u and pgvector."


def installed_versions() -> list[int]:
    """Major versions of the servers that Debian's packages installed, oldest first."""
    found = (int(path.parts[-3]) for path in POSTGRESQL_FOLDER.glob("*/bin/initdb") if path.parts[-3].isdecimal())
    return sorted(version for version in found if version >= OLDEST_VERSION)


def newest_complete_version() -> int:
    """The newest installed version that has all extensions. Raises PgearthError where none has."""
    installed = installed_versions()
    if not installed:
        raise PgearthError(
            f"No PostgreSQL {OLDEST_VERSION} or newer is installed below {POSTGRESQL_FOLDER}.", INSTALL_HINT
        )
    missing: list[str] = []
    for version in reversed(installed):
        extensions = Path(EXTENSION_FOLDER.format(version=version))
        missing = [name for name in EXTENSIONS if not (extensions / f"{name}.control").exists()]
        if not missing:
            return version
    raise PgearthError(f"PostgreSQL {installed[0]} lacks the extension {', '.join(missing)}.", INSTALL_HINT)


def binary(version: int, name: str) -> Path:
    """A program of the server of a major version."""
    return POSTGRESQL_FOLDER / str(version) / "bin" / name
