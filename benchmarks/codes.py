"""Hash codes of an archive outside the database, and searches by them: in SQL, and by FAISS in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import psycopg
from numpy.typing import NDArray

from benchmarks.harness import BITS, Archive, connect, fetch, value

ROW = np.dtype(
    [("fields", ">i2"), ("l1", ">i4"), ("patch_id", ">i8"), ("l2", ">i4"), ("bits", ">i4"), ("code", "u1", BITS // 8)]
)
PGCOPY_HEADER, PGCOPY_TRAILER = 19, 2  # bytes

NEAREST = "select patch_id, distance from eo.similar_to_code(%s::bit varying, max_results => %s, encoder => %s)"
WITHIN = "select patch_id, distance from eo.within_distance(%s::bit varying, %s, encoder => %s)"


def read_codes(connection: psycopg.Connection, name: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Patch ids and packed codes (n, 16) of the patches that a hash function has codes of."""
    query = """
        copy (select pb.patch_id, b.code
              from eo.patch_bucket pb join eo.bucket b using (encoder_id, bucket_no)
              where pb.segment = 0 and pb.encoder_id = (select encoder_id from eo.encoder where name = %s))
        to stdout (format binary)
    """
    with connection.cursor().copy(query, (name,)) as copy:
        content = bytearray().join(copy)
    rows = np.frombuffer(content[PGCOPY_HEADER:-PGCOPY_TRAILER], ROW)
    return rows["patch_id"].astype(np.int64), np.ascontiguousarray(rows["code"])


def read_queries(connection: psycopg.Connection, name: str, count: int) -> list[str]:
    """Codes of at most `count` held-out patches, as texts."""
    rows = fetch(
        connection,
        "select code::text from benchmark.query where encoder = %s order by number limit %s",
        name,
        count,
    )
    return [code for (code,) in rows]


def packed(code: str) -> NDArray[np.uint8]:
    """A code's text as FAISS takes it, (1, 16)."""
    return np.frombuffer(int(code, 2).to_bytes(BITS // 8, "big"), np.uint8)[None]


class Flat:
    """FAISS IndexBinaryFlat over codes; searches take a code's text, as SQL does, and give patch ids and distances."""

    def __init__(self, patch_ids: NDArray[np.int64], codes: NDArray[np.uint8]) -> None:
        self.patch_ids = patch_ids
        self.index = faiss.IndexBinaryFlat(BITS)
        self.index.add(codes)

    def nearest(self, code: str, wanted: int) -> NDArray[np.int32]:
        """Distances of the `wanted` nearest; the patch ids are looked up, too, as a caller would."""
        distances, positions = self.index.search(packed(code), wanted)
        self.found = self.patch_ids[positions[0]]
        return distances[0]

    def within(self, code: str, radius: int) -> NDArray[np.int32]:
        """Distances of all within `radius`, unordered; the patch ids are looked up, too."""
        _, distances, positions = self.index.range_search(packed(code), radius + 1)
        self.found = self.patch_ids[positions]
        return distances.astype(np.int32)


def sql_methods(connection: psycopg.Connection, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Searches in SQL by hash function `name`: for the nearest, and for all within a radius."""
    return (
        lambda code, wanted: fetch(connection, NEAREST, code, wanted, name),
        lambda code, radius: fetch(connection, WITHIN, code, radius, name),
    )


def sorted_distances(answer: Any) -> NDArray[np.uint8]:
    """Distances of an answer of either kind, in order: what must be the same in both."""
    distances = answer if isinstance(answer, np.ndarray) else [distance for _, distance in answer]
    return np.sort(np.asarray(distances, np.uint8))


def agree(ours: list[NDArray[np.uint8]], theirs: list[NDArray[np.uint8]]) -> str:
    """In how many of the queries the sorted distances are the same, in words."""
    same = sum(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    return "all" if same == len(ours) else f"{same} of {len(ours)}"


def code_counts(connection: psycopg.Connection, name: str) -> str:
    """How many patches and distinct codes a hash function has, in words."""
    patches, buckets = fetch(
        connection,
        """
        select (select count(*) from eo.patch_bucket pb where pb.encoder_id = e.encoder_id and pb.segment = 0),
               (select count(*) from eo.bucket b where b.encoder_id = e.encoder_id)
        from eo.encoder e where e.name = %s
        """,
        name,
    )[0]
    return f"{patches:,} codes, {buckets:,} distinct ({buckets / patches:.0%})"


def append_codes(connection: psycopg.Connection, name: str, count: int, segment: int, seed: int) -> None:
    """Store `count` new random codes, as segments of patches drawn at random."""
    rng = np.random.default_rng(seed)
    last = value(connection, "select max(patch_id) from eo.patch")
    codes = ["".join(row) for row in np.where(rng.integers(0, 2, (count, BITS)), "1", "0")]
    connection.execute(
        """
        select eo.store_codes((select encoder_id from eo.encoder where name = %s), %s, %s::smallint[],
                              %s::text[]::bit varying[])
        """,
        (name, rng.integers(1, last + 1, count).tolist(), [segment] * count, codes),
    )


def remove_appended(archive: Archive, name: str, buckets: int) -> None:
    """Take away all buckets above the first so many, with their segments, and pack the codes anew.

    Buckets are append-only for all users; only this clean-up of a benchmark's own database goes around the trigger.
    """
    with connect(archive, {"session_replication_role": "replica"}) as connection:
        encoder_id = value(connection, "select encoder_id from eo.encoder where name = %s", name)
        connection.execute("delete from eo.patch_bucket where encoder_id = %s and segment > 0", (encoder_id,))
        connection.execute("delete from eo.bucket where encoder_id = %s and bucket_no >= %s", (encoder_id, buckets))
        connection.execute("select eo.build_code_index(%s)", (name,))
        connection.execute("vacuum (analyze) eo.bucket, eo.patch_bucket")
