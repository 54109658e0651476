"""Search by the codes of segments, against brute force in numpy, ties and filters included."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest
from psycopg import errors

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.pyfuncs.convert import bit_string
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models.weights import dump
from tests.stand_ins import NO_WEIGHTS

START = datetime(2018, 1, 1, tzinfo=UTC)
PATCHES, BITS = 2500, 64


@dataclass(frozen=True)
class Archive:
    """An archive with the same data in numpy: by patch, its codes of segments (k, BITS), k from 0 to 6."""

    connection: psycopg.Connection
    patch_ids: np.ndarray
    segments: list[np.ndarray]
    labels: np.ndarray


@pytest.fixture(scope="module")
def archive(module_archive: psycopg.Connection) -> Archive:
    """Override of the shared fixture: patches of 30 landscapes whose segment codes cluster, repeat and are often as far."""
    generator = np.random.default_rng(5)
    landscapes = generator.integers(0, 2, (30, BITS)).astype(bool)
    textures = landscapes[:, None] ^ (generator.random((30, 8, BITS)) < 0.1)
    segments = []
    for number in range(PATCHES):
        count = generator.choice([0, 1, 4, 6], p=[0.02, 0.03, 0.9, 0.05])
        codes = textures[generator.integers(0, 30), generator.integers(0, 8, count)]
        segments.append(codes ^ (generator.random((count, BITS)) < (0.5 if number % 50 == 0 else 0.02)))
    labels = generator.integers(0, 19, PATCHES)
    write_products(module_archive, [Product("p", "sentinel-2a", "L2A", START)])
    patches = [
        Patch(
            f"patch-{number:04}",
            "p",
            "sentinel-2a",
            START,
            32633,
            500_000 + 1200 * (number % 50),
            5_000_000 + 1200 * (number // 50),
            501_200 + 1200 * (number % 50),
            5_001_200 + 1200 * (number // 50),
            label_ids=[1000 + int(labels[number])],
        )
        for number in range(PATCHES)
    ]
    with module_archive.transaction():
        write_patches(module_archive, "test", patches)
    patch_ids = np.array([row[0] for row in module_archive.execute("select patch_id from eo.patch order by name")])
    encoder_id = module_archive.execute(
        "select eo.register_encoder('v', 1, 'spectral', '{B02}', %s, dimension => 3)", (NO_WEIGHTS,)
    ).fetchone()[0]
    hash_id = module_archive.execute(
        "select eo.register_encoder('h', 1, 'lsh', '{}', %s, bits => %s, parent_id => %s::smallint)",
        (dump(lsh.fit(np.eye(3), BITS)), BITS, encoder_id),
    ).fetchone()[0]
    # Codes of whole patches, of the very first segment each, must not count as segments.
    store_codes(module_archive, hash_id, patch_ids, [codes[:1] for codes in segments], first_segment=0)
    store_codes(module_archive, hash_id, patch_ids, segments, first_segment=1)
    module_archive.execute("analyze eo.bucket, eo.patch_bucket, eo.patch")
    return Archive(module_archive, patch_ids, segments, labels)


def store_codes(
    connection: psycopg.Connection, hash_id: int, patch_ids: np.ndarray, codes: list[np.ndarray], first_segment: int
) -> None:
    rows = [
        (int(patch_id), first_segment + number, bit_string(code))
        for patch_id, own in zip(patch_ids, codes, strict=True)
        for number, code in enumerate(own)
    ]
    ids, segments, texts = zip(*rows, strict=True)
    connection.execute(
        "select eo.store_codes(%s::smallint, %s, %s::smallint[], %s::text[]::bit varying[])",
        (hash_id, list(ids), list(segments), list(texts)),
    )


def nearest(archive: Archive, query: np.ndarray, keep: np.ndarray, count: int | None) -> list[tuple[int, int]]:
    """Patches by the sum, over the query's segments, of the least distance to one of theirs; then by patch_id."""
    sums = []
    for patch_id, codes, kept in zip(archive.patch_ids, archive.segments, keep, strict=True):
        if kept and len(codes):
            distances = (query[:, None, :] != codes[None, :, :]).sum(axis=2)
            sums.append((int(distances.min(axis=1).sum()), int(patch_id)))
    return [(patch_id, distance) for distance, patch_id in sorted(sums)[:count]]


EVERY = np.ones(PATCHES, bool)


# 2, 3: like many others; 50: unlike all others; the last but one asks for more patches than there are.
@pytest.mark.parametrize("count", [1, 10, 300, 3000, None])
@pytest.mark.parametrize("number", [2, 3, 50])
def test_similar_segments(archive: Archive, number: int, count: int | None) -> None:
    assert len(archive.segments[number]) > 1
    found = archive.connection.execute(
        "select rank, patch_id, distance from eo.similar_segments(%s, max_results => %s)", (f"patch-{number:04}", count)
    ).fetchall()
    keep = archive.patch_ids != archive.patch_ids[number]
    assert [row[1:] for row in found] == nearest(archive, archive.segments[number], keep, count)
    assert [row[0] for row in found] == list(range(1, len(found) + 1))


def test_given_codes_need_not_be_stored_nor_differ(archive: Archive) -> None:
    generator = np.random.default_rng(8)
    stored = archive.segments[9]
    for query in (
        stored[:1],
        np.repeat(stored[:1], 3, axis=0),
        ~stored,
        generator.integers(0, 2, (1, BITS)).astype(bool),
        generator.integers(0, 2, (9, BITS)).astype(bool),
        np.concatenate([archive.segments[n] for n in range(20, 60)]),
    ):
        found = archive.connection.execute(
            "select patch_id, distance from eo.similar_to_segments(%s::text[]::bit varying[], max_results => 12)",
            ([bit_string(code) for code in query],),
        ).fetchall()
        assert found == nearest(archive, query, EVERY, 12)


def test_filters_never_starve_the_result(archive: Archive) -> None:
    """Filters that keep few patches and filters that keep most go different ways; both are exact."""
    number = np.arange(PATCHES)
    south, forest = number < 1750, np.isin(archive.labels, [8, 9, 10])
    chosen = np.random.default_rng(1).random(PATCHES) < 0.7
    area = "area => st_makeenvelope(500010, 5000010, 559990, 5041990, 32633)"
    conditions = [
        (area, south, ()),
        ("labels => array['Forests']", forest, ()),
        (f"{area}, labels => array['Forests']", south & forest, ()),
        ("countries => array['AQ']", ~EVERY, ()),
        ("patch_ids => %s", chosen, (archive.patch_ids[chosen].tolist(),)),
        (f"{area}, patch_ids => %s", south & chosen, (archive.patch_ids[chosen].tolist(),)),
    ]
    for arguments, keep, parameters in conditions:
        found = archive.connection.execute(
            f"select patch_id, distance from eo.similar_segments('patch-0003', eo.filter({arguments}), 20)".encode(),
            parameters,
        ).fetchall()
        assert found == nearest(archive, archive.segments[3], keep & (number != 3), 20), arguments
    kept = [int(keep.sum()) for _, keep, _ in conditions]
    assert min(kept[4], kept[5]) > 1000 > kept[1] > kept[2] > 20


def test_the_search_uses_indexes(archive: Archive) -> None:
    """Near segments are found by their buckets, then the segments of their patches; all of a small table would be read."""
    plans: list[str] = []
    with psycopg.connect(archive.connection.info.dsn, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        connection.execute("load 'auto_explain'")
        connection.execute("set auto_explain.log_min_duration = 0")
        connection.execute("set auto_explain.log_nested_statements = on")
        connection.execute("set client_min_messages = log")
        connection.execute("set enable_seqscan = off")
        assert (
            len(connection.execute("select * from eo.similar_segments('patch-0003', max_results => 5)").fetchall()) == 5
        )
    near = [plan for plan in plans if "using patch_bucket_bucket_no" in plan]
    assert len(near) == 2, "one look for patches that bound the sum, one for all within the bound"
    assert all("segment > 0" in plan for plan in near)
    sums = [plan for plan in plans if "using patch_bucket_pkey" in plan and "min(" in plan]
    assert len(sums) == 2


def test_whole_patches_are_no_segments(archive: Archive) -> None:
    without = next(number for number in range(PATCHES) if not len(archive.segments[number]))
    with pytest.raises(errors.NoDataFound, match="have no hash codes") as caught:
        archive.connection.execute("select * from eo.similar_segments(%s)", (f"patch-{without:04}",))
    assert "--segments" in (caught.value.diag.message_hint or "")


@pytest.mark.parametrize(
    ("query", "error", "message", "hint"),
    [
        ("select * from eo.similar_segments('nowhere')", errors.NoDataFound, 'no patch "nowhere"', "eo.search"),
        ("select * from eo.similar_to_segments('{}')", errors.InvalidParameterValue, "no code of a segment", "codes"),
        ("select * from eo.similar_to_segments(null)", errors.InvalidParameterValue, "no code of a segment", "codes"),
        ("select * from eo.similar_to_segments(array[B'101'])", errors.InvalidParameterValue, "3 bits", "eo.hash"),
        (
            "select * from eo.similar_segments('patch-0003', max_results => 5, encoder => 'x')",
            errors.UndefinedObject,
            'hash function "x"',
            "h:1",
        ),
    ],
)
def test_bad_arguments(archive: Archive, query: str, error: type[Exception], message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        archive.connection.execute(query.encode())
    assert hint in (caught.value.diag.message_hint or "")  # type: ignore[attr-defined]


def test_readers_search_and_writers_drop(archive: Archive) -> None:
    with archive.connection.transaction(force_rollback=True):
        archive.connection.execute("set local role eo_reader")
        assert len(archive.connection.execute("select * from eo.similar_segments('patch-0003')").fetchall()) == 10
        with pytest.raises(errors.InsufficientPrivilege), archive.connection.transaction():
            archive.connection.execute("select eo.drop_segment_codes()")
        archive.connection.execute("set local role eo_writer")
        dropped = archive.connection.execute("select eo.drop_segment_codes('h')").fetchone()
        assert dropped == (sum(map(len, archive.segments)),)
        assert archive.connection.execute("select distinct segment from eo.patch_bucket").fetchall() == [(0,)]
