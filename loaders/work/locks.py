"""Locks on folders and files: one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgearth.pyfuncs.errors import BusyError


@contextmanager
def lock(path: Path, busy: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock on a folder, or on a file that is made for it. Raises BusyError while another process holds it."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(busy, "Wait for it to end, then run the same command again.") from error
    finally:
        os.close(descriptor)
