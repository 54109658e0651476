"""What computes, without any socket: requests of a queue in, vectors in their memories and packets that answer out."""

from __future__ import annotations

import mmap
import socket
from collections.abc import Sequence

import numpy as np
import pytest

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.encoder import encode_batch
from pgearth.pyfuncs.models.spectral import BANDS, DIMENSION
from pgearth.pyfuncs.service.cache import EncoderCache
from pgearth.pyfuncs.service.protocol import EncodeRequest, Kind, read_reply
from pgearth.pyfuncs.service.queue import Queue, Request
from pgearth.pyfuncs.service.worker import Worker
from tests.unit.service.serving import U2, Archive, pixels, spectral


class Work:
    """A worker that does all that was asked, and what it said to whom."""

    def __init__(self, archive: Archive, *requests: Request, max_batch: int = 64) -> None:
        self.answers: dict[Request, bytes] = {}
        self.ended = False
        self.queue = Queue(max_batch, 0)
        self.worker = Worker(self.queue, EncoderCache(archive.load, 1 << 30), max_batch, self.finish, self.end)
        for each in requests:
            assert self.queue.put(each)
        self.left = len(requests)
        self.worker.run()

    def finish(self, requests: Sequence[Request], packet: bytes) -> None:
        self.answers |= dict.fromkeys(requests, packet)
        if len(self.answers) == self.left:
            self.queue.close()

    def end(self) -> None:
        self.ended = True


def request(encoder_id: int, patches: int, seed: int = 0, dimension: int = DIMENSION) -> Request:
    content = EncodeRequest(encoder_id, patches, dimension, ((U2, 6, 6),) * len(BANDS))
    memory = mmap.mmap(-1, content.memory_bytes)
    for array, band in zip(content.arrays(memory), pixels(patches, seed=seed).values(), strict=False):
        array[:] = band
    return Request(socket.socket(), content, memory)


def test_vectors_lie_in_the_memory_of_who_asked(archive: Archive) -> None:
    requests = [request(1, 2, seed=1), request(1, 3, seed=2)]
    work = Work(archive, *requests, max_batch=5)
    for seed, each in enumerate(requests, start=1):
        assert read_reply(work.answers[each]) == (Kind.DONE, {})
        expected = encode_batch(spectral(1), pixels(each.content.patches, seed=seed))
        np.testing.assert_array_equal(each.content.arrays(each.memory)[-1], expected)
    assert work.worker.counts == {"requests": 2, "batches": 1, "patches": 5, "failed": 0, "declined": 0}
    assert not work.ended


def test_what_fails_is_answered_and_the_next_is_encoded(archive: Archive) -> None:
    unknown, misshapen, burning, good = request(100, 1), request(1, 1, dimension=7), request(99, 1), request(1, 1)
    work = Work(archive, unknown, misshapen, burning, good)
    assert read_reply(work.answers[unknown])[0] == Kind.DECLINED
    for each, message in ((misshapen, "malformed request"), (burning, "the disk is on fire")):
        with pytest.raises(PgearthError, match=message):
            read_reply(work.answers[each])
    assert read_reply(work.answers[good])[0] == Kind.DONE
    assert (work.worker.counts["failed"], work.worker.counts["declined"]) == (2, 1)
    assert not work.ended


def test_a_device_that_fails_ends_it(archive: Archive) -> None:
    first, second = request(98, 1), request(1, 1)
    work = Work(archive, first, second)
    with pytest.raises(PgearthError, match="the GPU is lost"):
        read_reply(work.answers[first])
    assert second not in work.answers
    assert work.ended and work.worker.device_failed
