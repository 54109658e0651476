"""An encoder process in a thread, and what tests ask of it."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pgearth.pyfuncs.errors import SYSTEM_ERROR, DeviceFailedError
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.models.spectral import BANDS, DIMENSION
from pgearth.pyfuncs.service import client
from pgearth.pyfuncs.service.cache import EncoderCache, UnknownEncoderError
from pgearth.pyfuncs.service.protocol import (
    LONGEST_PACKET,
    EncodeRequest,
)
from pgearth.pyfuncs.service.server import EncoderServer
from tests.waiting import PATIENCE

U2 = np.dtype("u2")
SMALL = EncodeRequest(1, 2, 4, ((U2, 6, 6), (np.dtype("f4"), 3, 2)))


def spectral(encoder_id: int, weights: int = 0) -> Encoder:
    return Encoder(
        encoder_id, "spectral", encoder_id, "spectral", BANDS, None, DIMENSION, None,
        {"unused": np.zeros(weights, np.uint8)},
    )  # fmt: skip


def pixels(count: int, side: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(seed)
    return {band: numbers.integers(1, 4000, (count, side, side)).astype(np.uint16) for band in BANDS}


def no_pause() -> None:
    pass


class Archive:
    """Has the `spectral` encoder under each id below 98; reads none while it is `locked`."""

    def __init__(self) -> None:
        self.unlocked = threading.Event()
        self.unlocked.set()
        self.asked: list[int] = []
        self.read: list[int] = []

    def load(self, encoder_id: int, make_room: Callable[[int], None]) -> Encoder:
        self.asked.append(encoder_id)
        self.unlocked.wait(PATIENCE)
        if encoder_id >= 100:
            raise UnknownEncoderError
        if encoder_id == 98:
            raise DeviceFailedError("the GPU is lost", sqlstate=SYSTEM_ERROR)
        if encoder_id == 99:
            raise RuntimeError("the disk is on fire")
        make_room(1000 * encoder_id)
        self.read.append(encoder_id)
        return spectral(encoder_id, 1000 * encoder_id)


@contextmanager
def serving(archive: Archive, memory_limit: int = 1 << 30, **options: Any) -> Iterator[EncoderServer]:
    """A server in a thread that does not wait for batches to fill."""
    with tempfile.TemporaryDirectory(prefix="pgearth-") as folder:
        server = EncoderServer(Path(folder), EncoderCache(archive.load, memory_limit), **{"max_wait": 0, **options})
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            archive.unlocked.set()
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def ask(path: Path, packet: bytes, *memories: int) -> bytes:
    """Send a packet as it is; what comes back, empty where the server hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        socket.send_fds(connection, [packet], list(memories))
        try:
            return connection.recv(LONGEST_PACKET)
        except ConnectionError:
            return b""


def hung_up(connection: socket.socket) -> bool:
    """Whether the server ends a connection without a word."""
    connection.settimeout(PATIENCE)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def status(path: Path) -> dict[str, Any]:
    return client.status(path, no_pause)
