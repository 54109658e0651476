"""A backend's view of one hash function's codes: the packed file, and the buckets added since it was written.

Buckets are append-only and their numbers are dense in commit order (eo.store_codes), so what a backend has once read of
committed buckets stays right, and what is new is numbered above it. Two things are not kept: buckets that the running
transaction itself may have added, for it may yet roll back; and anything read under another guard (the schema dropped
and made again, or triggers disabled, without which buckets may change: sql/4_similarity/2_packed_codes.sql). To find
the code of a bucket that a query's snapshot does not see does no harm: its patches are looked up in that snapshot.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgearth.pyfuncs.errors import DATA_CORRUPTED, PgearthError
from pgearth.pyfuncs.search import code_file, patch_file
from pgearth.pyfuncs.search.code_file import CodeFile, Found, Words
from pgearth.pyfuncs.search.patch_file import PatchFile

MAX_UNPACKED = 500_000
"""With more buckets outside the file than this, plain SQL answers: each backend would have to read and keep them."""
READ_AT_ONCE = 100_000


@dataclass(frozen=True)
class CodeState:
    """What the current snapshot shows of a hash function's buckets."""

    guard: str | None
    """What proves that buckets are append-only; None: nothing does."""
    version: str | None
    """Of the packed file; None: there is none that this guard proves."""
    bits: int
    buckets: int
    settled: bool
    """The running transaction has written nothing: what it sees is committed."""


FilePath = Callable[[str, str], Path]
"""File of a version ("codes" or "patches" first)."""
ReadCodes = Callable[[int, int], bytes]
"""Codes of the buckets from a number to another (exclusive), by number, as varbit_send writes them."""


class CodeCache:
    """Codes of one hash function, as far as this backend has read them."""

    def __init__(self) -> None:
        self._source: tuple[str | None, str | None] | None = None
        self._file: CodeFile | None = None
        self._patches: PatchFile | None = None
        self._ones: NDArray[np.int32] = np.empty(0, np.int32)
        self._first = 0
        self._added: Words = np.empty((0, 0), np.uint64)

    def find(
        self,
        state: CodeState,
        path: FilePath,
        read_codes: ReadCodes,
        positives: Sequence[str],
        negatives: Sequence[str],
        wanted: int | None,
        radius: int | None,
        by_patches: bool = False,
    ) -> tuple[Found, bool] | None:
        """Buckets by the sum of distances to `positives` less that to `negatives`, nearest first; see Found.nearest.

        `wanted`: how many buckets, or, by_patches, buckets that held so many patches when they were packed (those added
        since count for one). Also tells whether these are all that lie within `radius`. None where too many buckets are
        not packed, or may have changed.
        """
        if state.guard is None:
            return None
        if self._source != (state.guard, state.version):
            self._open(state, path)
        if state.buckets - self._first > MAX_UNPACKED:
            return None
        added = self._read_added(state, read_codes)
        queries = [code_file.query_words(code) for code in positives]
        if len(queries) == 1 and not negatives:
            limit = state.bits if radius is None else radius
            found = self._near(added, queries[0], state.bits, wanted, limit, by_patches)
        else:
            against = [code_file.query_words(code) for code in negatives]
            found = self._scored(added, queries, against, radius, by_patches)
        return found.nearest(wanted), wanted is None or int(found.counts.sum()) < wanted

    def find_patches(
        self,
        state: CodeState,
        path: FilePath,
        positives: Sequence[str],
        negatives: Sequence[str],
        wanted: int | None,
        skipped: int,
        radius: int | None,
        conditions: Mapping[str, Any],
    ) -> FoundPatches | None:
        """Patches that may pass the filter, nearest first and then by patch_id: `wanted` of them after `skipped` ones.

        For a caller who knows that the packed patches are as they were. None where none are packed.
        """
        if self._source != (state.guard, state.version):
            self._open(state, path)
        if self._file is None:
            return None
        if self._patches is None:
            try:
                self._patches = patch_file.read(path("patches", str(state.version)))
            except OSError:
                return None  # An old snapshot's version: builds since have removed its files.
        passing = self._patches.passing(conditions)
        codes = self._patches.codes.take(passing)
        distances = self._distances(
            codes,
            [code_file.query_words(code) for code in positives],
            [code_file.query_words(code) for code in negatives],
        )
        kept = np.flatnonzero(distances <= radius) if radius is not None else None
        if wanted is not None:
            if kept is not None:
                passing, distances, kept = passing[kept], distances[kept], None
            last = skipped + wanted
            if last < len(distances):
                kept = np.flatnonzero(distances <= nth_least(distances, last))
        if kept is not None:
            passing, distances = passing[kept], distances[kept]
        # Positions ascend with patch_id, so a stable sort by distance leaves equal ones ordered by patch_id.
        order = np.argsort(distances, kind="stable")[skipped : None if wanted is None else skipped + wanted]
        return FoundPatches(self._patches.patch_ids.take(passing[order]), distances[order])

    def _distances(
        self, codes: NDArray[np.int32], positives: Sequence[Words], negatives: Sequence[Words]
    ) -> NDArray[Any]:
        assert self._file is not None
        words = self._file.words
        # Codes repeat: with more patches than codes, it is cheaper to compare every code once.
        if len(codes) < words.shape[1]:
            words = np.stack([word.take(codes) for word in words])
        if len(positives) == 1 and not negatives:
            distances: NDArray[Any] = code_file.distances(words, positives[0])
        else:
            distances = code_file.scores(words, positives, negatives)
        return distances if len(codes) < self._file.words.shape[1] else distances.take(codes)

    def _open(self, state: CodeState, path: FilePath) -> None:
        self._source = None
        self._file = None
        self._patches = None
        if state.version is not None:
            # Of a dump restored, or on a standby, the row is there without the file; then all buckets count as added.
            with contextlib.suppress(OSError):
                self._file = code_file.read(path("codes", state.version))
        self._first = len(self._file) if self._file is not None else 0
        # One number seen as many: counting buckets costs no memory.
        self._ones = np.broadcast_to(np.int32(1), self._first)
        self._added = np.empty((-(-state.bits // 64), 0), np.uint64)
        self._source = (state.guard, state.version)

    def _read_added(self, state: CodeState, read_codes: ReadCodes) -> Words:
        kept = self._first + self._added.shape[1]
        if state.buckets <= kept:
            return self._added
        added = np.hstack([self._added, read_words(read_codes, kept, state.buckets, state.bits)])
        if state.settled:
            self._added = added
        return added

    def _near(self, added: Words, query: Words, bits: int, wanted: int | None, radius: int, by_patches: bool) -> Found:
        parts = []
        if self._file is not None:
            counts = self._file.members if by_patches else self._ones
            if wanted is None:
                found = self._file.within(query, radius, counts)
            else:
                found = self._file.nearest(query, wanted, radius, counts)
                if len(found.distances):
                    radius = min(radius, code_file.enough(found.distances, found.counts, wanted))
            parts.append(found)
        positions, distances = code_file.scan(added, query, min(radius, bits))
        numbers = (positions + self._first).astype(np.int32)
        parts.append(Found(numbers, distances, np.ones(len(numbers), np.int32)))
        return joined(parts)

    def _scored(
        self,
        added: Words,
        positives: Sequence[Words],
        negatives: Sequence[Words],
        radius: int | None,
        by_patches: bool,
    ) -> Found:
        numbers = np.arange(self._first, self._first + added.shape[1], dtype=np.int32)
        found = Found(numbers, code_file.scores(added, positives, negatives), np.ones(len(numbers), np.int32))
        if self._file is not None:
            counts = self._file.members if by_patches else self._ones
            found = joined([self._file.scores(positives, negatives, counts), found])
        if radius is None:
            return found
        kept = found.distances <= radius
        return Found(found.bucket_nos[kept], found.distances[kept], found.counts[kept])


@dataclass(frozen=True)
class FoundPatches:
    """Patches with their distances (or scores), nearest first, equal ones by patch_id."""

    patch_ids: NDArray[np.int64]
    distances: NDArray[Any]


def nth_least(values: NDArray[Any], n: int) -> int:
    """Return the n-th least of integers that lie close together: by halving, which is faster than partitioning."""
    low, high = int(values.min()), int(values.max())
    while low < high:
        middle = (low + high) // 2
        if np.count_nonzero(values <= middle) >= n:
            high = middle
        else:
            low = middle + 1
    return low


def joined(parts: Sequence[Found]) -> Found:
    """All that any of `parts` holds."""
    return Found(
        np.concatenate([part.bucket_nos for part in parts]),
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )


def read_words(read_codes: ReadCodes, first: int, end: int, bits: int) -> Words:
    """Codes of the buckets numbered `first` up to, not including, `end`, as words (W, end - first).

    Raises PgearthError where a number is missing: dense numbers are what this all rests on.
    """
    parts = []
    for start in range(first, end, READ_AT_ONCE):
        stop = min(start + READ_AT_ONCE, end)
        words = code_file.pack(read_codes(start, stop), bits)
        if words.shape[1] != stop - start:
            raise PgearthError(
                f"of the hash buckets {start} to {stop - 1} there are {words.shape[1]}: their numbers have gaps",
                sqlstate=DATA_CORRUPTED,
                hint="Buckets must be stored by eo.store_codes only, which numbers them without gaps.",
            )
        parts.append(words)
    return np.hstack(parts)
