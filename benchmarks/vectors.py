"""Search by 128-dimensional vector in SQL, exact and approximate, against FAISS IndexFlatL2 and IndexHNSWFlat."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import psycopg
from numpy.typing import NDArray

from benchmarks.harness import (
    DIMENSION,
    Archive,
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
EXACT_QUERIES = 100
EF_SEARCH = (64, 200, 800)
ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("l1", ">i4"),
        ("patch_id", ">i8"),
        ("l2", ">i4"),
        ("dimension", ">i2"),
        ("unused", ">i2"),
        ("values", ">f4", DIMENSION),
    ]
)
INDEX = "select oid::regclass::text from pg_class where relname ~ '^embedding__[0-9]+__hnsw$'"
PGCOPY_HEADER, PGCOPY_TRAILER = 19, 2  # bytes


def main() -> None:
    """Measure on every archive asked for that has vectors."""
    run = arguments(__doc__ or "", "549k")
    for archive in run.archives:
        report(f"Search by vector, {archive.patches:,} patches", [searches(archive, run)], run)


def searches(archive: Archive, run: Run) -> str:
    """Search by all four ways; the exact ones by fewer queries."""
    with connect(archive) as connection:
        connection.execute("set maintenance_work_mem = '2GB'")
        for (name,) in connection.execute(INDEX).fetchall():
            connection.execute(f"drop index {name}")
        progress("building the HNSW index in SQL")
        with Stopwatch() as building:
            connection.execute("select eo.build_vector_index('benchmark')")
        size = value(connection, "select pg_relation_size(%s::regclass)", value(connection, INDEX))
        patch_ids, vectors = read_vectors(connection)
        queries = read_queries(connection, run.queries)
        progress("building FAISS")
        flat = faiss.IndexFlatL2(DIMENSION)
        flat.add(vectors)
        graph = faiss.IndexHNSWFlat(DIMENSION, 16)
        graph.hnsw.efConstruction = 64
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        with Stopwatch() as adding:
            graph.add(vectors)
        faiss.omp_set_num_threads(1)
        del vectors
        progress("exact")
        exact = measure(
            {"SQL": sql_search(connection, False), "FAISS": index_search(flat, patch_ids)}, queries[:EXACT_QUERIES]
        )
        truth = true_distances(flat, queries)
        rows = [
            line("SQL exact", 0, 0, exact["SQL"], truth),
            line("FAISS IndexFlatL2", 0, 0, exact["FAISS"], truth),
        ]
        progress("approximate")
        for ef in EF_SEARCH:
            graph.hnsw.efSearch = ef
            methods = {"FAISS": index_search(graph, patch_ids)}
            if ef == EF_SEARCH[0]:
                methods["SQL"] = sql_search(connection, True)
            found = measure(methods, queries)
            if "SQL" in found:
                rows.append(line("SQL HNSW (halfvec)", building.seconds, size, found["SQL"], truth))
            graph_name = f"FAISS IndexHNSWFlat (M 16, efConstruction 64), efSearch {ef}"
            rows.append(line(graph_name, adding.seconds, 0, found["FAISS"], truth))
    header = ["way", "build (s)", "size (MB)", "queries", "p50 (ms)", "p95", "rows", f"recall@{WANTED}"]
    return (
        f"The {WANTED} nearest of {len(patch_ids):,} vectors of {DIMENSION} dimensions (Euclidean) to held-out "
        "queries: `eo.similar_to_vector`, exact and with `approximate => true`, by one warm connection, against FAISS "
        "(graph built by all cores, as PostgreSQL's is by parallel workers). A row is right when it is as near as the "
        f"{WANTED}th true neighbour. Wanted: recall of the approximate search at least 0.99.\n\n" + table(header, rows)
    )


def read_vectors(connection: psycopg.Connection) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Patch ids and vectors (n, 128) of the encoder `benchmark`."""
    query = """
        copy (select patch_id, embedding from eo.embedding
              where encoder_id = (select encoder_id from eo.encoder where name = 'benchmark'))
        to stdout (format binary)
    """
    with connection.cursor().copy(query) as copy:
        content = bytearray().join(copy)
    rows = np.frombuffer(content[PGCOPY_HEADER:-PGCOPY_TRAILER], ROW)
    return rows["patch_id"].astype(np.int64), rows["values"].astype(np.float32)


def read_queries(connection: psycopg.Connection, count: int) -> list[tuple[str, NDArray[np.float32]]]:
    """Held-out vectors as text and as FAISS takes them (1, 128)."""
    rows = fetch(
        connection,
        "select embedding::text from benchmark.query where embedding is not null order by number limit %s",
        count,
    )
    return [(text, np.array(text.strip("[]").split(","), np.float32)[None]) for (text,) in rows]


def sql_search(connection: psycopg.Connection, approximate: bool) -> Callable[[Any], Any]:
    """Search in SQL."""
    query = """
        select distance
        from eo.similar_to_vector(%s::vector, max_results => %s, encoder => 'benchmark', approximate => %s)
        """
    return lambda q: [distance for (distance,) in fetch(connection, query, q[0], WANTED, approximate)]


def index_search(index: faiss.Index, patch_ids: NDArray[np.int64]) -> Callable[[Any], Any]:
    """Search by FAISS, with the patch ids looked up."""

    def search(query: Any) -> NDArray[np.float64]:
        squares, positions = index.search(query[1], WANTED)
        assert patch_ids[positions[0]].size
        return np.sqrt(squares[0].astype(np.float64))

    return search


def true_distances(flat: faiss.Index, queries: list[Any]) -> list[float]:
    """Distance of the last of the true neighbours, by query."""
    squares, _ = flat.search(np.concatenate([vector for _, vector in queries]), WANTED)
    return np.sqrt(squares[:, -1].astype(np.float64)).tolist()


def line(name: str, build: float, size: int, found: Any, truth: list[float]) -> list[str]:
    """A line of the table; distances may differ by float32's rounding."""
    right = [
        (np.asarray(answer) <= last * (1 + 1e-5) + 1e-6).sum()
        for answer, last in zip(found.answers, truth, strict=False)
    ]
    return [
        name,
        f"{build:.0f}" if build else "",
        f"{size / 1e6:.0f}" if size else "",
        f"{len(found.answers):,}",
        milliseconds(found.p50),
        milliseconds(found.p95),
        found.rows,
        f"{np.sum(right) / (WANTED * len(right)):.4f}",
    ]


if __name__ == "__main__":
    main()
