"""The ledger: one item is one transaction, done once, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pgearth.loaders.work.ledger import file_checksum, listing_checksum, load_item
from pgearth.pyfuncs.errors import PgearthError
from tests.waiting import PATIENCE, wait_for

PRODUCT = "insert into eo.product (name, platform, level, sensing_time) values (%s, 'sentinel-2a', 'L2A', now())"


def state(archive: psycopg.Connection) -> list[tuple[object, ...]]:
    return archive.execute("select loader, source, state, rows, details, error is not null from eo.load").fetchall()


def products(archive: psycopg.Connection) -> list[str]:
    return [name for (name,) in archive.execute("select name from eo.product order by name")]


def test_done_once(archive: psycopg.Connection) -> None:
    for expected in (True, False):
        with load_item(archive, "test", "a", "1") as item:
            assert (item is not None) == expected
            if item:
                archive.execute(PRODUCT, ("a",))
                item.rows = 1
                item.details["repaired"] += 2
    assert products(archive) == ["a"]
    assert state(archive) == [("test", "a", "done", 1, {"repaired": 2}, False)]


def test_an_error_rolls_back_and_is_recorded(archive: psycopg.Connection) -> None:
    with pytest.raises(PgearthError, match="bad row"), load_item(archive, "test", "a", "1"):
        archive.execute(PRODUCT, ("a",))
        raise PgearthError("bad row 7")
    assert products(archive) == []
    assert state(archive) == [("test", "a", "failed", 0, None, True)]
    with load_item(archive, "test", "a", "2") as item:
        assert item, "a failed item may be loaded with mended contents"
        archive.execute(PRODUCT, ("a",))
    assert state(archive) == [("test", "a", "done", 0, {}, False)]


def test_a_database_error_is_recorded(archive: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation), load_item(archive, "test", "a", "1"):
        archive.execute(PRODUCT, (None,))
    assert state(archive) == [("test", "a", "failed", 0, None, True)]


def test_other_contents_under_the_same_name_are_refused(archive: psycopg.Connection) -> None:
    with load_item(archive, "test", "a", "1"):
        pass
    with pytest.raises(PgearthError, match="with other contents"), load_item(archive, "test", "a", "2"):
        pass
    assert state(archive) == [("test", "a", "done", 0, {}, False)]


def test_two_sessions_do_not_load_the_same(archive: psycopg.Connection) -> None:
    with psycopg.connect(archive.info.dsn, autocommit=True) as other, load_item(archive, "test", "a", "1"):
        with pytest.raises(PgearthError, match="another session"), load_item(other, "test", "a", "1"):
            pass
        with load_item(other, "test", "b", "1") as item:
            assert item
    assert sorted(row[1:3] for row in state(archive)) == [("a", "done"), ("b", "done")]


def test_a_killed_load_leaves_nothing_and_is_taken_over(archive: psycopg.Connection) -> None:
    code = f"""
import sys, time, psycopg
from pgearth.loaders.work.ledger import load_item
with psycopg.connect({archive.info.dsn!r}, autocommit=True) as connection, load_item(connection, "test", "a", "1"):
    connection.execute({PRODUCT!r}, ("a",))
    print("inside", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        assert state(archive) == [("test", "a", "running", 0, None, False)]
        os.kill(process.pid, signal.SIGKILL)
    assert products(archive) == []
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with load_item(archive, "test", "a", "1") as item:
                assert item
                archive.execute(PRODUCT, ("a",))
                break
        except PgearthError:  # the server has not noticed yet that the killed session is gone
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert products(archive) == ["a"]
    assert state(archive) == [("test", "a", "done", 0, {}, False)]


def test_checksums(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    assert file_checksum(first, second) != file_checksum(second, first)
    assert listing_checksum([first, second]) == listing_checksum([second, first])
    before = listing_checksum([first])
    first.write_bytes(b"longer")
    assert listing_checksum([first]) != before


def while_busy(connection: psycopg.Connection, error: BaseException) -> None:
    """A query is sent, and its result not taken: as an interrupt between the two leaves a connection."""
    connection.pgconn.send_query(b"select 1")
    raise error


def in_a_pipeline(connection: psycopg.Connection, error: BaseException) -> None:
    with connection.pipeline():
        connection.execute("select 1")
        raise error


def in_a_copy(connection: psycopg.Connection, error: BaseException) -> None:
    with connection.cursor().copy("copy eo.label to stdout") as copy:
        next(iter(copy))
        raise error


def before_a_copy(connection: psycopg.Connection, error: BaseException) -> None:
    connection.pgconn.send_query(b"copy eo.label to stdout")
    raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), PgearthError("bad row 7"), OSError("no more")], ids=repr
)
@pytest.mark.parametrize("end", [while_busy, in_a_pipeline, in_a_copy, before_a_copy])
def test_what_ends_a_load_is_told_whatever_state_it_leaves_the_connection_in(
    archive: psycopg.Connection, end: Callable[[psycopg.Connection, BaseException], None], error: BaseException
) -> None:
    """Not that the connection cannot be used any more."""
    with (
        pytest.raises(type(error)) as told,
        psycopg.connect(archive.info.dsn, autocommit=True) as connection,
        load_item(connection, "test", "a", "1"),
    ):
        connection.execute(PRODUCT, ("a",))
        end(connection, error)
    assert told.value is error
    wait_for(lambda: archive.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,))
    assert products(archive) == []
    with load_item(archive, "test", "a", "1") as item:
        assert item


def test_a_session_goes_on_after_an_interrupt(archive: psycopg.Connection) -> None:
    """Where the interrupt left the connection in order, its lock is given back."""
    with pytest.raises(KeyboardInterrupt), load_item(archive, "test", "a", "1"):
        raise KeyboardInterrupt
    with psycopg.connect(archive.info.dsn, autocommit=True) as other, load_item(other, "test", "a", "1") as item:
        assert item
