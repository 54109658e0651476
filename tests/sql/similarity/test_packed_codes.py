"""Packed codes while others write: what a search finds is what plain SQL finds in the same snapshot, always."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import errors

from pgearth.loaders.archive.write import Patch, Product, write_patches, write_products
from pgearth.pyfuncs.convert import bit_string
from tests.stand_ins import NO_WEIGHTS, lsh_weights

BITS = 64
PATCHES = 400


@pytest.fixture
def hashed(archive: psycopg.Connection) -> psycopg.Connection:
    """An archive of its own, see `fill`."""
    fill(archive)
    return archive


def fill(archive: psycopg.Connection) -> None:
    """Store patches without codes, and a hash function of 64 bits whose weights nothing reads."""
    start = datetime(2018, 1, 1, tzinfo=UTC)
    write_products(archive, [Product("p", "sentinel-2a", "L2A", start)])
    patches = [
        Patch(
            f"patch-{n:03}",
            "p",
            "sentinel-2a",
            start,
            32633,
            500_000 + 1200 * n,
            5_000_000,
            501_200 + 1200 * n,
            5_001_200,
        )
        for n in range(PATCHES)
    ]
    with archive.transaction():
        write_patches(archive, "test", patches)
    archive.execute("select eo.register_encoder('vectors', 1, 'spectral', '{B02}', %s, dimension => 4)", (NO_WEIGHTS,))
    archive.execute(
        "select eo.register_encoder('codes', 1, 'lsh', '{}', %s, bits => %s,"
        " parent_id => (select encoder_id from eo.encoder where name = 'vectors'))",
        (lsh_weights(BITS, 4), BITS),
    )


@pytest.fixture(scope="module")
def described(module_archive: psycopg.Connection) -> psycopg.Connection:
    """Patches with everything that filters read, some of it unknown; codes; all of it packed."""
    generator = np.random.default_rng(5)
    fill(module_archive)
    ids = patch_ids(module_archive)
    labels = [
        label_id
        for (label_id,) in module_archive.execute(
            "select label_id from eo.label where scheme = 'clc' and code in ('311', '312', '313', '211', '512')"
        )
    ]
    scenes = [
        label_id
        for (label_id,) in module_archive.execute(
            "select label_id from eo.label where scheme = 'scl' and code in ('4', '5')"
        )
    ]
    for number, patch_id in enumerate(ids):
        module_archive.execute(
            """
            update eo.patch set sensing_time = '2018-01-01'::timestamptz + %s * interval '1 day', platform = %s, label_ids = %s,
                country_codes = %s, split = %s, seasonal_snow = %s, cloud_or_shadow = %s, scene_class_ids = %s
            where patch_id = %s
            """,
            (
                int(generator.integers(365)),
                str(generator.choice(["sentinel-2a", "sentinel-2b"])),
                None
                if number % 9 == 0
                else sorted(generator.choice(labels, generator.integers(1, 4), replace=False).tolist()),
                [None, ["AT"], ["AT", "SI"], ["SI"], ["HR"]][generator.integers(5)],
                [None, "train", "test"][generator.integers(3)],
                [None, True, False][generator.integers(3)],
                [None, True, False][generator.integers(3)],
                [None, [scenes[0]], scenes][generator.integers(3)],
                patch_id,
            ),
        )
    module_archive.execute("update eo.product set cloud_cover = 10")
    store(module_archive, ids, random_codes(generator, len(ids)))
    module_archive.execute("select eo.build_code_index()")
    return module_archive


def random_codes(generator: np.random.Generator, count: int) -> list[str]:
    """Codes around a few centres, so that they repeat and have near neighbours."""
    centres = np.random.default_rng(9).integers(0, 2, (5, BITS)).astype(bool)
    codes = centres[generator.integers(0, 5, count)] ^ (generator.random((count, BITS)) < 0.02)
    return [bit_string(code) for code in codes]


def store(connection: psycopg.Connection, patch_ids: list[int], codes: list[str]) -> None:
    connection.execute(
        "select eo.store_codes((select encoder_id from eo.encoder where name = 'codes'), %s, %s, %s::varbit[])",
        (patch_ids, [0] * len(patch_ids), codes),
    )


def search(connection: psycopg.Connection, code: str, scan: str) -> list[tuple]:
    """Results of several searches, in one transaction of the caller, by the packed codes or by plain SQL."""
    connection.execute("select set_config('pgearth.code_scan', %s, false)", (scan,))
    results = []
    for query in (
        "select * from eo.similar_to_code(%s::varbit, max_results => 7)",
        "select * from eo.similar_to_code(%s::varbit, eo.filter(platforms => '{sentinel-2a}', patch_ids => array(select generate_series(1, 1000, 3))), max_results => 7)",
        "select * from eo.similar_to_code(%s::varbit, eo.filter(labels => '{clc:311}', area => eo.rectangle(14, 40, 17, 50)), max_results => 7)",
        "select * from eo.within_distance(%s::varbit, 12)",
        "select * from eo.within_distance(%s::varbit, 12, eo.filter(labels => '{clc:3}'))",
        "select * from eo.buckets_within(%s::varbit, 12)",
    ):
        results += connection.execute(query, (code,)).fetchall()
    return results


def patch_ids(connection: psycopg.Connection) -> list[int]:
    return [patch_id for (patch_id,) in connection.execute("select patch_id from eo.patch order by patch_id")]


@pytest.fixture
def sessions(hashed: psycopg.Connection) -> Iterator[Callable[..., psycopg.Connection]]:
    """Make sessions of their own in the archive; all are closed at the end."""
    opened: list[psycopg.Connection] = []

    def make(**settings: object) -> psycopg.Connection:
        session = psycopg.connect(hashed.info.dsn, **settings)
        opened.append(session)
        return session

    yield make
    for session in opened:
        session.close()


@pytest.mark.parametrize("seed", range(4))
def test_any_interleaving_of_writers_and_readers(hashed, sessions, seed):
    """Writers that commit, roll back, roll back to savepoints and delete, step by step, in a random order."""
    generator = np.random.default_rng(seed)
    free = patch_ids(hashed)
    writer = sessions()
    fresh_reader, old_reader = sessions(autocommit=True), sessions()
    old_reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    compared = 0
    for _ in range(70):
        action = generator.choice(
            ["write", "savepoint", "commit", "rollback", "delete", "annotate", "pack", "new snapshot"]
        )
        if action in ("write", "savepoint") and len(free) > 5:
            taken, free = free[:5], free[5:]
            if action == "savepoint":
                writer.execute("savepoint here")
            store(writer, taken, random_codes(generator, 5))
            if action == "savepoint":
                writer.execute("rollback to savepoint here")
        elif action == "commit":
            writer.commit()
        elif action == "rollback":
            writer.rollback()
        elif action == "delete":
            writer.execute("delete from eo.patch_bucket where patch_id %% 7 = %s", (int(generator.integers(7)),))
        elif action == "annotate":
            writer.execute(
                "update eo.patch set label_ids = array(select label_id from eo.label where scheme = 'clc' and code = %s)"
                " where patch_id %% 3 = %s",
                (str(generator.choice(["311", "312", "512"])), int(generator.integers(3))),
            )
        elif action == "pack":
            hashed.execute("select eo.build_code_index('codes')")
        elif action == "new snapshot":
            old_reader.commit()
        code = random_codes(generator, 1)[0]
        for reader in (fresh_reader, old_reader, writer):
            found = search(reader, code, "packed")
            assert found == search(reader, code, "sql"), action
            compared += len(found)
    assert compared > 100


def test_writers_and_readers_at_once(hashed, sessions):
    """Threads that write, roll back, delete and pack; readers compare both scans within one snapshot."""
    everything = patch_ids(hashed)
    stop = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: Callable[[np.random.Generator], None], seed: int) -> threading.Thread:
        def run() -> None:
            try:
                work(np.random.default_rng(seed))
            except BaseException as error:  # re-raised by the test
                failures.append(error)
                stop.set()

        return threading.Thread(target=run)

    def write(generator: np.random.Generator, mine: list[int]) -> None:
        session = sessions()
        for patch_id in mine:
            store(session, [patch_id], random_codes(generator, 1))
            if generator.random() < 0.3:
                session.rollback()
            else:
                session.commit()
            if generator.random() < 0.1:
                session.execute("delete from eo.patch_bucket where patch_id = %s", (mine[0],))
                session.commit()

    def pack(_generator: np.random.Generator) -> None:
        session = sessions(autocommit=True)
        while not stop.wait(0.05):
            session.execute("select eo.build_code_index('codes')")

    compared: list[int] = []

    def read(generator: np.random.Generator) -> None:
        session = sessions()
        session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        while not stop.is_set():
            code = random_codes(generator, 1)[0]
            found = search(session, code, "packed")
            assert found == search(session, code, "sql")
            session.commit()
            compared.append(len(found))

    writers = [guarded(lambda g, part=part: write(g, everything[part::3]), part) for part in range(3)]
    others = [guarded(pack, 10), guarded(read, 11), guarded(read, 12)]
    for thread in writers + others:
        thread.start()
    for thread in writers:
        thread.join()
    while len(compared) < 10 and not stop.wait(0.1):
        pass
    stop.set()
    for thread in others:
        thread.join()
    assert failures == []
    assert max(compared) > 10
    found = search(hashed, random_codes(np.random.default_rng(0), 1)[0], "packed")
    assert found == search(hashed, random_codes(np.random.default_rng(0), 1)[0], "sql")


FILTERS = [
    "area => eo.rectangle(15.2, 44, 15.9, 46)",
    "area => eo.circle(st_point(15.5, 45.16, 4326), 15000)",
    "from_time => '2018-03-01', to_time => '2018-09-01'",
    "platforms => '{sentinel-2b}', seasons => '{summer,autumn}'",
    "platforms => '{S2B}', seasons => '{Summer,AUTUMN}', countries => '{Austria}'",
    "labels => '{clc:3}'",
    "labels => '{clc:311,clc:312}', label_match => 'at_least'",
    "labels => '{clc:31}', label_match => 'exactly'",
    "countries => '{AT,SI}'",
    "splits => '{train}'",
    "splits => '{test}', sources => '{test}'",
    "seasonal_snow => true",
    "cloud_or_shadow => false",
    "cells => '{u2}'",
    "cells => array(select distinct cell || '' from eo.patch order by 1 limit 3)",
    "patch_ids => array(select generate_series(1, 2000, 7))",
    "patch_ids => '{5,17,5,999999}'",
    "countries => '{AT,FI}', platforms => '{sentinel-2a}'",
    "max_cloud => 20",
    "scene_classes => '{scl:4}'",
    "area => 'srid=4326;polygon empty'",
    "labels => '{clc:311}', countries => '{AT}', from_time => '2018-05-01', area => eo.rectangle(15, 44, 16.5, 46)",
]


@pytest.mark.parametrize("chosen", FILTERS)
def test_filtered_searches_by_packed_patches(described, chosen):
    """Every filter, by packed patches and by plain SQL: the same patches, distances and order."""
    assert described.execute("select patches from eo.code_index").fetchone() == (PATCHES,)
    found = {"packed": [], "sql": []}
    for scan, results in found.items():
        described.execute("select set_config('pgearth.code_scan', %s, false)", (scan,))
        for code in random_codes(np.random.default_rng(7), 5):
            for call in (
                f"eo.similar_to_code(%s::varbit, eo.filter({chosen}), 10)",
                f"eo.within_distance(%s::varbit, 25, eo.filter({chosen}))",
            ):
                results += described.execute(f"select * from {call}".encode(), (code,)).fetchall()
    assert found["packed"] == found["sql"]


@pytest.mark.parametrize("chosen", FILTERS)
def test_the_ways_of_a_filtered_search_agree(described, chosen):
    """Each way by itself: a search takes the one that is fastest, and post-filtering may hand over to pre-filtering."""
    described.execute("reset pgearth.code_scan")
    encoder = "(select encoder_id from eo.code_index)"
    for code in random_codes(np.random.default_rng(8), 3):
        for count, radius in [(10, None), (3, 30), (None, 25)]:
            query = f"{encoder}, array[%(code)s::varbit], '{{}}', %(count)s::integer, %(radius)s::integer, '{{3,4}}', eo.filter({chosen})"
            calls = {
                "in": f"""eo_internal.infiltered_nearest({query}, (select n.patch_ids from first n), (select n.distances from first n))""",
                "post": f"eo_internal.postfiltered_nearest({query})",
                "pre": f"eo_internal.prefiltered_nearest({query}, -1)",
            }
            first = f"""with first as materialized (
                select * from eo_internal.nearest_packed_patches({encoder}, array[%(code)s::varbit], '{{}}', 2 * %(count)s::bigint, 0,
                    %(radius)s::integer, eo_internal.packed_conditions(eo.filter({chosen}))))"""
            values = {"code": code, "count": count, "radius": radius}
            found = {
                way: described.execute(f"{first} select * from {call}".encode(), values).fetchall()
                for way, call in calls.items()
            }
            assert found["in"] == found["post"] == found["pre"]
            assert not {3, 4} & {patch_id for patch_id, *_ in found["pre"]}


def test_filtered_searches_do_use_packed_patches(described):
    """Else the test above compares plain SQL with itself; and a change makes them serve no more."""
    query = "select patch_ids is not null from eo_internal.nearest_packed_patches((select encoder_id from eo.code_index), %s::varbit[], '{}', 5, 0, null, '{}')"
    code = random_codes(np.random.default_rng(0), 1)
    described.execute("reset pgearth.code_scan")
    assert described.execute(query, (code,)).fetchone() == (True,)
    with described.transaction(force_rollback=True):
        described.execute("update eo.patch set split = 'train' where patch_id = 1")
        assert described.execute(query, (code,)).fetchone() == (False,)
    assert described.execute(query, (code,)).fetchone() == (True,)
    with described.transaction(force_rollback=True):
        described.execute("delete from eo.patch where name = 'patch-000'")
        assert described.execute(query, (code,)).fetchone() == (True,)


def test_runtime_tells_whether_packed_patches_serve(described):
    query = "select version, note from eo.runtime() where component = 'packed codes of codes:1'"
    version, note = described.execute(query).fetchone()
    assert version.endswith(f" codes, {PATCHES} patches") and note is None
    with described.transaction(force_rollback=True):
        described.execute("update eo.patch set split = 'train' where patch_id = 1")
        assert "pgearth index codes" in described.execute(query).fetchone()[1]


# However rows change

SERVES = """
select patch_ids is not null
from eo_internal.nearest_packed_patches((select encoder_id from eo.code_index limit 1), %s::varbit[], '{}', 5, 0, null, '{}')
"""
CODE = random_codes(np.random.default_rng(0), 1)
REASON = "select note from eo.runtime() where component like 'packed codes of %'"


def serves(connection: psycopg.Connection) -> bool:
    """Whether packed patches answer; then eo.runtime() says so, too, and else why not."""
    connection.execute("select set_config('pgearth.code_scan', '', false)")
    (answered,) = connection.execute(SERVES, (CODE,)).fetchone()
    notes = [note for (note,) in connection.execute(REASON)]
    assert notes and all((note is None) == answered for note in notes), notes
    return answered


def assert_same(connection: psycopg.Connection) -> None:
    assert search(connection, CODE[0], "packed") == search(connection, CODE[0], "sql") != []


@pytest.fixture
def packed(hashed: psycopg.Connection) -> psycopg.Connection:
    """An archive of its own whose patches have codes, packed, and one of which is nearest to CODE."""
    ids = patch_ids(hashed)
    store(hashed, ids, CODE + random_codes(np.random.default_rng(1), len(ids) - 1))
    hashed.execute("select eo.build_code_index()")
    assert serves(hashed)
    return hashed


BY_REPLICA = "set session_replication_role = replica"
UNNOTED = {
    "a replicated update": (BY_REPLICA, "update eo.patch set country_codes = '{FI}' where patch_id % 100 = 1"),
    "replicated codes": (BY_REPLICA, "update eo.patch_bucket set bucket_no = 0 where patch_id % 100 = 1"),
    "a trigger switched off": (
        "alter table eo.patch disable trigger note_patch_change",
        "update eo.patch set country_codes = '{FI}' where patch_id % 100 = 1",
        "alter table eo.patch enable always trigger note_patch_change",
    ),
    "all triggers off, as by pg_restore": (
        "alter table eo.patch disable trigger all",
        "update eo.patch set country_codes = '{FI}' where patch_id % 100 = 1",
        "alter table eo.patch enable trigger all",
    ),
    "codes with all triggers off": (
        "alter table eo.patch_bucket disable trigger all",
        "update eo.patch_bucket set bucket_no = 0 where patch_id % 100 = 1",
        "alter table eo.patch_bucket enable trigger all",
    ),
    "rows put back with all triggers off": (
        "create temporary table kept as select * from eo.patch",
        "alter table eo.patch disable trigger all",
        BY_REPLICA,
        "delete from eo.patch where patch_id % 100 = 1",
        "insert into eo.patch (patch_id, cell, name, source, product_id, platform, sensing_time, footprint, srid, west, south,"
        " east, north, country_codes) select patch_id, cell, name, source, product_id, platform, sensing_time, footprint, srid,"
        " west, south, east, north, '{FI}' from kept where patch_id % 100 = 1",
        "alter table eo.patch enable trigger all",
    ),
    "notes lost": (
        "update eo.patch set country_codes = '{FI}' where patch_id % 100 = 1",
        "truncate eo_internal.patch_change",
    ),
}


@pytest.mark.parametrize("kind", UNNOTED)
@pytest.mark.parametrize("settled", [True, False], ids=["committed", "in the transaction"])
def test_no_change_goes_unnoticed(packed, sessions, kind, settled):
    """Rows changed behind the triggers' back: the rows of plain SQL, and packed again, the packed patches serve."""
    old_reader, writer = sessions(), sessions()
    old_reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert serves(old_reader)
    if kind == "notes lost":  # truncate waits for readers
        old_reader.commit()
    for statement in UNNOTED[kind]:
        writer.execute(statement)
    assert not serves(writer)
    found = writer.execute(
        "select count(*) from eo.similar_to_code(%s::varbit, eo.filter(countries => '{FI}'), max_results => 99)", CODE
    )
    assert found.fetchone() == ((0,) if "codes" in kind else (4,))
    assert_same(writer)
    if not settled:
        writer.rollback()
        assert serves(packed)
        assert_same(packed)
        return
    if kind != "notes lost":
        assert serves(old_reader)
        assert_same(old_reader)
    old_reader.commit()
    writer.commit()
    for reader in (packed, old_reader, sessions()):
        assert not serves(reader)
        assert_same(reader)
        reader.commit()
    packed.execute("select eo.build_code_index()")
    for reader in (packed, old_reader):
        assert serves(reader)
        assert_same(reader)
        reader.commit()
    # And from then on nothing is missed again.
    writer.execute(BY_REPLICA)
    writer.execute("update eo.patch set country_codes = '{SE}' where patch_id % 50 = 1")
    writer.commit()
    assert not serves(packed)
    assert_same(packed)


def test_a_disabled_trigger_proves_nothing(packed):
    packed.execute("alter table eo.patch disable trigger note_patch_change")
    assert not serves(packed)
    assert "is disabled" in packed.execute(REASON).fetchone()[0]
    warnings: list[str] = []
    packed.add_notice_handler(lambda notice: warnings.append(notice.message_primary or ""))
    packed.execute("select eo.build_code_index()")
    assert warnings == ["the trigger note_patch_change of eo.patch was disabled: it is enabled again"]
    assert serves(packed)


def test_a_missing_trigger_is_named(packed):
    packed.execute("drop trigger note_patch_change on eo.patch")
    assert not serves(packed)
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=r"note_patch_change of eo\.patch is missing"):
        packed.execute("select eo.build_code_index()")


def test_rows_of_a_table_that_inherits_are_not_trusted(packed):
    """What is written to it fires no trigger of its parent."""
    packed.execute("create table public.mine (like eo.patch_bucket) inherits (eo.patch_bucket)")
    assert not serves(packed)
    packed.execute("insert into public.mine select * from eo.patch_bucket where patch_id = 1")
    assert not serves(packed)
    assert_same(packed)


@pytest.mark.parametrize("change", ["alter table eo.bucket disable trigger all", BY_REPLICA])
def test_buckets_that_changed_are_not_taken_from_the_file(packed, sessions, change):
    """Not from the file, nor from what a backend has read: a bucket given another code is found by that one."""
    readers = [packed, sessions(autocommit=True)]
    other = bit_string(~np.array([bit == "1" for bit in CODE[0]]))
    for reader in readers:
        assert_same(reader)
    with sessions() as writer:
        writer.execute(change)
        if change == BY_REPLICA:
            with pytest.raises(errors.ObjectNotInPrerequisiteState, match="append-only"):
                writer.execute("update eo.bucket set code = %s::varbit where bucket_no = 0", (other,))
            return
        writer.execute("update eo.bucket set code = %s::varbit where bucket_no = 0", (other,))
        assert_same(writer)
        writer.execute("alter table eo.bucket enable trigger all")
    for built in (False, True):
        for reader in readers:
            nearest = reader.execute(
                "select distance from eo.similar_to_code(%s::varbit, max_results => 1)", (other,)
            ).fetchone()
            assert nearest == (0,)
            assert serves(reader) == built
            assert_same(reader)
        packed.execute("select eo.build_code_index()")


def test_a_change_after_packing_in_the_same_transaction_is_noted(packed, sessions):
    """Also where other transactions have begun and ended meanwhile, so that its number is among those seen."""
    writer = sessions()
    writer.execute("update eo.patch set split = 'test' where patch_id = 1")
    packed.execute("select pg_current_xact_id()")
    writer.execute("select eo.build_code_index()")
    assert serves(writer)
    writer.execute("update eo.patch set country_codes = '{FI}' where patch_id = 1")
    assert not serves(writer)
    writer.commit()
    for reader in (writer, packed):
        assert not serves(reader)
        assert_same(reader)


def test_notes_stay_for_an_index_that_is_being_built(packed, sessions):
    """Two hash functions packed at once: what one has seen, the other may not have."""
    parent = "(select encoder_id from eo.encoder where name = 'vectors')"
    packed.execute(
        f"select eo.register_encoder('more', 1, 'lsh', '{{}}', %s, bits => 64, parent_id => {parent})".encode(),
        (lsh_weights(64, 4),),
    )
    packed.execute(
        "select eo.store_codes((select encoder_id from eo.encoder where name = 'more'), %s, %s, %s::varbit[])",
        (patch_ids(packed), [0] * PATCHES, CODE * PATCHES),
    )
    first, second = sessions(), sessions(autocommit=True)
    first.execute("select eo.build_code_index('more')")
    packed.execute("update eo.patch set country_codes = '{FI}' where patch_id = 1")
    waiting = threading.Thread(target=second.execute, args=("select eo.build_code_index('codes')",))
    waiting.start()
    waiting.join(0.5)
    first.commit()
    waiting.join()
    query = """
        select e.name, eo_internal.unproved_patches(i) from eo.code_index i join eo.encoder e using (encoder_id) order by 1
    """
    assert packed.execute(query).fetchall() == [("codes", None), ("more", "patches changed since")]


def test_writers_cannot_forge_what_proves(packed):
    for statement in ("delete from eo_internal.patch_change", "update eo.code_index set patches_guard = ''"):
        with pytest.raises(errors.InsufficientPrivilege), packed.transaction():
            packed.execute("set local role eo_writer")
            packed.execute(statement.encode())


def test_committed_codes_are_visible_at_once(hashed, sessions):
    reader, writer = sessions(autocommit=True), sessions(autocommit=True)
    ids = patch_ids(hashed)
    codes = random_codes(np.random.default_rng(1), 20)
    for patch_id, code in zip(ids, codes, strict=False):
        store(writer, [patch_id], [code])
        nearest = reader.execute("select patch_id, distance from eo.within_distance(%s::varbit, 0)", (code,)).fetchall()
        assert (patch_id, 0) in nearest


def data_directory(connection: psycopg.Connection) -> Path:
    row = connection.execute("select setting from pg_settings where name = 'data_directory'").fetchone()
    assert row is not None
    return Path(row[0])


def test_packing_replaces_the_file_and_keeps_the_one_before(hashed):
    store(hashed, patch_ids(hashed)[:50], random_codes(np.random.default_rng(1), 50))
    folder = (
        data_directory(hashed)
        / "pgearth"
        / str(hashed.execute("select oid from pg_database where datname = current_database()").fetchone()[0])
    )
    versions = []
    for _ in range(3):
        (packed,) = hashed.execute("select eo.build_code_index()").fetchone()
        encoder_id, version, buckets = hashed.execute(
            "select encoder_id, version, buckets from eo.code_index"
        ).fetchone()
        assert packed == buckets == hashed.execute("select count(*) from eo.bucket").fetchone()[0]
        versions.append({f"{encoder_id}-{version}.{kind}.safetensors" for kind in ("codes", "patches")})
    assert {path.name for path in folder.iterdir()} == versions[1] | versions[2]


def test_a_lost_file_costs_speed_only(hashed, sessions):
    """As after a restore, or on a standby: the row is there, the file is not."""
    store(hashed, patch_ids(hashed)[:50], random_codes(np.random.default_rng(1), 50))
    hashed.execute("select eo.build_code_index()")
    hashed.execute("update eo.code_index set version = gen_random_uuid()")
    reader = sessions()
    code = random_codes(np.random.default_rng(2), 1)[0]
    assert search(reader, code, "packed") == search(reader, code, "sql") != []


def test_nothing_is_packed_where_nothing_is_stored(hashed):
    assert hashed.execute("select eo.build_code_index()").fetchone() == (0,)
    assert hashed.execute("select count(*) from eo.code_index").fetchone() == (0,)


@pytest.mark.parametrize(
    "statement", ["update eo.bucket set bucket_no = 9", "delete from eo.bucket", "truncate eo.bucket cascade"]
)
def test_buckets_are_append_only(hashed, statement):
    store(hashed, patch_ids(hashed)[:3], random_codes(np.random.default_rng(1), 3))
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="hash buckets are append-only") as caught:
        hashed.execute(statement)
    assert "eo.patch_bucket" in str(caught.value.diag.message_hint)


def test_readers_search_packed_codes_and_do_not_pack(hashed, sessions):
    store(hashed, patch_ids(hashed)[:50], random_codes(np.random.default_rng(1), 50))
    hashed.execute("select eo.build_code_index()")
    reader = sessions(autocommit=True)
    reader.execute("set role eo_reader")
    assert len(search(reader, random_codes(np.random.default_rng(2), 1)[0], "packed")) > 7
    with pytest.raises(errors.InsufficientPrivilege):
        reader.execute("select eo.build_code_index()")


def test_the_index_command(hashed, run_pgearth):
    store(hashed, patch_ids(hashed)[:50], random_codes(np.random.default_rng(1), 50))
    result = run_pgearth(hashed, "index", "codes", "--encoder", "codes:1")
    assert result.exit_code == 0, result.output
    (buckets,) = hashed.execute("select buckets from eo.code_index").fetchone()
    assert result.output == f"{buckets} distinct codes packed.\n"


def test_a_build_rolled_back_leaves_the_old_index(hashed, sessions):
    """The file of the version that the row names is still there."""
    store(hashed, patch_ids(hashed)[:200], random_codes(np.random.default_rng(1), 200))
    hashed.execute("select eo.build_code_index()")
    before = hashed.execute("select * from eo.code_index").fetchone()
    builder = sessions()
    builder.execute("select eo.build_code_index()")
    builder.rollback()
    assert hashed.execute("select * from eo.code_index").fetchone() == before
    code = random_codes(np.random.default_rng(2), 1)[0]
    assert search(hashed, code, "packed") == search(hashed, code, "sql") != []
