"""Storing codes of a hash function that statistics know nothing of: seconds for so many codes.

The archive has the codes of another hash function, analysed, as every archive has that is encoded anew; autovacuum does
not come between. Codes are all different, the worst case.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import psycopg

from benchmarks.harness import Run, conninfo, report, table
from pgearth.loaders.models.versions import register
from pgearth.loaders.server.migrate import upgrade
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models.weights import dump

DATABASE = "pgearth_bench_bulk"
SIZES = (2000, 4000, 8000, 16000)
BITS = 128

PATCHES = """
insert into eo.product (name, platform, level, sensing_time) values ('p', 'none', 'none', '2018-01-01');
insert into eo.patch (cell, name, source, product_id, platform, sensing_time, footprint, srid, west, south, east, north)
select 'u0000', 'patch ' || n, 'benchmark', 1, 'none', '2018-01-01', ST_MakeEnvelope(8, 50, 8.1, 50.1, 4326),
       4326, 8, 50, 8.1, 50.1
from generate_series(1, 16000) n;
"""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="results to build/")
    run = Run([], 0, parser.parse_args().quick)
    with psycopg.connect(conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"drop database if exists {DATABASE} with (force)")
        connection.execute(f"create database {DATABASE}")
    info = psycopg.conninfo.conninfo_to_dict(conninfo(DATABASE))
    upgrade(f"postgresql+psycopg://{info['user']}@/{DATABASE}?host={info['host']}&port={info['port']}")
    with psycopg.connect(conninfo(DATABASE), autocommit=True) as connection:
        connection.execute(PATCHES)
        for name in ("patch", "bucket", "patch_bucket"):
            connection.execute(f"alter table eo.{name} set (autovacuum_enabled = false)")
        encoder = register(connection, "vectors", "spectral", dump({}), bands=("B02",), dimension=4)
        vectors = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
        rows = []
        for number, size in enumerate((max(SIZES), *SIZES)):
            weights = dump(lsh.fit(vectors, bits=BITS, seed=number))
            hashing = register(connection, f"codes{number}", "lsh", weights, bits=BITS, parent_id=encoder.encoder_id)
            bits = np.random.default_rng(number).integers(0, 2, (size, BITS))
            codes = ["".join(map(str, code)) for code in bits.tolist()]
            start = time.perf_counter()
            connection.execute(
                "select eo.store_codes(%s::smallint, %s, %s, %s::varbit[])",
                (hashing.encoder_id, list(range(1, size + 1)), [0] * size, codes),
            )
            seconds = time.perf_counter() - start
            if number == 0:
                connection.execute("analyze")
            else:
                rows.append([f"{size:,}", f"{seconds:.2f}", f"{seconds / size * 1e6:.0f}"])
    report(
        "Codes of a new hash function",
        [
            "`eo.store_codes` in one call, without `analyze` since the hash function was registered.\n\n"
            + table(["codes", "seconds", "microseconds each"], rows)
        ],
        run,
    )
    with psycopg.connect(conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"drop database {DATABASE} with (force)")


if __name__ == "__main__":
    main()
