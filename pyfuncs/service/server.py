"""What the encoder process says to sessions: it listens, queues what they ask, and answers when the worker is done."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

from pgearth import pyfuncs
from pgearth.pyfuncs.errors import PROTOCOL_VIOLATION, SYSTEM_ERROR, PgearthError
from pgearth.pyfuncs.service.cache import EncoderCache
from pgearth.pyfuncs.service.protocol import (
    LOG_SAYS_MORE,
    LONGEST_PACKET,
    START_ANEW,
    Kind,
    map_memory,
    peer_user,
    read_request,
    write_error,
    write_reply,
)
from pgearth.pyfuncs.service.queue import Queue, Request
from pgearth.pyfuncs.service.worker import GPU_BATCH, Worker

MOST_CONNECTIONS = 400
"""Each takes two descriptors of the 1,024 that a process commonly may have; what is more waits to be accepted."""
SECONDS_TO_ASK = 5.0
SECONDS_BETWEEN_CHECKS = 1.0
SECONDS_TO_DRAIN = 0.05
SECONDS_WITHOUT_POSTGRES = 60.0
"""Longer than PostgreSQL takes to restart."""

log = logging.getLogger(__name__)


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
        postmaster: Path | None = None,
    ) -> None:
        """Listen at `folder/socket`; whatever socket is left there by a process that was killed is replaced.

        The server stops by itself when the socket is gone, or the folder `database`, or has been for a while the file
        `postmaster`, which a running PostgreSQL keeps.
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
        self._postmaster = postmaster
        self._postmaster_seen = time.monotonic()
        self._listener.listen(MOST_CONNECTIONS)
        self._cache = cache
        self._queue = Queue(max_batch, max_wait)
        self._worker = Worker(self._queue, cache, max_batch, self._finish, self.stop)
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
        self._counts = dict.fromkeys(("cancelled", "refused", "busy"), 0)

    @property
    def device_failed(self) -> bool:
        """Whether the GPU failed, which ends `serve`: sessions do better without it."""
        return self._worker.device_failed

    def stop(self) -> None:
        """Make `serve` return when the batch that is being encoded is done; may be called by a signal."""
        self._stopping = True
        self._wake()

    def serve(self) -> None:
        """Answer; what is in the queue at the end is left to the sessions that asked."""
        worker = Thread(target=self._worker.run, name="encoding", daemon=True)
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
            text = f"the encoder process failed: {error}"
            self._reply(connection, write_error(PgearthError(text, LOG_SAYS_MORE, sqlstate=SYSTEM_ERROR)))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answer(self, connection: socket.socket, packet: bytes, descriptors: Sequence[int], flags: int) -> bytes | None:
        """What to reply to a packet at once, None for a request that was queued."""
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PgearthError("malformed request: too long", START_ANEW, sqlstate=PROTOCOL_VIOLATION)
        content = read_request(packet)
        if len(descriptors) != (content is not None):
            raise PgearthError(
                f"malformed request: {len(descriptors)} memories", START_ANEW, sqlstate=PROTOCOL_VIOLATION
            )
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

    def _finish(self, requests: Sequence[Request], packet: bytes) -> None:
        """Take the worker's answer to requests, in its thread, and have them answered in ours."""
        self._finished.extend((request, packet) for request in requests)
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # enough wake-ups are under way
            self._wake_sender.send(b"\0")

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
        """Hang up on those who ask nothing; stop when the cluster or the database was removed, or PostgreSQL ended."""
        for connection in [connection for connection, since in self._waiting.items() if now - since > SECONDS_TO_ASK]:
            self._counts["refused"] += 1
            self._close(connection)
        if not self._owns_socket() or (self._database and not self._database.exists()):
            log.info("the socket or the database is gone")
            self._stopping = True
        if self._postmaster is None or self._postmaster.exists():
            self._postmaster_seen = now
        elif now - self._postmaster_seen > SECONDS_WITHOUT_POSTGRES:
            log.info("PostgreSQL has been stopped")
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
            "counts": {**self._worker.counts, **self._counts},
            **self._cache.status(),
        }
