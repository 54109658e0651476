"""Many clients at once: throughput and times of 1 to 16, alone and with a writer beside them.

Clients are processes with a connection each. First they search for the 10 nearest codes, against as many threads that
search one FAISS IndexBinaryFlat; then they mix the searches of a day's work, while another connection stores new codes.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier, Event
from typing import Any

import faiss
import numpy as np
import psycopg

from benchmarks.codes import Flat, append_codes, read_codes, read_queries, remove_appended, sql_methods
from benchmarks.filtered import Filter, choose, read_catalogue, sql_arguments
from benchmarks.harness import (
    Archive,
    Run,
    arguments,
    connect,
    fetch,
    milliseconds,
    progress,
    ratio,
    report,
    table,
    value,
)

CLIENTS = (1, 2, 4, 8, 16)
SECONDS = 15.0
QUICK_SECONDS = 2.0
CODES_PER_TRANSACTION = 50
WRITER_PAUSE = 0.05  # seconds between its transactions


@dataclass
class Done:
    """What one client did: times by kind of search, and the errors it met."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def main() -> None:
    """Measure on every archive asked for."""
    run = arguments(__doc__ or "", "549k")
    for archive in run.archives:
        report(f"Concurrency, {archive.patches:,} patches", [nearest_only(archive, run), mixed(archive, run)], run)


def duration(run: Run) -> float:
    """How long each number of clients works."""
    return QUICK_SECONDS if run.quick else SECONDS


def nearest_only(archive: Archive, run: Run) -> str:
    """Search for the 10 nearest: clients of the database against threads on one FAISS index."""
    with connect(archive) as connection:
        flat = Flat(*read_codes(connection, "clustered"))
        queries = read_queries(connection, "clustered", run.queries)
    rows = []
    alone = 0.0
    for clients in CLIENTS:
        progress(f"nearest only, {clients} clients")
        done = run_clients(archive, clients, duration(run), "nearest", [])
        rate, p50, p95 = summary(done, duration(run))
        theirs_rate, theirs_p50, theirs_p95 = run_threads(flat, queries, clients, duration(run))
        alone = alone or rate
        rows.append(
            [
                clients,
                f"{rate:,.0f}",
                ratio(rate, alone),
                milliseconds(p50),
                milliseconds(p95),
                f"{theirs_rate:,.0f}",
                milliseconds(theirs_p50),
                milliseconds(theirs_p95),
                sum(len(one.errors) for one in done),
            ]
        )
    header = ["clients", "SQL (1/s)", "to one client", "p50 (ms)", "p95", "FAISS (1/s)", "p50 (ms)", "p95"]
    return (
        f"The 10 nearest codes, {duration(run):.0f} s for each number of clients; FAISS: as many threads of one "
        "process on one `IndexBinaryFlat`, each search by one thread.\n\n" + table([*header, "errors of SQL"], rows)
    )


def mixed(archive: Archive, run: Run) -> str:
    """Mix searches, with a writer."""
    with connect(archive) as connection:
        catalogue = read_catalogue(connection)
        filters = [one for kind in ("area", "time", "labels", "combined") for one in choose(catalogue, kind, 0.01)]
        buckets = value(
            connection,
            "select count(*) from eo.bucket join eo.encoder using (encoder_id) where name = 'clustered'",
        )
    rows = []
    for number, clients in enumerate(CLIENTS, start=1):
        progress(f"mixed, {clients} clients")
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write, archive, stop, number)
            done = run_clients(archive, clients, duration(run), "mixed", filters)
            stop.set()
            stored, errors = writing.result()
        rate, p50, p95 = summary(done, duration(run))
        by_kind = {
            kind: np.concatenate([one.seconds.get(kind, []) for one in done]) * 1000 for kind in kinds_of("mixed")
        }
        rows.append(
            [
                clients,
                f"{rate:,.0f}",
                milliseconds(p50),
                milliseconds(p95),
                *(milliseconds(float(np.percentile(times, 95))) if len(times) else "" for times in by_kind.values()),
                f"{stored:,.0f}",
                sum(len(one.errors) for one in done) + len(errors),
            ]
        )
        for error in {error for one in done for error in one.errors} | set(errors):
            progress(f"error: {error}")
    remove_appended(archive, "clustered", buckets)
    header = ["clients", "searches (1/s)", "p50 (ms)", "p95"]
    return (
        f"A mix of searches in equal parts ({', '.join(kinds_of('mixed'))}), {duration(run):.0f} s for each number of "
        f"clients, while another connection stores {CODES_PER_TRANSACTION} new codes a transaction. Filtered: the 10 "
        "nearest under filters that keep 1 %; search: a page of 50 under them.\n\n"
        + table([*header, *(f"p95 {kind}" for kind in kinds_of("mixed")), "codes stored (1/s)", "errors"], rows)
    )


def kinds_of(work: str) -> tuple[str, ...]:
    """The kinds of searches of some work."""
    return ("nearest",) if work == "nearest" else ("nearest", "within", "filtered", "search")


def searches_of(connection: psycopg.Connection, filters: list[Filter]) -> dict[str, Callable[[str, int], Any]]:
    """The kinds of searches, each by a code and a number."""
    nearest, within = sql_methods(connection, "clustered")

    def filtered(code: str, number: int) -> Any:
        names, parameters = sql_arguments(filters[number % len(filters)])
        return fetch(
            connection,
            f"select patch_id, distance from eo.similar_to_code(%s::bit varying, eo.filter({names}), 10, 'clustered')",  # noqa: S608
            code,
            *parameters,
        )

    def search(_: str, number: int) -> Any:
        names, parameters = sql_arguments(filters[number % len(filters)])
        query = f"select patch_id, name from eo.search(eo.filter({names}), max_results => 50)"  # noqa: S608
        return fetch(connection, query, *parameters)

    return {
        "nearest": lambda code, _: nearest(code, 10),
        "within": lambda code, _: within(code, 8),
        "filtered": filtered,
        "search": search,
    }


def client(
    archive: Archive, number: int, work: str, filters: list[Filter], start: Barrier, stop: Event, results: Any
) -> None:
    """One client: connects, warms up, waits for the others, and searches until told to stop."""
    done = Done()
    rng = np.random.default_rng(number)
    try:
        with connect(archive) as connection:
            codes = read_queries(connection, "clustered", 1000)
            searches = searches_of(connection, filters)
            kinds = kinds_of(work)
            for kind in kinds:
                searches[kind](codes[0], 0)
            start.wait()
            while not stop.is_set():
                kind = kinds[int(rng.integers(len(kinds)))]
                code = codes[int(rng.integers(len(codes)))]
                begin = time.perf_counter()
                searches[kind](code, int(rng.integers(1000)))
                done.seconds.setdefault(kind, []).append(time.perf_counter() - begin)
    except (psycopg.Error, threading.BrokenBarrierError) as error:
        done.errors.append(str(error))
        start.abort()
    results.put(done)


def run_clients(archive: Archive, clients: int, seconds: float, work: str, filters: list[Filter]) -> list[Done]:
    """Let so many clients search at once."""
    context = multiprocessing.get_context("spawn")
    start, stop, results = context.Barrier(clients + 1), context.Event(), context.Queue()
    processes = [
        context.Process(target=client, args=(archive, number, work, filters, start, stop, results))
        for number in range(clients)
    ]
    for process in processes:
        process.start()
    start.wait()
    time.sleep(seconds)
    stop.set()
    done = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return done


def run_threads(flat: Flat, queries: list[str], threads: int, seconds: float) -> tuple[float, float, float]:
    """Let so many threads search FAISS at once; return searches per second, p50 and p95 (ms)."""
    end = time.perf_counter() + seconds

    def work(number: int) -> list[float]:
        faiss.omp_set_num_threads(1)  # holds for the calling thread alone
        rng = np.random.default_rng(number)
        times = []
        while (begin := time.perf_counter()) < end:
            flat.nearest(queries[int(rng.integers(len(queries)))], 10)
            times.append(time.perf_counter() - begin)
        return times

    with ThreadPoolExecutor(threads) as pool:
        times = np.concatenate(list(pool.map(work, range(threads))))
    return len(times) / seconds, *(float(np.percentile(times, percent)) * 1000 for percent in (50, 95))


def summary(done: list[Done], seconds: float) -> tuple[float, float, float]:
    """Searches per second, p50 and p95 (ms) of all clients together."""
    times = np.concatenate([times for one in done for times in one.seconds.values()])
    return len(times) / seconds, *(float(np.percentile(times, percent)) * 1000 for percent in (50, 95))


def write(archive: Archive, stop: threading.Event, segment: int) -> tuple[float, list[str]]:
    """Store new codes until told to stop; return how many a second, and the errors."""
    stored = 0
    begin = time.perf_counter()
    try:
        with connect(archive) as connection:
            while not stop.is_set():
                append_codes(connection, "clustered", CODES_PER_TRANSACTION, segment, seed=segment * 1_000_000 + stored)
                stored += CODES_PER_TRANSACTION
                stop.wait(WRITER_PAUSE)
    except psycopg.Error as error:
        return stored / (time.perf_counter() - begin), [str(error)]
    return stored / (time.perf_counter() - begin), []


if __name__ == "__main__":
    main()
