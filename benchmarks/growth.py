"""Cost of exact search by hash code as the archive grows, against FAISS IndexBinaryFlat; a table and a plot.

The codes are those of growing parts of one archive: the first so many patches of a random order. The patches of all of
them, and the tables' indexes, are those of the whole archive.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.codes import Flat, agree, code_counts, read_codes, read_queries, sorted_distances, sql_methods
from benchmarks.harness import (
    QUICK_RESULTS,
    RESULTS,
    Archive,
    Measured,
    Run,
    arguments,
    connect,
    measure,
    milliseconds,
    progress,
    ratio,
    report,
    table,
)

SEARCHES = (("nearest", 10), ("radius", 8))


def main() -> None:
    """Measure on every archive asked for."""
    run = arguments(__doc__ or "", "10m", queries=300)
    for archive in run.archives:
        report(f"Cost as the archive grows, to {archive.patches:,} patches", [growth(archive, run)], run)


def growth(archive: Archive, run: Run) -> str:
    """Search in parts of the archive, and in all of it."""
    rows = []
    measured: dict[str, list[tuple[int, Measured]]] = {}
    with connect(archive) as connection:
        queries = read_queries(connection, "clustered", run.queries)
        for name in [*(f"first-{size}" for size in archive.growth), "clustered"]:
            progress(name)
            flat = Flat(*read_codes(connection, name))
            nearest, within = sql_methods(connection, name)
            size = len(flat.patch_ids)
            for what, number in SEARCHES:
                ours, theirs = (nearest, flat.nearest) if what == "nearest" else (within, flat.within)
                found = measure(
                    {"SQL": lambda q, f=ours, n=number: f(q, n), "FAISS": lambda q, f=theirs, n=number: f(q, n)},
                    queries,
                    sorted_distances,
                )
                sql, faiss = found["SQL"], found["FAISS"]
                for way, one in found.items():
                    measured.setdefault(f"{way}, {what} {number}", []).append((size, one))
                rows.append(
                    [
                        code_counts(connection, name),
                        f"{what} {number}",
                        sql.rows,
                        *map(milliseconds, (sql.p50, sql.p95, faiss.p50, faiss.p95)),
                        ratio(sql.p50, faiss.p50),
                        ratio(sql.p95, faiss.p95),
                        agree(sql.answers, faiss.answers),
                    ]
                )
    folder = (QUICK_RESULTS if run.quick else RESULTS).parent
    plot(measured, folder / "growth.png")
    header = ["codes", "search", "rows", "SQL p50 (ms)", "SQL p95", "FAISS p50", "FAISS p95", "p50 ratio", "p95 ratio"]
    return (
        f"{len(queries)} held-out queries by one warm connection.\n\n![Time by archive size](growth.png)\n\n"
        + table([*header, "same distances"], rows)
    )


def plot(measured: dict[str, list[tuple[int, Measured]]], path: Path) -> None:
    """Draw median and 95th percentile against size, both logarithmic."""
    mpl.use("Agg")
    figure, axes = plt.subplots(1, len(SEARCHES), figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (what, number) in zip(axes, SEARCHES, strict=True):
        for way, colour in (("SQL", "C0"), ("FAISS", "C1")):
            points = measured[f"{way}, {what} {number}"]
            sizes = [size for size, _ in points]
            axis.loglog(sizes, [one.p50 for _, one in points], "o-", color=colour, label=f"{way}, median")
            axis.loglog(sizes, [one.p95 for _, one in points], ":", color=colour, label=f"{way}, 95th percentile")
        axis.set(title=f"{what} {number}", xlabel="patches")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
