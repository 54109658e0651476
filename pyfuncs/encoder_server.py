"""The encoder process: it owns the device, reads encoders from the database and encodes for all sessions.

`pgearth encoder start` runs it as the server's OS user: `python -m pyfuncs.encoder_server FOLDER`, with the connection
string in PGEARTH_DSN. FOLDER, below the server's data folder, gets the socket, and a lock file with the process's
number, held as long as it lives. One thread does all talking, another all computing; between them is the queue, from
which requests of several sessions are taken together.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import logging
import mmap
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import numpy as np

import pyfuncs
from pyfuncs import db
from pyfuncs.encoder_protocol import (
    LONGEST_PACKET,
    EncodeRequest,
    Kind,
    map_memory,
    peer_user,
    read_request,
    write_error,
    write_reply,
)
from pyfuncs.encoders import Encoder, encode_batch
from pyfuncs.errors import INSUFFICIENT_RESOURCES, PROTOCOL_VIOLATION, SYSTEM_ERROR, PgearthError

MEGABYTE = 1 << 20
MOST_CONNECTIONS = 400
"""Each takes two descriptors of the 1,024 that a process commonly may have; what is more waits to be accepted."""
MOST_QUEUED = 256
MOST_QUEUED_BYTES = 1 << 30
GPU_BATCH = 64
CPU_BATCH = 16
"""Of more, malloc does not keep the network's largest arrays for the next batch, and new memory takes half the time."""
SECONDS_TO_ASK = 5.0
SECONDS_BETWEEN_CHECKS = 1.0
SECONDS_TO_DRAIN = 0.05
CONNECT_SECONDS = 10

log = logging.getLogger(__name__)


class UnknownEncoderError(Exception):
    """The database does not show an encoder: a session may have registered it and not committed yet."""


@dataclass(eq=False)
class Request:
    """An encode request with its memory, of a connection that waits for the vectors."""

    connection: socket.socket
    content: EncodeRequest
    memory: mmap.mmap
    received: float = field(default_factory=time.monotonic)

    @property
    def group(self) -> tuple[object, ...]:
        """What requests must have in common to be encoded in one batch."""
        return self.content.encoder_id, self.content.dimension, self.content.bands


class Queue:
    """Requests in the order in which they came, which are taken by batches."""

    def __init__(self, max_batch: int, max_wait: float) -> None:
        """`max_wait` is how long (seconds) a request may wait for others to fill its batch of `max_batch` patches."""
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._requests: dict[Request, None] = {}
        self._closed = False
        self._changed = Condition()

    def put(self, request: Request) -> bool:
        """Append a request, unless there are too many."""
        with self._changed:
            queued = request.content.memory_bytes + sum(other.content.memory_bytes for other in self._requests)
            full = len(self._requests) >= MOST_QUEUED or (bool(self._requests) and queued > MOST_QUEUED_BYTES)
            if full or self._closed:
                return False
            self._requests[request] = None
            self._changed.notify()
            return True

    def remove(self, request: Request) -> bool:
        """Take a request out, unless it is being encoded already."""
        with self._changed:
            if request not in self._requests:
                return False
            del self._requests[request]
            return True

    def take(self) -> list[Request]:
        """Wait for the next batch: of the group of the oldest request; empty when the queue is closed."""
        with self._changed:
            while not self._closed:
                wait = None
                if self._requests:
                    chosen, full = self._batch()
                    wait = chosen[0].received + self._max_wait - time.monotonic()
                    if full or wait <= 0:
                        for request in chosen:
                            del self._requests[request]
                        return chosen
                self._changed.wait(wait)
        return []

    def _batch(self) -> tuple[list[Request], bool]:
        """The oldest request and those that go along with it, and whether waiting could add none."""
        oldest = next(iter(self._requests))
        chosen: list[Request] = []
        patches = 0
        for request in self._requests:
            if request.group == oldest.group:
                patches += request.content.patches
                if chosen and patches > self._max_batch:
                    return chosen, True
                chosen.append(request)
        return chosen, patches >= self._max_batch

    def close(self) -> list[Request]:
        """Refuse what comes from now on; return the requests that have not been taken."""
        with self._changed:
            self._closed = True
            left = list(self._requests)
            self._requests.clear()
            self._changed.notify_all()
            return left

    def status(self) -> dict[str, int]:
        """How much is waiting."""
        with self._changed:
            return {
                "requests": len(self._requests),
                "patches": sum(request.content.patches for request in self._requests),
            }


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


class EncoderServer:
    """Answers the connections to a socket until `stop` is called or there is nothing left to serve."""

    def __init__(
        self,
        folder: Path,
        cache: EncoderCache,
        max_batch: int = GPU_BATCH,
        max_wait: float = 0.002,
        device: str = "cpu",
        database: Path | None = None,
    ) -> None:
        """Listen at `folder/socket`; whatever socket is left there by a process that was killed is replaced.

        When the socket is gone, or the folder `database`, the server stops by itself.
        """
        self._path = folder / "socket"
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        # By a relative path: that of a data folder may be longer than a socket's may be.
        working, mask = os.open(".", os.O_RDONLY), os.umask(0o177)
        try:
            os.chdir(folder)
            self._listener.bind("socket")
        finally:
            os.fchdir(working)
            os.close(working)
            os.umask(mask)
        self._inode = self._path.stat().st_ino
        self._database = database
        self._listener.listen(MOST_CONNECTIONS)
        self._cache = cache
        self._queue = Queue(max_batch, max_wait)
        self._max_batch = max_batch
        self._device = device
        self._started = datetime.now(UTC)
        self._stopping = False
        self._waiting: dict[socket.socket, float] = {}  # connections that have asked nothing yet, and since when
        self._asked: dict[socket.socket, Request] = {}
        self._finished: deque[tuple[Request, bytes]] = deque()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._wake_up)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._counts = dict.fromkeys(
            ("requests", "batches", "patches", "failed", "cancelled", "refused", "busy", "declined"), 0
        )

    def stop(self) -> None:
        """Make `serve` return when the batch that is being encoded is done; may be called by a signal."""
        self._stopping = True
        with suppress(BlockingIOError):
            self._wake_sender.send(b"\0")

    def serve(self) -> None:
        """Answer; what is in the queue at the end is left to the sessions that asked."""
        worker = Thread(target=self._work, name="encoding", daemon=True)
        worker.start()
        try:
            checked = time.monotonic()
            while not self._stopping:
                self._dispatch(SECONDS_BETWEEN_CHECKS)
                if time.monotonic() - checked >= SECONDS_BETWEEN_CHECKS:
                    checked = time.monotonic()
                    self._check(checked)
        finally:
            if self._owns_socket():
                self._path.unlink(missing_ok=True)
            for request in self._queue.close():
                self._finished.append((request, write_reply(Kind.DECLINED)))
            # Who has connected already is told that the queue is closed, tries again and finds no socket.
            while self._dispatch(SECONDS_TO_DRAIN):
                pass
            worker.join()
            self._answer_finished()
            for connection in [self._listener, *self._waiting, *self._asked]:
                connection.close()

    def _dispatch(self, seconds: float) -> bool:
        """Handle what has come, or comes first within so many seconds; return whether anything did."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            key.data(key.fileobj)
        return bool(ready)

    # Talking

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # given up in the meantime, or no descriptor is left
            log.debug("not accepted: %s", error)
            time.sleep(0.01)
            return
        if peer_user(connection) not in (os.geteuid(), 0):
            self._counts["refused"] += 1
            log.warning("refused OS user %d", peer_user(connection))
            connection.close()
            return
        connection.setblocking(False)
        self._waiting[connection] = time.monotonic()
        self._selector.register(connection, selectors.EVENT_READ, self._receive)
        if len(self._waiting) + len(self._asked) >= MOST_CONNECTIONS:
            self._selector.unregister(listener)

    def _receive(self, connection: socket.socket) -> None:
        """Read a request; or learn that the session has given up, when it hangs up (or breaks the rules) after one."""
        try:
            packet, descriptors, flags, _ = socket.recv_fds(connection, LONGEST_PACKET, 1)
        except OSError:
            packet, descriptors, flags = b"", [], 0
        try:
            request = self._asked.get(connection)
            if request or not packet:
                if request and self._queue.remove(request):
                    self._counts["cancelled"] += 1
                self._close(connection)
            elif (answer := self._answer(connection, packet, descriptors, flags)) is not None:
                self._reply(connection, answer)
        except PgearthError as error:
            self._counts["refused"] += 1
            self._reply(connection, write_error(error))
        except Exception as error:
            log.exception("could not read a request")
            text = f"the encoder process failed: {type(error).__name__}: {error}"
            self._reply(connection, write_error(PgearthError(text, sqlstate=SYSTEM_ERROR)))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answer(self, connection: socket.socket, packet: bytes, descriptors: Sequence[int], flags: int) -> bytes | None:
        """What to reply to a packet at once, None for a request that was queued."""
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PgearthError("malformed request: too long", sqlstate=PROTOCOL_VIOLATION)
        content = read_request(packet)
        if len(descriptors) != (content is not None):
            raise PgearthError(f"malformed request: {len(descriptors)} memories", sqlstate=PROTOCOL_VIOLATION)
        if content is None:
            return write_reply(Kind.DONE, self.status())
        request = Request(connection, content, map_memory(descriptors[0], content))
        if not self._queue.put(request):
            self._counts["busy"] += 1
            return write_reply(Kind.BUSY)
        del self._waiting[connection]
        self._asked[connection] = request
        return None

    def _reply(self, connection: socket.socket, packet: bytes) -> None:
        with suppress(OSError):  # the session has given up
            connection.send(packet)
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._waiting.pop(connection, None)
        self._asked.pop(connection, None)
        self._selector.unregister(connection)
        connection.close()
        if self._listener not in self._selector.get_map():
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _wake_up(self, receiver: socket.socket) -> None:
        with suppress(BlockingIOError):
            receiver.recv(LONGEST_PACKET)
        self._answer_finished()

    def _answer_finished(self) -> None:
        while self._finished:
            request, packet = self._finished.popleft()
            if request.connection in self._asked:
                self._reply(request.connection, packet)
            else:
                self._counts["cancelled"] += 1

    def _check(self, now: float) -> None:
        """Hang up on those who ask nothing; stop when the cluster or the database was removed."""
        for connection in [connection for connection, since in self._waiting.items() if now - since > SECONDS_TO_ASK]:
            self._counts["refused"] += 1
            self._close(connection)
        if not self._owns_socket() or (self._database and not self._database.exists()):
            log.info("the socket or the database is gone")
            self._stopping = True

    def _owns_socket(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        """Health, as eo.runtime() shows it."""
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return {
            "pid": os.getpid(),
            "package": pyfuncs.__version__,
            "device": self._device,
            "started": self._started.isoformat(timespec="seconds"),
            "memory": resident,
            "queue": self._queue.status(),
            "counts": self._counts,
            **self._cache.status(),
        }

    # Computing

    def _work(self) -> None:
        try:
            while requests := self._queue.take():
                try:
                    self._encode(requests)
                    reply = write_reply(Kind.DONE)
                    self._counts["requests"] += len(requests)
                    self._counts["patches"] += sum(request.content.patches for request in requests)
                except UnknownEncoderError:
                    self._counts["declined"] += len(requests)
                    reply = write_reply(Kind.DECLINED)
                except PgearthError as error:
                    self._counts["failed"] += len(requests)
                    reply = write_error(error)
                except Exception as error:
                    self._counts["failed"] += len(requests)
                    log.exception("could not encode")
                    text = f"the encoder process failed: {type(error).__name__}: {error}"
                    reply = write_error(PgearthError(text, sqlstate=SYSTEM_ERROR, hint="Its log says more."))
                self._finished.extend((request, reply) for request in requests)
                requests.clear()  # what they map is not held until the next come
                with suppress(BlockingIOError):  # enough wake-ups are under way
                    self._wake_sender.send(b"\0")
        except BaseException:
            log.exception("encoding ended")
            self.stop()
            raise

    def _encode(self, requests: Sequence[Request]) -> None:
        """Encode requests of one group and put the vectors into their memories."""
        shared = requests[0].content
        encoder = self._cache.get(shared.encoder_id)
        if (len(encoder.bands), encoder.dimension) != (len(shared.bands), shared.dimension):
            raise PgearthError(
                f"malformed request: {len(shared.bands)} bands and {shared.dimension} dimensions for encoder"
                f" {encoder.name}:{encoder.version} with {len(encoder.bands)} and {encoder.dimension}",
                sqlstate=PROTOCOL_VIOLATION,
            )
        *pixels, answers = zip(*(request.content.arrays(request.memory) for request in requests), strict=True)
        # What nothing is to be joined to is computed on where it lies.
        joined = [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in pixels]
        batch = dict(zip(encoder.bands, joined, strict=True))
        count = sum(request.content.patches for request in requests)
        vectors = np.concatenate(
            [
                encode_batch(encoder, {band: array[start : start + self._max_batch] for band, array in batch.items()})
                for start in range(0, count, self._max_batch)
            ]
        )
        self._counts["batches"] += -(-count // self._max_batch)
        if vectors.shape != (count, shared.dimension):
            raise ValueError(f"vectors of shape {vectors.shape} for {count} patches")
        start = 0
        for answer in answers:
            answer[:] = vectors[start : start + len(answer)]
            start += len(answer)


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
                size = cursor.execute(db.ENCODER_SIZE_QUERY, (encoder_id,)).fetchone()
                if size is None:
                    raise UnknownEncoderError
                make_room(size["octet_length"])
                return db.encoder_from_row(cursor.execute(db.ENCODER_QUERY + "%s", (encoder_id,)).fetchone())
        except psycopg.Error as error:
            raise PgearthError(
                f"the encoder process cannot read encoder {encoder_id} from the database: {error}",
                sqlstate=SYSTEM_ERROR,
                hint="It connects as pgearth encoder start did; stop and start it where that has changed.",
            ) from error

    def check_version(self) -> None:
        """Raise PgearthError unless the schema is of this package's version."""
        with self._connect() as connection:
            row = connection.execute(db.SCHEMA_VERSION_QUERY).fetchone()
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
        raise PgearthError(f"The encoder process is running already: process {os.read(lock, 20).decode()}.")
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def main() -> None:
    """Run the process until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="pyfuncs.encoder_server", description=main.__doc__)
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
        import torch

        device, batch = f"cpu, {torch.get_num_threads()} threads", CPU_BATCH
        if torch.cuda.is_available():
            device, batch = torch.cuda.get_device_name(), GPU_BATCH
        cache = EncoderCache(reader.load, given.memory_limit * MEGABYTE)
        # PostgreSQL's own folder of the database, unless that is in another tablespace.
        database = given.folder.parents[2] / "base" / given.folder.parent.name
        server = EncoderServer(
            given.folder,
            cache,
            given.max_batch or batch,
            given.max_wait / 1000,
            device,
            database if database.exists() else None,
        )
    except PgearthError as error:
        sys.exit(f"{error}\nHint: {error.hint}" if error.hint else str(error))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    log.info("serving on %s: pid %d, %s", given.folder, os.getpid(), device)
    server.serve()
    log.info("stopped")


if __name__ == "__main__":
    main()
