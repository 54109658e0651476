"""The encoder process, run in a thread, against honest clients, against hostile ones, and under load."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pgearth import pyfuncs
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.encoder import Encoder, encode_batch
from pgearth.pyfuncs.models.spectral import BANDS, DIMENSION
from pgearth.pyfuncs.service import client
from pgearth.pyfuncs.service import queue as encoder_queue
from pgearth.pyfuncs.service import server as encoder_server
from pgearth.pyfuncs.service.client import NotServedError
from pgearth.pyfuncs.service.protocol import (
    LONGEST_PACKET,
    EncodeRequest,
    Kind,
    SharedMemory,
    read_reply,
    write_request,
)
from tests.unit.service.serving import SMALL, U2, Archive, ask, hung_up, no_pause, pixels, serving, spectral, status
from tests.waiting import PATIENCE, wait_for

# The server and honest clients


def test_vectors_are_those_computed_here(path: Path) -> None:
    for count, side in ((1, 6), (3, 6), (64, 12)):
        batch = pixels(count, side)
        expected = encode_batch(spectral(1), batch)
        np.testing.assert_array_equal(client.encode_batch(path, spectral(1), batch, no_pause), expected)
    swapped = {band: array.astype(">u2") for band, array in batch.items()}
    np.testing.assert_array_equal(client.encode_batch(path, spectral(1), swapped, no_pause), expected)


def test_what_does_not_fit_into_one_request_goes_in_several(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pixels(10)
    monkeypatch.setattr(client, "LARGEST_MEMORY", 5 * EncodeRequest(1, 1, DIMENSION, ((U2, 6, 6),) * 12).memory_bytes)
    vectors = client.encode_batch(path, spectral(1), batch, no_pause)
    np.testing.assert_array_equal(vectors, encode_batch(spectral(1), batch))
    assert status(path)["counts"]["requests"] == 2
    monkeypatch.setattr(client, "LARGEST_MEMORY", 100)
    with pytest.raises(NotServedError):
        client.encode_batch(path, spectral(1), batch, no_pause)
    with pytest.raises(NotServedError):
        complex_pixels = {band: array.astype(complex) for band, array in batch.items()}
        client.encode_batch(path, spectral(1), complex_pixels, no_pause)


def test_without_a_process_there_is_no_service(tmp_path: Path) -> None:
    with pytest.raises(NotServedError):
        status(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        left.bind(str(tmp_path / "socket"))
    with pytest.raises(NotServedError):
        status(tmp_path / "socket")


def test_an_encoder_that_only_the_session_sees_is_declined(path: Path) -> None:
    with pytest.raises(NotServedError):
        client.encode_batch(path, spectral(100), pixels(1), no_pause)
    assert status(path)["counts"]["declined"] == 1


def test_failures_are_reported_and_survived(path: Path) -> None:
    with pytest.raises(PgearthError, match="the encoder process failed: the disk is on fire") as caught:
        client.encode_batch(path, spectral(99), pixels(1), no_pause)
    assert caught.value.sqlstate == "58000"
    others = Encoder(1, "spectral", 1, "spectral", BANDS, None, 7, None, {})
    with pytest.raises(PgearthError, match="12 bands and 7 dimensions for encoder spectral:1"):
        client.encode_batch(path, others, pixels(1), no_pause)
    assert client.encode_batch(path, spectral(1), pixels(1), no_pause).shape == (1, DIMENSION)
    assert status(path)["counts"]["failed"] == 2


def test_sessions_share_batches(archive: Archive) -> None:
    """While one request is being encoded others gather; those of the same shapes then go together."""
    with serving(archive, max_batch=4) as server, ThreadPoolExecutor(16) as pool:
        archive.unlocked.clear()
        first = pool.submit(client.encode_batch, server._path, spectral(1), pixels(1), no_pause)
        wait_for(lambda: archive.asked[-1:] == [1])
        batches = [pixels(1, 6, seed) for seed in range(6)] + [pixels(2, 12)]
        later = [pool.submit(client.encode_batch, server._path, spectral(1), b, no_pause) for b in batches]
        wait_for(lambda: status(server._path)["queue"] == {"requests": 7, "patches": 8})
        archive.unlocked.set()
        assert first.result(PATIENCE).shape == (1, DIMENSION)
        for batch, vectors in zip(batches, later, strict=True):
            np.testing.assert_array_equal(vectors.result(PATIENCE), encode_batch(spectral(1), batch))
        counts = status(server._path)["counts"]
        assert (counts["requests"], counts["patches"]) == (8, 9)
        assert counts["batches"] == 4, "the first, four and two of the same shapes, and the others"


def test_sessions_that_ask_again_share_batches(archive: Archive) -> None:
    """Four of them, however they fall in at first: a batch waits for the last of them, however long it takes."""

    def ask(path: Path, encoder_id: int) -> None:
        client.encode_batch(path, spectral(encoder_id), pixels(1), no_pause)

    with serving(archive, max_batch=4, max_wait=10 * PATIENCE) as server, ThreadPoolExecutor(4) as pool:
        ask(server._path, 1)  # a session that is alone does not wait
        archive.unlocked.clear()
        asked = [pool.submit(lambda: [ask(server._path, 2) for _ in range(11)])]
        wait_for(lambda: archive.asked[-1:] == [2])
        asked += [pool.submit(lambda: [ask(server._path, 2) for _ in range(10)]) for _ in range(3)]
        wait_for(lambda: status(server._path)["queue"]["requests"] == 3)
        archive.unlocked.set()
        for each in asked:
            each.result(PATIENCE)
        counts = status(server._path)["counts"]
        assert (counts["patches"], counts["batches"]) == (42, 1 + 1 + 10), "alone; who came first; then four at a time"


def test_a_request_larger_than_a_batch_is_cut(archive: Archive) -> None:
    with serving(archive, max_batch=3) as server:
        batch = pixels(10)
        vectors = client.encode_batch(server._path, spectral(1), batch, no_pause)
        np.testing.assert_array_equal(vectors, encode_batch(spectral(1), batch))
        assert status(server._path)["counts"]["batches"] == 4


def test_a_session_that_gives_up_is_taken_out_of_the_queue(archive: Archive, path: Path) -> None:
    class GivenUpError(Exception):
        pass

    def pause() -> None:
        raise GivenUpError

    archive.unlocked.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.encode_batch, path, spectral(1), pixels(1), no_pause)
        wait_for(lambda: archive.asked == [1])
        with pytest.raises(GivenUpError):
            client.encode_batch(path, spectral(2), pixels(1), pause)
        wait_for(lambda: status(path)["counts"]["cancelled"] == 1)
        assert status(path)["queue"] == {"requests": 0, "patches": 0}
        archive.unlocked.set()
        first.result(PATIENCE)
    assert archive.read == [1], "what was given up is not even begun"


def test_a_full_queue_makes_sessions_wait_and_then_says_busy(
    archive: Archive, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_queue, "MOST_QUEUED", 2)
    archive.unlocked.clear()
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(client.encode_batch, path, spectral(1), pixels(1, seed=n), no_pause) for n in range(5)]
        wait_for(lambda: archive.asked == [1])  # one is being encoded, two are queued, two are sent away
        wait_for(lambda: status(path)["counts"]["busy"] >= 2 and status(path)["queue"]["requests"] == 2)
        with monkeypatch.context() as patched, pytest.raises(PgearthError, match="busy") as caught:
            patched.setattr(client, "REQUEST_SECONDS", 0.1)
            patched.setattr(client, "SECONDS_BETWEEN_PAUSES", PATIENCE)  # it answers, though late it may be
            client.encode_batch(path, spectral(1), pixels(1), no_pause)
        assert caught.value.sqlstate == "53000"
        archive.unlocked.set()
        for seed, vectors in enumerate(running):
            np.testing.assert_array_equal(vectors.result(PATIENCE), encode_batch(spectral(1), pixels(1, seed=seed)))


def test_a_process_that_hangs_is_given_up(archive: Archive, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REQUEST_SECONDS", 0.1)
    archive.unlocked.clear()
    with pytest.raises(PgearthError, match="did not answer in time") as caught:
        client.encode_batch(path, spectral(1), pixels(1), no_pause)
    assert caught.value.sqlstate == "58000"


def test_what_is_queued_when_the_process_stops_is_left_to_the_sessions(archive: Archive) -> None:
    with serving(archive) as server, ThreadPoolExecutor(4) as pool:
        archive.unlocked.clear()
        first = pool.submit(client.encode_batch, server._path, spectral(1), pixels(1), no_pause)
        wait_for(lambda: archive.asked == [1])
        queued = pool.submit(client.encode_batch, server._path, spectral(1), pixels(1), no_pause)
        wait_for(lambda: status(server._path)["queue"]["requests"] == 1)
        server.stop()
        wait_for(lambda: not server._path.exists())
        archive.unlocked.set()
        assert first.result(PATIENCE).shape == (1, DIMENSION)
        with pytest.raises(NotServedError):
            queued.result(PATIENCE)


def test_without_its_gpu_the_process_ends_and_leaves_the_work_to_the_sessions(archive: Archive) -> None:
    with serving(archive) as server, ThreadPoolExecutor(4) as pool:
        archive.unlocked.clear()
        first = pool.submit(client.encode_batch, server._path, spectral(98), pixels(1), no_pause)
        wait_for(lambda: server._asked and status(server._path)["queue"]["requests"] == 0)
        queued = pool.submit(client.encode_batch, server._path, spectral(1), pixels(1), no_pause)
        wait_for(lambda: status(server._path)["queue"]["requests"] == 1)
        archive.unlocked.set()
        with pytest.raises(PgearthError, match="the GPU is lost") as caught:
            first.result(10)
        assert caught.value.sqlstate == "58000"
        with pytest.raises(NotServedError):
            queued.result(10)
        wait_for(lambda: not server._path.exists())
        assert server.device_failed
        with pytest.raises(NotServedError):
            client.encode_batch(server._path, spectral(1), pixels(1), no_pause)


def test_nobody_sees_an_error_when_the_process_stops(archive: Archive) -> None:
    """Sessions that are just connecting, waiting or being answered."""

    def encode_until_it_ends(path: Path) -> int:
        for count in range(100_000):
            try:
                client.encode_batch(path, spectral(1), pixels(1), no_pause)
            except NotServedError:
                return count
        raise AssertionError

    with serving(archive) as server, ThreadPoolExecutor(8) as pool:
        working = [pool.submit(encode_until_it_ends, server._path) for _ in range(8)]
        wait_for(lambda: status(server._path)["counts"]["requests"] > 20)
        server.stop()
        assert sum(each.result(PATIENCE) for each in working) > 20


@pytest.mark.parametrize("gone", ["socket", "database"])
def test_the_process_ends_with_what_it_serves(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr(encoder_server, "SECONDS_BETWEEN_CHECKS", 0.01)
    database = tmp_path / "1"
    database.mkdir()
    with serving(archive, database=database) as server:
        time.sleep(0.1)
        assert not server._stopping
        if gone == "socket":
            server._path.unlink()
        else:
            database.rmdir()
        wait_for(lambda: server._stopping)


def test_the_process_outlives_a_restart_of_postgresql_but_not_its_end(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At times that the test makes up; the server itself does not come to look."""
    monkeypatch.setattr(encoder_server, "SECONDS_BETWEEN_CHECKS", 10 * PATIENCE)
    postmaster = tmp_path / "postmaster.pid"
    with serving(archive, postmaster=postmaster) as server:
        now = time.monotonic()
        for _ in range(3):
            now += encoder_server.SECONDS_WITHOUT_POSTGRES - 1
            server._check(now)
            postmaster.touch()
            server._check(now)
            postmaster.unlink()
        assert not server._stopping
        server._check(now + encoder_server.SECONDS_WITHOUT_POSTGRES + 1)
        assert server._stopping


# The server and others


def test_garbage_does_not_keep_the_server_from_others(path: Path) -> None:
    numbers = random.Random(0)
    valid = write_request(SMALL)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    verdicts = set()
    for _ in range(300):
        packet = bytearray(valid if numbers.random() < 0.8 else numbers.randbytes(numbers.randrange(1, 300)))
        for _ in range(numbers.randrange(3)):
            packet[numbers.randrange(len(packet))] = numbers.randrange(256)
        end = numbers.choice([len(packet), len(packet), numbers.randrange(1, len(packet) + 1)])
        sizes = numbers.choices([1, 100, SMALL.memory_bytes], [1, 1, 4], k=numbers.choice([0, 1, 1, 1, 2, 3]))
        memories = [SharedMemory(size) for size in sizes]
        answer = ask(path, bytes(packet[:end]), *(memory.descriptor for memory in memories))
        try:
            verdicts.add(read_reply(answer)[0])
        except PgearthError as error:
            verdicts.add(str(error).partition(":")[0].partition(", the session of")[0])
    # Declined is the number of another encoder.
    assert verdicts - {Kind.DECLINED} == {
        "malformed request",
        f"the encoder process is of pgearth {pyfuncs.__version__}",
    }
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors
    assert client.encode_batch(path, spectral(1), pixels(1), no_pause).shape == (1, DIMENSION)


def test_long_empty_and_repeated_messages(archive: Archive, path: Path) -> None:
    with pytest.raises(PgearthError, match="too long"):
        read_reply(ask(path, write_request(None) + bytes(LONGEST_PACKET)))
    assert ask(path, b"") == b""
    with pytest.raises(PgearthError, match="0 memories"):
        read_reply(ask(path, write_request(SMALL)))
    shared = SharedMemory(SMALL.memory_bytes)
    memory = shared.descriptor
    with pytest.raises(PgearthError, match="1 memories"):
        read_reply(ask(path, write_request(None), memory))
    with pytest.raises(PgearthError, match="too long"):
        read_reply(ask(path, write_request(SMALL), memory, memory))
    archive.unlocked.clear()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(path))
        with suppress(BrokenPipeError):  # the server may hang up after the second
            for _ in range(3):
                socket.send_fds(connection, [write_request(SMALL)], [memory])
        assert hung_up(connection)
    assert status(path)["queue"]["requests"] == 0


def test_silent_connections_neither_block_nor_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_server, "MOST_CONNECTIONS", 20)
    monkeypatch.setattr(encoder_server, "SECONDS_TO_ASK", 0.2)
    monkeypatch.setattr(encoder_server, "SECONDS_BETWEEN_CHECKS", 0.05)
    connections = []
    for _ in range(40):
        connections.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connections[-1].connect(str(path))
    assert status(path)["counts"]["refused"] >= 20, "as many as are let in make room for the others"
    for connection in connections:
        assert hung_up(connection)
        connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_only_its_own_user_is_answered() -> None:
    """Each side refuses the other, even where folder and socket would let it in."""
    code = """
import os, sys, tempfile
from pathlib import Path
from pgearth.pyfuncs.service import client
from pgearth.pyfuncs.service.cache import EncoderCache
from pgearth.pyfuncs.service.server import EncoderServer
os.setgroups([]); os.setgid(65534); os.setuid(65534)
if sys.argv[1] == "ask":
    try:
        print(client.status(Path(sys.argv[2]), lambda: None))
    except Exception as error:
        print(type(error).__name__, error)
else:
    cache = EncoderCache(None, 1)
    server = EncoderServer(Path(sys.argv[2]), cache)
    print("ready", flush=True)
    server.serve()
"""
    with serving(Archive()) as server:
        command = [sys.executable, "-c", code, "ask", str(server._path)]

        def said() -> str:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        assert oct(server._path.stat().st_mode) == oct(0o140600)
        assert said().startswith("PermissionError"), "the folder is its own"
        server._path.parent.chmod(0o755)
        assert said().startswith("PermissionError"), "the socket is its own"
        server._path.chmod(0o666)
        assert said().startswith("PgearthError the encoder process runs as OS user 0, the database server as 65534")
        trusting = "client.peer_user = lambda _: os.geteuid()"
        command[2] = code.replace("os.setgroups", f"{trusting}; os.setgroups")
        assert said().startswith("PgearthError the encoder process ended before it answered")
        assert status(server._path)["counts"]["refused"] == 2, "both that reached the socket"
    with tempfile.TemporaryDirectory(prefix="pgearth-") as folder:
        os.chown(folder, 65534, 65534)
        process = subprocess.Popen([sys.executable, "-c", code, "serve", folder], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            with pytest.raises(PgearthError, match="runs as OS user 65534, the database server as 0"):
                status(Path(folder) / "socket")
        finally:
            process.kill()
            process.wait()
            process.stdout.close() if process.stdout else None
