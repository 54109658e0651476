"""The backend's side of the encoder process: patches go there, vectors come back."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pgearth.pyfuncs.errors import INSUFFICIENT_RESOURCES, SYSTEM_ERROR, PgearthError
from pgearth.pyfuncs.models.encoder import Batch, Encoder
from pgearth.pyfuncs.service.protocol import (
    DTYPES,
    LARGEST_MEMORY,
    LONGEST_PACKET,
    MOST_PATCHES,
    VECTOR_DTYPE,
    EncodeRequest,
    Kind,
    SharedMemory,
    peer_user,
    read_reply,
    write_request,
)

PATCHES_AT_ONCE = 64
SECONDS_BETWEEN_PAUSES = 0.05
SECONDS_UNTIL_RETRY = 0.02
REQUEST_SECONDS = 120.0
"""How long a request may take, with its time in the queue: a process that hangs must not hang the sessions, too."""
STATUS_SECONDS = 2.0
SPARE_BYTES = 32 << 20
_spare: list[SharedMemory] = []
"""Memory of SPARE_BYTES that waits for the next request, one at most."""

Pause = Callable[[], object]
"""Called now and then while waiting; may raise, which gives the request up."""


class NotServedError(Exception):
    """No process listens, or it declines: the vectors have to be computed here."""


def encode_batch(path: Path, encoder: Encoder, batch: Batch, pause: Pause) -> np.ndarray:
    """Encode n patches, bands (n, height, width), into (n, dimension) float32 by the process at the socket `path`.

    Of the encoder the weights are not looked at. Raises NotServedError where the process does not run or declines, and
    PgearthError for what it refuses, where it ends or does not answer in time, and where it stays busy.
    """
    arrays = [np.asarray(batch[band], batch[band].dtype.newbyteorder("=")) for band in encoder.bands]
    count = len(arrays[0])
    bands = tuple((array.dtype, array.shape[1], array.shape[2]) for array in arrays)
    one = EncodeRequest(encoder.encoder_id, 1, encoder.dimension or 0, bands)
    at_once = min(MOST_PATCHES, LARGEST_MEMORY // one.memory_bytes)
    if at_once == 0 or not {array.dtype for array in arrays} <= set(DTYPES):
        raise NotServedError
    vectors = np.empty((count, one.dimension), VECTOR_DTYPE)
    for start in range(0, count, at_once):
        chosen = slice(start, min(start + at_once, count))
        request = EncodeRequest(encoder.encoder_id, chosen.stop - start, one.dimension, bands)
        with _memory(request.memory_bytes) as memory:
            *pixels, answer = request.arrays(memory.map)
            for target, array in zip(pixels, arrays, strict=True):
                target[:] = array[chosen]
            _ask(path, request, memory, time.monotonic() + REQUEST_SECONDS, pause)
            vectors[chosen] = answer
    return vectors


def status(path: Path, pause: Pause) -> dict[str, Any]:
    """What the process says of itself.

    Raises NotServedError where it does not run, PgearthError where it does not answer.
    """
    return _ask(path, None, None, time.monotonic() + STATUS_SECONDS, pause)


@contextmanager
def _memory(size: int) -> Iterator[SharedMemory]:
    """Memory for a request: that of the one before, because pages that are new take longer to get than to fill.

    After an error it is not used again: the process may still be writing to it.
    """
    try:
        memory = _spare.pop() if size <= SPARE_BYTES else SharedMemory(size)
    except IndexError:
        memory = SharedMemory(SPARE_BYTES)
    yield memory
    if memory.size == SPARE_BYTES and not _spare:
        _spare.append(memory)


def _ask(
    path: Path, request: EncodeRequest | None, memory: SharedMemory | None, deadline: float, pause: Pause
) -> dict[str, Any]:
    """Send a request, with its memory, and wait for what the reply says; again and again while the process is busy."""
    while True:
        with _connect(path, deadline, pause) as connection:
            kind, content = read_reply(_exchange(connection, write_request(request), memory, deadline, pause))
        if kind == Kind.DONE:
            return content
        if kind == Kind.DECLINED:
            raise NotServedError
        _retry(deadline, pause)


def _connect(path: Path, deadline: float, pause: Pause) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            connection.connect(os.fspath(path))
            if (user := peer_user(connection)) != os.geteuid():
                raise PgearthError(
                    f"the encoder process runs as OS user {user}, the database server as {os.geteuid()}",
                    sqlstate=SYSTEM_ERROR,
                    hint="Have it started by: pgearth encoder start",
                )
            return connection
        except BlockingIOError:  # too many are waiting to be accepted
            connection.close()
            _retry(deadline, pause)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            raise NotServedError from error
        except BaseException:
            connection.close()
            raise


def _exchange(
    connection: socket.socket, packet: bytes, memory: SharedMemory | None, deadline: float, pause: Pause
) -> bytes:
    try:
        socket.send_fds(connection, [packet], [memory.descriptor] if memory else [])
        waiting = select.poll()
        waiting.register(connection, select.POLLIN)
        while not waiting.poll(SECONDS_BETWEEN_PAUSES * 1000):
            pause()
            if time.monotonic() > deadline:
                raise PgearthError(
                    "the encoder process did not answer in time",
                    sqlstate=SYSTEM_ERROR,
                    hint="See pgearth encoder status; it may be hung: pgearth encoder stop, then pgearth encoder start",
                )
        answer = connection.recv(LONGEST_PACKET)
    except (ConnectionError, TimeoutError):
        answer = b""
    if not answer:
        raise PgearthError(
            "the encoder process ended before it answered",
            sqlstate=SYSTEM_ERROR,
            hint="Run the statement again: sessions compute by themselves until it is back (pgearth encoder start).",
        )
    return answer


def _retry(deadline: float, pause: Pause) -> None:
    """Wait a moment. Raises PgearthError at the deadline."""
    if time.monotonic() > deadline:
        raise PgearthError(
            "the encoder process is busy",
            sqlstate=INSUFFICIENT_RESOURCES,
            hint="Run the statement again later; see pgearth encoder status.",
        )
    time.sleep(SECONDS_UNTIL_RETRY)
    pause()
