"""Which requests the encoder process takes together."""

from __future__ import annotations

import mmap
import socket
from concurrent.futures import ThreadPoolExecutor

from pgearth.pyfuncs.service.protocol import EncodeRequest
from pgearth.pyfuncs.service.queue import Queue, Request
from tests.unit.service.serving import U2
from tests.waiting import PATIENCE


def request(encoder_id: int = 1, patches: int = 1) -> Request:
    return Request(socket.socket(), EncodeRequest(encoder_id, patches, 4, ((U2, 6, 6),)), mmap.mmap(-1, 1))


def test_the_oldest_request_decides_what_is_taken_next() -> None:
    queue = Queue(max_batch=4, max_wait=0)
    requests = [request(1, 3), request(2), request(1, 2), request(1), request(2, 9), request(2)]
    assert all(queue.put(each) for each in requests)
    taken = [queue.take() for _ in range(4)]
    assert taken == [[requests[0]], [requests[1]], requests[2:4], [requests[4]]], "no request is overtaken by its like"
    assert queue.close() == [requests[5]]
    assert queue.take() == []
    assert not queue.put(request())


def test_a_batch_waits_for_as_many_as_there_were() -> None:
    queue = Queue(max_batch=16, max_wait=10 * PATIENCE)

    def take(asking_again: int, max_wait: float = 10 * PATIENCE) -> int:
        queue._max_wait = max_wait
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(queue.take)
            put(asking_again)
            return len(taken.result(PATIENCE))

    def put(count: int) -> None:
        assert all(queue.put(request()) for _ in range(count))

    assert take(asking_again=1) == 1, "nobody else was there"
    put(2)  # while the first is being encoded
    assert take(asking_again=1) == 3, "so many were there at a time"
    assert take(asking_again=2, max_wait=0.1) == 2, "the third has not come"
    assert take(asking_again=2) == 2, "and is not expected any more"


def test_a_session_that_asks_again_at_once_is_alone_still() -> None:
    """Its answer is on the way before the next batch is looked for; it must not be counted with what was answered."""
    queue = Queue(max_batch=16, max_wait=10 * PATIENCE)
    for _ in range(3):
        assert queue.put(request())
        with ThreadPoolExecutor(1) as pool:
            assert len(pool.submit(queue.take).result(PATIENCE)) == 1
        queue.done()
