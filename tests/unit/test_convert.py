"""The binary form of vectors, against bytes of a real pgvector 0.8 and pgvector's own client."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pgvector import Bit, Vector

from pgearth.pyfuncs.convert import bit_string, to_vector, vectors_from_send
from pgearth.pyfuncs.errors import PgearthError

SENT = bytes.fromhex("000300003f800000c020000034a10fb0")  # vector_send('[1,-2.5,3e-7]')


def test_bytes_of_a_real_server() -> None:
    result = vectors_from_send([SENT, SENT])
    assert result.dtype == np.float32
    assert result.dtype.isnative
    assert result.tolist() == [np.float32([1, -2.5, 3e-7]).tolist()] * 2


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(width=32)))
def test_bytes_of_pgvectors_client(vectors: np.ndarray) -> None:
    rows = [Vector(vector).to_binary() for vector in vectors]
    assert vectors_from_send(rows).tobytes() == vectors.tobytes()


def test_largest_dimension_of_pgvector() -> None:
    vectors = np.ones((1, 16_000), np.float32)
    np.testing.assert_array_equal(vectors_from_send([Vector(vectors[0]).to_binary()]), vectors)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "got 0"),
        ([SENT, SENT[:-4]], r"got 2 of \[12, 16\] bytes"),
        ([SENT[:-4]], "not the binary form"),
        ([SENT[:-1]], "not the binary form"),
        ([SENT + bytes(4)], "not the binary form"),
        ([SENT, b"\1" + SENT[1:]], "not the binary form"),
        ([b"abc"], "not the binary form"),
        ([b""], "not the binary form"),
    ],
)
def test_what_is_no_vector_is_refused(rows: list[bytes], reason: str) -> None:
    with pytest.raises(PgearthError, match=reason) as error:
        vectors_from_send(rows)
    assert error.value.sqlstate == "22P03"


def test_to_vector_is_what_vector_in_parses() -> None:
    vector = np.random.default_rng(1).normal(size=2000).astype(np.float32)
    text = str(to_vector(vector))  # what PL/Python does with the result
    np.testing.assert_array_equal(Vector.from_text(text).to_numpy(), vector)


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_bit_string(code: list[bool]) -> None:
    assert bit_string(np.array(code, bool)) == Bit(code).to_text()
