"""Weights as safetensors bytes: nothing lost, nothing accepted that was changed."""

import hashlib
import json
import struct

import numpy as np
import pytest

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models import weights

ARRAYS = {
    "mean": np.linspace(0, 1, 7),
    "hyperplanes": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "count": np.array(3, np.int64),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("arrays", [ARRAYS, {}], ids=["some", "none"])
def test_round_trip(arrays: dict[str, np.ndarray]) -> None:
    data = weights.dump(arrays)
    result = weights.load(data, sha256(data))
    assert result.keys() == arrays.keys()
    for name, array in arrays.items():
        assert result[name].dtype == array.dtype
        np.testing.assert_array_equal(result[name], array)


def test_the_format_is_safetensors() -> None:
    data = weights.dump(ARRAYS)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert header["hyperplanes"]["shape"] == [3, 2]
    start, end = header["hyperplanes"]["data_offsets"]
    assert np.frombuffer(data[8 + length :][start:end], "<f4").tolist() == [0, 3, 1, 4, 2, 5]


def test_equal_weights_give_equal_bytes() -> None:
    assert weights.dump(ARRAYS) == weights.dump(dict(reversed(ARRAYS.items())))


def test_changed_weights_are_refused() -> None:
    data = weights.dump(ARRAYS)
    with pytest.raises(PgearthError, match=f"but {sha256(data)} is recorded") as error:
        weights.load(data[:-1] + b"\1", sha256(data))
    assert error.value.sqlstate == "XX001"


def test_another_format_is_refused() -> None:
    with pytest.raises(PgearthError, match="not in safetensors format") as error:
        weights.load(b"pickle", sha256(b"pickle"))
    assert error.value.sqlstate == "22P03"
