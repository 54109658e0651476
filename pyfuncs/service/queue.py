"""Requests that wait for the encoder process, and how they share batches."""

from __future__ import annotations

import mmap
import socket
import time
from dataclasses import dataclass
from threading import Condition

from pgearth.pyfuncs.service.protocol import EncodeRequest

MOST_QUEUED = 256
MOST_QUEUED_BYTES = 1 << 30


@dataclass(eq=False)
class Request:
    """An encode request with its memory, of a connection that waits for the vectors."""

    connection: socket.socket
    content: EncodeRequest
    memory: mmap.mmap

    @property
    def group(self) -> tuple[object, ...]:
        """What requests must have in common to be encoded in one batch."""
        return self.content.encoder_id, self.content.dimension, self.content.bands


class Queue:
    """Requests in the order in which they came, which are taken by batches.

    Sessions that ask again and again would fall into groups, one in the queue while another is being encoded, and
    batches stay small. So a batch waits until there are as many requests as there were at a time of late; a session
    that is alone waits for nobody.
    """

    def __init__(self, max_batch: int, max_wait: float) -> None:
        """A batch is of `max_batch` patches; it waits for the next request `max_wait` seconds at most."""
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._taken = 0  # requests that are being encoded
        self._at_a_time = 0  # most requests, queued and being encoded, since the last batch was taken
        self._changed_last = 0.0  # when the last request came, or the last batch was done
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
            self._at_a_time = max(self._at_a_time, len(self._requests) + self._taken)
            self._changed_last = time.monotonic()
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
        """Wait for the next batch, the last being done: of the group of the oldest request; none when it is closed."""
        with self._changed:
            self._taken, self._changed_last = 0, time.monotonic()
            while not self._closed:
                wait = None
                if self._requests:
                    chosen, full = self._batch()
                    wait = self._changed_last + self._max_wait - time.monotonic()
                    if full or len(self._requests) >= self._at_a_time or wait <= 0:
                        self._taken, self._at_a_time = len(chosen), len(self._requests)
                        for request in chosen:
                            del self._requests[request]
                        return chosen
                self._changed.wait(wait)
        return []

    def done(self) -> None:
        """Tell that the batch is done, before those whose requests it was are told: they may ask again at once."""
        with self._changed:
            self._taken = 0

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
