"""The encoder process through SQL against the bare network on the same device: throughput, shared batches, latency.

The peer is torch alone: `encode_batch` over pixels that lie in memory already, in batches of 64, nothing else to do.
Through SQL the pixels are read from the database, parsed, passed to the process and the vectors sent back. The network
is a ResNet-18, untrained: a vector costs the same. Vectors of both ways are compared.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np
import psycopg
import tifffile
import torch
from numpy.typing import NDArray
from psycopg.sql import SQL, Identifier

from benchmarks.archive import migrate
from benchmarks.harness import (
    Archive,
    Measured,
    Run,
    arguments,
    connect,
    conninfo,
    measure,
    milliseconds,
    progress,
    report,
    table,
    value,
)
from pgearth.loaders.demo.synthetic.archive import load_synthetic
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.models.versions import register
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.server.encoder_process import EncoderProcess
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models.encoder import BATCH_SIZE, Encoder, encode
from pgearth.pyfuncs.models.resnet import WIDTH, ResNet, weights_of
from pgearth.pyfuncs.models.spectral import BANDS
from pgearth.pyfuncs.models.weights import dump
from pgearth.pyfuncs.pixels.rasters import bands_from_wkb, resample

PATCHES = 1_024
QUICK_PATCHES = 128
BATCH = 64
SESSIONS = 16
SECONDS = 10.0
QUICK_SECONDS = 2.0
TURNS = 3
SIDE = 120
BITS = 128
SMALL_WIDTH = 16
"""Channels of the small network's first stage: what is trained in minutes on a CPU."""
NETWORKS = {"resnet18": WIDTH, "small": SMALL_WIDTH}
Patch = dict[str, NDArray[np.uint16]]


def main() -> None:
    """Fill a database, start its encoder process and measure."""
    run = arguments(__doc__ or "", queries=200)
    patches = QUICK_PATCHES if run.quick else PATCHES
    archive = Archive("encoder process", "pgearth_bench_encoder_process", 0, patches, margin=0)
    with psycopg.connect(conninfo("postgres"), autocommit=True) as server:
        server.execute(SQL("drop database if exists {} with (force)").format(Identifier(archive.database)))
        server.execute(SQL("create database {}").format(Identifier(archive.database)))
        try:
            progress(f"{patches:,} patches")
            encoders = fill(archive)
            with connect(archive) as connection:
                device, parts = measured(archive, connection, encoders, run)
            report(f"Encoder process ({device})", parts, run)
        finally:
            server.execute(SQL("drop database {} with (force)").format(Identifier(archive.database)))


def fill(archive: Archive) -> dict[str, Encoder]:
    """Store patches with pixels, the networks, and codes by the small one."""
    migrate(archive)
    with connect(archive) as connection, connect(archive) as reading:
        load_nomenclature(connection)
        load_synthetic(connection, archive.patches)
        encoders = {name: register_network(connection, name, width) for name, width in NETWORKS.items()}
        encode_archive(connection, reading, ["small"])
        rows = connection.execute("select embedding::real[] from eo.embedding order by patch_id").fetchall()
        weights = lsh.fit(np.array([row[0] for row in rows]), bits=BITS)
        register(connection, "code", "lsh", dump(weights), bits=BITS, parent_id=encoders["small"].encoder_id)
        encode_archive(connection, reading, ["code"])
        connection.execute("vacuum analyze")
    return encoders


def register_network(connection: psycopg.Connection, name: str, width: int) -> Encoder:
    """Store a network that has learned nothing."""
    torch.manual_seed(0)
    normalisation = {"mean": [1500.0] * len(BANDS), "std": [1000.0] * len(BANDS)}
    model = ResNet("resnet18", normalisation["mean"], normalisation["std"], width)
    return register(
        connection,
        name,
        "resnet18",
        dump(weights_of(model)),
        bands=BANDS,
        dimension=model.dimension,
        input_size=SIDE,
        normalisation=normalisation,
    )


@contextmanager
def process(archive: Archive) -> Iterator[None]:
    """The archive's encoder process, running."""
    with connect(archive) as connection:
        found = EncoderProcess.of(connection)
        found.start(connection, [])
    try:
        yield
    finally:
        found.stop()


def measured(
    archive: Archive, connection: psycopg.Connection, encoders: dict[str, Encoder], run: Run
) -> tuple[str, list[str]]:
    """The device and the parts of the report."""
    patch_ids, patches = read_patches(connection)
    images = [geotiff(patch) for patch in patches[: run.queries]]
    with process(archive):
        device = value(connection, "select version from eo.runtime() where component = 'device'")
        throughput = [rates(archive, encoders[name], patch_ids, patches, run) for name in NETWORKS]
        progress("latency with the process")
        latency = {"with the process": latencies(archive, images)}
    progress("latency without the process")
    latency["without"] = latencies(archive, images)
    rows = [
        [name, *(milliseconds(number) for way in ways for number in (way.p50, way.p95))]
        for name, ways in latency.items()
    ]
    return device, [
        f"{len(patches):,} synthetic patches of {len(BANDS)} bands, {SIDE} x {SIDE} pixels at 10 m, ResNet-18 with"
        f" {WIDTH} (small: {SMALL_WIDTH}) channels in its first stage, on {device}. Bare: torch {torch.__version__} in"
        f" a loop over patches in memory, {BATCH} at a time ('of bare' is to this) and {BATCH_SIZE}, as the process"
        f" does on a CPU. SQL: eo.encode of {BATCH} patch_ids at a time by one or two"
        f" sessions, and of one patch_id at a time by {SESSIONS} sessions at once. Patches per second, median of"
        f" {TURNS} turns of {SECONDS if not run.quick else QUICK_SECONDS:.0f} s each, the ways in turn.",
        table(
            ["network", "way", "patches/s", "of bare", "patches per batch"],
            [row for rows in throughput for row in rows],
        ),
        f"eo.similar_to_image of a GeoTIFF of {len(images[0]) / 1000:,.0f} kB (decoded, encoded by the small network,"
        f" hashed to {BITS} bits, ranked among the {len(patches):,}), {len(images)} queries: in a session that has"
        " asked before, and in a new one, with making the connection.",
        table(["encoder", "warm p50 (ms)", "warm p95 (ms)", "new session p50 (ms)", "new session p95 (ms)"], rows),
    ]


def read_patches(connection: psycopg.Connection) -> tuple[list[int], list[Patch]]:
    """Ids and pixels of all patches."""
    patches: dict[int, Patch] = {}
    query = "select patch_id, bands, ST_AsWKB(rast) from eo.patch_raster order by patch_id, resolution"
    for patch_id, names, wkb in connection.execute(query, binary=True):
        patches.setdefault(patch_id, {}).update(bands_from_wkb(wkb, names))
    return list(patches), list(patches.values())


def geotiff(patch: Patch) -> bytes:
    """An upload: all bands at 10 m."""
    file = io.BytesIO()
    names = "".join(f'<Item name="DESCRIPTION" sample="{n}" role="description">{b}</Item>' for n, b in enumerate(BANDS))
    tifffile.imwrite(
        file,
        np.stack([resample(patch[band], (SIDE, SIDE)) for band in BANDS]),
        photometric="minisblack",
        planarconfig="separate",
        extratags=[(42112, "s", 0, f"<GDALMetadata>{names}</GDALMetadata>", True)],
    )
    return file.getvalue()


def rates(
    archive: Archive, encoder: Encoder, patch_ids: Sequence[int], patches: Sequence[Patch], run: Run
) -> list[list[object]]:
    """Patches per second of the bare network and through SQL, a row for each way."""
    progress(f"throughput of {encoder.name}")
    seconds = QUICK_SECONDS if run.quick else SECONDS
    chunks = [slice(start, start + BATCH) for start in range(0, len(patches), BATCH)]
    query = "select embedding::text from eo.encode(%s, %s)"
    with connect(archive) as connection:
        rows = connection.execute(query, (list(patch_ids[:BATCH]), encoder.name)).fetchall()
        stored = np.array([np.fromstring(text.strip("[]"), np.float32, sep=",") for (text,) in rows])
    expected = encode(encoder, patches[:BATCH], batch_size=BATCH)
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())

    def bare(number: int, batch_size: int) -> int:
        chosen = patches[chunks[number % len(chunks)]]
        encode(encoder, chosen, batch_size=batch_size)
        return len(chosen)

    def through_sql(connection: psycopg.Connection, chosen: Sequence[int]) -> int:
        return value(connection, "select count(embedding) from eo.encode(%s, %s)", list(chosen), encoder.name)

    def by_batches(connection: psycopg.Connection, number: int) -> int:
        return through_sql(connection, patch_ids[chunks[number % len(chunks)]])

    def by_patches(connection: psycopg.Connection, number: int) -> int:
        return through_sql(connection, patch_ids[number % len(patch_ids) :][:1])

    ways: dict[str, Callable[[], tuple[float, float | None]]] = {
        f"bare, {BATCH} at a time": lambda: (repeated(partial(bare, batch_size=BATCH), 0, 1, seconds), BATCH),
        f"bare, {BATCH_SIZE} at a time": lambda: (
            repeated(partial(bare, batch_size=BATCH_SIZE), 0, 1, seconds),
            BATCH_SIZE,
        ),
        f"SQL, 1 session, {BATCH} at a time": lambda: sessions(archive, by_batches, 1, seconds),
        f"SQL, 2 sessions, {BATCH} at a time": lambda: sessions(archive, by_batches, 2, seconds),
        f"SQL, {SESSIONS} sessions, 1 at a time": lambda: sessions(archive, by_patches, SESSIONS, seconds),
    }
    results: dict[str, list[tuple[float, float | None]]] = {name: [] for name in ways}
    for _ in range(1 if run.quick else TURNS):
        for name, way in ways.items():
            results[name].append(way())
    found = {name: median(rate for rate, _ in turns) for name, turns in results.items()}
    reference = next(iter(found.values()))
    return [
        [
            encoder.name,
            name,
            f"{rate:,.1f}",
            f"{rate / reference:.0%}",
            f"{median(b or 0 for _, b in results[name]):.1f}",
        ]
        for name, rate in found.items()
    ]


def repeated(step: Callable[[int], int], first: int, stride: int, seconds: float) -> float:
    """Patches per second of a step with the numbers first, first + stride, ..., after one that is not counted."""
    step(first)
    done, number = 0, first
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        number += stride
        done += step(number)
    return done / (time.perf_counter() - start)


def sessions(
    archive: Archive, step: Callable[[psycopg.Connection, int], int], count: int, seconds: float
) -> tuple[float, float]:
    """Patches per second of so many sessions at once, and how many patches the process encoded at a time."""
    ready = threading.Barrier(count)

    def work(number: int) -> float:
        with connect(archive) as connection:
            step(connection, number)
            ready.wait()
            return repeated(lambda n: step(connection, n), number, count, seconds)

    with connect(archive) as watching, ThreadPoolExecutor(count) as pool:
        before = counts(watching)
        rate = sum(pool.map(work, range(count)))
        after = counts(watching)
    return rate, (after["patches"] - before["patches"]) / (after["batches"] - before["batches"])


def counts(connection: psycopg.Connection) -> dict[str, int]:
    """What the process has done so far."""
    found: dict[str, int] = value(
        connection, "select runtime -> 'encoder_process' -> 'counts' from eo_internal.python_runtime()"
    )
    return found


def latencies(archive: Archive, images: Sequence[bytes]) -> tuple[Measured, Measured]:
    """Times of queries by image, in a warm session and in new ones."""
    query = "select patch_id from eo.similar_to_image(%s, max_results => 10, encoder => 'code')"

    def anew(image: bytes) -> list[tuple[int]]:
        with connect(archive) as connection:
            return connection.execute(query, (image,)).fetchall()

    with connect(archive) as connection:
        warm = measure({"warm": lambda image: connection.execute(query, (image,)).fetchall()}, images)["warm"]
    new = measure({"new": anew}, images[: max(10, len(images) // 5)])["new"]
    assert warm.answers[: len(new.answers)] == new.answers
    return warm, new


if __name__ == "__main__":
    main()
