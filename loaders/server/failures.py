"""What a user is told when PostgreSQL fails to start."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import psutil

from pgearth.loaders.server.place import Place
from pgearth.loaders.server.settings import MEGABYTE
from pgearth.pyfuncs.errors import PgearthError


def failure(place: Place, output: str) -> PgearthError:
    """The error for a failed start, of which PostgreSQL printed `output`."""
    # On a full disk the log itself may be cut short.
    if "No space left on device" in output or shutil.disk_usage(place.folder).free < MEGABYTE:
        return disk_full(place.folder)
    return explain(output, place.data, place.log)


def disk_full(folder: Path) -> PgearthError:
    """The error for a disk on which the cluster in a folder finds no room."""
    return PgearthError(
        f"The disk is full: no space is left for the database cluster in {folder}.",
        "Free some space there, or set PGEARTH_HOME to a folder on a larger disk.",
    )


def explain(output: str, data: Path, log: Path) -> PgearthError:
    """Turn what PostgreSQL printed when it failed to start into an error that says what to do."""
    other = re.search(r"\(PID (\d+)\)", output)
    process = f"process {other[1]}" if other else "another process"
    if re.search(r'lock file "[^"]*\.s\.PGSQL\.\d+\.lock" already exists', output):
        return PgearthError(
            f"The socket is taken by another server, {process}: {data.parent / 'run'}",
            "Stop that server, or set PGEARTH_HOME to another folder.",
        )
    if found := re.search(r'could not bind \S+ address "([^"]+)": Address already in use', output):
        return PgearthError(
            f"The address {found[1]} is taken by another server.", "Stop that server, or give --listen another port."
        )
    if 'lock file "postmaster.pid" already exists' in output:
        pid_file = data / "postmaster.pid"
        name = psutil.Process(int(other[1])).name() if other and psutil.pid_exists(int(other[1])) else "unknown"
        if name in ("postgres", "postmaster"):
            return PgearthError(
                f"Another server, {process}, uses the data folder {data}.", f"Stop it: kill -INT {other and other[1]}"
            )
        return PgearthError(
            f"The pid file {pid_file} is stale: its server is gone, and {process} ({name}) has the number now.",
            f"If no server uses that folder, for example from another container, delete the file: rm {pid_file}",
        )
    if "Cannot allocate memory" in output:
        return PgearthError(
            "There is not enough memory for the server.",
            f"End other programs or raise the container's limit; see {log}.",
        )
    tail = "\n".join(output.strip().splitlines()[-12:])
    return PgearthError(f"PostgreSQL failed to start:\n{tail}", f"The whole log is {log}.")
