"""Exact search by hash code in SQL against FAISS IndexBinaryFlat, in the same run.

Nearest 10, 100 and 1,000 and all within 2, 8 and 16 bits; wide radii; the first query of a new backend; memory per
backend; building the packed codes and appending to them; what pruning gains on codes that cluster, on real ones, and
on uniform random ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psycopg

from benchmarks.codes import (
    Flat,
    agree,
    append_codes,
    code_counts,
    read_codes,
    read_queries,
    remove_appended,
    sorted_distances,
    sql_methods,
)
from benchmarks.harness import (
    Archive,
    Run,
    Stopwatch,
    arguments,
    connect,
    fetch,
    measure,
    milliseconds,
    progress,
    ratio,
    report,
    table,
)

WANTED = (10, 100, 1000)
RADII = (2, 8, 16)
WIDE_RADII = (24, 32)
WIDE_QUERIES = 200
FEWER_WIDE_QUERIES = 20
"""Beyond a million patches: an answer then has up to a million rows."""
BACKENDS = 6
APPENDED = (1, 1_000, 10_000)
TWIN_QUERIES = 20


def main() -> None:
    """Measure on every archive asked for."""
    run = arguments(__doc__ or "", "549k", "10m")
    for archive in run.archives:
        with connect(archive) as connection:
            flat = Flat(*read_codes(connection, "clustered"))
            size = f"{archive.patches:,} patches"
            parts = [searches(connection, flat, run)]
            parts += [first_query(archive), memory(archive), build_and_append(archive)]
            report(f"Exact Hamming search, {size}", parts, run)
            del flat
            if archive.vectors:
                report(f"What pruning gains, {size}", [pruning(archive, run)], run)


def searches(connection: psycopg.Connection, flat: Flat, run: Run) -> str:
    """Search by one warm connection, and by FAISS."""
    nearest, within = sql_methods(connection, "clustered")
    queries = read_queries(connection, "clustered", run.queries)
    rows = []
    wide = queries[: WIDE_QUERIES if len(flat.patch_ids) < 1_000_000 else FEWER_WIDE_QUERIES]
    for what, sizes in (("nearest", WANTED), ("radius", (*RADII, *WIDE_RADII))):
        for size in sizes:
            progress(f"{what} {size}")
            if what == "nearest":
                methods = {"sql": lambda q, k=size: nearest(q, k), "faiss": lambda q, k=size: flat.nearest(q, k)}
            else:
                methods = {"sql": lambda q, r=size: within(q, r), "faiss": lambda q, r=size: flat.within(q, r)}
            asked = wide if what == "radius" and size in WIDE_RADII else queries
            found = measure(methods, asked, sorted_distances)
            sql, faiss = found["sql"], found["faiss"]
            rows.append(
                [
                    f"{what} {size:,}",
                    sql.rows,
                    milliseconds(sql.p50),
                    milliseconds(sql.p95),
                    milliseconds(faiss.p50),
                    milliseconds(faiss.p95),
                    ratio(sql.p50, faiss.p50),
                    ratio(sql.p95, faiss.p95),
                    agree(sql.answers, faiss.answers),
                ]
            )
    header = ["search", "rows", "SQL p50 (ms)", "SQL p95", "FAISS p50", "FAISS p95", "p50 ratio", "p95 ratio"]
    return (
        f"{len(queries):,} held-out queries among {code_counts(connection, 'clustered')}: `eo.similar_to_code` "
        "and `eo.within_distance` by one warm connection, rows fetched, against FAISS `IndexBinaryFlat` over the codes "
        f"of all patches in the measuring process. Rows: median (least to most). Radius {WIDE_RADII[0]} and more: "
        f"{len(wide)} queries. Wanted: ratios of at most 1.0x, and at 10.3 million a p50 "
        "ratio of at most 0.3x.\n\n" + table([*header, "same distances as FAISS"], rows)
    )


def first_query(archive: Archive) -> str:
    """Time the first query of new backends, apart from connecting."""
    times = []
    with connect(archive) as connection:
        queries = read_queries(connection, "clustered", 2 * BACKENDS)
    for code in queries:
        with connect(archive) as connection:
            connection.execute("select 1")
            nearest, _ = sql_methods(connection, "clustered")
            with Stopwatch() as watch:
                nearest(code, 10)
            with Stopwatch() as second:
                nearest(code, 10)
        times.append((watch.seconds * 1000, second.seconds * 1000))
    first, second = np.array(times).T
    return (
        f"First query (nearest 10) in {len(times)} new backends, one after the other: median "
        f"{milliseconds(np.median(first))} ms, slowest {milliseconds(first.max())} ms; the second query in them: "
        f"median {milliseconds(np.median(second))} ms. Wanted: under 200 ms."
    )


def memory(archive: Archive) -> str:
    """Read the memory of several backends that live at once, from the kernel."""
    stages: dict[str, list[dict[str, float]]] = {}
    connections = [connect(archive) for _ in range(BACKENDS)]
    try:
        queries = read_queries(connections[0], "clustered", 50)

        def each(stage: str, search: str | None) -> None:
            for connection in connections:
                if search is None:
                    connection.execute("select count(*) from eo.encoder")
                for code in queries if search else []:
                    sql_methods(connection, search)[0](code, 10)
            stages[stage] = [memory_of(connection) for connection in connections]

        each("connected", None)
        small = "real" if archive.vectors else f"first-{archive.growth[0]}"
        each(f"after {len(queries)} searches among {code_counts(connections[0], small)}", small)
        each(f"after {len(queries)} searches among {code_counts(connections[0], 'clustered')}", "clustered")
    except PermissionError:
        return "Memory per backend: /proc/PID/smaps_rollup is not readable by this user."
    finally:
        for connection in connections:
            connection.close()
    rows = []
    before = 0.0
    for stage, backends in stages.items():
        private = float(np.mean([backend["Private_Dirty"] + backend["Private_Clean"] for backend in backends]))
        share = float(np.mean([backend["Pss"] for backend in backends]))
        rows.append([stage, f"{private:.1f}", f"{private - before:+.1f}" if before else "", f"{share:.1f}"])
        before = private
    return (
        f"Memory per backend, {BACKENDS} backends at once, mean of /proc/PID/smaps_rollup. The second line is what "
        "Python and numpy take, the third what these codes add (wanted: under 10 MB at 10.3 million):\n\n"
        + table(["backend", "private (MB)", "more than before", "with its share of what is shared (Pss, MB)"], rows)
    )


def memory_of(connection: psycopg.Connection) -> dict[str, float]:
    """Memory of a connection's backend in MB (10^6 bytes) by kind."""
    text = Path(f"/proc/{connection.info.backend_pid}/smaps_rollup").read_text()
    lines = [line.split() for line in text.splitlines()[1:]]
    return {kind.rstrip(":"): int(number) * 1024 / 1e6 for kind, number, *_ in lines}


def build_and_append(archive: Archive) -> str:
    """Build the packed codes; append to them, and search the first and the second time after that."""
    with connect(archive) as connection, connect(archive) as writer:
        with Stopwatch() as watch:
            connection.execute("select eo.build_code_index('clustered')")
        index = fetch(
            connection,
            """
            select i.bytes / 1e6, i.buckets, (select count(*) from eo.bucket b where b.encoder_id = e.encoder_id)
            from eo.code_index i join eo.encoder e using (encoder_id)
            where name = 'clustered'
            """,
        )[0]
        nearest, _ = sql_methods(connection, "clustered")
        code = read_queries(connection, "clustered", 1)[0]
        nearest(code, 10)
        rows = []
        for number, count in enumerate(APPENDED, start=1):
            with Stopwatch() as storing:
                append_codes(writer, "clustered", count, segment=number, seed=number)
            seconds = []
            for _ in range(2):
                with Stopwatch() as searching:
                    nearest(code, 10)
                seconds.append(searching.seconds * 1000)
            rows.append([f"{count:,}", milliseconds(storing.seconds * 1000), *map(milliseconds, seconds)])
    remove_appended(archive, "clustered", index[2])
    return (
        f"Building the packed codes (`eo.build_code_index`, {index[1]:,} distinct codes): {watch.seconds:.1f} s, "
        f"{index[0]:.0f} MB. Appending needs no build: a backend reads what is new before its next search.\n\n"
        + table(
            ["new codes by another connection", "`eo.store_codes` (ms)", "next search (ms)", "the one after (ms)"], rows
        )
    )


def pruning(archive: Archive, run: Run) -> str:
    """Compare pruned searches in codes that cluster, real ones and uniform ones with scans by FAISS and in SQL."""
    rows = []
    with connect(archive) as connection, connect(archive, {"pgearth.code_scan": "sql"}) as twin:
        for name in ("clustered", "real", "uniform"):
            progress(f"pruning: {name}")
            flat = Flat(*read_codes(connection, name))
            queries = read_queries(connection, name, run.queries)
            ours, scanned = sql_methods(connection, name), sql_methods(twin, name)
            for what, size, kind in (("nearest", 10, 0), ("radius", 8, 1)):
                methods = {
                    "sql": lambda q, search=ours[kind], n=size: search(q, n),
                    "faiss": lambda q, search=(flat.nearest, flat.within)[kind], n=size: search(q, n),
                }
                found = measure(methods, queries, sorted_distances)
                plain = measure({"twin": lambda q, search=scanned[kind], n=size: search(q, n)}, queries[:TWIN_QUERIES])
                sql, faiss = found["sql"], found["faiss"]
                rows.append(
                    [
                        name,
                        code_counts(connection, name),
                        f"{what} {size}",
                        milliseconds(sql.p50),
                        milliseconds(sql.p95),
                        milliseconds(faiss.p50),
                        milliseconds(faiss.p95),
                        ratio(sql.p50, faiss.p50),
                        milliseconds(plain["twin"].p50),
                        agree(sql.answers, faiss.answers),
                    ]
                )
    header = ["codes", "how many", "search", "SQL, pruned, p50 (ms)", "p95", "FAISS p50", "p95", "p50 ratio"]
    return (
        "The same searches on three sets of codes (benchmarks/archive.py says how they are made). Plain SQL: "
        f"`pgearth.code_scan = sql`, {TWIN_QUERIES} queries.\n\n"
        + table([*header, "plain SQL p50", "same distances as FAISS"], rows)
    )


if __name__ == "__main__":
    main()
