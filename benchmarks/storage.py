"""Ways to fill a raster column, and ways to store pixels: rates, sizes, and what reading them back costs.

The patches are windows of real-looking pixels (benchmarks/synthetic_product.py), twelve bands at 10, 20 and 60 m: three
rasters, 164 KiB. Tables have the keys and the foreign key of eo.patch_raster; transactions are committed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import psycopg
import rasterio
from psycopg import sql
from rasterio import Affine
from rasterio.windows import Window

from benchmarks.harness import ROOT, Run, conninfo, progress, report, table, value
from benchmarks.synthetic_product import QUICK_SIDE, find_or_make_product
from pgearth.loaders.datasets.bigearthnet.sensors import SENTINEL_2
from pgearth.pyfuncs.pixels.rasters import Raster, from_wkb, to_wkb

DATABASE = "pgearth_bench_storage"
ROUNDS = 3
READINGS = 7
BATCH = 64
Row = tuple[int, int, list[str], bytes]
"""Patch, resolution, band names and raster WKB."""

SCHEMA = """
create extension postgis;
create extension postgis_raster;
alter database {database} set postgis.gdal_enabled_drivers to 'ENABLE_ALL';
alter database {database} set postgis.enable_outdb_rasters to true;
create table patch (patch_id bigint, cell text collate "C", primary key (patch_id, cell));
insert into patch select n, 'u0xkv' from generate_series(1, 100000) n;
"""
TABLE = """
create table {name} (
    patch_id bigint not null, resolution smallint not null, cell text collate "C" not null, bands text[] not null,
    pixels {type} not null, primary key (patch_id, resolution, cell),
    foreign key (patch_id, cell) references patch on delete cascade
);
alter table {name} alter column pixels set storage {storage};
"""


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="128 patches instead of 1,024; results to build/")
    run = Run([], 0, parser.parse_args().quick)
    rows = list(read_patches(find_or_make_product(QUICK_SIDE), 128 if run.quick else 1024))
    with psycopg.connect(conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"drop database if exists {DATABASE} with (force)")
        connection.execute(f"create database {DATABASE}")
    with psycopg.connect(conninfo(DATABASE), autocommit=True) as connection:
        connection.execute(sql.SQL(SCHEMA).format(database=sql.Identifier(DATABASE)))
    with psycopg.connect(conninfo(DATABASE), autocommit=True) as connection:
        parts = [
            f"{len(rows) // 3:,} patches of {sum(len(row[3]) for row in rows) / len(rows) * 3 / 1024:,.0f} KiB, median"
            f" of {ROUNDS} rounds in turns. Peer: COPY of the same bytes into a bytea column.",
            filling(connection, rows),
            "Storage: bytes on disk with index and TOAST, the rate of writing (each by its fastest way), and of"
            " reading: COPY BINARY of the raster WKB to the client, unpacked there where the server does not; the"
            f" database's pages are cached, median of {READINGS}.",
            storing(connection, rows),
        ]
    report("Filling and storing rasters", parts, run)
    with psycopg.connect(conninfo("postgres"), autocommit=True) as connection:
        connection.execute(f"drop database if exists {DATABASE} with (force)")
    shutil.rmtree(FILES, ignore_errors=True)


FILES = ROOT / "build" / "benchmark-outdb"


def read_patches(product: Path, number: int) -> Iterator[Row]:
    """Rasters of the product's patches, three a patch; after the last patch the first again."""
    images = {}
    for resolution, bands in SENTINEL_2.bands.items():
        images[resolution] = [rasterio.open(product / f"R{resolution}m" / f"{band}.jp2").read(1) for band in bands]
    side = images[60][0].shape[0] // 20
    for patch in range(number):
        row, column = divmod(patch % (side * side), side)
        for resolution, bands in SENTINEL_2.bands.items():
            size = 1200 // resolution
            window = Window(column * size, row * size, size, size).toslices()
            transform = (
                float(resolution),
                -float(resolution),
                600_000.0 + 1200 * column,
                5_400_000.0 - 1200 * row,
                0.0,
                0.0,
            )
            pixels = tuple(image[window] for image in images[resolution])
            wkb = to_wkb(Raster(pixels, transform, 32632, (0,) * len(bands)))
            yield patch + 1, resolution, list(bands), wkb


def make_table(connection: psycopg.Connection, name: str, kind: str, storage: str = "external") -> None:
    """A table like eo.patch_raster with pixels of some type."""
    connection.execute(sql.SQL("drop table if exists {}").format(sql.Identifier(name)))
    connection.execute(
        sql.SQL(TABLE).format(name=sql.Identifier(name), type=sql.SQL(kind), storage=sql.SQL(storage))  # type: ignore[arg-type]
    )
    connection.execute("checkpoint")


# Ways to fill a raster column: each in one transaction, in a table named pixels


def copy_binary(cursor: psycopg.Cursor, rows: Sequence[Row], into: str = "pixels") -> None:
    """COPY BINARY of the bytes: only into bytea."""
    with cursor.copy(sql.SQL("copy {} from stdin (format binary)").format(sql.Identifier(into))) as copy:
        copy.set_types(["int8", "int2", "text", "text[]", "bytea"])
        for patch, resolution, bands, pixels in rows:
            copy.write_row((patch, resolution, "u0xkv", bands, pixels))


def copy_text(cursor: psycopg.Cursor, rows: Sequence[Row]) -> None:
    """COPY of hexadecimal WKB, the text form of raster."""
    with cursor.copy("copy pixels from stdin") as copy:
        for patch, resolution, bands, pixels in rows:
            copy.write_row((patch, resolution, "u0xkv", bands, pixels.hex()))


def staging(cursor: psycopg.Cursor, rows: Sequence[Row]) -> None:
    """COPY BINARY into a temporary table, and one INSERT by ST_RastFromWKB."""
    cursor.execute(
        "create temporary table staged (patch_id bigint, resolution smallint, cell text, bands text[], pixels bytea)"
        " on commit drop"
    )
    cursor.execute("alter table staged alter column pixels set storage external")
    copy_binary(cursor, rows, "staged")
    cursor.execute("insert into pixels select patch_id, resolution, cell, bands, ST_RastFromWKB(pixels) from staged")


def arrays(cursor: psycopg.Cursor, rows: Sequence[Row]) -> None:
    """INSERT from unnest of binary arrays, BATCH patches at a time."""
    for start in range(0, len(rows), 3 * BATCH):
        patches, resolutions, bands, pixels = zip(*rows[start : start + 3 * BATCH], strict=True)
        names = ["{" + ",".join(each) + "}" for each in bands]
        cursor.execute(
            """
            insert into pixels
            select p, r, 'u0xkv', b::text[], ST_RastFromWKB(w)
            from unnest(%b::bigint[], %b::smallint[], %b::text[], %b::bytea[]) u (p, r, b, w)
            """,
            (list(patches), list(resolutions), names, list(pixels)),
        )


def row_by_row(cursor: psycopg.Cursor, rows: Sequence[Row]) -> None:
    """INSERT of each row with binary parameters, prepared, in psycopg's pipeline, BATCH patches at a time."""
    for start in range(0, len(rows), 3 * BATCH):
        cursor.executemany(
            "insert into pixels values (%b::bigint, %b::smallint, 'u0xkv', %b, ST_RastFromWKB(%b))",
            rows[start : start + 3 * BATCH],
        )


def patch_by_patch(cursor: psycopg.Cursor, rows: Sequence[Row]) -> None:
    """The same with the three rows of a patch in one INSERT: the loader's way."""
    for start in range(0, len(rows), 3 * BATCH):
        cursor.executemany(
            """
            insert into pixels
            values (%b::bigint, %b::smallint, 'u0xkv', %b::text[], ST_RastFromWKB(%b::bytea)),
                   (%b::bigint, %b::smallint, 'u0xkv', %b::text[], ST_RastFromWKB(%b::bytea)),
                   (%b::bigint, %b::smallint, 'u0xkv', %b::text[], ST_RastFromWKB(%b::bytea))
            """,
            [sum(rows[first : first + 3], ()) for first in range(start, min(start + 3 * BATCH, len(rows)), 3)],
        )


WAYS: dict[str, tuple[str, Callable[[psycopg.Cursor, Sequence[Row]], None]]] = {
    "COPY of the bytes into bytea (peer)": ("bytea", copy_binary),
    "INSERT row by row, binary parameters in a pipeline": ("raster", row_by_row),
    "INSERT patch by patch, binary parameters in a pipeline": ("raster", patch_by_patch),
    "INSERT from unnest of binary arrays": ("raster", arrays),
    "COPY BINARY into a temporary table, then INSERT": ("raster", staging),
    "COPY of hexadecimal WKB": ("raster", copy_text),
}


def filling(connection: psycopg.Connection, rows: Sequence[Row]) -> str:
    """The table of ways to fill."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, (kind, way) in WAYS.items():
            progress(name)
            make_table(connection, "pixels", kind)
            seconds[name].append(timed_transaction(connection, lambda cursor, way=way: way(cursor, rows)))
            written = value(connection, "select count(*) from pixels")
            assert written == len(rows), f"{name}: {written} rows"
    peer = float(np.median(seconds["COPY of the bytes into bytea (peer)"]))
    return table(
        ["way", "patches/s", "time, of the peer's"],
        [
            [name, f"{len(rows) / 3 / np.median(taken):,.0f}", f"{np.median(taken) / peer:.2f}x"]
            for name, taken in seconds.items()
        ],
    )


def timed_transaction(connection: psycopg.Connection, work: Callable[[psycopg.Cursor], None]) -> float:
    """Seconds of some work and its commit."""
    start = time.perf_counter()
    with connection.transaction(), connection.cursor() as cursor:
        work(cursor)
    return time.perf_counter() - start


# Ways to store


def packed(wkb: bytes) -> bytes:
    """Zstandard of a raster's pixels with their bytes shuffled: all low bytes, then all high ones."""
    return bytes(imagecodecs.zstd_encode(shuffled(wkb).tobytes(), level=3))


def shuffled(wkb: bytes) -> np.ndarray:
    """Bytes of even places, then those of odd ones."""
    data = np.frombuffer(wkb, np.uint8)
    return np.concatenate([data[::2], data[1::2]])


def unpacked(data: bytes) -> bytes:
    """The reverse of `packed`."""
    flat = np.frombuffer(imagecodecs.zstd_decode(data), np.uint8)
    wkb = np.empty_like(flat)
    half = -(-len(flat) // 2)
    wkb[::2], wkb[1::2] = flat[:half], flat[half:]
    return wkb.tobytes()


def write_files(rows: Sequence[Row]) -> list[Path]:
    """A GeoTIFF for each raster."""
    shutil.rmtree(FILES, ignore_errors=True)
    FILES.mkdir(parents=True)
    FILES.chmod(0o755)
    paths = []
    for patch, resolution, bands, wkb in rows:
        raster = from_wkb(wkb)
        path = FILES / f"{patch}_{resolution}.tif"
        scale_x, scale_y, west, north, _, _ = raster.transform
        with rasterio.open(
            path, "w", driver="GTiff", width=raster.bands[0].shape[1], height=raster.bands[0].shape[0],
            count=len(bands), dtype="uint16", crs="EPSG:32632", nodata=0,
            transform=Affine(scale_x, 0, west, 0, scale_y, north), tiled=False,
        ) as file:  # fmt: skip
            file.write(np.stack(raster.bands))
        paths.append(path)
    return paths


def storing(connection: psycopg.Connection, rows: Sequence[Row]) -> str:
    """The table of ways to store."""
    results = []
    whole = "copy (select ST_AsWKB(pixels) from pixels) to stdout (format binary)"
    as_it_is = "copy (select pixels from pixels) to stdout (format binary)"
    for name, kind, storage, compression, content, query, unpack in (
        ("raster, not compressed", "raster", "external", None, None, whole, None),
        ("raster, TOAST lz4", "raster", "extended", "lz4", None, whole, None),
        ("raster, TOAST pglz", "raster", "extended", "pglz", None, whole, None),
        ("raster outside the database (GeoTIFF)", "raster", "external", None, write_files, None, None),
        ("bytea of WKB, not compressed", "bytea", "external", None, None, as_it_is, None),
        ("bytea of WKB, TOAST lz4", "bytea", "extended", "lz4", None, as_it_is, None),
        ("bytea, bytes shuffled, zstd 3 by the client", "bytea", "external", None, packed, as_it_is, unpacked),
    ):
        progress(name)
        make_table(connection, "pixels", kind, storage)
        if compression:
            connection.execute(f"alter table pixels alter column pixels set compression {compression}")
        files = 0
        start = time.perf_counter()
        if content is write_files:
            paths = write_files(rows)
            files = sum(path.stat().st_size for path in paths)
            insert = (
                "insert into pixels values (%s, %s, 'u0xkv', %s,"
                " ST_AddBand(null::raster, %s::text, null::integer[], null, 0))"
            )
            seconds = timed_transaction(
                connection,
                lambda cursor, insert=insert, paths=paths: cursor.executemany(
                    insert, [(*row[:3], str(path)) for row, path in zip(rows, paths, strict=True)]
                ),
            )
            query = "copy (select ST_AsWKB(pixels, true) from pixels) to stdout (format binary)"
        else:
            stored = rows if content is None else [(*row[:3], content(row[3])) for row in rows]
            fill = patch_by_patch if kind == "raster" else copy_binary
            seconds = timed_transaction(connection, lambda cursor, fill=fill, stored=stored: fill(cursor, stored))
        seconds = time.perf_counter() - start
        size = value(connection, "select pg_total_relation_size('pixels')") + files
        connection.execute("checkpoint")
        os.sync()  # or the disk is still being written to
        rate = len(rows) / 3 / float(np.median([read_all(connection, query, unpack) for _ in range(READINGS)]))
        results.append(
            [name, f"{size / (len(rows) / 3) / 1024:,.0f}", f"{len(rows) / 3 / seconds:,.0f}", f"{rate:,.0f}"]
        )
    return table(["stored as", "KiB per patch", "written, patches/s", "read, patches/s"], results)


def read_all(connection: psycopg.Connection, query: str, unpack: Callable[[bytes], bytes] | None) -> float:
    """Seconds to read all rasters."""
    start = time.perf_counter()
    with connection.cursor() as cursor, cursor.copy(query.encode()) as copy:
        copy.set_types(["bytea"])
        for row in copy.rows():
            pixels: Any = row[0]
            if unpack:
                pixels = unpack(pixels)
            from_wkb(pixels)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
