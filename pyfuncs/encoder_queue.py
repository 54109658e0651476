"""Requests that wait for the encoder process, and how they share batches."""

from __future__ import annotations

import mmap
import socket
import time
from dataclasses import dataclass, field
from threading import Condition

from pyfuncs.encoder_protocol import EncodeRequest

MOST_QUEUED = 256
MOST_QUEUED_BYTES = 1 << 30


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
