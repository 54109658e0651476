"""What every benchmark shares: the archives and connections to them, timing side by side, and the tables in RESULTS.md.

Every script takes the archives to measure on (`--archive`), the number of queries, and `--quick`, which measures on a
small archive and writes to build/RESULTS-quick.md instead. The server is that of PGEARTH_DSN, of libpq's variables, or
the checkout's own, as for `pgearth`; each archive is a database of its own there, made by benchmarks/archive.py.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import psycopg
from numpy.typing import NDArray
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from pgearth.loaders.server.connection import dsn, require_server

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
QUICK_RESULTS = ROOT / "build" / "RESULTS-quick.md"
BITS = 128
DIMENSION = 128
BLOCK = 25
"""Queries that one method answers in a row before it is the other's turn."""
WARM_UP = 5


@dataclass(frozen=True)
class Archive:
    """A database to measure on: copies of `catalogue` patches of the catalogue, `patches` in all.

    `held_out` of them, drawn at random, have no codes and no vectors: they are the queries.
    `margin` is the quantisation margin of the codes (see benchmarks/generator.py); `window_step` how many pixels the
    windows of real pixels are apart; `growth` are the sizes of the hash functions that hold only so many patches.
    """

    name: str
    database: str
    catalogue: int
    patches: int
    margin: float
    held_out: int = 1000
    vectors: bool = True
    window_step: int = 12
    growth: tuple[int, ...] = ()

    @property
    def copies(self) -> int:
        """How often the catalogue is in it, the last time perhaps in part."""
        return -(-self.patches // self.catalogue)


ARCHIVES = {
    archive.name: archive
    for archive in (
        Archive(
            "quick",
            "pgearth_bench_quick",
            20_000,
            30_000,
            margin=2.0,
            held_out=100,
            window_step=60,
            growth=(3_000, 10_000),
        ),
        Archive("549k", "pgearth_bench_549k", 549_488, 549_488, margin=2.83),
        Archive(
            "10m",
            "pgearth_bench_10m",
            549_488,
            10_300_000,
            margin=2.02,
            vectors=False,
            growth=(10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000),
        ),
    )
}


@dataclass(frozen=True)
class Run:
    """What a script was asked to do."""

    archives: list[Archive]
    queries: int
    quick: bool


def arguments(description: str, *archives: str, queries: int = 1000) -> Run:
    """Parse the command line of a script that by default measures on `archives` with so many queries."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--archive", action="append", choices=list(ARCHIVES), help=f"default: {', '.join(archives)}")
    parser.add_argument("--queries", type=int, help=f"default: {queries}")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="smoke run: archive quick unless one is named, 50 queries, results to build/",
    )
    given = parser.parse_args()
    chosen = given.archive or (["quick"] if given.quick else list(archives))
    return Run([ARCHIVES[name] for name in chosen], given.queries or (50 if given.quick else queries), given.quick)


def command() -> str:
    """The command line that runs this script again."""
    return " ".join([".venv/bin/python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def conninfo(database: str) -> str:
    """Connection string of a database on the server that `pgearth` would use."""
    require_server()
    return make_conninfo(dsn(), dbname=database)


def connect(archive: Archive, settings: Mapping[str, str] | None = None) -> psycopg.Connection:
    """Connect to an archive (autocommit), with run-time `settings`."""
    options = " ".join(f"-c {name}={value}" for name, value in (settings or {}).items())
    return psycopg.connect(
        conninfo(archive.database), autocommit=True, application_name="pgearth bench", options=options
    )


def fetch(connection: psycopg.Connection, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """The rows of a query, prepared: what the benchmarks time."""
    return connection.execute(query, parameters or None, prepare=True).fetchall()


def value(connection: psycopg.Connection, query: str, *parameters: Any) -> Any:
    """The one value that a query gives."""
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return row[0]


def remember(connection: psycopg.Connection, key: str, content: Any) -> None:
    """Store a measurement in the archive itself, for later scripts."""
    connection.execute(
        "insert into benchmark.record values (%s, %s) on conflict (key) do update set content = excluded.content",
        (key, Jsonb(content)),
    )


def recall(connection: psycopg.Connection, key: str) -> Any:
    """A measurement that `remember` stored, or None."""
    row = connection.execute("select content from benchmark.record where key = %s", (key,)).fetchone()
    return row[0] if row else None


def progress(text: str) -> None:
    """Say what is going on, with the time of day."""
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


class Stopwatch:
    """Seconds that a block took: `with Stopwatch() as watch: ...`, then `watch.seconds`."""

    def __enter__(self) -> Stopwatch:
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start


@dataclass(frozen=True)
class Measured:
    """Times (seconds) and answers of a method, by query."""

    seconds: NDArray[np.float64]
    answers: list[Any]

    def percentile(self, percent: float) -> float:
        """Percentile of the times, in milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1000

    @property
    def p50(self) -> float:
        """Median time in milliseconds."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """95th percentile of the times, in milliseconds."""
        return self.percentile(95)

    @property
    def rows(self) -> str:
        """Median number of rows of the answers, and the range where there is one."""
        counts = [len(answer) for answer in self.answers]
        low, high = min(counts), max(counts)
        return f"{low:,}" if low == high else f"{np.median(counts):,.0f} ({low:,} to {high:,})"


def measure(
    methods: Mapping[str, Callable[[Any], Any]],
    queries: Sequence[Any],
    keep: Callable[[Any], Any] = lambda answer: answer,
) -> dict[str, Measured]:
    """Time methods side by side on the same queries: BLOCK queries by each in turn, so that both meet the same noise.

    The first WARM_UP queries are run before, untimed. One query at a time, with its answer fetched; `keep` then makes
    of the answer, untimed, what is kept of it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    answers: dict[str, list[Any]] = {name: [] for name in methods}
    for method in methods.values():
        for query in queries[:WARM_UP]:
            method(query)
    gc.collect()
    gc.disable()
    try:
        for first in range(0, len(queries), BLOCK):
            for name, method in methods.items():
                for query in queries[first : first + BLOCK]:
                    start = time.perf_counter()
                    answer = method(query)
                    seconds[name].append(time.perf_counter() - start)
                    answers[name].append(keep(answer))
    finally:
        gc.enable()
    return {name: Measured(np.array(seconds[name]), answers[name]) for name in methods}


def milliseconds(number: float) -> str:
    """A time for a table."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def ratio(ours: float, theirs: float) -> str:
    """How many times as long as the peer, for a table."""
    return f"{ours / theirs:.2f}x"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


@cache
def machine() -> str:
    """The machine and the versions of what is measured, in a sentence."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else model
    with psycopg.connect(conninfo("postgres")) as connection:
        names = ("server_version", "shared_buffers", "work_mem", "jit", "fsync", "max_parallel_workers_per_gather")
        settings = {name: value(connection, "select current_setting(%s)", name).split(" (")[0] for name in names}
        extensions = connection.execute(
            "select name, default_version from pg_available_extensions where name in ('postgis', 'vector') order by 1"
        ).fetchall()
    return (
        f"{model}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB; PostgreSQL "
        f"{settings.pop('server_version')}, {', '.join(f'{name} {number}' for name, number in extensions)}, "
        f"faiss-cpu {version('faiss-cpu')} (one thread), numpy {version('numpy')}; "
        + ", ".join(f"{name} {setting}" for name, setting in settings.items())
    )


def report(title: str, parts: Sequence[str], run: Run, measured_on: str | None = None) -> None:
    """Print a section and put it into RESULTS.md (of a quick run: QUICK_RESULTS), in place of an older one.

    `measured_on` is what to say of the machine instead of `machine()`, which asks PostgreSQL.
    """
    path = QUICK_RESULTS if run.quick else RESULTS
    path.parent.mkdir(exist_ok=True)
    body = "\n\n".join([f"`{command()}`, {datetime.now(UTC):%Y-%m-%d}. {measured_on or machine()}.", *parts])
    section = f"## {title}\n\n{body}\n"
    print(f"\n{section}", flush=True)
    text = path.read_text() if path.exists() else "# Measurements\n"
    older = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if not older.search(text):
        text = f"{text.rstrip()}\n\n## {title}\n"
    path.write_text(older.sub(lambda _: section + "\n", text).rstrip() + "\n")


faiss.omp_set_num_threads(1)
