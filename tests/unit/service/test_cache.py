"""Which encoders the encoder process keeps."""

from __future__ import annotations

import pytest

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.service.cache import EncoderCache
from tests.unit.service.serving import Archive


def test_encoders_used_least_recently_are_dropped_first(archive: Archive) -> None:
    cache = EncoderCache(archive.load, memory_limit=10_000)
    for encoder_id in (3, 4, 3, 5, 4, 3):  # of as many thousand bytes
        assert cache.get(encoder_id).encoder_id == encoder_id
    assert archive.read == [3, 4, 5, 4, 3]
    assert cache.status() == {
        "loaded": ["spectral:3", "spectral:4"],
        "loaded_bytes": 7000,
        "memory_limit": 10_000,
        "evicted": 3,
    }
    with pytest.raises(PgearthError, match="the encoder process may keep") as caught:
        cache.get(11)
    assert "--memory-limit" in caught.value.hint
    assert cache.status()["loaded"] == ["spectral:3", "spectral:4"], "what cannot be kept displaces nothing"
