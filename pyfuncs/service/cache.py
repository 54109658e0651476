"""Encoders that the encoder process keeps, and how it reads them from the database."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pgearth import pyfuncs
from pgearth.pyfuncs import queries
from pgearth.pyfuncs.errors import INSUFFICIENT_RESOURCES, SYSTEM_ERROR, PgearthError
from pgearth.pyfuncs.models.encoder import Encoder

MEGABYTE = 1 << 20
CONNECT_SECONDS = 10

log = logging.getLogger(__name__)


class UnknownEncoderError(Exception):
    """The database does not show an encoder: a session may have registered it and not committed yet."""


class EncoderCache:
    """Encoders that were read from the database: those used last, as many as the memory limit allows.

    They are as large as their weights; a network of them, on the device, is as large again.
    """

    def __init__(self, load: Callable[[int, Callable[[int], None]], Encoder], memory_limit: int) -> None:
        """`load` reads an encoder by its id, having called what it is given with the size of its weights in bytes."""
        self._load = load
        self._memory_limit = memory_limit
        self._encoders: dict[int, Encoder] = {}  # used last: last
        self._sizes: dict[int, int] = {}
        self._evicted = 0

    def get(self, encoder_id: int) -> Encoder:
        """An encoder. Raises PgearthError when it is larger than the limit, or what reading it raises."""
        encoder = self._encoders.pop(encoder_id, None)
        if encoder is None:
            started = time.monotonic()
            encoder = self._load(encoder_id, self._make_room)
            self._sizes[encoder_id] = sum(array.nbytes for array in encoder.weights.values())
            name = f"{encoder.name}:{encoder.version}"
            log.info("read encoder %s in %.2f s", name, time.monotonic() - started)
        self._encoders[encoder_id] = encoder
        return encoder

    def _make_room(self, size: int) -> None:
        if size > self._memory_limit:
            raise PgearthError(
                f"the weights take {size / MEGABYTE:,.0f} MB, but the encoder process may keep"
                f" {self._memory_limit / MEGABYTE:,.0f} MB",
                sqlstate=INSUFFICIENT_RESOURCES,
                hint="Start it with a greater --memory-limit: pgearth encoder stop, then pgearth encoder start",
            )
        while self._encoders and sum(self._sizes.values()) + size > self._memory_limit:
            encoder_id = next(iter(self._encoders))
            encoder = self._encoders.pop(encoder_id)
            del self._sizes[encoder_id]
            self._evicted += 1
            log.info("dropped encoder %s:%d to make room", encoder.name, encoder.version)
            del encoder
            gc.collect()  # a network goes with its encoder

    def status(self) -> dict[str, Any]:
        """Which encoders are kept, those used last first, and how much they take."""
        encoders = list(self._encoders.values())[::-1]
        return {
            "loaded": [f"{encoder.name}:{encoder.version}" for encoder in encoders[:100]],
            "loaded_bytes": sum(self._sizes.copy().values()),
            "memory_limit": self._memory_limit,
            "evicted": self._evicted,
        }


@dataclass(frozen=True)
class ArchiveReader:
    """Reads encoders from the database; connects when there is one to read, so that it does not hold the database."""

    conninfo: str

    def load(self, encoder_id: int, make_room: Callable[[int], None]) -> Encoder:
        """Read an encoder whose weights match their checksum. Raises UnknownEncoderError, or PgearthError."""
        import psycopg
        from psycopg.rows import dict_row

        try:
            # Binary: as text, weights of more than half a gigabyte would not fit into a message.
            with self._connect() as connection, connection.cursor(row_factory=dict_row, binary=True) as cursor:
                size = cursor.execute(queries.ENCODER_SIZE_QUERY, (encoder_id,)).fetchone()
                if size is None:
                    raise UnknownEncoderError
                make_room(size["octet_length"])
                return queries.encoder_from_row(cursor.execute(queries.ENCODER_QUERY + "%s", (encoder_id,)).fetchone())
        except psycopg.Error as error:
            raise PgearthError(
                f"the encoder process cannot read encoder {encoder_id} from the database: {error}",
                sqlstate=SYSTEM_ERROR,
                hint="It connects as pgearth encoder start did; stop and start it where that has changed.",
            ) from error

    def check_version(self) -> None:
        """Raise PgearthError unless the schema is of this package's version."""
        with self._connect() as connection:
            row = connection.execute(queries.SCHEMA_VERSION_QUERY).fetchone()
        if row is None or row[0] != pyfuncs.__version__:
            raise PgearthError(
                f"the Python package is pgearth {pyfuncs.__version__}, the schema is of {row and row[0]}",
                hint="Run: pgearth migrate",
            )

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(
            self.conninfo, autocommit=True, application_name="pgearth encoder", connect_timeout=CONNECT_SECONDS
        )
