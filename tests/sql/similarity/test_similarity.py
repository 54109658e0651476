"""Search by code and by vector, against brute force in numpy, ties and filters included."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
import shapely
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import errors

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.pyfuncs.convert import bit_string
from pgearth.pyfuncs.hashing import lsh
from pgearth.pyfuncs.models.weights import dump
from tests.stand_ins import NO_WEIGHTS

START = datetime(2018, 1, 1, tzinfo=UTC)
PATCHES, DIMENSION, BITS = 600, 16, 128


@dataclass(frozen=True)
class Archive:
    """An archive whose codes cluster and repeat, with the same data in numpy: rows by patch_id."""

    connection: psycopg.Connection
    patch_ids: np.ndarray
    codes: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    days: np.ndarray


@pytest.fixture(scope="module")
def archive(module_archive: psycopg.Connection) -> Archive:
    """Override of the shared fixture: 600 patches in 12 clusters, about 200 distinct codes, so that ties are common."""
    generator = np.random.default_rng(3)
    register_vector(module_archive)
    clusters = generator.integers(0, 2, (12, BITS)).astype(bool)
    codes = clusters[generator.integers(0, 12, PATCHES)]
    codes ^= generator.random(codes.shape) < 0.01
    codes[::2] = codes[generator.integers(0, 60, (PATCHES + 1) // 2)]
    vectors = generator.normal(size=(PATCHES, DIMENSION)).astype(np.float32)
    vectors[1::3] = vectors[0]
    labels = generator.integers(0, 19, PATCHES)
    days = generator.integers(0, 365, PATCHES)
    write_products(module_archive, [Product("p", "sentinel-2a", "L2A", START)])
    patches = [
        Patch(
            f"patch-{number:04}",
            "p",
            "sentinel-2a",
            START + timedelta(days=int(days[number])),
            32633,
            500_000 + 1200 * (number % 30),
            5_000_000 + 1200 * (number // 30),
            501_200 + 1200 * (number % 30),
            5_001_200 + 1200 * (number // 30),
            label_ids=[1000 + int(labels[number])],
        )
        for number in range(PATCHES)
    ]
    with module_archive.transaction():
        write_patches(module_archive, "test", patches)
    patch_ids = np.array([row[0] for row in module_archive.execute("select patch_id from eo.patch order by name")])
    encoder_id = module_archive.execute(
        "select eo.register_encoder('v', 1, 'spectral', '{B02}', %s, dimension => %s)", (NO_WEIGHTS, DIMENSION)
    ).fetchone()[0]
    hash_id = module_archive.execute(
        "select eo.register_encoder('h', 1, 'lsh', '{}', %s, bits => %s, parent_id => %s::smallint)",
        (dump(lsh.fit(vectors, BITS)), BITS, encoder_id),
    ).fetchone()[0]
    module_archive.cursor().executemany(
        "insert into eo.embedding select patch_id, %s, cell, %s from eo.patch where patch_id = %s",
        [(encoder_id, Vector(vector), int(patch_id)) for vector, patch_id in zip(vectors, patch_ids, strict=True)],
    )
    half = PATCHES // 2
    for part in (slice(0, half), slice(half, None)):
        module_archive.execute(
            "select eo.store_codes(%s::smallint, %s, %s::smallint[], %s::text[]::bit varying[])",
            (hash_id, patch_ids[part].tolist(), [0] * half, [bit_string(code) for code in codes[part]]),
        )
    return Archive(module_archive, patch_ids, codes, vectors, labels, days)


def nearest(
    distance: np.ndarray, patch_ids: np.ndarray, keep: np.ndarray, count: int | None
) -> list[tuple[int, float]]:
    order = np.lexsort((patch_ids, distance))
    order = order[keep[order]][:count]
    return [(int(patch_ids[i]), float(distance[i])) for i in order]


EVERY = np.ones(PATCHES, bool)


@pytest.mark.parametrize("count", [1, 10, 100, 700])
def test_similar_to_code(archive: Archive, count: int) -> None:
    for query in (archive.codes[5], ~archive.codes[5], np.zeros(BITS, bool)):
        distance = (archive.codes != query).sum(axis=1)
        found = archive.connection.execute(
            "select patch_id, distance from eo.similar_to_code(%s::text::bit varying, max_results => %s)",
            (bit_string(query), count),
        ).fetchall()
        assert found == nearest(distance, archive.patch_ids, EVERY, count)


@pytest.mark.parametrize("radius", [0, 2, 8, 60, 128])
def test_within_distance(archive: Archive, radius: int) -> None:
    query = archive.codes[7]
    distance = (archive.codes != query).sum(axis=1)
    found = archive.connection.execute(
        "select patch_id, distance from eo.within_distance(%s::text::bit varying, %s)", (bit_string(query), radius)
    ).fetchall()
    assert found == nearest(distance, archive.patch_ids, distance <= radius, None)
    assert found


def test_similar_leaves_the_example_out(archive: Archive) -> None:
    for number in (0, 1, 17, 599):
        distance = (archive.codes != archive.codes[number]).sum(axis=1)
        keep = archive.patch_ids != archive.patch_ids[number]
        found = archive.connection.execute(
            "select rank, patch_id, distance from eo.similar(%s, max_results => 25)", (f"patch-{number:04}",)
        ).fetchall()
        assert [row[1:] for row in found] == nearest(distance, archive.patch_ids, keep, 25)
        assert [row[0] for row in found] == list(range(1, 26))


@pytest.mark.parametrize(
    ("positives", "negatives"), [([4], []), ([4, 9, 30], []), ([4, 9], [100, 201, 7]), ([4, 4], [9])]
)
def test_similar_to_examples(archive: Archive, positives: list[int], negatives: list[int]) -> None:
    distance = sum((archive.codes != archive.codes[n]).sum(axis=1) for n in positives)
    distance = distance - sum(
        ((archive.codes != archive.codes[n]).sum(axis=1) for n in negatives), np.zeros(PATCHES, int)
    )
    keep = ~np.isin(np.arange(PATCHES), positives + negatives)
    found = archive.connection.execute(
        "select patch_id, distance from eo.similar_to_examples(%s, %s, max_results => 40)",
        ([f"patch-{n:04}" for n in positives], [f"patch-{n:04}" for n in negatives]),
    ).fetchall()
    assert found == nearest(distance, archive.patch_ids, keep, 40)


@pytest.mark.parametrize("count", [1, 10, 700])
def test_similar_to_vector(archive: Archive, count: int) -> None:
    for query in (archive.vectors[0], archive.vectors[0] * 0.9, np.zeros(DIMENSION, np.float32)):
        distance = np.linalg.norm(archive.vectors.astype(np.float64) - query, axis=1)
        found = archive.connection.execute(
            "select patch_id, distance from eo.similar_to_vector(%s, max_results => %s)", (Vector(query), count)
        ).fetchall()
        expected = nearest(distance, archive.patch_ids, EVERY, count)
        assert [patch_id for patch_id, _ in found] == [patch_id for patch_id, _ in expected]
        np.testing.assert_allclose([d for _, d in found], [d for _, d in expected], rtol=1e-5, atol=1e-6)


def test_filters_never_starve_the_result(archive: Archive) -> None:
    query = archive.codes[5]
    distance = (archive.codes != query).sum(axis=1)
    in_area = np.array(
        [
            box.intersects(shapely.box(505_000, 5_003_000, 520_000, 5_011_500))
            for box in shapely.box(
                *np.array(
                    archive.connection.execute("select west, south, east, north from eo.patch order by name").fetchall()
                ).T
            )
        ]
    )
    summer = (archive.days >= 151) & (archive.days < 243)
    forest = np.isin(archive.labels, [8, 9, 10])
    area = "area => st_makeenvelope(505000, 5003000, 520000, 5011500, 32633)"
    time = "from_time => '2018-06-01Z', to_time => '2018-09-01Z'"
    labels = "labels => array['Forests']"
    for arguments, keep in [
        (area, in_area),
        (time, summer),
        (labels, forest),
        (f"{area}, {time}, {labels}", in_area & summer & forest),
        ("countries => array['AQ']", ~EVERY),
    ]:
        expected = nearest(distance, archive.patch_ids, keep, 10)
        assert len(expected) == min(10, keep.sum())
        found = archive.connection.execute(
            f"select patch_id, distance from eo.similar_to_code(%s::text::bit varying, eo.filter({arguments}), 10)".encode(),
            (bit_string(query),),
        ).fetchall()
        assert found == expected, arguments
        vectors = archive.connection.execute(
            f"select patch_id from eo.similar_to_vector(%s, eo.filter({arguments}), 10)".encode(),
            (Vector(archive.vectors[5]),),
        ).fetchall()
        by_vector = nearest(
            np.linalg.norm(archive.vectors.astype(np.float64) - archive.vectors[5], axis=1), archive.patch_ids, keep, 10
        )
        assert [patch_id for (patch_id,) in vectors] == [patch_id for patch_id, _ in by_vector], arguments


def test_bucket_members(archive: Archive) -> None:
    for number in (0, 2, 7):
        same = (archive.codes == archive.codes[number]).all(axis=1)
        found = archive.connection.execute(
            "select patch_id, segment from eo.bucket_members(%s::text::bit varying)",
            (bit_string(archive.codes[number]),),
        ).fetchall()
        assert found == [(int(patch_id), 0) for patch_id in archive.patch_ids[same]]
    unused = ~archive.codes[0]
    assert (
        archive.connection.execute(
            "select * from eo.bucket_members(%s::text::bit varying)", (bit_string(unused),)
        ).fetchall()
        == []
    )


@pytest.mark.parametrize("radius", [0, 3, 60])
def test_buckets_within(archive: Archive, radius: int) -> None:
    query = archive.codes[7]
    found = archive.connection.execute(
        "select bucket_code::text, distance, patches from eo.buckets_within(%s::text::bit varying, %s)",
        (bit_string(query), radius),
    ).fetchall()
    distinct, counts = np.unique(archive.codes, axis=0, return_counts=True)
    expected = {
        bit_string(code): (int((code != query).sum()), int(count))
        for code, count in zip(distinct, counts, strict=True)
        if (code != query).sum() <= radius
    }
    assert {code: (distance, count) for code, distance, count in found} == expected
    assert [distance for _, distance, _ in found] == sorted(distance for distance, _ in expected.values())


def test_buckets_are_distinct_and_dense(archive: Archive) -> None:
    rows = archive.connection.execute("select bucket_no, code from eo.bucket order by bucket_no").fetchall()
    assert [number for number, _ in rows] == list(range(len(rows)))
    assert {code for _, code in rows} == {bit_string(code) for code in archive.codes}
    assert len(rows) < PATCHES
    assert archive.connection.execute("select count(*) from eo.patch_bucket").fetchone() == (PATCHES,)


def test_storing_codes_again_changes_nothing(archive: Archive) -> None:
    stored = archive.connection.execute(
        "select eo.store_codes((select encoder_id from eo.encoder where name = 'h'), %s, %s::smallint[], %s::text[]::bit varying[])",
        (archive.patch_ids.tolist(), [0] * PATCHES, [bit_string(code) for code in archive.codes]),
    ).fetchone()
    assert stored == (0,)
    test_buckets_are_distinct_and_dense(archive)


def test_registering_again_returns_the_same_and_another_definition_is_refused(archive: Archive) -> None:
    call = "select eo.register_encoder('v', 1, 'spectral', '{B02}', %s, dimension => %s)"
    row = archive.connection.execute("select encoder_id from eo.encoder where name = 'v'").fetchone()
    assert archive.connection.execute(call, (NO_WEIGHTS, DIMENSION)).fetchone() == row
    with pytest.raises(errors.UniqueViolation, match="other weights"):
        archive.connection.execute(call, (b"\1", DIMENSION))


def test_a_vector_of_another_length_is_not_stored(archive: Archive) -> None:
    with pytest.raises(errors.CheckViolation):
        archive.connection.execute(
            "update eo.embedding set embedding = '[1,2,3]' where patch_id = %s", (int(archive.patch_ids[0]),)
        )


@pytest.mark.parametrize(
    ("query", "error", "message", "hint"),
    [
        ("select * from eo.similar('nowhere')", errors.NoDataFound, 'no patch "nowhere"', "eo.search"),
        ("select * from eo.similar_to_examples('{}')", errors.InvalidParameterValue, "no positive example", "names"),
        (
            "select * from eo.similar_to_examples('{patch-0001}', '{nowhere}')",
            errors.NoDataFound,
            'no patch "nowhere"',
            "eo.search",
        ),
        ("select * from eo.similar_to_code(B'101')", errors.InvalidParameterValue, "3 bits", "eo.hash"),
        ("select * from eo.similar_to_code(null)", errors.InvalidParameterValue, "bits", "eo.hash"),
        (
            "select * from eo.within_distance(repeat('0', 128)::bit varying, -1)",
            errors.InvalidParameterValue,
            "not -1",
            "bits",
        ),
        ("select * from eo.bucket_members(B'1')", errors.InvalidParameterValue, "1 bits", "eo.hash"),
        ("select * from eo.buckets_within(B'1', 2)", errors.InvalidParameterValue, "1 bits", "eo.hash"),
        (
            "select * from eo.buckets_within(repeat('0', 128)::bit varying, null)",
            errors.InvalidParameterValue,
            "radius",
            "bits",
        ),
        ("select * from eo.similar_to_vector('[1,2]')", errors.InvalidParameterValue, "2 dimensions", "eo.encode"),
        (
            "select * from eo.similar('patch-0001', encoder => 'nosuch')",
            errors.UndefinedObject,
            'hash function "nosuch"',
            "h:1",
        ),
        ("select * from eo.similar_to_vector('[1]', encoder => 'h')", errors.UndefinedObject, 'encoder "h"', "v:1"),
        ("select eo.hash('[1,2]')", errors.InvalidParameterValue, "2 dimensions", "encoder"),
        (
            "select * from eo.encode(array[(select min(patch_id) from eo.patch)])",
            errors.NoDataFound,
            "no pixels",
            "patch_raster",
        ),
        ("select eo.encode_image(null)", errors.NullValueNotAllowed, "no image", "GeoTIFF"),
        ("select eo.rgb('patch-0001')", errors.NoDataFound, "patch-0001", "patch_raster"),
    ],
)
def test_bad_arguments(archive: Archive, query: str, error: type[Exception], message: str, hint: str) -> None:
    with pytest.raises(error, match=message) as caught:
        archive.connection.execute(query.encode())
    assert hint in (caught.value.diag.message_hint or "")  # type: ignore[attr-defined]


def test_encoder_by_name_and_version(archive: Archive) -> None:
    query = bit_string(archive.codes[5])
    results = {
        str(
            archive.connection.execute(
                "select patch_id from eo.similar_to_code(%s::text::bit varying, max_results => 5, encoder => %s)",
                (query, name),
            ).fetchall()
        )
        for name in (None, "h", "h:1")
    }
    assert len(results) == 1


def test_hash_in_sql_equals_numpy(archive: Archive) -> None:
    codes = lsh.hash_codes(lsh.fit(archive.vectors, BITS), archive.vectors)
    for number in (0, 3, 599):
        assert archive.connection.execute(
            "select eo.hash(%s)::text", (Vector(archive.vectors[number]),)
        ).fetchone() == (bit_string(codes[number]),)


def test_a_deleted_patch_is_not_found_and_its_bucket_stays(archive: Archive) -> None:
    buckets = archive.connection.execute("select count(*) from eo.bucket").fetchone()
    with archive.connection.transaction(force_rollback=True):
        archive.connection.execute("delete from eo.patch where name = 'patch-0003'")
        found = archive.connection.execute(
            "select name from eo.similar_to_code(%s::text::bit varying, max_results => 700)",
            (bit_string(archive.codes[3]),),
        ).fetchall()
        assert len(found) == PATCHES - 1 and ("patch-0003",) not in found
        assert archive.connection.execute("select count(*) from eo.bucket").fetchone() == buckets


@pytest.mark.parametrize("max_results", [2**31 - 1, None])
def test_all_patches_can_be_asked_for(archive: Archive, max_results: int | None) -> None:
    found = archive.connection.execute(
        "select patch_id from eo.similar('patch-0003', max_results => %s)", (max_results,)
    ).fetchall()
    assert len(found) == PATCHES - 1
