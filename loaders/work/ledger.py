"""The ledger of loads, eo.load: what makes loading restartable.

One item (a file, folder or product) is one transaction: its rows and its `done` become visible together or not at all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from psycopg import Connection
from psycopg.types.json import Jsonb

from pgearth.loaders.server.connection import idle, session_lock
from pgearth.pyfuncs.errors import BusyError, PgearthError


@dataclass
class LoadItem:
    """One item while it is loaded: the loader sets `rows` and counts whatever else is worth reporting."""

    load_id: int
    rows: int = 0
    details: Counter[str] = field(default_factory=Counter)


def file_checksum(*paths: Path) -> str:
    """Fingerprint (SHA-256, hexadecimal) of the contents of the files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def listing_checksum(paths: list[Path]) -> str:
    """Fingerprint of names and sizes, the same for a copy: for sources too large to read twice."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


@contextmanager
def load_item(
    connection: Connection, loader: str, source: str, checksum: str, anew: bool = False
) -> Iterator[LoadItem | None]:
    """Load one item: `with load_item(...) as item: if item: ...` inside which all writing is one transaction.

    Yields None when the ledger says that this very source (same checksum) is loaded, unless it is to be loaded `anew`,
    whatever its contents were: then the caller removes what was, or only completes rows. An error rolls the item back
    and is recorded; a killed session leaves `running`, which the next run takes over. Raises PgearthError when the
    source was loaded with other contents, BusyError when another session is loading it now. The connection must be in
    autocommit mode.
    """
    if not connection.autocommit:
        raise ValueError("load_item needs a connection in autocommit mode")
    with session_lock(connection, f"{loader}|{source}") as locked, connection.cursor() as cursor:
        if not locked:
            raise BusyError(f"{source}: another session is loading it now", "Wait for it to end, then run this again.")
        cursor.execute("select state, checksum from eo.load where loader = %s and source = %s", (loader, source))
        known = cursor.fetchone()
        if known and known[0] == "done" and not anew:
            if known[1] != checksum:
                raise PgearthError(
                    f"{source}: it was loaded before, with other contents",
                    "Load it under another name, or delete its old rows and its row in eo.load first.",
                )
            yield None
            return
        cursor.execute(
            """
            insert into eo.load (loader, source, checksum, state) values (%s, %s, %s, 'running')
            on conflict (loader, source) do update
                set checksum = excluded.checksum, state = 'running', rows = 0, details = null, error = null,
                    started_at = now(), finished_at = null
            returning load_id
            """,
            (loader, source, checksum),
        )
        row = cursor.fetchone()
        assert row is not None
        item = LoadItem(row[0])
        try:
            with connection.transaction():
                yield item
                cursor.execute(
                    "update eo.load set state = 'done', rows = %s, details = %s, finished_at = clock_timestamp()"
                    " where load_id = %s",
                    (item.rows, Jsonb(dict(item.details)), item.load_id),
                )
        except Exception as error:
            if idle(connection):
                cursor.execute(
                    "update eo.load set state = 'failed', error = %s, finished_at = clock_timestamp()"
                    " where load_id = %s",
                    (storable(str(error)), item.load_id),
                )
            raise


def storable(text: str) -> str:
    """A text without what the database has no characters for: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "?").encode(errors="replace").decode()
