"""Builds the benchmark archives, each a database of its own, unless they are there.

    python -m benchmarks.archive --archive 549k --archive 10m

An archive is the real BigEarthNet v2 catalogue (from $PGEARTH_SAMPLE, else ../shared/sample), loaded as by `pgearth
load`, with its copies as later acquisitions of the same places (120 days after one another; name, product and time
their own, all else alike), and these hash functions:

clustered   codes of all patches but the held-out (benchmarks/generator.py); their vectors belong to encoder benchmark
first-N     the same codes of only N patches, the first of a random order: an archive as it grows (10m)
uniform     independent random bits for the same patches (549k)
real        real pixels through spectral and lsh (549k): overlapping windows of the sample's Major TOM cell, put down to
            patches of the catalogue, which have no pixels: what a search costs means something, its result does not

Held-out queries are in benchmark.query, measurements of the build in benchmark.record. Rows are written by COPY with
all indexes dropped; then the indexes are built, timed. An archive whose build was cut short is built anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from benchmarks.generator import SEED, Generator, Patches, first_and_bucket, read_patches
from benchmarks.harness import (
    BITS,
    DIMENSION,
    ROOT,
    Archive,
    Stopwatch,
    arguments,
    connect,
    conninfo,
    progress,
    recall,
    remember,
    table,
    value,
)
from pgearth.loaders.datasets.bigearthnet.catalogue import load_bigearthnet_metadata
from pgearth.loaders.models.versions import register
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.server.migrate import upgrade
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models import spectral
from pgearth.pyfuncs.models.weights import dump

CATALOGUE = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
TABLES = ("product", "patch", "embedding", "bucket", "patch_bucket")
DAYS_BETWEEN_COPIES = 120
ROWS_AT_ONCE = 500_000
WINDOW = 120  # pixels
REAL_HELD_OUT = 1000


def main() -> None:
    """Build the archives asked for, and the packed form of their codes."""
    run = arguments(__doc__ or "", "549k")
    for archive in run.archives:
        prepare(archive)


def prepare(archive: Archive) -> None:
    """Build an archive if it is not there, bring its schema up to date, and pack its codes."""
    with psycopg.connect(conninfo("postgres"), autocommit=True) as server:
        there = value(server, "select count(*) from pg_database where datname = %s", archive.database)
        if there and not built(archive):
            server.execute(SQL("drop database {} with (force)").format(Identifier(archive.database)))
            there = False
        if not there:
            server.execute(SQL("create database {}").format(Identifier(archive.database)))
    migrate(archive)
    if not there:
        with connect(archive) as connection, Stopwatch() as watch:
            build(connection, archive)
        progress(f"{archive.name}: built in {watch.seconds:.0f} s")
    with connect(archive) as connection:
        pack(connection)
        summarise(connection)


def built(archive: Archive) -> bool:
    """Whether the archive's database was built to the end."""
    with connect(archive) as connection:
        there = value(connection, "select to_regclass('benchmark.record') is not null")
        return bool(there and recall(connection, "build"))


def migrate(archive: Archive) -> None:
    """Bring the schema of an archive to head."""
    from pgearth.loaders.server.connection import sqlalchemy_url

    before = os.environ.get("PGEARTH_DSN")
    os.environ["PGEARTH_DSN"] = conninfo(archive.database)
    try:
        upgrade(sqlalchemy_url())
    finally:
        if before is None:
            del os.environ["PGEARTH_DSN"]
        else:
            os.environ["PGEARTH_DSN"] = before


def build(connection: Connection, archive: Archive) -> None:
    """Fill an archive."""
    connection.execute(
        """
        create schema benchmark;
        create table benchmark.record (key text primary key, content jsonb not null);
        create table benchmark.query (
            encoder text, number integer, code bit varying not null, embedding vector, primary key (encoder, number)
        );
        -- Rows are made so that they fit together; what triggers check one by one holds by construction.
        set session_replication_role = replica;
        set maintenance_work_mem = '1GB';
        set synchronous_commit = off;
        """
    )
    seconds: dict[str, float] = {}
    with stage(seconds, f"{archive.name}: loading the catalogue"):
        load_catalogue(connection, archive)
    with without_indexes(connection) as index_seconds:
        if archive.copies > 1:
            with stage(seconds, f"{archive.name}: copying the catalogue"):
                copy_catalogue(connection, archive)
        with stage(seconds, f"{archive.name}: vectors and codes"):
            store_vectors_and_codes(connection, archive)
    remember(connection, "index seconds", index_seconds)
    with stage(seconds, f"{archive.name}: vacuum analyze"):
        connection.execute("vacuum (analyze, freeze)")
    remember(connection, "build", seconds)


@contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Announce a stage of the build and keep its time."""
    progress(name)
    with Stopwatch() as watch:
        yield
    seconds[name.partition(": ")[2]] = watch.seconds


def load_catalogue(connection: Connection, archive: Archive) -> None:
    """Load the catalogue, or a random part of it, by the loader of `pgearth load bigearthnet-metadata`."""
    sample = Path(os.environ.get("PGEARTH_SAMPLE", ROOT.parent / "shared" / "sample"))
    files = [sample / "bigearthnet-v2" / name for name in CATALOGUE]
    load_nomenclature(connection)
    with tempfile.TemporaryDirectory() as folder:
        if archive.catalogue < sum(pq.ParquetFile(file).metadata.num_rows for file in files):
            whole = pq.read_table(files[0])
            chosen = np.random.default_rng(SEED).choice(len(whole), archive.catalogue, replace=False)
            files = [Path(folder) / "part.parquet"]
            pq.write_table(whole.take(np.sort(chosen)), files[0])
        load_bigearthnet_metadata(connection, files)


def copy_catalogue(connection: Connection, archive: Archive) -> None:
    """Store the later acquisitions: patch_id and product_id go up by the number of patches and products a copy."""
    products = value(connection, "select max(product_id) from eo.product")
    shift = f"interval '{DAYS_BETWEEN_COPIES} days' * copy"
    # The copy's number takes the place of the processing baseline (N9999), so that no two products are named alike.
    later = f"to_char(sensing_time at time zone 'UTC' + {shift}, 'YYYYMMDD')"
    renamed = f"overlay(overlay(name placing {later} from 12 for 8) placing lpad(copy::text, 4, '0') from 29 for 4)"
    changed = {
        "eo.product": {
            "product_id": f"product_id + copy * {products}",
            "name": renamed,
            "sensing_time": f"sensing_time + {shift}",
        },
        "eo.patch": {
            "patch_id": f"patch_id + copy * {archive.catalogue}",
            "product_id": f"product_id + copy * {products}",
            "name": renamed,
            "sensing_time": f"sensing_time + {shift}",
            "pair_name": "null",
            "metadata": "null",
        },
    }
    for copy in range(1, archive.copies):
        for name, expressions in changed.items():
            key = next(iter(expressions))
            last = (
                products if name == "eo.product" else min(archive.catalogue, archive.patches - copy * archive.catalogue)
            )
            columns = [
                column
                for (column,) in connection.execute(
                    "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"
                    " and attgenerated = ''",
                    (name,),
                )
            ]
            selected = ", ".join(expressions.get(column, column) for column in columns)
            connection.execute(
                f"insert into {name} ({', '.join(columns)}) select {selected} from {name}, (select {copy} as copy) c"  # noqa: S608
                f" where {key} <= {last} order by {key}"
            )
    for name, key in (("eo.product", "product_id"), ("eo.patch", "patch_id")):
        connection.execute(f"select setval(pg_get_serial_sequence('{name}', '{key}'), (select max({key}) from {name}))")  # noqa: S608


@contextmanager
def without_indexes(connection: Connection) -> Iterator[dict[str, float]]:
    """Drop keys, indexes and foreign keys of TABLES; build them again at the end, and yield the seconds each takes."""
    tables = [f"eo.{name}" for name in TABLES]
    constraints = connection.execute(
        """
        select contype::text, conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        from pg_constraint
        where conparentid = 0 and contype in ('p', 'u', 'f')
          and (conrelid = any (%s::regclass[]) or confrelid = any (%s::regclass[]))
        order by contype = 'f', oid
        """,
        (tables, tables),
    ).fetchall()
    indexes = connection.execute(
        """
        select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)
        from pg_index i
        where i.indrelid = any (%s::regclass[])
          and not exists (select from pg_constraint c where c.conindid = i.indexrelid and c.contype in ('p', 'u'))
        """,
        (tables,),
    ).fetchall()
    for _, owner, name, _ in reversed(constraints):
        connection.execute(f'alter table {owner} drop constraint "{name}"')
    for name, _ in indexes:
        connection.execute(f"drop index {name}")
    seconds: dict[str, float] = {}
    yield seconds
    for kind, owner, name, definition in constraints:
        progress(f"building {name}")
        with Stopwatch() as watch:
            connection.execute(f'alter table {owner} add constraint "{name}" {definition}')
        seconds[f"{'foreign key ' if kind == 'f' else ''}{name}"] = watch.seconds
    for name, definition in indexes:
        progress(f"building {name}")
        with Stopwatch() as watch:
            connection.execute(definition)
        seconds[name.removeprefix("eo.")] = watch.seconds


def store_vectors_and_codes(connection: Connection, archive: Archive) -> None:
    """Register the encoders and hash functions and store what each says of its patches."""
    patches = read_patches(connection, archive)
    rng = np.random.default_rng([SEED, 1])
    order = rng.permutation(len(patches))
    held_out, stored = np.sort(order[: archive.held_out]), np.sort(order[archive.held_out :])
    parent = register(connection, "benchmark", "spectral", dump({}), bands=("B02",), dimension=DIMENSION)
    unused = lsh.fit(rng.standard_normal((2 * BITS, DIMENSION)), bits=BITS)  # codes are made, not hashed
    codes = np.empty((len(patches), BITS // 8), np.uint8)
    is_stored = np.isin(np.arange(len(patches)), stored)
    query_vectors = []
    for rows, vectors, packed in Generator().batches(patches, archive.margin):
        codes[rows] = packed
        chosen = is_stored[rows]
        if archive.vectors:
            store_vectors(connection, parent.encoder_id, patches, np.flatnonzero(chosen) + rows.start, vectors[chosen])
        query_vectors.append(vectors[~chosen])
    store_queries(connection, "clustered", codes[held_out], np.concatenate(query_vectors))
    store_codes(connection, "clustered", parent.encoder_id, patches, stored, codes[stored], unused)
    for size in archive.growth:
        chosen = np.sort(order[archive.held_out : archive.held_out + size])
        store_codes(connection, f"first-{size}", parent.encoder_id, patches, chosen, codes[chosen], unused)
    if archive.vectors:
        uniform = rng.integers(0, 256, (len(patches), BITS // 8), np.uint8)
        store_queries(connection, "uniform", uniform[held_out])
        store_codes(connection, "uniform", parent.encoder_id, patches, stored, uniform[stored], unused)
        store_real_codes(connection, patches, stored, real_vectors(archive.window_step), rng)


def store_vectors(
    connection: Connection, encoder_id: int, patches: Patches, rows: NDArray[np.int64], vectors: NDArray[np.float32]
) -> None:
    """Store the vectors of the patches in `rows`."""
    copy_rows(
        connection,
        "copy eo.embedding (patch_id, encoder_id, cell, embedding) from stdin (format binary)",
        [
            patches.patch_ids[rows].astype(">i8"),
            np.full(len(rows), encoder_id, ">i2"),
            patches.cells[rows],
            vector_records(vectors),
        ],
    )


def store_queries(
    connection: Connection, encoder: str, codes: NDArray[np.uint8], vectors: NDArray[np.float32] | None = None
) -> None:
    """Keep the codes, and the vectors where there are any, of held-out patches as queries."""
    columns = [np.full(len(codes), encoder.encode()), np.arange(len(codes), dtype=">i4"), code_records(codes)]
    names = "encoder, number, code"
    if vectors is not None:
        columns.append(vector_records(vectors))
        names += ", embedding"
    copy_rows(connection, f"copy benchmark.query ({names}) from stdin (format binary)", columns)


def store_codes(
    connection: Connection,
    name: str,
    parent_id: int,
    patches: Patches,
    rows: NDArray[np.int64],
    codes: NDArray[np.uint8],
    weights: dict[str, NDArray],
) -> None:
    """Register a hash function, `lsh`, and store the codes of the patches in `rows`, as eo.store_codes does."""
    progress(f"codes {name}")
    encoder_id = register(connection, name, "lsh", dump(weights), bits=BITS, parent_id=parent_id).encoder_id
    first, bucket = first_and_bucket(codes)
    remember(connection, f"codes {name}", {"patches": len(rows), "buckets": len(first)})
    for start in range(0, len(first), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        numbers = np.arange(start, min(start + ROWS_AT_ONCE, len(first)), dtype=">i4")
        copy_rows(
            connection,
            "copy eo.bucket (encoder_id, bucket_no, code) from stdin (format binary)",
            [np.full(len(numbers), encoder_id, ">i2"), numbers, code_records(codes[first[part]])],
        )
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        chosen = rows[part]
        copy_rows(
            connection,
            "copy eo.patch_bucket (patch_id, segment, encoder_id, cell, bucket_no) from stdin (format binary)",
            [
                patches.patch_ids[chosen].astype(">i8"),
                np.zeros(len(chosen), ">i2"),
                np.full(len(chosen), encoder_id, ">i2"),
                patches.cells[chosen],
                bucket[part].astype(">i4"),
            ],
        )


def store_real_codes(
    connection: Connection,
    patches: Patches,
    stored: NDArray[np.int64],
    vectors: NDArray[np.float32],
    rng: np.random.Generator,
) -> None:
    """Hash the vectors of windows of real pixels by `lsh` and store the codes as `real`."""
    weights = lsh.fit(vectors, bits=BITS)
    codes = np.packbits(lsh.hash_codes(weights, vectors), axis=1)
    order = rng.permutation(len(codes))
    held_out = min(REAL_HELD_OUT, len(codes) // 10)
    store_queries(connection, "real", codes[order[:held_out]])
    kept = np.sort(order[held_out:])[: len(stored)]
    parent = register(connection, "spectral", "spectral", dump({}), bands=spectral.BANDS, dimension=spectral.DIMENSION)
    store_codes(connection, "real", parent.encoder_id, patches, stored[: len(kept)], codes[kept], weights)


def real_vectors(step: int) -> NDArray[np.float32]:
    """Vectors by `spectral` of windows, the size of a patch, every `step` pixels of the sample's Major TOM cell."""
    sample = Path(os.environ.get("PGEARTH_SAMPLE", ROOT.parent / "shared" / "sample"))
    bands = {}
    for band in spectral.BANDS:
        [file] = sorted((sample / "majortom").rglob(f"*{band}*.tif"))[:1]
        with rasterio.open(file) as picture:
            bands[band] = picture.read(1)
    side = max(image.shape[0] for image in bands.values())
    starts = range(0, side - WINDOW + 1, step)
    vectors = []
    for top in starts:
        batch = {}
        for band, image in bands.items():
            scale = side // image.shape[0]
            size = WINDOW // scale
            row = top // scale
            batch[band] = np.stack([image[row : row + size, left // scale : left // scale + size] for left in starts])
        vectors.append(spectral.features(batch))
    return np.concatenate(vectors).astype(np.float32)


def code_records(codes: NDArray[np.uint8]) -> NDArray[np.void]:
    """Packed codes (n, 16) as the binary form of `bit varying`."""
    records = np.empty(len(codes), [("bits", ">i4"), ("code", "u1", BITS // 8)])
    records["bits"], records["code"] = BITS, codes
    return records


def vector_records(vectors: NDArray[np.float32]) -> NDArray[np.void]:
    """Vectors (n, d) as the binary form of `vector`."""
    dimension = vectors.shape[1]
    records = np.zeros(len(vectors), [("dimension", ">i2"), ("unused", ">i2"), ("values", ">f4", dimension)])
    records["dimension"], records["values"] = dimension, vectors
    return records


def copy_rows(connection: Connection, statement: str, columns: list[NDArray]) -> None:
    """COPY rows in binary; `columns` are arrays of fixed-length values in the types' binary form."""
    fields: list[tuple[str, object]] = [("count", ">i2")]
    for number, column in enumerate(columns):
        fields += [(f"length{number}", ">i4"), (f"value{number}", column.dtype)]
    records = np.empty(len(columns[0]), fields)
    records["count"] = len(columns)
    for number, column in enumerate(columns):
        records[f"length{number}"] = column.dtype.itemsize
        records[f"value{number}"] = column
    with connection.cursor().copy(statement) as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        copy.write(records.tobytes())
        copy.write(b"\xff\xff")


def pack(connection: Connection) -> None:
    """Build the packed form of every hash function's codes, and keep the seconds it takes."""
    names = [name for (name,) in connection.execute("select name from eo.encoder where bits is not null order by 1")]
    for name in names:
        with Stopwatch() as watch:
            connection.execute("select eo.build_code_index(%s)", (name,))
        remember(connection, f"pack {name}", watch.seconds)
        progress(f"packed {name}: {watch.seconds:.1f} s")


def summarise(connection: Connection) -> None:
    """Print what is in an archive."""
    rows = connection.execute("select key, content from benchmark.record order by key").fetchall()
    print(table(["what", "measured"], rows))


if __name__ == "__main__":
    main()
