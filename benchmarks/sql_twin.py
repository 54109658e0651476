"""Exact search by hash code in plain SQL, for servers without PL/Python: which index is worth having.

The packed scan (PL/Python) against its twin in plain SQL, by a sequential scan and by the substring B-trees of
eo.build_plain_code_index (multi-index hashing), and against pgvector's approximate HNSW and IVFFlat over distinct
codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg

from benchmarks.codes import agree, code_counts, read_queries, sorted_distances, sql_methods
from benchmarks.harness import (
    Archive,
    Measured,
    Run,
    Stopwatch,
    arguments,
    connect,
    fetch,
    measure,
    milliseconds,
    progress,
    report,
    table,
    value,
)

WANTED = 10
RADII = (2, 8, 16)
APPROXIMATE = {
    "HNSW (m 16, ef_construction 64)": (
        "hnsw (code bit_hamming_ops)",
        (("ef_search 40", {"hnsw.ef_search": 40}), ("ef_search 200", {"hnsw.ef_search": 200})),
    ),
    "IVFFlat (500 lists)": (
        "ivfflat (code bit_hamming_ops) with (lists = 500)",
        (("10 probes", {"ivfflat.probes": 10}), ("40 probes", {"ivfflat.probes": 40})),
    ),
}


def main() -> None:
    """Measure on every archive asked for."""
    run = arguments(__doc__ or "", "549k", queries=100)
    for archive in run.archives:
        report(f"Plain SQL twins of search by code, {archive.patches:,} patches", [twins(archive, run)], run)


def twins(archive: Archive, run: Run) -> str:
    """Search by every way there is."""
    with connect(archive) as connection, connect(archive, {"pgearth.code_scan": "sql"}) as plain:
        queries = read_queries(connection, "clustered", run.queries)
        drop_code_indexes(connection)
        packed_build = time_of(connection, "select eo.build_code_index('clustered')")
        bytes_packed = value(
            connection, "select bytes from eo.code_index join eo.encoder using (encoder_id) where name = 'clustered'"
        )
        progress("packed scan")
        packed = all_searches(sql_methods(connection, "clustered"), queries)
        rows = [line("packed scan (PL/Python)", packed_build, bytes_packed, packed, packed)]
        progress("sequential scan")
        rows.append(line("sequential scan", 0, 0, all_searches(sql_methods(plain, "clustered"), queries), packed))
        progress("substring B-trees")
        seconds = time_of(connection, "select eo.build_plain_code_index('clustered')")
        size = value(connection, f"select coalesce(sum(pg_relation_size(indexrelid)), 0)::bigint from {CODE_INDEXES}")  # noqa: S608
        rows.append(
            line("substring B-trees", seconds, size, all_searches(sql_methods(plain, "clustered"), queries), packed)
        )
        drop_code_indexes(connection)
        rows += approximate(connection, queries, packed)
        counts = code_counts(connection, "clustered")
    header = ["way", "build (s)", "size (MB)", f"nearest {WANTED} p50 (ms)", "p95", "right"]
    for radius in RADII:
        header += [f"radius {radius} p50 (ms)", "p95", "right"]
    return (
        f"{len(queries)} held-out queries among {counts}; patches and distances, as `eo.similar_to_code` and "
        "`eo.within_distance` give them. Right: queries with the same distances as the packed scan; of the "
        f"approximate ones recall@{WANTED}, a row being right when it is as near as the {WANTED}th true neighbour, and "
        "the share of queries whose nearest neighbour was missed. HNSW and IVFFlat, over the distinct codes in a table "
        "of their own, cannot answer a radius.\n\n" + table(header, rows)
    )


CODE_INDEXES = """
    pg_index i join pg_class c on c.oid = i.indexrelid
    where i.indrelid = 'eo.bucket'::regclass and c.relname like 'bucket\\_\\_%'
"""


def drop_code_indexes(connection: psycopg.Connection) -> None:
    """Drop the substring indexes."""
    for (name,) in connection.execute(f"select indexrelid::regclass::text from {CODE_INDEXES}").fetchall():  # noqa: S608
        connection.execute(f"drop index {name}")


def time_of(connection: psycopg.Connection, statement: str) -> float:
    """Seconds that a statement takes."""
    with Stopwatch() as watch:
        connection.execute(statement)
    return watch.seconds


def all_searches(methods: tuple[Callable[..., Any], Callable[..., Any]], queries: list[str]) -> list[Measured]:
    """The nearest and all radii."""
    nearest, within = methods
    found = [measure({"": lambda code: nearest(code, WANTED)}, queries, sorted_distances)[""]]
    for radius in RADII:
        found.append(measure({"": lambda code, r=radius: within(code, r)}, queries, sorted_distances)[""])
    return found


def line(name: str, build: float, size: int, found: list[Measured], truth: list[Measured]) -> list[str]:
    """A line of the table for an exact way."""
    cells = [name, f"{build:.1f}", f"{size / 1e6:.0f}"]
    for one, true in zip(found, truth, strict=True):
        cells += [milliseconds(one.p50), milliseconds(one.p95), agree(one.answers, true.answers)]
    return cells


def approximate(connection: psycopg.Connection, queries: list[str], packed: list[Measured]) -> list[list[str]]:
    """Build pgvector's indexes over the distinct codes, and search for the nearest by them."""
    connection.execute("set maintenance_work_mem = '2GB'")
    connection.execute("drop table if exists benchmark.distinct_code")
    connection.execute(
        """
        create table benchmark.distinct_code as
        select encoder_id, bucket_no, code::bit(128) as code from eo.bucket
        where encoder_id = (select encoder_id from eo.encoder where name = 'clustered')
        """
    )
    rows = []
    for name, (definition, settings) in APPROXIMATE.items():
        progress(name)
        build = time_of(connection, f"create index distinct_code_index on benchmark.distinct_code using {definition}")
        connection.execute("vacuum analyze benchmark.distinct_code")
        size = value(connection, "select pg_relation_size('benchmark.distinct_code_index')")
        for label, values in settings:
            for setting, number in values.items():
                connection.execute(f"set {setting} = {number}")
            found = measure({"": lambda code: nearest_by_index(connection, code)}, queries, sorted_distances)[""]
            pairs = list(zip(found.answers, packed[0].answers, strict=True))
            recall = np.mean([(answer <= true[-1]).sum() / len(true) for answer, true in pairs])
            missed = np.mean([not len(answer) or answer[0] > true[0] for answer, true in pairs])
            rows.append(
                [
                    f"{name}, {label}",
                    f"{build:.1f}",
                    f"{size / 1e6:.0f}",
                    milliseconds(found.p50),
                    milliseconds(found.p95),
                    f"recall {recall:.3f}, nearest missed {missed:.0%}",
                    *["", "", "none"] * len(RADII),
                ]
            )
        connection.execute("drop index benchmark.distinct_code_index")
    connection.execute("drop table benchmark.distinct_code")
    return rows


def nearest_by_index(connection: psycopg.Connection, code: str) -> list[tuple[Any, ...]]:
    """The patches of the nearest codes by the approximate index."""
    return fetch(
        connection,
        f"""
        select pb.patch_id, b.distance
        from (select encoder_id, bucket_no, (code <~> %s::bit(128))::integer as distance
              from benchmark.distinct_code order by code <~> %s::bit(128) limit {WANTED}) b
        join eo.patch_bucket pb on pb.encoder_id = b.encoder_id and pb.bucket_no = b.bucket_no and pb.segment = 0
        order by b.distance, pb.patch_id
        limit {WANTED}
        """,  # noqa: S608
        code,
        code,
    )


if __name__ == "__main__":
    main()
