"""Conversions at the PL/Python border: pgvector's `vector` and `bit(n)`; rasters: see pixels/rasters.py."""

from collections.abc import Sequence

import numpy as np

from pgearth.pyfuncs.errors import INVALID_BINARY_REPRESENTATION, PgearthError

_SEND_HEADER = 4  # int16 dimension and int16 unused precede the big-endian float4s


def vectors_from_send(rows: Sequence[bytes]) -> np.ndarray:
    """Read outputs of `vector_send` into (n, d) float32.

    Raises PgearthError unless there is at least one and all are vectors of one dimension.
    """
    lengths = {len(row) for row in rows}
    if not rows or len(lengths) > 1:
        raise PgearthError(
            f"expected vectors of one dimension, got {len(rows)} of {sorted(lengths)} bytes",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Pass one vector at least, all of the same encoder.",
        )
    table = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)
    dimension, rest = divmod(table.shape[1] - _SEND_HEADER, 4)
    header = np.frombuffer(dimension.to_bytes(2, "big", signed=True) + b"\0\0", np.uint8)
    if dimension < 1 or rest or (table[:, :_SEND_HEADER] != header).any():
        raise PgearthError(
            "not the binary form of a vector",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Pass the output of vector_send().",
        )
    return np.ascontiguousarray(table[:, _SEND_HEADER:]).view(">f4").astype(np.float32)


def to_vector(vector: np.ndarray) -> list[float]:
    """Turn a vector (d) into what PL/Python can return as `vector`: an ndarray would fail there."""
    return vector.tolist()


def bit_string(code: np.ndarray) -> str:
    """Write a code (bits) of bool as the text of a `bit(n)`: '0' and '1', first bit first."""
    return np.where(code, b"1", b"0").tobytes().decode()
