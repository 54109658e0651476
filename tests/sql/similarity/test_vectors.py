"""Search by vector: exact against scikit-learn and numpy, approximate against exact, the index and its plans.

The vectors hold small integers, so that squared distances are exact in single precision and ties are exact and common.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pytest
import shapely
from click.testing import CliRunner
from pgvector import Vector
from pgvector.psycopg import register_vector
from psycopg import errors
from sklearn.neighbors import NearestNeighbors

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.loaders.models.commands import vectors as index_command
from tests.stand_ins import NO_WEIGHTS

START = datetime(2018, 1, 1, tzinfo=UTC)
PATCHES, DIMENSION, SIDE, DAYS = 4000, 12, 50, 1000
INDEX = "embedding__{}__hnsw"
# Left to itself, the planner walks the index only where many patches pass; this makes it do so always.
WALK_THE_INDEX = (
    "set enable_seqscan = off; set enable_sort = off; set enable_hashjoin = off; set enable_mergejoin = off"
)


@dataclass(frozen=True)
class Archive:
    """An archive in which two dates of each place stand side by side, and the same in numpy: rows by patch_id."""

    connection: psycopg.Connection
    encoder_id: int
    patch_ids: np.ndarray
    vectors: np.ndarray
    labels: np.ndarray
    days: np.ndarray
    boxes: np.ndarray


@pytest.fixture(scope="module")
def archive(module_archive: psycopg.Connection) -> Archive:
    """Override of the shared fixture: 2,000 places on two dates; the places of the last 1,000 patches are offset."""
    generator = np.random.default_rng(5)
    register_vector(module_archive)
    centres = generator.integers(-20, 20, (60, DIMENSION))
    vectors = centres[generator.integers(0, 60, PATCHES)] + generator.integers(-2, 3, (PATCHES, DIMENSION))
    vectors[1::40] = vectors[0]
    labels = generator.integers(0, 19, PATCHES)
    days = generator.permutation(PATCHES) % DAYS
    place = np.arange(PATCHES) % (PATCHES // 2)
    west = 500_000 + 1200.0 * (place % SIDE) + np.where(np.arange(PATCHES) >= 3000, 600, 0)
    south = 5_000_000 + 1200.0 * (place // SIDE)
    write_products(module_archive, [Product("p", "sentinel-2a", "L2A", START)])
    patches = [
        Patch(
            f"patch-{n:04}",
            "p",
            "sentinel-2a",
            START + timedelta(days=int(days[n])),
            32633,
            west[n],
            south[n],
            west[n] + 1200,
            south[n] + 1200,
            label_ids=[1000 + int(labels[n])],
        )
        for n in range(PATCHES)
    ]
    with module_archive.transaction():
        write_patches(module_archive, "test", patches)
    patch_ids = np.array([row[0] for row in module_archive.execute("select patch_id from eo.patch order by name")])
    encoder_id = register(module_archive, "v", DIMENSION)
    store(module_archive, encoder_id, patch_ids, vectors)
    module_archive.execute("vacuum analyze")
    boxes = shapely.box(west, south, west + 1200, south + 1200)
    return Archive(module_archive, encoder_id, patch_ids, vectors.astype(float), labels, days, boxes)


def register(connection: psycopg.Connection, name: str, dimension: int) -> int:
    row = connection.execute(
        "select eo.register_encoder(%s, 1, 'spectral', '{B02}', %s, dimension => %s)", (name, NO_WEIGHTS, dimension)
    ).fetchone()
    assert row is not None
    return int(row[0])


def store(connection: psycopg.Connection, encoder_id: int, patch_ids: np.ndarray, vectors: np.ndarray) -> None:
    cells = dict(connection.execute("select patch_id, cell from eo.patch").fetchall())
    with connection.cursor().copy(
        "copy eo.embedding (patch_id, encoder_id, cell, embedding) from stdin (format binary)"
    ) as copy:
        copy.set_types(["int8", "int2", "text", "vector"])
        for patch_id, vector in zip(patch_ids.tolist(), vectors, strict=True):
            copy.write_row((patch_id, encoder_id, cells[patch_id], Vector(vector.astype(np.float32))))


@pytest.fixture(scope="module")
def indexed(archive: Archive) -> Archive:
    """The archive with its HNSW index."""
    row = archive.connection.execute("select eo.build_vector_index('v')").fetchone()
    assert row == (INDEX.format(archive.encoder_id),)
    return archive


def similar(
    archive: Archive, query: np.ndarray, count: int | None, filters: str = "", how: str = "approximate => false"
) -> list[tuple[int, float]]:
    return archive.connection.execute(
        f"select patch_id, distance from eo.similar_to_vector(%s, eo.filter({filters}), %s, {how})".encode(),
        (Vector(query), count),
    ).fetchall()


def nearest(archive: Archive, query: np.ndarray, keep: np.ndarray, count: int | None) -> list[tuple[int, float]]:
    distance = np.sqrt(((archive.vectors - query) ** 2).sum(axis=1))
    order = np.lexsort((archive.patch_ids, distance))
    order = order[keep[order]][:count]
    return [(int(archive.patch_ids[i]), float(distance[i])) for i in order]


def queries(archive: Archive, count: int = 5) -> np.ndarray:
    generator = np.random.default_rng(8)
    return archive.vectors[generator.integers(0, PATCHES, count)] + generator.integers(-1, 2, (count, DIMENSION))


EVERY = np.ones(PATCHES, bool)
FILTERS: dict[str, tuple[str, Callable[[Archive], np.ndarray]]] = {
    "0.1 % by time": ("from_time => '2018-01-01Z', to_time => '2018-01-02Z'", lambda a: a.days < 1),
    "1 % by time": ("from_time => '2018-01-01Z', to_time => '2018-01-11Z'", lambda a: a.days < 10),
    "10 % by time": ("from_time => '2018-01-01Z', to_time => '2018-04-11Z'", lambda a: a.days < 100),
    "50 % by time": ("from_time => '2018-01-01Z', to_time => '2019-05-16Z'", lambda a: a.days < 500),
    "1 % by area": (
        "area => st_makeenvelope(500001, 5000001, 505999, 5004799, 32633)",
        lambda a: shapely.intersects(a.boxes, shapely.box(500001, 5000001, 505999, 5004799)),
    ),
    "50 % by area": (
        "area => st_makeenvelope(500001, 5000001, 529999, 5048000, 32633)",
        lambda a: shapely.intersects(a.boxes, shapely.box(500001, 5000001, 529999, 5048000)),
    ),
    "16 % by labels": ("labels => array['Forests']", lambda a: np.isin(a.labels, [8, 9, 10])),
    "1.6 % by all of them": (
        "labels => array['Forests'], from_time => '2018-01-01Z', to_time => '2018-07-20Z',"
        " area => st_makeenvelope(500001, 5000001, 529999, 5048000, 32633)",
        lambda a: (
            np.isin(a.labels, [8, 9, 10])
            & (a.days < 200)
            & shapely.intersects(a.boxes, shapely.box(500001, 5000001, 529999, 5048000))
        ),
    ),
    "none": ("countries => array['AQ']", lambda _: ~EVERY),
}


@pytest.mark.parametrize("count", [1, 10, 100, 1000, 5000, None])
def test_exact(archive: Archive, count: int | None) -> None:
    for query in queries(archive):
        assert similar(archive, query, count) == nearest(archive, query, EVERY, count)


def test_exact_against_scikit_learn(archive: Archive) -> None:
    """Distances only: scikit-learn orders ties as they come."""
    neighbours = NearestNeighbors(algorithm="brute").fit(archive.vectors)
    for query in queries(archive):
        distance, _ = neighbours.kneighbors(query[None], 50)
        np.testing.assert_allclose([d for _, d in similar(archive, query, 50)], distance[0], rtol=1e-6, atol=1e-6)


def test_columns(archive: Archive) -> None:
    rows = archive.connection.execute(
        "select s.rank, s.name = p.name, s.cell = p.cell"
        " from eo.similar_to_vector(%s, max_results => 20) s join eo.patch p using (patch_id) order by s.rank",
        (Vector(archive.vectors[3]),),
    ).fetchall()
    assert rows == [(rank, True, True) for rank in range(1, 21)]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("count", [4, 10, 300])
def test_filters_exact(archive: Archive, name: str, count: int) -> None:
    arguments, passes = FILTERS[name]
    keep = passes(archive)
    for query in queries(archive, 3):
        assert similar(archive, query, count, arguments) == nearest(archive, query, keep, count)


@pytest.mark.parametrize("name", ["", *FILTERS])
@pytest.mark.parametrize("count", [4, 10, 300])
def test_approximate_is_close_to_exact(indexed: Archive, name: str, count: int) -> None:
    """Almost all results are not farther than the farthest true neighbour (tests/recall has the measure proper)."""
    arguments, passes = FILTERS.get(name, ("", lambda _: EVERY))
    true_results, wanted = 0, 0
    for query in queries(indexed, 5):
        found, expected = check_approximate(indexed, query, count, arguments, passes(indexed))
        true_results += sum(distance <= expected[-1][1] for _, distance in found)
        wanted += len(expected)
    assert true_results >= 0.9 * wanted


@pytest.mark.parametrize("name", ["", "0.1 % by time", "1 % by time", "50 % by area", "none"])
def test_filters_never_starve_a_walk_of_the_index(indexed: Archive, name: str) -> None:
    arguments, passes = FILTERS.get(name, ("", lambda _: EVERY))
    with settings(indexed.connection, WALK_THE_INDEX):
        check_approximate(indexed, indexed.vectors[5], 10, arguments, passes(indexed))


def check_approximate(
    archive: Archive, query: np.ndarray, count: int, arguments: str, keep: np.ndarray
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Approximate results and exact ones: as many, passing, with true distances, in order."""
    expected = nearest(archive, query, keep, count)
    found = similar(archive, query, count, arguments, "approximate => true")
    assert len(found) == len(expected)
    assert found == sorted(found, key=lambda row: (row[1], row[0]))
    assert dict(found).items() <= dict(nearest(archive, query, keep, None)).items()
    return found, expected


def test_approximate_with_null_and_with_more_than_there_are_is_everything(indexed: Archive) -> None:
    query = indexed.vectors[9]
    for count in (None, PATCHES, PATCHES + 1, 2**31 - 1):
        assert similar(indexed, query, count, how="approximate => true") == nearest(indexed, query, EVERY, None)


@contextmanager
def settings(connection: psycopg.Connection, statements: str) -> Iterator[None]:
    connection.execute(statements.encode())
    try:
        yield
    finally:
        connection.execute("reset all")


@pytest.mark.parametrize("start", ["", "set default_transaction_read_only = on"])
def test_a_reader_in_a_fresh_session(indexed: Archive, start: str) -> None:
    """pgvector's settings are not known before its library is loaded; the vector comes from a table, so it is not yet."""
    query = indexed.patch_ids[7]
    with psycopg.connect(indexed.connection.info.dsn, autocommit=True, options="-c role=eo_reader") as fresh:
        fresh.execute(start.encode())
        found = fresh.execute(
            "select s.patch_id, s.distance from eo.embedding e, eo.similar_to_vector(e.embedding, max_results => 10, approximate => true) s"
            " where e.patch_id = %s",
            (int(query),),
        ).fetchall()
        assert found == nearest(indexed, indexed.vectors[7], EVERY, 10)


def test_settings_are_left_as_they_were(indexed: Archive) -> None:
    shown = (
        "select array[current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan'),"
        " current_setting('hnsw.max_scan_tuples')]"
    )
    with psycopg.connect(indexed.connection.info.dsn) as session:
        register_vector(session)
        session.execute("select '[1]'::vector; set hnsw.ef_search = 77; set local hnsw.max_scan_tuples = 123")
        before = session.execute(shown).fetchone()
        session.execute(
            "select * from eo.similar_to_vector(%s, max_results => 10, encoder => 'v', approximate => true)",
            (Vector(indexed.vectors[3]),),
        )
        assert session.execute(shown).fetchone() == before == (["77", "off", "123"],)
        session.commit()
        assert session.execute(shown).fetchone() == (["77", "off", "20000"],)


# --- leaving patches out ---


@pytest.mark.parametrize("approximate", ["false", "true"])
@pytest.mark.parametrize("arguments", ["", "labels => array['Forests']"])
def test_exclude(indexed: Archive, approximate: str, arguments: str) -> None:
    query = indexed.vectors[0]
    left_out = [0, 1, 41, 81, 3001]
    keep = ~np.isin(np.arange(PATCHES), left_out)
    if arguments:
        keep &= np.isin(indexed.labels, [8, 9, 10])
    names = ", ".join(f"'patch-{n:04}'" for n in left_out)
    how = f"approximate => {approximate}, exclude => array[{names}]"
    found = similar(indexed, query, 30, arguments, how)
    expected = nearest(indexed, query, keep, 30)
    assert len(found) == 30 and not {int(indexed.patch_ids[n]) for n in left_out} & {p for p, _ in found}
    if approximate == "false":
        assert found == expected
    else:
        assert found[-1][1] == expected[-1][1]


@pytest.mark.parametrize("left_out", [[52], [120, 3120], [1003, 2500]])
@pytest.mark.parametrize("approximate", ["false", "true"])
def test_exclude_same_place(indexed: Archive, left_out: list[int], approximate: str) -> None:
    """Other dates and half-offset patches go, neighbours that share an edge stay."""
    overlap = np.zeros(PATCHES, bool)
    for n in left_out:
        overlap |= shapely.area(shapely.intersection(indexed.boxes, indexed.boxes[n])) > 0
    assert len(left_out) < overlap.sum() <= 4 * len(left_out)
    names = ", ".join(f"'patch-{n:04}'" for n in left_out)
    query = indexed.vectors[left_out[0]]
    how = f"approximate => {approximate}, exclude => array[{names}], exclude_same_place => true"
    assert similar(indexed, query, 50, how=how)[0] == nearest(indexed, query, ~overlap, 1)[0]
    assert {p for p, _ in similar(indexed, query, None, how=how)} == set(indexed.patch_ids[~overlap].tolist())


@pytest.mark.parametrize(
    ("footprint", "places", "same"),
    [
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "POLYGON((0 0,0 1,1 1,1 0,0 0))", True),
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "POLYGON((1 0,1 1,2 1,2 0,1 0))", False),
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "POLYGON((1 1,1 2,2 2,2 1,1 1))", False),
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "POLYGON((3 0,3 1,4 1,4 0,3 0))", False),
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "POLYGON((0.9 0,0.9 1,2 1,2 0,0.9 0))", True),
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "POLYGON((0.9999 0,0.9999 1,2 1,2 0,0.9999 0))", False),
        ("POLYGON((0 0,0 99,99 99,99 0,0 0))", "POLYGON((5 5,5 6,6 6,6 5,5 5))", True),
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "MULTIPOLYGON(((5 5,5 6,6 6,6 5,5 5)),((0 0,0 1,1 1,1 0,0 0)))", True),
        ("POLYGON((0 0,0 1,1 1,1 0,0 0))", "POLYGON EMPTY", False),
    ],
)
def test_same_place(archive: Archive, footprint: str, places: str, same: bool) -> None:
    row = archive.connection.execute(
        "select eo_internal.same_place(%s::geometry, %s::geometry)", (footprint, places)
    ).fetchone()
    assert row == (same,)


# --- several examples ---


@pytest.mark.parametrize(
    ("positives", "negatives"), [([4], []), ([4, 9, 30], []), ([4, 9], [100, 2001]), ([4, 4], [9])]
)
def test_example_vector(archive: Archive, positives: list[int], negatives: list[int]) -> None:
    expected = archive.vectors[positives].mean(axis=0)
    if negatives:
        expected = 1.25 * expected - 0.25 * archive.vectors[negatives].mean(axis=0)
    names = [[f"patch-{n:04}" for n in numbers] for numbers in (positives, negatives)]
    row = archive.connection.execute("select eo.example_vector(%s, %s)", names).fetchone()
    assert row is not None
    np.testing.assert_allclose(row[0].to_numpy(), expected, rtol=1e-5, atol=1e-5)
    found = archive.connection.execute(
        "select patch_id from eo.similar_to_vector(eo.example_vector(%s, %s), max_results => 20, exclude => %s)",
        (*names, names[0] + names[1]),
    ).fetchall()
    distance = np.linalg.norm(archive.vectors - row[0].to_numpy(), axis=1)
    distance[positives + negatives] = np.inf
    wanted = np.sort(distance)[19]
    assert len(found) == 20
    assert {p for (p,) in found} <= set(archive.patch_ids[distance <= wanted + 1e-4].tolist())


# --- the index and its plans ---


def plans(archive: Archive, filters: str, how: str = "approximate => false") -> str:
    """Every plan that runs inside a call, as auto_explain logs it."""
    seen: list[str] = []
    handler = lambda notice: seen.append(notice.message_primary or "")  # noqa: E731
    archive.connection.add_notice_handler(handler)
    try:
        with settings(
            archive.connection,
            "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;"
            "set client_min_messages = log",
        ):
            similar(archive, archive.vectors[5], 10, filters, how)
    finally:
        archive.connection.remove_notice_handler(handler)
    assert seen
    return "\n".join(seen)


def test_plans(indexed: Archive) -> None:
    name = INDEX.format(indexed.encoder_id)
    assert f"Index Scan using {name}" in plans(indexed, "", "approximate => true")
    half, _ = FILTERS["50 % by time"]
    assert f"Index Scan using {name}" in plans(indexed, half, "approximate => true")
    few, _ = FILTERS["0.1 % by time"]
    for selective in (plans(indexed, few), plans(indexed, few, "approximate => true")):
        assert "patch_sensing_time" in selective and f"embedding__{indexed.encoder_id}_pkey" in selective
        assert name not in selective
    for arguments in ("", half, few):
        assert name not in plans(indexed, arguments)
    # Unfiltered, the patches are looked up for the results only.
    assert "Seq Scan on patch" not in plans(indexed, "")


def test_building_again_keeps_the_index_and_other_parameters_replace_it(indexed: Archive) -> None:
    def built() -> tuple[int, list[str]]:
        row = indexed.connection.execute(
            "select oid::integer, reloptions from pg_class where relname = %s", (INDEX.format(indexed.encoder_id),)
        ).fetchone()
        assert row is not None
        return row

    first = built()
    assert indexed.connection.execute("select eo.build_vector_index()").fetchone()
    assert built() == first
    with indexed.connection.transaction(force_rollback=True):
        indexed.connection.execute("select eo.build_vector_index(m => 8, ef_construction => 40)")
        other = built()
        assert other[0] != first[0] and other[1] == ["m=8", "ef_construction=40"]
    assert built() == first


def test_parameters_of_the_index_must_be_numbers(archive: Archive) -> None:
    with pytest.raises(errors.NullValueNotAllowed, match="m is null, ef_construction is 128") as caught:
        archive.connection.execute("select eo.build_vector_index(m => null)")
    assert "default" in str(caught.value.diag.message_hint)


def test_an_interrupted_build_leaves_nothing_behind(archive: Archive) -> None:
    encoder_id = register(archive.connection, "interrupted", 64)
    vectors = np.random.default_rng(2).normal(size=(PATCHES, 64))
    store(archive.connection, encoder_id, archive.patch_ids, vectors)
    with settings(archive.connection, "set statement_timeout = '50ms'"), pytest.raises(errors.QueryCanceled):
        archive.connection.execute("select eo.build_vector_index('interrupted')")
    left = "select indisvalid from pg_index where indexrelid = to_regclass(%s)"
    assert archive.connection.execute(left, (f"eo_internal.{INDEX.format(encoder_id)}",)).fetchall() == []
    archive.connection.execute("delete from eo.embedding where encoder_id = %s and patch_id %% 8 > 0", (encoder_id,))
    archive.connection.execute("select eo.build_vector_index('interrupted')")
    assert archive.connection.execute(left, (f"eo_internal.{INDEX.format(encoder_id)}",)).fetchall() == [(True,)]
    forget(archive.connection, encoder_id)


def forget(connection: psycopg.Connection, encoder_id: int) -> None:
    connection.execute(f"drop table eo_internal.embedding__{encoder_id}".encode())
    connection.execute("delete from eo.encoder where encoder_id = %s", (encoder_id,))


def test_two_builds_at_once(archive: Archive) -> None:
    """The second waits for the first and finds its index; a writer may build."""
    encoder_id = register(archive.connection, "twice", 3)
    store(archive.connection, encoder_id, archive.patch_ids[:50], np.random.default_rng(2).normal(size=(50, 3)))
    results: list[object] = []

    def second() -> None:
        with psycopg.connect(archive.connection.info.dsn, options="-c role=eo_writer") as connection:
            results.append(connection.execute("select eo.build_vector_index('twice')").fetchone())

    thread = threading.Thread(target=second)
    with psycopg.connect(archive.connection.info.dsn, options="-c role=eo_writer") as first:
        first.execute("select eo.build_vector_index('twice')")
        thread.start()
        while not archive.connection.execute("select from pg_locks where not granted").fetchall():
            assert thread.is_alive() and not results
    thread.join(600)
    assert results == [(INDEX.format(encoder_id),)]
    forget(archive.connection, encoder_id)


@pytest.mark.parametrize(("version", "workers"), [("0.8.2", False), ("0.8.3", True), ("0.10.0", True)])
def test_no_parallel_build_before_pgvector_0_8_3(archive: Archive, version: str, workers: bool) -> None:
    encoder_id = register(archive.connection, "parallel", 3)
    store(archive.connection, encoder_id, archive.patch_ids, np.random.default_rng(2).normal(size=(PATCHES, 3)))
    seen: list[str] = []
    handler = lambda notice: seen.append(notice.message_primary or "")  # noqa: E731
    archive.connection.add_notice_handler(handler)
    with archive.connection.transaction(force_rollback=True):
        archive.connection.execute("update pg_extension set extversion = %s where extname = 'vector'", (version,))
        archive.connection.execute(
            f"alter table eo_internal.embedding__{encoder_id} set (parallel_workers = 1)".encode()
        )
        archive.connection.execute(
            "set local max_parallel_maintenance_workers = 1; set local client_min_messages = debug1"
        )
        archive.connection.execute("select eo.build_vector_index('parallel', m => 4, ef_construction => 8)")
        assert archive.connection.execute("show max_parallel_maintenance_workers").fetchone() == ("1",)
    archive.connection.remove_notice_handler(handler)
    assert any("parallel workers" in message for message in seen) == workers
    forget(archive.connection, encoder_id)


def test_the_command(indexed: Archive) -> None:
    result = CliRunner().invoke(
        index_command, ["--encoder", "v:1", "--memory", "100MB"], env={"PGEARTH_DSN": indexed.connection.info.dsn}
    )
    assert result.exit_code == 0, result.output
    assert INDEX.format(indexed.encoder_id) in result.output


def test_a_vector_stored_later_is_found(indexed: Archive) -> None:
    with indexed.connection.transaction(force_rollback=True):
        far = np.full(DIMENSION, 500.0)
        indexed.connection.execute(
            "update eo.embedding set embedding = %s where patch_id = %s", (Vector(far), int(indexed.patch_ids[44]))
        )
        assert similar(indexed, far, 1, how="approximate => true") == [(int(indexed.patch_ids[44]), 0.0)]
        indexed.connection.execute("delete from eo.patch where patch_id = %s", (int(indexed.patch_ids[44]),))
        assert int(indexed.patch_ids[44]) not in dict(similar(indexed, far, 10, how="approximate => true"))


# --- errors ---


@pytest.mark.parametrize(
    ("query", "error", "message", "hint"),
    [
        (
            "select * from eo.similar_to_vector('[1,2]', max_results => 5, encoder => 'v')",
            errors.InvalidParameterValue,
            "2 dimen",
            "eo.encode",
        ),
        (
            "select * from eo.similar_to_vector(null, max_results => 5, encoder => 'v')",
            errors.InvalidParameterValue,
            "dimensions",
            "eo.encode",
        ),
        ("select * from eo.similar_to_vector('[1]', encoder => 'w')", errors.UndefinedObject, 'encoder "w"', "v:1"),
        (
            "select * from eo.similar_to_vector(array_fill(1, array[12])::vector, max_results => 5, encoder => 'v', exclude => '{nowhere}')",
            errors.NoDataFound,
            'no patch "nowhere"',
            "eo.search",
        ),
        (
            "select * from eo.similar_to_vector(array_fill(1, array[12])::vector, max_results => 5, encoder => 'v', exclude_same_place => true)",
            errors.InvalidParameterValue,
            "names no patch",
            "exclude",
        ),
        (
            "select * from eo.similar_to_vector('[1,2,3]', max_results => 5, encoder => 'bare', approximate => true)",
            errors.ObjectNotInPrerequisiteState,
            "bare:1 have no index",
            "pgearth index vectors",
        ),
        ("select eo.example_vector('{}')", errors.InvalidParameterValue, "no positive example", "names"),
        ("select eo.example_vector(null)", errors.InvalidParameterValue, "no positive example", "names"),
        ("select eo.example_vector('{nowhere}')", errors.NoDataFound, 'no patch "nowhere"', "eo.search"),
        (
            "select eo.example_vector('{patch-0001}', '{nowhere}', 'v')",
            errors.NoDataFound,
            'no patch "nowhere"',
            "eo.search",
        ),
        ("select eo.example_vector('{patch-0001}', '{}', 'bare')", errors.NoDataFound, "no vector", "pgearth encode"),
        ("select eo.example_vector('{patch-0001}', '{}', 'w')", errors.UndefinedObject, 'encoder "w"', "v:1"),
        ("select eo.build_vector_index('long')", errors.ProgramLimitExceeded, "4001 dimensions", "exact search"),
        ("select eo.build_vector_index('w')", errors.UndefinedObject, 'encoder "w"', "v:1"),
    ],
)
def test_bad_arguments(archive: Archive, query: str, error: type[Exception], message: str, hint: str) -> None:
    with archive.connection.transaction(force_rollback=True):
        register(archive.connection, "long", 4001)
        register(archive.connection, "bare", 3)
        with pytest.raises(error, match=message) as caught:
            archive.connection.execute(query.encode())
        assert hint in (caught.value.diag.message_hint or "")  # type: ignore[attr-defined]


def test_a_reader_cannot_build(archive: Archive) -> None:
    with archive.connection.transaction(force_rollback=True), pytest.raises(errors.InsufficientPrivilege):
        archive.connection.execute("set local role eo_reader")
        archive.connection.execute("select eo.build_vector_index()")
