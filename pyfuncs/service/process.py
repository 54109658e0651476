"""The encoder process: it owns the device, reads encoders from the database and encodes for all sessions.

`pgearth encoder start` runs it as the server's OS user, as a module with FOLDER as its argument, with the connection
string in PGEARTH_DSN. FOLDER, below the server's data folder, gets the socket, and a lock file with the process's
number, held as long as it lives. One thread does all talking (see `server`), another all computing (`worker`); between
them is the `queue`, from which requests of several sessions are taken together.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
import time
from pathlib import Path

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.encoder import BATCH_SIZE
from pgearth.pyfuncs.models.memory import keep_freed_memory
from pgearth.pyfuncs.service.cache import MEGABYTE, ArchiveReader, EncoderCache
from pgearth.pyfuncs.service.server import EncoderServer
from pgearth.pyfuncs.service.worker import GPU_BATCH

log = logging.getLogger(__name__)


def own_folder(folder: Path) -> None:
    """Make the process's folder, for its OS user alone, and hold its lock. Raises PgearthError where another does."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # open, and held, to the end
    for _ in range(20):  # somebody may just be looking whether it is held
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.05)
    else:
        raise PgearthError(
            f"The encoder process is running already: process {os.read(lock, 20).decode()}.",
            hint="To start another, stop it first: pgearth encoder stop",
        )
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def main() -> None:
    """Run the process until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="pgearth.pyfuncs.service.process", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory-limit", type=int, default=2048, help="megabytes")
    parser.add_argument("--max-batch", type=int, help="patches")
    parser.add_argument("--max-wait", type=float, default=2, help="milliseconds")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        own_folder(given.folder)
        reader = ArchiveReader(os.environ.get("PGEARTH_DSN", ""))
        reader.check_version()
        # OpenMP's threads would spin while they wait; the sessions, which prepare what is next, need the cores, too.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        keep_freed_memory()
        import torch

        device, batch = f"cpu, {torch.get_num_threads()} threads", BATCH_SIZE
        if torch.cuda.is_available():
            device, batch = torch.cuda.get_device_name(), GPU_BATCH
        cache = EncoderCache(reader.load, given.memory_limit * MEGABYTE)
        # PostgreSQL's own folder of the database, unless that is in another tablespace.
        data = given.folder.parents[2]
        database = data / "base" / given.folder.parent.name
        server = EncoderServer(
            given.folder,
            cache,
            given.max_batch or batch,
            given.max_wait / 1000,
            device,
            database if database.exists() else None,
            data / "postmaster.pid",
        )
    except PgearthError as error:
        sys.exit(str(error))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    log.info("serving on %s: pid %d, %s", given.folder, os.getpid(), device)
    server.serve()
    log.info("stopped")
    if server.device_failed:
        sys.exit(1)  # a service manager starts it again


if __name__ == "__main__":
    main()
