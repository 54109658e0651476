"""What backends and the encoder process say to each other: requests, replies, and the memory that pixels travel in.

They talk over a Unix socket of packets (SOCK_SEQPACKET), so that a message is read whole or not at all; a connection
carries one request and its reply. The encoder process is one per database: its socket lies in the data folder, which
only the server's OS user may enter and where each backend works, and both ends check who the other one is.

A request is a header and, to encode, the shapes of the bands. Pixels do not go through the socket but lie in memory
(memfd_create) that is passed along with the packet, sealed at its size, and mapped by both: the bands one after the
other, each (patches, height, width), then the vectors (patches, dimension) of float32, which the process fills in. A
reply is a header and JSON.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgearth import pyfuncs
from pgearth.pyfuncs.errors import OBJECT_NOT_IN_PREREQUISITE_STATE, PROTOCOL_VIOLATION, PgearthError

LONGEST_PACKET = 1 << 16
MOST_BANDS = 1024
MOST_PATCHES = 1024
LARGEST_MEMORY = 256 << 20
"""Bytes of pixels and vectors of a request."""
ALIGNMENT = 64
START_ANEW = "Run: pgearth encoder stop, then pgearth encoder start"
LOG_SAYS_MORE = "Its log says more."
DTYPES = tuple(np.dtype(name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"))
VECTOR_DTYPE = np.dtype("f4")
SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

_MAGIC = b"pgearth\n"
_HEADER = struct.Struct("<8s16sB")  # magic, version of the package, kind
_ENCODE = struct.Struct("<iIIH")  # encoder_id, patches, dimension, bands
_BAND = struct.Struct("<BII")  # place in DTYPES, height, width
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Kind(IntEnum):
    """Kinds of messages: requests, then replies."""

    STATUS = 1
    ENCODE = 2
    DONE = 16  # the vectors are in the memory, or the status in the reply
    FAILED = 17  # with what a PgearthError says
    BUSY = 18  # the queue is full
    DECLINED = 19  # not an error: the backend has to encode by itself


@dataclass(frozen=True)
class EncodeRequest:
    """What to encode: patches of the same shapes, whose bands, in the encoder's order, are (dtype, height, width)."""

    encoder_id: int
    patches: int
    dimension: int
    bands: tuple[tuple[np.dtype[Any], int, int], ...]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the memory that goes with the request."""
        return sum(_aligned(math.prod(shape) * dtype.itemsize) for dtype, shape in self._layout())

    def arrays(self, memory: mmap.mmap) -> list[NDArray[Any]]:
        """The bands, and last the vectors, as they lie in the memory, which is mapped as long as they live."""
        arrays = []
        offset = 0
        for dtype, shape in self._layout():
            count = math.prod(shape)
            arrays.append(np.frombuffer(memory, dtype, count, offset).reshape(shape))
            offset += _aligned(count * dtype.itemsize)
        return arrays

    def _layout(self) -> Iterator[tuple[np.dtype[Any], tuple[int, ...]]]:
        for dtype, height, width in self.bands:
            yield dtype, (self.patches, height, width)
        yield VECTOR_DTYPE, (self.patches, self.dimension)


class SharedMemory:
    """Memory of a settled size to be passed to another process; it takes space only where it was written."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.descriptor = os.memfd_create("pgearth", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, SEALS)
            self.map = mmap.mmap(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def __del__(self) -> None:
        """Give the memory up; its arrays live on as long as they are used."""
        os.close(self.descriptor)


def map_memory(descriptor: int, request: EncodeRequest) -> mmap.mmap:
    """Map the memory of a request.

    Raises PgearthError unless it is memory as SharedMemory makes it, large enough: only such memory, and no file or
    pipe, has these seals, and they promise that it does not become smaller. To touch what is mapped beyond the end of
    a file would end the process.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    size = os.fstat(descriptor).st_size
    if seals & (SEALS | fcntl.F_SEAL_WRITE) != SEALS or size < request.memory_bytes:
        raise PgearthError(
            f"malformed request: memory of {size} bytes with seals {seals} for one of {request.memory_bytes} bytes",
            hint=START_ANEW,
            sqlstate=PROTOCOL_VIOLATION,
        )
    return mmap.mmap(descriptor, request.memory_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def socket_folder(database_oid: int) -> Path:
    """Folder of a database's encoder process: below the data folder, in which every backend works."""
    return Path("pgearth") / str(database_oid) / "encoder_process"


def write_request(request: EncodeRequest | None) -> bytes:
    """The packet that asks to encode, or for the status (None)."""
    kind = Kind.STATUS if request is None else Kind.ENCODE
    packet = _HEADER.pack(_MAGIC, pyfuncs.__version__.encode(), kind)
    if request is None:
        return packet
    parts = [_ENCODE.pack(request.encoder_id, request.patches, request.dimension, len(request.bands))]
    parts += [_BAND.pack(DTYPES.index(dtype), height, width) for dtype, height, width in request.bands]
    return packet + b"".join(parts)


def read_request(packet: bytes) -> EncodeRequest | None:
    """Read what `write_request` wrote; raises PgearthError for anything else, and for what exceeds the limits."""
    try:
        magic, version, kind = _HEADER.unpack_from(packet)
        if magic != _MAGIC:
            raise ValueError("not a message of pgearth")
        version = version.rstrip(b"\0")
        if version != pyfuncs.__version__.encode():
            raise PgearthError(
                f"the encoder process is of pgearth {pyfuncs.__version__}, the session of {version.decode('ascii')!r}",
                sqlstate=OBJECT_NOT_IN_PREREQUISITE_STATE,
                hint=START_ANEW,
            )
        rest = packet[_HEADER.size :]
        if kind == Kind.STATUS and not rest:
            return None
        if kind != Kind.ENCODE:
            raise ValueError(f"kind {kind} of {len(packet)} bytes")
        encoder_id, patches, dimension, count = _ENCODE.unpack_from(rest)
        if not (1 <= patches <= MOST_PATCHES and 1 <= count <= MOST_BANDS and dimension >= 1):
            raise ValueError(f"{patches} patches of {count} bands, vectors of {dimension} dimensions")
        if len(rest) != _ENCODE.size + count * _BAND.size:
            raise ValueError(f"{len(packet)} bytes for {count} bands")
        bands = tuple(
            (DTYPES[dtype], height, width) for dtype, height, width in _BAND.iter_unpack(rest[_ENCODE.size :])
        )
        request = EncodeRequest(encoder_id, patches, dimension, bands)
        if not all(height and width for _, height, width in bands) or request.memory_bytes > LARGEST_MEMORY:
            raise ValueError(f"{request.memory_bytes} bytes of pixels and vectors")
    except (struct.error, ValueError, IndexError) as error:
        raise PgearthError(f"malformed request: {error}", START_ANEW, sqlstate=PROTOCOL_VIOLATION) from error
    return request


def write_reply(kind: Kind, content: dict[str, Any] | None = None) -> bytes:
    """The packet that answers a request."""
    return _HEADER.pack(_MAGIC, pyfuncs.__version__.encode(), kind) + json.dumps(content or {}).encode()


def write_error(error: PgearthError) -> bytes:
    """The packet that answers with an error; a long message is cut."""
    content = {"message": error.message[:4000], "hint": error.hint[:4000], "sqlstate": error.sqlstate}
    return write_reply(Kind.FAILED, content)


def read_reply(packet: bytes) -> tuple[Kind, dict[str, Any]]:
    """Read what `write_reply` wrote. Raises PgearthError for anything else, and the error that the reply tells of."""
    try:
        magic, _, number = _HEADER.unpack_from(packet)
        if magic != _MAGIC:
            raise ValueError("not a message of pgearth")
        kind, content = Kind(number), json.loads(packet[_HEADER.size :])
        failure = None
        if kind == Kind.FAILED:
            failure = PgearthError(content["message"], content["hint"], sqlstate=content["sqlstate"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise PgearthError(
            f"malformed reply of the encoder process: {error}", START_ANEW, sqlstate=PROTOCOL_VIOLATION
        ) from error
    if failure:
        raise failure
    return kind, content


def peer_user(connection: socket.socket) -> int:
    """The OS user (uid) at the other end, as the kernel recorded it when the connection was made."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(credentials)[1])
