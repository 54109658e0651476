"""Land cover, countries and places of patches: set-based, into the archive's own tables, against one query per patch.

    python -m benchmarks.annotation

The landscape is that of loaders/demo/synthetic/land_cover.py (Voronoi cells of one class united), with edges roughened
by midpoint displacement and all farmland united: over 100,000 polygons, some with more than 50,000 vertices. Places are
the sample's NUTS (levels 0 to 3). Patches are footprints of 1.2 km in EPSG:32632. The database,
pgearth_bench_annotation, is made on the server of the DSN, and dropped in the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import shapely
from numpy.typing import NDArray
from psycopg import Connection
from psycopg.sql import SQL, Identifier
from pyproj import Transformer

from benchmarks.archive import migrate
from benchmarks.harness import (
    ROOT,
    Archive,
    Run,
    Stopwatch,
    arguments,
    connect,
    conninfo,
    progress,
    report,
    table,
    value,
)
from pgearth.loaders.demo.synthetic.land_cover import SRID, LandCover, class_codes, land_cover_of_sheet, sheets
from pgearth.loaders.reference.annotate import Annotation, annotate_archive
from pgearth.loaders.reference.corine import class_label_ids, store_polygons
from pgearth.loaders.reference.nomenclature import load_nomenclature
from pgearth.loaders.reference.nuts import load_nuts
from pgearth.loaders.work.task import Engine

ARCHIVE = Archive("annotation", "pgearth_bench_annotation", 0, 0, margin=0)
WEST, SOUTH = 227_000, 5_200_000
PATCH = 1200  # metres
PATCHES_PER_SIDE = 91
TILE = PATCH * PATCHES_PER_SIDE
FARMLAND = ("211", "231")
MILLIMETRE = 0.001
DISPLACEMENT = 0.15
"""How far at most the middle of an edge is moved aside, by the edge's length."""
LEVELS = 2
"""How often edges are halved: each level doubles the vertices."""
BATCH = 10_000


def main() -> None:
    """Make the database, measure, and drop it."""
    run = arguments(__doc__ or "", "quick")
    side, few, many, sample = (1, 8_000, 40_000, 20) if run.quick else (5, 200_000, 2_000_000, 100)
    with database():
        measure(run, side, few, many, sample)


@contextmanager
def database() -> Iterator[None]:
    """A new archive, which `connect(ARCHIVE)` and pgearth's own code connect to; it is dropped in the end."""
    drop = SQL("drop database if exists {} with (force)").format(Identifier(ARCHIVE.database))
    before = os.environ.get("PGEARTH_DSN")
    server = conninfo("postgres")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(SQL("create database {}").format(Identifier(ARCHIVE.database)))
    try:
        migrate(ARCHIVE)
        os.environ["PGEARTH_DSN"] = conninfo(ARCHIVE.database)
        yield
    finally:
        if before is None:
            os.environ.pop("PGEARTH_DSN", None)
        else:
            os.environ["PGEARTH_DSN"] = before
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(drop)


def measure(run: Run, side: int, few: int, many: int, sample: int) -> None:
    """Fill the database with `side` x `side` tiles, annotate `few` patches in several ways and then up to `many`."""
    rows: list[list[str]] = []
    with connect(ARCHIVE) as connection:
        cover, stored = load_reference_data(connection, side)
        store_patches(connection, side, few)
        with Stopwatch() as subdividing:
            pieces = value(connection, "select eo.derive_corine_parts() + eo.derive_nuts_parts()")
        connection.execute("vacuum analyze")
        progress(f"{pieces:,} pieces in {subdividing.seconds:.0f} s")

        per_patch = measure_per_patch(connection, sample)
        for what in ("{land_cover}", "{country}", "{land_cover,country}"):
            rows.append(line(what, "scratch table", few, *scratch(connection, what)))
        check_sample(connection, per_patch.pop("answers"))
        for name, (patches, seconds) in per_patch.items():
            rows.insert(0, line("{land_cover}", name, patches, seconds, 0))

        for what in ("land_cover", "country"):
            rows.append(line(f"{{{what}}}", "eo.patch, one connection", few, *annotate(connection, 1, (what,))))
            store_patches(connection, side, few)
        both = "{land_cover,country}"
        rows.append(line(both, "eo.patch, one connection", few, *annotate(connection, 1)))
        store_patches(connection, side, few)
        rows.append(line(both, "eo.patch, two connections", few, *annotate(connection, 2)))
        store_patches(connection, side, few, acquisitions=10)
        rows.append(
            line(f"{both}, ten patches of each place", "eo.patch, one connection", few, *annotate(connection, 1))
        )
        store_patches(connection, side, few)
        annotate(connection, 2)
        store_patches(connection, side, many - few, first=few)
        rows.append(
            line(
                f"{both}, added to {few:,} annotated", "eo.patch, one connection", many - few, *annotate(connection, 1)
            )
        )
        store_patches(connection, side, many)
        rows.append(line(both, "eo.patch, two connections", many, *annotate(connection, 2)))
    vertices = shapely.get_num_coordinates(cover.polygons)
    report(
        "Annotation",
        [
            f"{len(vertices):,} polygons with {vertices.sum():,} vertices; {(vertices > 50_000).sum()} of them with"
            f" more than 50,000, up to {vertices.max():,}. Stored in {stored:.0f} s; reprojected and subdivided, once,"
            f" into {pieces:,} pieces in {subdividing.seconds:.0f} s. No two patches have the same footprint, but where"
            " it is said. Fractions are exact and included in all that is set-based. Patches are new each time; storing"
            " them is not included.",
            table(["what", "how", "patches", "seconds", "patches/min", "µs/patch", "WAL, MB"], rows),
        ],
        run,
    )


def line(what: str, how: str, patches: int, seconds: float, wal: float) -> list[str]:
    """A row of the table."""
    return [
        what.strip("{").replace("}", "").replace("_", " ").replace(",", " and ", 1),
        how,
        f"{patches:,}",
        f"{seconds:.1f}",
        f"{patches / seconds * 60:,.0f}",
        f"{seconds / patches * 1e6:,.0f}",
        f"{wal / 1e6:,.0f}" if wal else "",
    ]


def landscape(side: int) -> LandCover:
    """Land cover of `side` x `side` tiles."""
    parts = [land_cover_of_sheet(0, *sheet) for sheet in sheets(WEST, SOUTH, WEST + side * TILE, SOUTH + side * TILE)]
    polygons = roughened(np.concatenate([part.polygons for part in parts]))
    classes = np.concatenate([part.classes for part in parts])
    farmland = np.isin(classes, [class_codes().index(code) for code in FARMLAND])
    united = shapely.get_parts(shapely.coverage_union_all(polygons[farmland]))
    return LandCover(
        np.concatenate([polygons[~farmland], united]),
        np.concatenate([classes[~farmland], np.full(len(united), class_codes().index(FARMLAND[0]))]),
    )


def roughened(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """The polygons with each edge halved LEVELS times and its middle moved aside, the same for both its neighbours."""
    rings, polygon = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    points = np.rint(points / MILLIMETRE)
    for _ in range(LEVELS):
        start, end = points[:-1], points[1:]
        swapped = (start[:, 0] > end[:, 0]) | ((start[:, 0] == end[:, 0]) & (start[:, 1] > end[:, 1]))
        low, high = np.where(swapped[:, None], end, start), np.where(swapped[:, None], start, end)
        aside = (high - low)[:, ::-1] * [1, -1] * (DISPLACEMENT * (2 * random_numbers(low, high) - 1))[:, None]
        halved = np.empty((2 * len(points) - 1, 2))
        halved[::2], halved[1::2] = points, np.rint((low + high) / 2 + aside)
        kept = np.ones(len(halved), bool)
        kept[1::2] = ring[:-1] == ring[1:]
        points, ring = halved[kept], np.repeat(ring, 2)[:-1][kept]
    return shapely.polygons(shapely.linearrings(points * MILLIMETRE, indices=ring), indices=polygon)


def random_numbers(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniform random numbers in [0, 1), each a function of the two ends of an edge."""
    mixed = np.zeros(len(low), np.uint64)
    for column in np.concatenate([low, high], 1).astype(np.int64).astype(np.uint64).T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def load_reference_data(connection: Connection, side: int) -> tuple[LandCover, float]:
    """Store nomenclature, land cover and places; return the land cover and the seconds that storing it took."""
    load_nomenclature(connection)
    sample = Path(os.environ.get("PGEARTH_SAMPLE", ROOT.parent / "shared" / "sample"))
    load_nuts(connection, sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson")
    progress("making the landscape")
    cover = landscape(side)
    transformer = Transformer.from_crs(SRID, 3035, always_xy=True)
    projected = shapely.transform(cover.polygons, transformer.transform, interleaved=False)
    geometries = shapely.set_srid(shapely.multipolygons(projected, indices=np.arange(len(projected))), 3035)
    label_ids, codes = class_label_ids(connection), class_codes()
    progress(f"storing {len(geometries):,} polygons")
    with Stopwatch() as watch, connection.transaction():
        store_polygons(
            connection,
            "benchmark",
            zip(
                (label_ids[codes[number]] for number in cover.classes),
                shapely.to_wkb(geometries, include_srid=True),
                strict=True,
            ),
        )
    return cover, watch.seconds


def store_patches(connection: Connection, side: int, patches: int, acquisitions: int = 1, first: int = 0) -> None:
    """Store patches of numbers from `first` on, in place of all stored before if that is 0.

    They come as products do, tile by tile. Each has a footprint of its own: after all tiles, the next round is shifted
    by 37 m; with more `acquisitions`, so many patches share each footprint.
    """
    progress(f"storing {patches:,} patches")
    per_tile, last = PATCHES_PER_SIDE**2, first + patches - 1
    if first == 0:
        connection.execute("truncate eo.product, eo.patch, eo_internal.patch_change cascade")
    connection.execute(
        """
        insert into eo.product (name, platform, level, sensing_time)
        select 'benchmark ' || number, 'sentinel-2a', 'L2A', timestamptz '2018-01-05' + number * interval '1 day'
        from generate_series(%(first)s::bigint / %(per_tile)s, %(last)s::bigint / %(per_tile)s) number
        on conflict do nothing
        """,
        {"first": first, "last": last, "per_tile": per_tile},
    )
    connection.execute(
        """
        insert into eo.patch
            (cell, name, source, product_id, platform, sensing_time, footprint, srid, west, south, east, north)
        select ST_GeoHash(ST_Transform(ST_Point(west + 600, south + 600, %(srid)s), 4326), 5), p.name || ' ' || number,
               'benchmark', p.product_id, p.platform, p.sensing_time,
               eo_internal.footprint(west, south, west + 1200, south + 1200, %(srid)s), %(srid)s,
               west, south, west + 1200, south + 1200
        from generate_series(%(first)s::bigint, %(last)s::bigint) number
        join eo.product p on p.name = 'benchmark ' || number / %(per_tile)s
        cross join lateral (select number %% %(places)s as place) a
        cross join lateral (select place / %(per_tile)s as tile, place %% %(per_tile)s as index) t
        cross join lateral (select 37 * (tile / %(side)s / %(side)s) as shift, tile / %(side)s %% %(side)s as row) r
        cross join lateral (
            select %(west)s + shift + %(tile)s * (tile %% %(side)s) + 1200 * (index %% %(columns)s) as west,
                   %(south)s + shift + %(tile)s * row + 1200 * (index / %(columns)s) as south
        ) b
        order by number
        """,
        {
            "srid": SRID,
            "first": first,
            "last": last,
            "places": patches // acquisitions if acquisitions > 1 else last + 1,
            "per_tile": per_tile,
            "west": WEST,
            "south": SOUTH,
            "tile": TILE,
            "side": side,
            "columns": PATCHES_PER_SIDE,
        },
    )
    connection.execute("vacuum analyze eo.patch")


def measure_per_patch(connection: Connection, sample: int) -> dict:
    """The thesis's way: for each of some patches a query of the whole polygons, with and without areas.

    The polygons are reprojected to the patches' system beforehand. Returns by name how many patches took how many
    seconds, and under "answers" the fractions by patch_id and label.
    """
    connection.execute(
        """
        create table whole as select label_id, ST_MakeValid(ST_Transform(geom, 32632)) as geom from eo.corine;
        create index on whole using gist (geom);
        analyze whole;
        """
    )
    patches = connection.execute(
        "select patch_id, ST_MakeEnvelope(west, south, east, north, srid) from eo.patch tablesample bernoulli (10)"
        " repeatable (1) order by random() limit %s",
        (sample,),
    ).fetchall()
    progress("one query per patch")
    with Stopwatch() as labels:
        for _, box in patches:
            connection.execute(
                "select distinct label_id from whole where ST_Intersects(geom, %s::geometry)", (box,)
            ).fetchall()
    with Stopwatch() as fractions:
        answers = {
            patch: dict(
                connection.execute(
                    "select label_id, sum(ST_Area(ST_Intersection(geom, %(box)s::geometry))) / ST_Area(%(box)s)"
                    " from whole where ST_Intersects(geom, %(box)s::geometry) group by label_id",
                    {"box": box},
                ).fetchall()
            )
            for patch, box in patches
        }
    connection.execute("drop table whole")
    return {
        "one query per patch, fractions": (sample, fractions.seconds),
        "one query per patch, labels only": (sample, labels.seconds),
        "answers": answers,
    }


def scratch(connection: Connection, what: str) -> tuple[float, float]:
    """Seconds to annotate all patches into an unlogged table, and the bytes of WAL."""
    progress(f"{what}: scratch table")
    connection.execute(
        "drop table if exists scratch; create unlogged table scratch as select * from"
        " eo_internal.annotations('{}', '{}', 'overlap', 0, null, false)"
    )
    batches = connection.execute(
        """
        select array_agg(cell)
        from (select cell, div(sum(patches) over (order by cell) - patches, %s) as batch
              from eo.unannotated_cells(%s)) c
        group by batch order by batch
        """,
        (BATCH, what),
    ).fetchall()
    with written(connection) as wal, Stopwatch() as watch:
        for (cells,) in batches:
            connection.execute(
                "insert into scratch select * from eo_internal.annotations(%s, %s, 'overlap', 0, null, false)",
                (cells, what),
            )
    return watch.seconds, wal[0]


def check_sample(connection: Connection, answers: dict[int, dict[int, float]]) -> None:
    """Raise AssertionError where the set-based fractions are not those of one query per patch."""
    for patch, expected in answers.items():
        labels, fractions = connection.execute(
            "select label_ids, label_fraction from scratch where patch_id = %s", (patch,)
        ).fetchone() or ([], [])
        found = dict(zip(labels, fractions, strict=True))
        for label in expected.keys() | found.keys():
            assert abs(expected.get(label, 0) - found.get(label, 0)) < 1e-5, (patch, label)
    connection.execute("drop table scratch")


def annotate(
    connection: Connection, jobs: int, what: tuple[str, ...] = ("land_cover", "country")
) -> tuple[float, float]:
    """Seconds that `pgearth annotate --jobs` takes for the patches without annotation, and the bytes of WAL."""
    progress(f"{' and '.join(what)}: {jobs} connections")
    connection.execute("checkpoint")
    with written(connection) as wal, Stopwatch() as watch:
        annotate_archive(Annotation(what), Engine(jobs=jobs))
    progress(f"{watch.seconds:.1f} s")
    return watch.seconds, wal[0]


@contextmanager
def written(connection: Connection) -> Iterator[list[float]]:
    """A list that in the end holds the bytes of WAL that were written in the block."""
    before = value(connection, "select pg_current_wal_lsn()")
    result: list[float] = []
    yield result
    result.append(float(value(connection, "select pg_current_wal_lsn() - %s::pg_lsn", before)))


if __name__ == "__main__":
    main()
