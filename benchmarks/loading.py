"""Loading a whole Sentinel-2 product against bare decoding of the same files, and where the time goes.

Both run on the same cores, which the database's session shares: loader and server together get as many cores as the
decoding alone; the server's background processes are not confined. The product is made when it is not there
(benchmarks/synthetic_product.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import rasterio
from rasterio.windows import Window

from benchmarks.harness import Run, conninfo, progress, report, table
from benchmarks.synthetic_product import FULL_SIDE, QUICK_SIDE, find_or_make_product
from pgearth.loaders.archive import write
from pgearth.loaders.products import cutting, patches
from pgearth.loaders.products.bands import GDAL_OPTIONS
from pgearth.loaders.products.load import Options, load_product
from pgearth.loaders.server.migrate import upgrade

DATABASE = "pgearth_bench_loading"
WANTED = 0.85
STAGES: dict[str, tuple[Any, str]] = {
    "statistics": (patches, "describe"),
    "cutting windows": (cutting, "windows"),
    "scene classes": (patches, "class_shares"),
    "raster WKB": (patches, "to_wkb"),
    "client of the database": (write, "write_batch"),
}


@dataclass(frozen=True)
class Measured:
    """Seconds by the clock and of processor time (client, server), the largest memory (bytes), and patches."""

    seconds: float
    client: float
    server: float
    memory: int
    patches: int
    stages: dict[str, float]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a sixth of a tile a side; results to build/")
    run = Run([], 0, parser.parse_args().quick)
    products = [find_or_make_product(QUICK_SIDE if run.quick else FULL_SIDE, number) for number in range(2)]
    warm_up()
    rows = []
    for title, paths, cores in (
        ("one product, 1 job", products[:1], 1),
        ("one product, 2 jobs", products[:1], 2),
        ("two products, 2 jobs", products, 2),
    ):
        make_database()
        progress(f"{title}: decoding")
        bare = max(in_processes(decode, paths, cores), key=lambda one: one.seconds)
        progress(f"{title}: loading")
        loaded = in_processes(load, paths, cores)
        seconds = max(one.seconds for one in loaded)
        number = sum(one.patches for one in loaded)
        rows.append(
            [
                title,
                f"{number:,}",
                f"{bare.seconds:.1f}",
                f"{seconds:.1f}",
                f"{number / seconds / cores:.1f}",
                f"{bare.seconds / seconds:.0%}",
                f"{sum(one.client + one.server for one in loaded):.1f}",
                f"{max(one.memory for one in loaded) / 2**20:,.0f}",
            ]
        )
        if cores == 1:
            profiled = loaded[0]
    header = ["", "patches", "bare decoding, s", "loading, s", "patches/s per core", "of bare decoding", "CPU s", "MiB"]
    total = profiled.client + profiled.server
    stages = {**profiled.stages, "database session (server)": profiled.server}
    stages["the rest"] = total - sum(stages.values())
    report(
        "Loading a product",
        [
            f"Sentinel-2 L2A, 12 bands and scene classes, lossless JPEG 2000 in blocks of 1,024 x 1,024 pixels:"
            f" {sum(file.stat().st_size for file in products[0].rglob('*.jp2')) / 2**20:,.0f} MiB. Wanted: at least"
            f" {WANTED:.0%} of bare decoding. MiB: largest resident memory of one loading process. The server has"
            " written as much before.",
            table(header, rows),
            "Where the processor time of one product with one job goes:",
            table(
                ["stage", "seconds", "share"],
                [[name, f"{spent:.2f}", f"{spent / total:.1%}"] for name, spent in stages.items()],
            ),
        ],
        run,
    )
    drop_database()


def make_database() -> None:
    """An empty archive."""
    drop_database()
    with psycopg.connect(conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"create database {DATABASE}")
        user, port = connection.info.user, connection.info.port
        host = connection.info.host
    upgrade(f"postgresql+psycopg://{user}@/{DATABASE}?host={host}&port={port}")
    with psycopg.connect(conninfo("postgres"), autocommit=True) as connection:
        connection.execute("checkpoint")


def warm_up() -> None:
    """Have the server write as much as a product: its first use of memory and log files costs more than any later."""
    make_database()
    with psycopg.connect(conninfo(DATABASE), autocommit=True) as connection:
        connection.execute("create table filled (t text)")
        connection.execute("alter table filled alter t set storage plain")
        connection.execute("insert into filled select repeat('x', 7000) from generate_series(1, 200000)")
        connection.execute("checkpoint")


def drop_database() -> None:
    """Remove it."""
    with psycopg.connect(conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"drop database if exists {DATABASE} with (force)")


def in_processes(work: Callable[[Path, set[int], int], Measured], paths: list[Path], cores: int) -> list[Measured]:
    """Do the work for each path in a fresh process; together they have so many cores, and as many threads."""
    available = sorted(os.sched_getaffinity(0))[:cores]
    share = cores // len(paths)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(paths), mp_context=context) as pool:
        futures = [
            pool.submit(work, path, set(available[number * share : (number + 1) * share]), share)
            for number, path in enumerate(paths)
        ]
        return [future.result() for future in futures]


def measure(work: Callable[[], int], server: Callable[[], float], stages: dict[str, float]) -> Measured:
    """Time some work, which returns a number of patches; `server` tells the processor time of the session so far."""
    before, start, own = os.times(), time.perf_counter(), time.thread_time()
    number = work()
    seconds, after, own = time.perf_counter() - start, os.times(), time.thread_time() - own
    client = after.user + after.system - before.user - before.system
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # GDAL decodes JPEG 2000 in threads of its own, beside ours: decoding is what all but this thread took.
    return Measured(seconds, client, server(), memory, number, {"decoding (GDAL)": client - own, **stages})


def decode(path: Path, cores: set[int], threads: int) -> Measured:
    """Decode every block of every file of a product, one file to a thread, the largest first; keep nothing."""
    os.sched_setaffinity(0, cores)
    files = sorted(path.rglob("*.jp2"), key=lambda file: -file.stat().st_size)

    def decode_file(file: Path) -> None:
        with rasterio.Env(**GDAL_OPTIONS), rasterio.open(file) as dataset:
            for _, window in dataset.block_windows(1):
                dataset.read(1, window=Window(window.col_off, window.row_off, window.width, window.height))

    def work() -> int:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode_file, files))
        return 0

    return measure(work, lambda: 0.0, {})


def load(path: Path, cores: set[int], threads: int) -> Measured:
    """Load a product on some cores, the server's session among them where we may say so."""
    os.sched_setaffinity(0, cores)
    stages: Counter[str] = Counter()
    for name, (owner, attribute) in STAGES.items():
        setattr(owner, attribute, timed(getattr(owner, attribute), name, stages))
    with psycopg.connect(conninfo(DATABASE), autocommit=True) as connection:
        session = psutil.Process(connection.info.backend_pid)
        session.cpu_affinity(sorted(cores))
        connection.execute("select PostGIS_Full_Version()")  # loads the libraries
        before = session.cpu_times()

        def server() -> float:
            after = session.cpu_times()
            return after.user + after.system - before.user - before.system

        options = Options(grid="bigearthnet", threads=threads)
        return measure(lambda: load_product(connection, path, options)["patches"], server, stages)


def timed(function: Callable[..., Any], name: str, stages: Counter[str]) -> Callable[..., Any]:
    """The function, adding the processor time of its thread to a stage."""
    lock = threading.Lock()

    def run(*arguments: Any, **options: Any) -> Any:
        start = time.thread_time()
        try:
            return function(*arguments, **options)
        finally:
            with lock:
                stages[name] += time.thread_time() - start

    return run


if __name__ == "__main__":
    main()
