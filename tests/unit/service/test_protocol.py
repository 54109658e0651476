"""Messages and memory of the encoder process: read as written, and nothing else is."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgearth import pyfuncs
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.service import protocol
from pgearth.pyfuncs.service.protocol import (
    LARGEST_MEMORY,
    LONGEST_PACKET,
    EncodeRequest,
    Kind,
    SharedMemory,
    map_memory,
    read_reply,
    read_request,
    write_error,
    write_reply,
    write_request,
)
from tests.unit.service.serving import SMALL, U2, ask

# Messages


def test_messages_are_read_as_written() -> None:
    assert read_request(write_request(SMALL)) == SMALL
    assert read_request(write_request(None)) is None
    assert SMALL.memory_bytes == 192 + 64 + 64, "whole blocks of 64 bytes"
    assert read_reply(write_reply(Kind.DONE, {"pid": 7})) == (Kind.DONE, {"pid": 7})
    with pytest.raises(PgearthError, match=r"^too large\n") as caught:
        read_reply(write_error(PgearthError("too large", sqlstate="54000", hint="Cut it.")))
    assert (caught.value.sqlstate, caught.value.hint) == ("54000", "Cut it.")
    long = write_error(PgearthError("ä" * 1_000_000))
    assert len(long) < LONGEST_PACKET
    with pytest.raises(PgearthError, match=r"^ä+$"):
        read_reply(long)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_garbage_is_no_message(packet: bytes) -> None:
    for read in (read_request, read_reply):
        with pytest.raises(PgearthError, match="malformed") as caught:
            read(packet)
        assert caught.value.sqlstate == "08P01"


@given(st.data())
@settings(max_examples=300)
def test_damaged_requests_are_refused_or_within_limits(data: st.DataObject) -> None:
    """Bytes changed, cut off, inserted after the header: an error, or a request that the limits allow."""
    packet = bytearray(write_request(SMALL))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(24, len(packet) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packet)))
    packet = bytearray(packet[:cut] + data.draw(st.sampled_from([b"", b"\0", bytes(9), bytes(packet[cut:])])))
    try:
        request = read_request(bytes(packet))
    except PgearthError as error:
        assert error.sqlstate == "08P01"
        return
    assert request is None or 0 < request.memory_bytes <= LARGEST_MEMORY
    assert request is None or read_request(write_request(request)) == request


@pytest.mark.parametrize(
    "request_",
    [
        EncodeRequest(1, 0, 4, ((U2, 6, 6),)),
        EncodeRequest(1, 1025, 4, ((U2, 6, 6),)),
        EncodeRequest(1, 1, 0, ((U2, 6, 6),)),
        EncodeRequest(1, 1, 4, ()),
        EncodeRequest(1, 1, 4, ((U2, 0, 6),)),
        EncodeRequest(1, 1, 4, ((U2, 6, 6),) * 1025),
        EncodeRequest(1, 1000, 4, ((U2, 1 << 20, 1 << 20),)),
        EncodeRequest(1, 1, 4, ((U2, 0xFFFFFFFF, 0xFFFFFFFF),)),
        EncodeRequest(1, 64, 0xFFFFFFFF, ((U2, 6, 6),)),
    ],
)
def test_requests_beyond_the_limits_are_refused(request_: EncodeRequest) -> None:
    with pytest.raises(PgearthError, match="malformed request"):
        read_request(write_request(request_))


def test_a_request_of_another_version_says_what_to_do(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    packet = write_request(SMALL).replace(pyfuncs.__version__.encode().ljust(16, b"\0"), b"99.9".ljust(16, b"\0"))
    with pytest.raises(PgearthError, match=rf"pgearth {pyfuncs.__version__}, the session of '99\.9'") as caught:
        read_reply(ask(path, packet))
    assert caught.value.sqlstate == "55000"
    assert "pgearth encoder stop" in caught.value.hint


# Memory


def test_both_ends_find_the_arrays_in_the_memory() -> None:
    memory = SharedMemory(SMALL.memory_bytes + 1000)
    expected = [np.arange(72).reshape(2, 6, 6), np.arange(12).reshape(2, 3, 2) + 0.5, np.arange(8).reshape(2, 4)]
    for array, values in zip(SMALL.arrays(memory.map), expected, strict=True):
        array[:] = values
    found = SMALL.arrays(map_memory(memory.descriptor, SMALL))
    del memory
    assert [array.dtype.str for array in found] == ["<u2", "<f4", "<f4"]
    assert all(array.flags.aligned and array.flags.writeable for array in found)
    for array, values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, values)


def test_the_size_of_memory_is_settled() -> None:
    memory = SharedMemory(100)
    for size in (99, 101):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.descriptor, size)


def unsealed() -> int:
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, SMALL.memory_bytes)
    return memory


def half_sealed() -> int:
    memory = unsealed()
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memory


def read_only() -> int:
    memory = unsealed()
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, protocol.SEALS | fcntl.F_SEAL_WRITE)
    return memory


def too_small() -> int:
    memory = SharedMemory(SMALL.memory_bytes - 1)
    return os.dup(memory.descriptor)


def file() -> int:
    with tempfile.TemporaryFile() as opened:
        opened.truncate(SMALL.memory_bytes)
        return os.dup(opened.fileno())


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


OTHER_MEMORIES = [
    unsealed,
    half_sealed,
    read_only,
    file,
    pipe,
    lambda: os.open("/dev/zero", os.O_RDWR),
    lambda: os.open("/", os.O_RDONLY),
    too_small,
    lambda: os.memfd_create("empty"),
]


@pytest.mark.parametrize("make", OTHER_MEMORIES)
def test_other_memory_is_refused(make: Callable[[], int], path: Path) -> None:
    memory = make()
    try:
        with pytest.raises(PgearthError, match="malformed request: memory"):
            map_memory(memory, SMALL)
        with pytest.raises(PgearthError, match="malformed request: memory"):
            read_reply(ask(path, write_request(SMALL), memory))
    finally:
        os.close(memory)
