"""Recall of the approximate search by vector: its ten against the ten of the exact twin, ties included."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pyarrow.parquet
import pytest
from pgvector import Vector
from pgvector.psycopg import register_vector

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from tests.stand_ins import NO_WEIGHTS

START = datetime(2018, 1, 1, tzinfo=UTC)
PATCHES, QUERIES, WANTED = 6000, 100, 0.99


@pytest.fixture(scope="module")
def vectors(sample: Path) -> np.ndarray:
    """Clustered vectors, as real ones are: mixtures of neighbours among 1,195 real ones of 120 dimensions, with repeats.

    One in twenty repeats another, and one vector is there fifty times, as that of open water would be.
    """
    table = pyarrow.parquet.read_table(sample / "vectors" / "crop_parcels_120feat.parquet")
    real = np.column_stack([table[name].to_numpy() for name in table.schema.names[:120]])
    real = np.nan_to_num((real - np.nanmean(real, axis=0)) / np.nanstd(real, axis=0))
    generator = np.random.default_rng(4)
    first = generator.integers(0, len(real), PATCHES + QUERIES)
    distance = ((real**2).sum(axis=1)[:, None] + (real**2).sum(axis=1)) - 2 * real @ real.T
    second = np.argsort(distance, axis=1)[first, generator.integers(1, 9, len(first))]
    share = generator.random((len(first), 1))
    mixed = share * real[first] + (1 - share) * real[second]
    mixed[:PATCHES:20] = mixed[7:PATCHES:20]
    mixed[11 : 11 + 120 * 50 : 120] = mixed[11]
    return mixed.astype(np.float32)


@pytest.fixture(scope="module")
def archive(module_archive: psycopg.Connection, vectors: np.ndarray) -> psycopg.Connection:
    """An archive of the vectors but the last QUERIES, with its index."""
    register_vector(module_archive)
    write_products(module_archive, [Product("p", "sentinel-2a", "L2A", START)])
    with module_archive.transaction():
        write_patches(
            module_archive,
            "test",
            [
                Patch(f"{n:05}", "p", "sentinel-2a", START, 32633, x, y, x + 1200, y + 1200)
                for n in range(PATCHES)
                for x, y in [(400_000.0 + 1200 * (n % 80), 5_000_000.0 + 1200 * (n // 80))]
            ],
        )
    encoder = module_archive.execute(
        "select eo.register_encoder('v', 1, 'spectral', '{B02}', %s, dimension => %s)", (NO_WEIGHTS, vectors.shape[1])
    ).fetchone()
    assert encoder is not None
    rows = module_archive.execute("select patch_id, cell from eo.patch order by name").fetchall()
    with module_archive.cursor().copy(
        "copy eo.embedding (patch_id, encoder_id, cell, embedding) from stdin (format binary)"
    ) as copy:
        copy.set_types(["int8", "int2", "text", "vector"])
        for (patch_id, cell), vector in zip(rows, vectors[:PATCHES], strict=True):
            copy.write_row((patch_id, encoder[0], cell, Vector(vector)))
    module_archive.execute("select eo.build_vector_index()")
    module_archive.execute("vacuum analyze")
    return module_archive


CALL = b"select patch_id, distance from eo.similar_to_vector(%s, max_results => %s, approximate => %s)"


@pytest.mark.parametrize("count", [10, 100])
def test_recall(archive: psycopg.Connection, vectors: np.ndarray, count: int) -> None:
    """A result is a true one if it is not farther than the farthest of the exact results; of equals, any may be there."""
    true_results = 0
    for query in vectors[PATCHES:]:
        exact, found = (
            archive.execute(CALL, (Vector(query), count, approximate)).fetchall() for approximate in (False, True)
        )
        assert len(exact) == len(found) == count
        true_results += sum(distance <= exact[-1][1] for _, distance in found)
    assert true_results >= WANTED * count * QUERIES


def test_repeats_are_found(archive: psycopg.Connection, vectors: np.ndarray) -> None:
    """Fifty times the same vector: asked for it, all fifty come, at distance 0."""
    for approximate in (False, True):
        found = archive.execute(CALL, (Vector(vectors[11]), 50, approximate)).fetchall()
        assert [distance for _, distance in found] == [0.0] * 50


def test_the_index_is_used(archive: psycopg.Connection, vectors: np.ndarray) -> None:
    """Or its recall would not be what was measured."""
    scans = "select sum(idx_scan) from pg_stat_user_indexes where indexrelname like '%%\\_\\_hnsw'"
    with psycopg.connect(archive.info.dsn, autocommit=True) as session:
        before = session.execute(scans, ()).fetchone()
        register_vector(session)
        session.execute(CALL, (Vector(vectors[0]), 10, True))
        session.execute("select pg_stat_force_next_flush()")
    with psycopg.connect(archive.info.dsn, autocommit=True) as session:
        after = session.execute(scans, ()).fetchone()
    assert before is not None and after is not None and after[0] == before[0] + 1
