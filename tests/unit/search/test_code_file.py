"""Packed codes against brute force: any number of bits, any set of codes, with pruning and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.search import code_file
from pgearth.pyfuncs.search.code_cache import CodeCache, CodeState


def codes_of(kind: str, count: int, bits: int, seed: int) -> np.ndarray:
    """`count` distinct codes (count, bits) of bool: clustered ones, or uniform random ones."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 2, (4 * count, bits)).astype(bool)
    if kind == "clustered":
        centres = codes[: max(1, count // 50)]
        codes = centres[generator.integers(0, len(centres), len(codes))] ^ (generator.random(codes.shape) < 0.03)
    _, first = np.unique(codes, axis=0, return_index=True)
    return codes[np.sort(first)[:count]]


def sent(codes: np.ndarray) -> bytes:
    """What varbit_send writes of codes, one after the other: a length of 4 bytes, then the bits."""
    length = codes.shape[1].to_bytes(4, "big")
    return b"".join(length + np.packbits(code).tobytes() for code in codes)


def text(code: np.ndarray) -> str:
    return "".join("1" if bit else "0" for bit in code)


def brute_force(
    scores: np.ndarray, counts: np.ndarray, wanted: int | None, radius: int | None
) -> tuple[list[tuple[int, int]], bool]:
    """(number, score) of the codes within `radius`, the nearest that count for `wanted` with all ties of the last.

    And whether these are all within `radius`, for sure.
    """
    ordered = sorted((int(score), number) for number, score in enumerate(scores) if radius is None or score <= radius)
    total = 0
    for score, number in ordered:
        total += counts[number]
        if wanted is not None and total >= wanted:
            ordered = [pair for pair in ordered if pair[0] <= score]
            break
    return [(number, score) for score, number in ordered], wanted is None or total < wanted


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(["clustered", "uniform"]),
    count=st.integers(1, 1500),
    bits=st.sampled_from([7, 16, 63, 64, 65, 100, 128, 250, 256, 300]),
    packed_share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    wanted=st.sampled_from([None, 1, 5, 40, 5000]),
    radius=st.sampled_from([None, 0, 3, 20, 1000]),
    examples=st.sampled_from([(1, 0), (1, 0), (3, 0), (2, 2)]),
    by_patches=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_search_equals_brute_force(
    tmp_path_factory, kind, count, bits, packed_share, wanted, radius, examples, by_patches, seed
):
    codes = codes_of(kind, count, bits, seed)
    generator = np.random.default_rng(seed + 1)
    queries = codes[generator.integers(0, len(codes), sum(examples))] ^ (generator.random((sum(examples), bits)) < 0.02)
    distances = (codes[None] != queries[:, None]).sum(2)
    packed = int(packed_share * len(codes))
    members = np.concatenate([generator.integers(0, 3, packed), np.ones(len(codes) - packed, int)]).astype(np.int32)
    path = tmp_path_factory.mktemp("codes") / "codes.safetensors"
    if packed:
        words = code_file.pack(sent(codes[:packed]), bits)
        code_file.write(path, words, members[:packed], bits, lambda: None)
    scores = distances[: examples[0]].sum(0) - distances[examples[0] :].sum(0)
    counts = members if by_patches else np.ones_like(members)
    answer = CodeCache().find(
        CodeState("one", "v" if packed else None, bits, len(codes), settled=True),
        lambda _kind, _version: path,
        lambda first, end: sent(codes[first:end]),
        [text(query) for query in queries[: examples[0]]],
        [text(query) for query in queries[examples[0] :]],
        wanted,
        radius,
        by_patches,
    )
    assert answer is not None
    found, complete = answer
    pairs = list(zip(found.bucket_nos.tolist(), found.distances.tolist(), strict=True))
    assert (pairs, complete) == brute_force(scores, counts, wanted, radius)


def test_pruning_leaves_most_codes_unread(tmp_path: Path) -> None:
    """The point of the pivots: near neighbours among clustered codes are found in a fraction of the ranges."""
    codes = codes_of("clustered", 20_000, 128, 5)
    words = code_file.pack(sent(codes), 128)
    code_file.write(tmp_path / "codes.safetensors", words, np.ones(len(codes), np.int32), 128, lambda: None)
    file = code_file.read(tmp_path / "codes.safetensors")
    query = code_file.query_words(text(codes[17]))
    to_pivots = code_file.hamming(file.pivots, query)
    starts, stops = file.candidates(to_pivots, 8)
    assert 0 < (stops - starts).sum() < len(codes) / 10
    assert set(file.within(query, 8, file.members).bucket_nos) == set(np.flatnonzero((codes != codes[17]).sum(1) <= 8))


class Buckets:
    """Buckets of a hash function as a backend reads them, counting what is read."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes
        self.read: list[tuple[int, int]] = []

    def __call__(self, first: int, end: int) -> bytes:
        self.read.append((first, end))
        return sent(self.codes[first:end])


def find(cache: CodeCache, state: CodeState, buckets: Buckets, path: Path, code: np.ndarray) -> list[int]:
    answer = cache.find(state, lambda _kind, _version: path, buckets, [text(code)], [], 1, None)
    assert answer is not None
    return answer[0].bucket_nos.tolist()


def test_what_is_committed_is_read_once(tmp_path: Path) -> None:
    buckets = Buckets(codes_of("uniform", 100, 64, 1))
    cache = CodeCache()
    assert find(cache, CodeState("one", None, 64, 60, settled=True), buckets, tmp_path, buckets.codes[59]) == [59]
    assert find(cache, CodeState("one", None, 64, 100, settled=True), buckets, tmp_path, buckets.codes[99]) == [99]
    assert find(cache, CodeState("one", None, 64, 100, settled=True), buckets, tmp_path, buckets.codes[3]) == [3]
    assert buckets.read == [(0, 60), (60, 100)]


def test_what_the_transaction_may_roll_back_is_not_kept(tmp_path: Path) -> None:
    buckets = Buckets(codes_of("uniform", 100, 64, 2))
    other = Buckets(codes_of("uniform", 100, 64, 3))
    cache = CodeCache()
    assert find(cache, CodeState("one", None, 64, 60, settled=True), buckets, tmp_path, buckets.codes[0]) == [0]
    assert find(cache, CodeState("one", None, 64, 100, settled=False), buckets, tmp_path, buckets.codes[99]) == [99]
    other.codes[:60] = buckets.codes[:60]
    assert find(cache, CodeState("one", None, 64, 100, settled=True), other, tmp_path, other.codes[99]) == [99]


def test_a_table_made_again_is_read_again(tmp_path: Path) -> None:
    first, second = Buckets(codes_of("uniform", 50, 64, 2)), Buckets(codes_of("uniform", 50, 64, 3))
    cache = CodeCache()
    assert find(cache, CodeState("one", None, 64, 50, settled=True), first, tmp_path, first.codes[9]) == [9]
    assert find(cache, CodeState("two", None, 64, 50, settled=True), second, tmp_path, second.codes[9]) == [9]


def test_a_file_that_is_not_there_is_done_without(tmp_path: Path) -> None:
    buckets = Buckets(codes_of("uniform", 50, 64, 2))
    state = CodeState("one", "gone", 64, 50, settled=True)
    assert find(CodeCache(), state, buckets, tmp_path / "gone.safetensors", buckets.codes[9]) == [9]


def test_too_many_unpacked_codes_are_left_to_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgearth.pyfuncs.search.code_cache.MAX_UNPACKED", 40)
    buckets = Buckets(codes_of("uniform", 50, 64, 2))
    state = CodeState("one", None, 64, 50, settled=True)
    assert (
        CodeCache().find(state, lambda _kind, _version: tmp_path, buckets, [text(buckets.codes[0])], [], 1, None)
        is None
    )
    assert buckets.read == []


def test_gaps_in_the_numbers_are_an_error(tmp_path: Path) -> None:
    buckets = Buckets(codes_of("uniform", 49, 64, 2))
    with pytest.raises(PgearthError, match="of the hash buckets 0 to 49 there are 49") as caught:
        find(CodeCache(), CodeState("one", None, 64, 50, settled=True), buckets, tmp_path, buckets.codes[0])
    assert caught.value.sqlstate == "XX001"


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = code_file.pack(sent(codes_of("uniform", 50, 64, 2)), 64)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        code_file.write(tmp_path / "codes.safetensors", words, np.ones(50, np.int32), 64, lambda: None)
    assert not (tmp_path / "codes.safetensors").exists()


def test_patches_whose_file_was_removed_are_done_without(tmp_path: Path) -> None:
    """As in a transaction with an old snapshot, when two builds have followed the version that it sees."""
    codes = codes_of("uniform", 50, 64, 2)
    words = code_file.pack(sent(codes), 64)
    code_file.write(tmp_path / "codes", words, np.ones(50, np.int32), 64, lambda: None)
    state = CodeState("one", "old", 64, 50, settled=True)
    cache = CodeCache()
    assert cache.find_patches(state, lambda kind, _: tmp_path / kind, [text(codes[0])], [], 5, 0, None, {}) is None


def test_codes_that_nothing_proves_are_left_to_sql(tmp_path: Path) -> None:
    buckets = Buckets(codes_of("uniform", 50, 64, 2))
    state = CodeState(None, None, 64, 50, settled=True)
    query = [text(buckets.codes[0])]
    assert CodeCache().find(state, lambda _kind, _version: tmp_path, buckets, query, [], 1, None) is None
    assert buckets.read == []


@pytest.mark.parametrize("length", [0, 5, 8, 60, 1000, -1])
def test_a_part_of_a_file_is_done_without(tmp_path: Path, length: int) -> None:
    """As a backup may hold that was taken while it was written."""
    codes = codes_of("uniform", 50, 64, 2)
    code_file.write(tmp_path / "codes", code_file.pack(sent(codes), 64), np.ones(50, np.int32), 64, lambda: None)
    content = (tmp_path / "codes").read_bytes()
    (tmp_path / "codes").write_bytes(content[:length])
    buckets = Buckets(codes)
    assert find(CodeCache(), CodeState("one", "v", 64, 50, settled=True), buckets, tmp_path / "codes", codes[9]) == [9]
    assert buckets.read == [(0, 50)]
    (tmp_path / "codes").write_bytes(bytes(len(content)))
    assert find(CodeCache(), CodeState("one", "v", 64, 50, settled=True), buckets, tmp_path / "codes", codes[9]) == [9]
