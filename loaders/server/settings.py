"""Settings of the private server: memory, PostgreSQL's configuration files, and who may connect."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psutil

from pgearth.loaders.server.place import Place
from pgearth.pyfuncs.errors import PgearthError

PORT = 5432
SUPERUSER = "postgres"
MEGABYTE = 1 << 20
GIGABYTE = 1 << 30


def parse_address(text: str) -> tuple[str, int]:
    """Split ADDRESS[:PORT]; an IPv6 address with a port stands in brackets."""
    found = re.fullmatch(r"(?:\[(?P<bracketed>[^]]+)\]|(?P<plain>[^:\s]+))(?::(?P<port>\d{1,5}))?", text)
    if not found or not 0 < int(found["port"] or PORT) < 1 << 16:
        raise PgearthError(f"{text!r} is not ADDRESS[:PORT].", "Examples: 127.0.0.1, 0.0.0.0:5433, [::1]:5432")
    return found["bracketed"] or found["plain"], int(found["port"] or PORT)


def default_memory() -> int:
    """Bytes that a private server may plan with: an eighth of the machine's, for it is seldom alone there."""
    return min(psutil.virtual_memory().total // 8, 4 * GIGABYTE)


def settings(memory: int) -> dict[str, str]:
    """PostgreSQL's settings for a server with `memory` bytes: a quarter is shared buffers, as its manual advises."""

    def megabytes(size: int) -> str:
        return f"{size // MEGABYTE}MB"

    return {
        "shared_buffers": megabytes(min(memory // 4, 8 * GIGABYTE)),
        "effective_cache_size": megabytes(memory * 3 // 4),
        "maintenance_work_mem": megabytes(min(max(memory // 16, 64 * MEGABYTE), 2 * GIGABYTE)),
        "work_mem": megabytes(min(max(memory // 256, 8 * MEGABYTE), 128 * MEGABYTE)),
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "random_page_cost": "1.1",
        "effective_io_concurrency": "200",
        # Compiling costs more than it gains: most queries take milliseconds.
        "jit": "off",
        "timezone": "UTC",
        # Uploaded GeoTIFFs in, PNG previews out.
        "postgis.gdal_enabled_drivers": "GTiff PNG",
    }


def configure(place: Place, durable: bool, address: str, port: int, memory: int) -> None:
    """Write PostgreSQL's configuration files; the arguments are those of Cluster.start."""
    folder = place.folder
    values = {
        "listen_addresses": address,
        "port": str(port),
        "unix_socket_directories": str(place.socket_directory),
        "hba_file": str(folder / "pg_hba.conf"),
        "ident_file": str(folder / "pg_ident.conf"),
        **settings(memory),
    }
    if not durable:
        values |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    quoted = {name: value.replace("'", "''") for name, value in values.items()}
    lines = [f"{name} = '{value}'" for name, value in quoted.items()]
    note = "# Written by every `pgearth server start`. Your own settings: ALTER SYSTEM.\n"
    superusers = {"root", place.account.pw_name}
    with suppress(KeyError):  # an owner without a name
        superusers.add(place.home.absolute().parent.owner())
    write(folder / "pgearth.conf", note + "\n".join(lines) + "\n")
    write(folder / "pg_ident.conf", note + "".join(f'pgearth "{name}" "{SUPERUSER}"\n' for name in sorted(superusers)))
    write(
        folder / "pg_hba.conf",
        note + "local all all peer map=pgearth\n" + "host all all all scram-sha-256\n" * bool(address),
    )


def setting(place: Place, name: str) -> str | None:
    """A setting of the last start; None: it was not set, or there was none."""
    try:
        found = re.search(rf"^{name} = '(.*)'$", (place.folder / "pgearth.conf").read_text(), re.MULTILINE)
    except FileNotFoundError:
        return None
    return found[1] if found else None


def write(path: Path, text: str) -> None:
    """Write a configuration file that all may read, in place of one that may be another user's."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)
