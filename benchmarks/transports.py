"""Ways to bring a batch of pixels to the encoder process and its vectors back, on one machine.

Nothing is computed: the process at the other end has the pixels as an array, and answers with vectors of zeros. Ours is
the product's own client and server: memory passed over a Unix socket. Its peers are the plain socket, Python's
multiprocessing.connection and, of serving libraries, Arrow Flight (gRPC) over a Unix socket.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import flight

from benchmarks.harness import arguments, measure, milliseconds, ratio, report, table
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.service import client as encoder_client
from pgearth.pyfuncs.service import worker as encoder_worker
from pgearth.pyfuncs.service.cache import EncoderCache
from pgearth.pyfuncs.service.server import EncoderServer

BANDS = tuple(f"band {number}" for number in range(10))
SIDE = 120
DIMENSION = 512
PATCHES = (1, 64)
START_SECONDS = 30
ENCODER = Encoder(1, "benchmark", 1, "benchmark", BANDS, None, DIMENSION, None, {})
Batch = dict[str, NDArray[np.uint16]]


def vectors(count: int) -> NDArray[np.float32]:
    return np.zeros((count, DIMENSION), np.float32)


# Ours


def serve_memory(folder: Path, ready: Any) -> None:
    encoder_worker.encode_batch = lambda _, batch: vectors(len(batch[BANDS[0]]))
    server = EncoderServer(folder, EncoderCache(lambda *_: ENCODER, 1), max_wait=0)
    ready.set()
    server.serve()


@contextmanager
def memory(folder: Path) -> Iterator[Callable[[Batch], Any]]:
    yield lambda batch: encoder_client.encode_batch(folder / "socket", ENCODER, batch, lambda: None)


# A plain socket


def receive(connection: socket.socket, array: NDArray[Any]) -> None:
    content = array.reshape(-1).data.cast("B")
    while content:
        content = content[connection.recv_into(content) :]


def serve_socket(folder: Path, ready: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        ready.set()
        connection, _ = listener.accept()
        count = np.empty(1, np.int64)
        while True:
            receive(connection, count)
            receive(connection, np.empty((count[0], len(BANDS), SIDE, SIDE), np.uint16))
            connection.sendall(vectors(count[0]).data.cast("B"))


@contextmanager
def plain_socket(folder: Path) -> Iterator[Callable[[Batch], Any]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / "socket"))

        def encode(batch: Batch) -> NDArray[np.float32]:
            count = len(batch[BANDS[0]])
            connection.sendall(np.array([count]).data.cast("B"))
            for band in BANDS:
                connection.sendall(batch[band].data.cast("B"))
            answer = vectors(count)
            receive(connection, answer)
            return answer

        yield encode


# multiprocessing.connection


def serve_multiprocessing(folder: Path, ready: Any) -> None:
    with Listener(str(folder / "socket"), "AF_UNIX") as listener:
        ready.set()
        connection = listener.accept()
        while True:
            pixels = np.frombuffer(connection.recv_bytes(), np.uint16).reshape(-1, len(BANDS), SIDE, SIDE)
            connection.send_bytes(vectors(len(pixels)).data.cast("B"))


@contextmanager
def multiprocessing(folder: Path) -> Iterator[Callable[[Batch], Any]]:
    with Client(str(folder / "socket"), "AF_UNIX") as connection:

        def encode(batch: Batch) -> NDArray[np.float32]:
            connection.send_bytes(np.concatenate([batch[band] for band in BANDS]).data.cast("B"))
            return np.frombuffer(connection.recv_bytes(), np.float32).reshape(-1, DIMENSION)

        yield encode


# Arrow Flight


def columns(arrays: Batch | dict[str, NDArray[np.float32]]) -> pyarrow.RecordBatch:
    return pyarrow.record_batch({name: pyarrow.array(array.reshape(-1)) for name, array in arrays.items()})


PIXELS = pyarrow.schema([(band, pyarrow.uint16()) for band in BANDS])
VECTORS = pyarrow.schema([("vectors", pyarrow.float32())])


class FlightServer(flight.FlightServerBase):  # type: ignore[misc]
    """Answers each batch of an exchange."""

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Read pixels, write vectors, until the client has enough."""
        del context, descriptor
        writer.begin(VECTORS)
        for chunk in reader:
            pixels = [column.to_numpy().reshape(-1, SIDE, SIDE) for column in chunk.data.columns]
            writer.write_batch(columns({"vectors": vectors(len(pixels[0]))}))


def serve_flight(folder: Path, ready: Any) -> None:
    server = FlightServer(f"grpc+unix://{folder / 'socket'}")
    ready.set()
    server.serve()


@contextmanager
def arrow_flight(folder: Path) -> Iterator[Callable[[Batch], Any]]:
    with flight.connect(f"grpc+unix://{folder / 'socket'}") as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"encode"))
        writer.begin(PIXELS)

        def encode(batch: Batch) -> NDArray[np.float32]:
            writer.write_batch(columns(batch))
            return reader.read_chunk().data.column(0).to_numpy().reshape(-1, DIMENSION)

        yield encode
        writer.close()


WAYS = {
    "memory passed over a socket (ours)": (serve_memory, memory),
    "plain Unix socket": (serve_socket, plain_socket),
    "multiprocessing.connection": (serve_multiprocessing, multiprocessing),
    f"Arrow Flight {version('pyarrow')}": (serve_flight, arrow_flight),
}


def main() -> None:
    """Start a process for each way and send batches by all in turn."""
    run = arguments(__doc__ or "", queries=200)
    numbers = np.random.default_rng(0)
    context = get_context("spawn")
    rows = []
    with ExitStack() as stack:
        methods: dict[str, Callable[[Batch], Any]] = {}
        for name, (serve, connect) in WAYS.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgearth-")))
            ready = context.Event()
            process = context.Process(target=serve, args=(folder, ready), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            assert ready.wait(START_SECONDS), name
            methods[name] = stack.enter_context(connect(folder))
        for count in PATCHES:
            batch = {band: numbers.integers(0, 9999, (count, SIDE, SIDE)).astype(np.uint16) for band in BANDS}
            size = f"{sum(array.nbytes for array in batch.values()) / 1e6:.1f} MB"
            measured = measure(methods, [batch] * run.queries, keep=np.shape)
            ours = next(iter(measured.values()))
            for name, times in measured.items():
                assert set(times.answers) == {(count, DIMENSION)}, name
                median, slow = milliseconds(times.p50), milliseconds(times.p95)
                rows.append([f"{count} ({size})", name, median, slow, ratio(times.p50, ours.p50)])
    header = ["patches", "transport", "p50 (ms)", "p95 (ms)", "to ours"]
    text = (
        f"{len(BANDS)} bands of {SIDE} x {SIDE} pixels of 16 bits there, vectors of {DIMENSION} float32 back, from and"
        f" to arrays; {run.queries} batches each, the ways in turn. Ours makes a connection and a memory for each"
        " request, checks both, and goes through the queue; the others keep one connection and check nothing."
    )
    report("Transports to the encoder process", [text, table(header, rows)], run)


if __name__ == "__main__":
    main()
