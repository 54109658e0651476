"""What the encoder process computes: it encodes requests of several sessions together, into their memories."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from pgearth.pyfuncs.errors import PROTOCOL_VIOLATION, SYSTEM_ERROR, DeviceFailedError, PgearthError
from pgearth.pyfuncs.models.encoder import encode_batch
from pgearth.pyfuncs.service.cache import EncoderCache, UnknownEncoderError
from pgearth.pyfuncs.service.protocol import LOG_SAYS_MORE, START_ANEW, Kind, write_error, write_reply
from pgearth.pyfuncs.service.queue import Queue, Request

GPU_BATCH = 64

log = logging.getLogger(__name__)


class Worker:
    """Encodes the requests of a queue, at most `max_batch` patches at once.

    It calls `finish` with the requests of a batch and the packet that answers them, and `end` where it cannot go on.
    """

    def __init__(
        self,
        queue: Queue,
        cache: EncoderCache,
        max_batch: int,
        finish: Callable[[Sequence[Request], bytes], None],
        end: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._max_batch = max_batch
        self._finish = finish
        self._end = end
        self.device_failed = False
        self.counts = dict.fromkeys(("requests", "batches", "patches", "failed", "declined"), 0)

    def run(self) -> None:
        """Encode until the queue is closed or the device fails."""
        try:
            while requests := self._queue.take():
                try:
                    self._encode(requests)
                    reply = write_reply(Kind.DONE)
                    self.counts["requests"] += len(requests)
                    self.counts["patches"] += sum(request.content.patches for request in requests)
                except UnknownEncoderError:
                    self.counts["declined"] += len(requests)
                    reply = write_reply(Kind.DECLINED)
                except PgearthError as error:
                    self.counts["failed"] += len(requests)
                    reply = write_error(error)
                    if isinstance(error, DeviceFailedError):
                        log.exception("could not encode, and never will: start the process again")
                        self.device_failed = True
                except Exception as error:
                    self.counts["failed"] += len(requests)
                    log.exception("could not encode")
                    text = f"the encoder process failed: {error}"
                    reply = write_error(PgearthError(text, LOG_SAYS_MORE, sqlstate=SYSTEM_ERROR))
                self._queue.done()
                self._finish(requests, reply)
                requests.clear()  # what they map is not held until the next come
                if self.device_failed:
                    self._end()
                    return
        except BaseException:
            log.exception("encoding ended")
            self._end()
            raise

    def _encode(self, requests: Sequence[Request]) -> None:
        """Encode requests of one group and put the vectors into their memories."""
        shared = requests[0].content
        encoder = self._cache.get(shared.encoder_id)
        if (len(encoder.bands), encoder.dimension) != (len(shared.bands), shared.dimension):
            raise PgearthError(
                f"malformed request: {len(shared.bands)} bands and {shared.dimension} dimensions for encoder"
                f" {encoder.name}:{encoder.version} with {len(encoder.bands)} and {encoder.dimension}",
                START_ANEW,
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
        self.counts["batches"] += -(-count // self._max_batch)
        if vectors.shape != (count, shared.dimension):
            raise ValueError(f"vectors of shape {vectors.shape} for {count} patches")
        start = 0
        for answer in answers:
            answer[:] = vectors[start : start + len(answer)]
            start += len(answer)
