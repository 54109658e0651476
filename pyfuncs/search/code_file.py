"""Exact nearest-neighbour search over packed hash codes, with pruning by pivots and the triangle inequality.

A file holds the distinct codes (buckets) of one hash function as they were when it was written. Codes are grouped by
their nearest pivot (a code of the set) and, within a group, ordered by their distance to it. A code x of the group of
pivot p can be within distance t of a query q only if |d(q, p) - d(x, p)| <= t (triangle inequality), so of each group
one contiguous range remains: none, for most groups, where codes cluster (Yianilos 1993, "Data structures and algorithms
for nearest neighbor search in general metric spaces"). Where pruning would leave too much, all codes are scanned in
their order, so no query costs more than the plain scan and the look at the pivots.

The file is in the safetensors format and mapped into memory, so backends share its pages. Tensors (W = 64-bit words per
code, n codes, p pivots): words (W, n) uint64; bucket_nos (n) int32; members (n) int32, how many patches the bucket had,
from which a search estimates how many buckets it needs; pivots (W, p) uint64; ranges (p, bits + 2) int32, where [g, d]
is the position of the first code of group g at distance d or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgearth.pyfuncs.tensor_file import map_tensors, write_tensors

Words = NDArray[np.uint64]
Distances = NDArray[Any]
"""Numbers of differing bits: uint8, or uint16 for codes of 256 bits and more."""

BLOCK = 32768
"""Codes compared at once: what they need fits into the processor's second-level cache."""
MAX_PIVOTS = 2048
CODES_PER_PIVOT = 64
SAMPLE = 1024
"""Codes near the query that give the first bound on the distance of the nearest ones."""
PRUNED_SHARE = 10
"""Gathering scattered codes costs about this many times what scanning them in order does."""


@dataclass(frozen=True)
class Found:
    """Buckets with their distances (or scores) and what each counts for, in no order."""

    bucket_nos: NDArray[np.int32]
    distances: NDArray[np.int64]
    counts: NDArray[np.int32]

    def nearest(self, wanted: int | None) -> Found:
        """Order by distance, then number; keep the nearest that count for `wanted`, with ties of the last of them."""
        kept = np.arange(len(self.distances))
        if wanted is not None and len(kept):
            kept = np.flatnonzero(self.distances <= enough(self.distances, self.counts, wanted))
        kept = kept[np.lexsort((self.bucket_nos[kept], self.distances[kept]))]
        return Found(self.bucket_nos[kept], self.distances[kept], self.counts[kept])


@dataclass(frozen=True)
class CodeFile:
    """A mapped file of packed codes."""

    bits: int
    words: Words
    bucket_nos: NDArray[np.int32]
    members: NDArray[np.int32]
    pivots: Words
    ranges: NDArray[np.int32]

    def __len__(self) -> int:
        return self.words.shape[1]

    def within(self, query: Words, radius: int, counts: NDArray[np.int32]) -> Found:
        """Buckets at most `radius` bits from `query` (W). counts (n): what each bucket counts for."""
        to_pivots = hamming(self.pivots, query)
        return self._within(query, radius, to_pivots, counts)

    def nearest(self, query: Words, wanted: int, radius: int, counts: NDArray[np.int32]) -> Found:
        """At least the nearest buckets that count for `wanted`, with all ties of the last of them, within `radius`."""
        to_pivots = hamming(self.pivots, query)
        return self._within(query, min(radius, self._bound(query, wanted, to_pivots, counts)), to_pivots, counts)

    def scores(self, positives: Sequence[Words], negatives: Sequence[Words], counts: NDArray[np.int32]) -> Found:
        """All buckets with the sum of their distances to `positives` (W each) less that to `negatives`."""
        return Found(self.bucket_nos, scores(self.words, positives, negatives), counts)

    def _bound(self, query: Words, wanted: int, to_pivots: Distances, counts: NDArray[np.int32]) -> int:
        """Return a distance within which codes surely count for `wanted`: those of the nearest groups do."""
        sizes = self.ranges[:, -1] - self.ranges[:, 0]
        groups = np.argsort(to_pivots, kind="stable")
        needed = max(SAMPLE, 2 * wanted)
        groups = groups[: np.searchsorted(np.cumsum(sizes[groups]), needed) + 1]
        positions = ranges_to_positions(self.ranges[groups, 0], self.ranges[groups, -1])
        distances = hamming([word.take(positions) for word in self.words], query)
        return min(self.bits, enough(distances, counts.take(positions), wanted))

    def _within(self, query: Words, radius: int, to_pivots: Distances, counts: NDArray[np.int32]) -> Found:
        starts, stops = self.candidates(to_pivots, radius)
        if PRUNED_SHARE * int((stops - starts).sum()) > len(self):
            positions, found = scan(self.words, query, radius)
            return Found(self.bucket_nos[positions], found, counts[positions])
        positions = ranges_to_positions(starts, stops)
        distances = hamming([word.take(positions) for word in self.words], query)
        kept = np.flatnonzero(distances <= radius)
        return Found(self.bucket_nos[positions[kept]], distances[kept].astype(np.int64), counts.take(positions[kept]))

    def candidates(self, to_pivots: Distances, radius: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of each group, the range of positions that the triangle inequality leaves for codes within `radius`."""
        rows = np.arange(len(to_pivots)) * self.ranges.shape[1]
        distances = to_pivots.astype(np.intp)
        nearest = np.maximum(distances - radius, 0)
        beyond = np.minimum(distances + (radius + 1), self.bits + 1)
        return self.ranges.take(rows + nearest), self.ranges.take(rows + beyond)


def pack(codes: bytes, bits: int) -> Words:
    """Codes as `varbit_send` writes them, one after the other, as words (W, n)."""
    size = (bits + 7) // 8
    table = np.frombuffer(codes, np.uint8).reshape(-1, 4 + size)[:, 4:]
    padded = np.zeros((len(table), -(-bits // 64) * 8), np.uint8)
    padded[:, :size] = table
    return np.ascontiguousarray(padded.view(np.uint64).T)


def query_words(code: str) -> Words:
    """One code, as the text of a bit string, as words (W)."""
    size = -(-len(code) // 64) * 8
    return np.frombuffer(int(code.ljust(8 * size, "0"), 2).to_bytes(size, "big"), np.uint64)


def enough(distances: Distances, counts: NDArray[np.int32], wanted: int) -> int:
    """Return the least distance within which `counts` come to `wanted`; where they never do, one beyond all."""
    least = int(distances.min())
    totals = np.bincount(distances.astype(np.intp) - least, weights=counts).cumsum()
    reached = int(np.searchsorted(totals, wanted))
    return least + reached if reached < len(totals) else np.iinfo(np.int64).max


def hamming(words: Words | Sequence[Words], query: Words) -> Distances:
    """Hamming distances of codes (W, n) to one code (W)."""
    differing = words[0] ^ query[0]
    distances: Distances = np.bitwise_count(differing)
    if len(words) * 64 >= 256:
        distances = distances.astype(np.uint16)
    for word, part in zip(words[1:], query[1:], strict=True):
        distances += np.bitwise_count(np.bitwise_xor(word, part, out=differing))
    return distances


def scan(words: Words, query: Words, radius: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Positions and distances of the codes (W, n) at most `radius` bits from `query`."""
    positions, found = [np.empty(0, np.intp)], [np.empty(0, np.int64)]
    for start in range(0, words.shape[1], BLOCK):
        distances = hamming(words[:, start : start + BLOCK], query)
        near = np.flatnonzero(distances <= radius)
        positions.append(near + start)
        found.append(distances[near].astype(np.int64))
    return np.concatenate(positions), np.concatenate(found)


def distances(words: Words, query: Words) -> Distances:
    """Hamming distances of many codes (W, n) to one code (W), block by block."""
    blocks = [hamming(words[:, start : start + BLOCK], query) for start in range(0, max(1, words.shape[1]), BLOCK)]
    found: Distances = np.concatenate(blocks)
    return found


def scores(words: Words, positives: Sequence[Words], negatives: Sequence[Words]) -> NDArray[np.int64]:
    """Sum of the distances of codes (W, n) to `positives` (W each), less that to `negatives`."""
    total = np.zeros(words.shape[1], np.int64)
    for start in range(0, words.shape[1], BLOCK):
        block = words[:, start : start + BLOCK]
        for query in positives:
            total[start : start + BLOCK] += hamming(block, query)
        for query in negatives:
            total[start : start + BLOCK] -= hamming(block, query)
    return total


def ranges_to_positions(starts: NDArray[np.int32], stops: NDArray[np.int32]) -> NDArray[np.intp]:
    """All positions of the half-open ranges, in their order."""
    used = np.flatnonzero(stops > starts)
    starts, sizes = starts[used].astype(np.intp), (stops - starts)[used].astype(np.intp)
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - sizes), sizes)


def write(
    path: Path, words: Words, members: NDArray[np.int32], bits: int, between: Callable[[], object]
) -> tuple[NDArray[np.intp], int]:
    """Write codes (W, n), in the order of their bucket numbers, as a file under `path`.

    members (n): how many patches each bucket has. Returns the numbers in the order of the file, and its size in bytes.
    `between` is called now and then, for interrupts.
    """
    count = words.shape[1]
    chosen = np.random.default_rng(0).choice(count, max(1, min(MAX_PIVOTS, count // CODES_PER_PIVOT)), replace=False)
    pivots = words[:, np.sort(chosen)]
    groups = np.empty(count, np.int64)
    distances = np.empty(count, np.int64)
    step = max(1, BLOCK * 16 // pivots.shape[1])
    for start in range(0, count, step):
        block = words[:, start : start + step]
        table = np.bitwise_count(block[0][:, None] ^ pivots[0]).astype(np.uint8 if bits < 256 else np.uint16)
        for word, pivot in zip(block[1:], pivots[1:], strict=True):
            table += np.bitwise_count(word[:, None] ^ pivot)
        groups[start : start + step] = table.argmin(axis=1)
        distances[start : start + step] = table.min(axis=1)
        between()
    keys = groups * (bits + 1) + distances
    order = np.argsort(keys, kind="stable")
    edges = np.arange(pivots.shape[1])[:, None] * (bits + 1) + np.arange(bits + 2)
    tensors: dict[str, NDArray[Any]] = {
        "words": words[:, order],
        "bucket_nos": order.astype(np.int32),
        "members": members[order],
        "pivots": pivots,
        "ranges": np.searchsorted(keys[order], edges).astype(np.int32),
    }
    return order, write_tensors(path, tensors, {"bits": str(bits)})


def read(path: Path) -> CodeFile:
    """Map a file that `write` wrote. Raises OSError where there is none."""
    tensors, metadata = map_tensors(path)
    return CodeFile(int(metadata["bits"]), **tensors)
