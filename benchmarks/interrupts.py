"""How soon calls end that are cancelled: from the signal to the error, of each kind of PL/Python function.

    python -m benchmarks.interrupts DSN

DSN names a database that may be filled: `pgearth migrate` made it, and nothing is in it. Inputs are as large as the
limits allow. Each call is cancelled at several moments; the table shows the longest time. Wanted: under 1 s.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import psycopg
import tifffile

from pgearth.loaders.archive.write import Patch, Product, patch_raster, write_patches, write_products
from pgearth.loaders.models.encode import encode_archive
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.pixels.rasters import Raster

BANDS = list(spectral.BANDS)
SIDE = 1150  # pixels of the largest image of twelve bands
MOMENTS = (0.3, 0.7, 1.3, 2.0, 3.0)  # seconds after the call began
CALLS = {
    "eo.encode, 30,000 patches": """
        select count(*)
        from eo.encode(array(select p.patch_id from eo.patch p, generate_series(1, 150) where source = 'small'))
        """,
    "eo.encode, the largest patch": """
        select count(*)
        from eo.encode(array(select p.patch_id from eo.patch p, generate_series(1, 20) where source = 'large'))
        """,
    "eo.encode, rasters": """
        select eo.encode((
            select array_agg(st_band(r.rast, n) order by n)
            from eo.patch_raster r join eo.patch using (patch_id), generate_series(1, 12) n
            where source = 'large'))
        """,
    "eo.encode_image": "select eo.encode_image((select image from upload), bands => %(bands)s)",
    "eo.similar_to_image": """
        select count(*) from eo.similar_to_image((select image from upload), bands => %(bands)s)
        """,
    "eo.segment_codes, superpixels": "select eo.segment_codes((select image from upload), bands => %(bands)s)",
    "eo.rgb": "select count(eo.rgb(p.name)) from eo.patch p, generate_series(1, 100) where source = 'large'",
    "eo.contact_sheet, 200 patches": """
        select count(eo.contact_sheet(array(select patch_id from eo.patch where source = 'small')))
        from generate_series(1, 100)
        """,
    "eo.build_code_index": "do $$begin for n in 1..5000 loop perform eo.build_code_index(); end loop; end$$",
    "eo.retrieval_metrics": """
        select count(m) from generate_series(1, 1000) n, eo.retrieval_metrics('lsh', seed => n) m
        """,
    "eo.code_statistics": """
        select count(s)
        from generate_series(1, 10000) n,
             eo.code_statistics(patches => eo.filter(to_time => date '2030-01-01' + n)) s
        """,
}


def upload() -> bytes:
    noise = np.random.default_rng(0).integers(100, 9000, (12, SIDE, SIDE)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, noise, photometric="minisblack", planarconfig="separate", compression="zlib", metadata=None)
    return file.getvalue()


def patches(source: str, count: int, side: int) -> Iterator[Patch]:
    noise = np.random.default_rng(1)
    for number in range(count):
        west, north = 500_000.0 + 10 * side * (number % 50), 5_000_000.0 - 10 * side * (number // 50)
        pixels = tuple(noise.integers(100, 9000, (12, side, side)).astype(np.uint16))
        raster = Raster(pixels, (10.0, -10.0, west, north, 0.0, 0.0), 32633, (0,) * 12)
        yield Patch(
            f"{source}-{number}",
            "noise",
            "sentinel-2a",
            datetime(2020, 6, 1, tzinfo=UTC),
            32633,
            west,
            north - 10 * side,
            west + 10 * side,
            north,
            label_ids=[1001],
            rasters=[patch_raster(10, BANDS, raster)],
        )


def fill(connection: psycopg.Connection) -> None:
    load_nomenclature(connection)
    with connection.transaction():
        write_products(connection, [Product("noise", "sentinel-2a", "L2A", datetime(2020, 6, 1, tzinfo=UTC))])
        write_patches(connection, "small", patches("small", 200, 120))
    with psycopg.connect(connection.info.dsn, autocommit=True) as reading:
        encode_archive(connection, reading, segments="slic:9")
    with connection.transaction():
        write_patches(connection, "large", patches("large", 1, SIDE))
    connection.execute("create table upload (image bytea)")
    connection.execute("insert into upload values (%b)", (upload(),))


def cancelled(connection: psycopg.Connection, query: str, moment: float) -> float | None:
    """Seconds from the signal to the error; None where the call had ended before."""
    sent: list[float] = []

    def cancel() -> None:
        sent.append(time.monotonic())
        connection.cancel_safe()

    timer = threading.Timer(moment, cancel)
    timer.start()
    try:
        connection.execute(query.encode(), {"bands": BANDS} if "%(bands)s" in query else None)
    except psycopg.errors.QueryCanceled:
        return time.monotonic() - sent[0]
    finally:
        timer.cancel()
        timer.join()
    return None


def main(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        fill(connection)
        print("| call | cancelled after (s) | longest from the signal to the error (s) |\n|---|---|---|")
        for name, query in CALLS.items():
            times = {moment: cancelled(connection, query, moment) for moment in MOMENTS}
            known = {moment: seconds for moment, seconds in times.items() if seconds is not None}
            longest = f"{max(known.values()):.2f}" if known else "ended before"
            print(f"| `{name}` | {', '.join(map(str, known))} | {longest} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
