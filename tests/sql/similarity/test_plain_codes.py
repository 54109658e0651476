"""The plain SQL twin of the packed codes, with its substring indexes and without, against brute force in numpy."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import alembic.command
import numpy as np
import psycopg
import pytest
import sqlalchemy
from psycopg import errors

from pgearth.loaders.server.migrate import configuration
from pgearth.pyfuncs.convert import bit_string
from tests.stand_ins import NO_WEIGHTS, lsh_weights

PROBE = r"Index Cond: .*substring"
BUCKETS = {16: 5_000, 64: 6_000, 100: 6_000, 128: 30_000, 256: 4_000}


@dataclass(frozen=True)
class HashTable:
    """A hash function's buckets: codes (booleans) by bucket_no."""

    encoder_id: int
    codes: np.ndarray


@pytest.fixture(scope="module")
def tables(module_archive: psycopg.Connection) -> dict[int, HashTable]:
    """A hash table for each bit length, its codes distinct and in clusters of all densities."""
    generator = np.random.default_rng(11)
    parent = module_archive.execute(
        "select eo.register_encoder('v', 1, 'spectral', '{B02}', %s, dimension => 8)", (NO_WEIGHTS,)
    ).fetchone()
    made = {}
    for bits, buckets in BUCKETS.items():
        row = module_archive.execute(
            "select eo.register_encoder(%s, 1, 'lsh', '{}', %s, bits => %s, parent_id => %s::smallint)",
            (f"bits{bits}", lsh_weights(bits, 8), bits, parent[0]),
        ).fetchone()
        centres = generator.random((50, bits)) < 0.5
        flipped = generator.random((4 * buckets, bits)) < generator.choice([0.01, 0.05, 0.15, 0.5], (4 * buckets, 1))
        codes = np.unique(centres[generator.integers(0, 50, 4 * buckets)] ^ flipped, axis=0)
        codes = generator.permutation(codes)[:buckets]
        assert len(codes) == buckets
        with module_archive.cursor().copy("copy eo.bucket (encoder_id, bucket_no, code) from stdin") as copy:
            for number, code in enumerate(codes):
                copy.write_row((row[0], number, bit_string(code)))
        made[bits] = HashTable(row[0], codes)
    module_archive.execute("analyze eo.bucket")
    return made


@pytest.fixture(scope="module")
def indexed(module_archive: psycopg.Connection, tables: dict[int, HashTable]) -> dict[int, HashTable]:
    """The same tables after their substring indexes were built."""
    for bits in tables:
        row = module_archive.execute("select eo.build_plain_code_index(%s)", (f"bits{bits}",)).fetchone()
        assert row == ({16: 1, 64: 3, 100: 5, 128: 6, 256: 13}[bits],)
    return tables


def nearest(
    connection: psycopg.Connection,
    table: HashTable,
    positives: list[np.ndarray],
    negatives: list[np.ndarray] | None,
    wanted: int | None,
    radius: int | None,
) -> tuple[list[int], list[int]]:
    row = connection.execute(
        "select * from eo_internal.nearest_codes_sql(%s::smallint, %s::text[]::bit varying[], %s::text[]::bit varying[], %s, %s)",
        (
            table.encoder_id,
            [bit_string(code) for code in positives],
            None if negatives is None else [bit_string(code) for code in negatives],
            wanted,
            radius,
        ),
    ).fetchone()
    assert row is not None
    return row


def brute_force(
    table: HashTable,
    positives: list[np.ndarray],
    negatives: list[np.ndarray] | None,
    wanted: int | None,
    radius: int | None,
) -> tuple[list[int], list[int]]:
    score = sum(((table.codes != code).sum(axis=1) for code in positives), np.zeros(len(table.codes), int))
    score = score - sum(((table.codes != code).sum(axis=1) for code in negatives or []), np.zeros(len(score), int))
    keep = np.ones(len(score), bool) if radius is None else score <= radius
    if wanted is not None and wanted < keep.sum():
        keep &= score <= np.sort(score[keep])[wanted - 1]
    numbers = np.flatnonzero(keep)
    numbers = numbers[np.lexsort((numbers, score[numbers]))]
    return numbers.tolist(), score[numbers].tolist()


def queries(table: HashTable, generator: np.random.Generator) -> list[np.ndarray]:
    """A stored code, stored codes with ever more flipped bits, and one from nowhere."""
    bits = table.codes.shape[1]
    found = []
    for flips in (0, 1, 3, bits // 8):
        code = table.codes[generator.integers(0, len(table.codes))].copy()
        code[generator.choice(bits, flips, replace=False)] ^= True
        found.append(code)
    return [*found, generator.random(bits) < 0.5]


def check_bounds(connection: psycopg.Connection, table: HashTable, seed: int) -> None:
    bits = table.codes.shape[1]
    for query in queries(table, np.random.default_rng(seed)):
        for wanted, radius in [
            *itertools.product([None], [0, 1, 2, 5, bits // 16, bits // 8 - 1, bits // 8, bits // 4]),
            *itertools.product([1, 10, 137], [None, 3, bits // 5]),
            (0, None),
        ]:
            expected = brute_force(table, [query], [], wanted, radius) if wanted != 0 else ([], [])
            assert nearest(connection, table, [query], [], wanted, radius) == expected, (wanted, radius)


@pytest.mark.parametrize("bits", BUCKETS)
def test_one_code_by_scan(module_archive: psycopg.Connection, tables: dict[int, HashTable], bits: int) -> None:
    index = f"eo.bucket__{tables[bits].encoder_id}__substring_1"
    assert module_archive.execute("select to_regclass(%s)", (index,)).fetchone() == (None,), "run before it is built"
    check_bounds(module_archive, tables[bits], seed=bits)


@pytest.mark.parametrize("bits", BUCKETS)
def test_one_code_by_index(module_archive: psycopg.Connection, indexed: dict[int, HashTable], bits: int) -> None:
    for seed in (1, 2):
        check_bounds(module_archive, indexed[bits], seed)


@pytest.mark.parametrize("bits", BUCKETS)
def test_several_codes(module_archive: psycopg.Connection, indexed: dict[int, HashTable], bits: int) -> None:
    generator = np.random.default_rng(5)
    table = indexed[bits]
    for positive, negative in [(2, 0), (3, 2), (1, 1), (1, 3)]:
        examples = table.codes[generator.integers(0, len(table.codes), positive + negative)]
        positives, negatives = list(examples[:positive]), list(examples[positive:])
        for wanted, radius in [(None, None), (1, None), (50, None), (50, bits // 4), (None, bits // 3), (None, -1)]:
            assert nearest(module_archive, table, positives, negatives, wanted, radius) == brute_force(
                table, positives, negatives, wanted, radius
            ), (positive, negative, wanted, radius)


def test_everything(module_archive: psycopg.Connection, indexed: dict[int, HashTable]) -> None:
    table = indexed[64]
    query = table.codes[7]
    for wanted, radius in [(None, None), (None, 64), (len(table.codes), None), (len(table.codes) + 5, 100)]:
        for negatives in (None, []):
            found = nearest(module_archive, table, [query], negatives, wanted, radius)
            assert len(found[0]) == len(table.codes)
            assert found == brute_force(table, [query], [], wanted, radius)


def test_ties_of_the_last_distance_are_complete(
    module_archive: psycopg.Connection, indexed: dict[int, HashTable]
) -> None:
    table = indexed[16]
    query = table.codes[100]
    distance = (table.codes != query).sum(axis=1)
    numbers, distances = nearest(module_archive, table, [query], [], 2, None)
    assert len(numbers) > 2
    assert distances == sorted(distances)
    assert sorted(numbers) == np.flatnonzero(distance <= distances[-1]).tolist()


def test_an_unknown_hash_function_has_no_buckets(module_archive: psycopg.Connection) -> None:
    row = module_archive.execute(
        "select * from eo_internal.nearest_codes_sql(999::smallint, array[b'1'], null, 5, null)"
    )
    assert row.fetchone() == ([], [])


@contextmanager
def plans(connection: psycopg.Connection) -> Iterator[list[str]]:
    """Collect the plans of all statements that functions run."""
    found: list[str] = []

    def collect(notice: psycopg.errors.Diagnostic) -> None:
        found.append(notice.message_primary or "")

    connection.execute("load 'auto_explain'")
    connection.add_notice_handler(collect)
    with connection.transaction(force_rollback=True):
        connection.execute(
            "set local client_min_messages = log; set local auto_explain.log_min_duration = 0;"
            " set local auto_explain.log_nested_statements = on; set local auto_explain.log_analyze = on;"
            " set local auto_explain.log_timing = off"
        )
        yield found
    connection.remove_notice_handler(collect)


def test_the_substring_indexes_are_used(module_archive: psycopg.Connection, indexed: dict[int, HashTable]) -> None:
    table = indexed[128]
    indexes = {f"bucket__{table.encoder_id}__substring_{number}" for number in range(1, 7)}
    for wanted, radius in [(None, 2), (None, 8), (None, 13), (10, None)]:
        with plans(module_archive) as found:
            nearest(module_archive, table, [table.codes[3]], [], wanted, radius)
        searching = [plan for plan in found if "BitmapOr" in plan]
        assert searching, (wanted, radius)
        assert all(f"Bitmap Index Scan on {index}" in searching[0] for index in indexes)
        assert len(re.findall(PROBE, searching[0])) == len(indexes)
        assert not any("Seq Scan on bucket" in plan for plan in found)


def test_a_scan_is_used_where_it_is_cheaper(module_archive: psycopg.Connection, indexed: dict[int, HashTable]) -> None:
    """Wide radii, and numbers that no narrow radius holds."""
    table = indexed[128]
    for wanted, radius in [(None, 40), (len(table.codes), None)]:
        with plans(module_archive) as found:
            nearest(module_archive, table, [table.codes[3]], [], wanted, radius)
        *_, last = [plan for plan in found if "from eo.bucket b" in plan and "rows with ties" in plan]
        # By which index, if any, all codes of the hash function are read is left to the planner.
        assert not re.search(PROBE, last), (wanted, radius)


def test_buckets_stored_later_are_found(module_archive: psycopg.Connection, indexed: dict[int, HashTable]) -> None:
    table = indexed[128]
    new = ~table.codes[0]
    assert (table.codes != new).sum(axis=1).min() > 8
    with module_archive.transaction(force_rollback=True):
        number = len(table.codes)
        module_archive.execute(
            "insert into eo.bucket values (%s, %s, %s::text::bit varying)", (table.encoder_id, number, bit_string(new))
        )
        new[[3, 77]] ^= True
        assert nearest(module_archive, table, [new], [], None, 8) == ([number], [2])
        assert nearest(module_archive, table, [new], [], 1, None) == ([number], [2])
    assert nearest(module_archive, table, [new], [], None, 8) == ([], [])


def test_the_setting_leads_to_plain_sql(module_archive: psycopg.Connection, indexed: dict[int, HashTable]) -> None:
    table = indexed[128]
    query = "select bucket_nos, distances from eo_internal.nearest_codes(%s::smallint, array[%s::text::bit varying], '{}', 10, null)"
    with plans(module_archive) as found:
        module_archive.execute("set local pgearth.code_scan = 'sql'")
        row = module_archive.execute(query, (table.encoder_id, bit_string(table.codes[9]))).fetchone()
    assert row == brute_force(table, [table.codes[9]], [], 10, None)
    assert any("BitmapOr" in plan for plan in found)


@pytest.mark.parametrize("bits", [1, 7, 16, 29, 30, 31, 100, 128, 200, 256, 511, 512])
def test_substrings_partition_the_code(module_archive: psycopg.Connection, bits: int) -> None:
    parts = module_archive.execute("select * from eo_internal.code_substrings(%s)", (bits,)).fetchall()
    assert [number for number, _, _ in parts] == list(range(1, len(parts) + 1))
    assert [bit for _, first, width in parts for bit in range(first, first + width)] == list(range(1, bits + 1))
    widths = [width for _, _, width in parts]
    assert max(widths) - min(widths) <= 1
    assert max(widths) < 31


@pytest.mark.parametrize(("width", "weight"), [(1, 0), (1, 3), (5, 2), (16, -1), (16, 0), (16, 3), (17, 4)])
def test_bit_masks(module_archive: psycopg.Connection, width: int, weight: int) -> None:
    expected = [
        sum(1 << bit for bit in chosen)
        for size in range(weight + 1)
        for chosen in itertools.combinations(range(width), size)
    ]
    row = module_archive.execute("select eo_internal.bit_masks(%s, %s)", (width, weight)).fetchone()
    assert row is not None
    assert sorted(row[0]) == sorted(expected)


def test_building_again_changes_nothing(module_archive: psycopg.Connection, indexed: dict[int, HashTable]) -> None:
    count = "select array_agg(indexrelid order by indexrelid) from pg_index where indrelid = 'eo.bucket'::regclass"
    before = module_archive.execute(count).fetchone()
    assert module_archive.execute("select eo.build_plain_code_index('bits128')").fetchone() == (6,)
    assert module_archive.execute(count).fetchone() == before


def test_codes_too_long_for_indexes_are_refused_but_searched(module_archive: psycopg.Connection) -> None:
    with module_archive.transaction(force_rollback=True):
        module_archive.execute(
            "select eo.register_encoder('long', 1, 'lsh', '{}', %s, bits => 600, parent_id => 1::smallint)",
            (lsh_weights(600, 8),),
        )
        module_archive.execute(
            "insert into eo.bucket select encoder_id, 0, repeat('1', 600)::bit varying from eo.encoder where name = 'long'"
        )
        row = module_archive.execute(
            "select n.* from eo.encoder, eo_internal.nearest_codes_sql(encoder_id, array[repeat('0', 600)::bit varying], null, 1, null) n where name = 'long'"
        ).fetchone()
        assert row == ([0], [600])
        with pytest.raises(errors.ProgramLimitExceeded, match="600 bits"), module_archive.transaction():
            module_archive.execute("select eo.build_plain_code_index('long')")


def test_the_indexes_are_not_taken_for_a_difference_of_the_schema(
    module_archive: psycopg.Connection, indexed: dict[int, HashTable], archive_template: SimpleNamespace
) -> None:
    info = module_archive.info
    url = f"postgresql+psycopg://{info.user}@/{info.dbname}?host={info.host}&port={info.port}"
    with sqlalchemy.create_engine(url).begin() as connection:
        alembic.command.check(configuration(connection))
