"""The encoder process from SQL: a real server, a real process, sessions that share it, faults of all kinds."""

from __future__ import annotations

import os
import pwd
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psycopg
import pytest
import torch
from click.testing import Result
from psycopg import errors

from pgearth import pyfuncs
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.models.versions import register
from pgearth.loaders.server.encoder_process import EncoderProcess
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.models.encoder import Encoder
from pgearth.pyfuncs.models.resnet import ResNet, weights_of
from pgearth.pyfuncs.models.spectral import BANDS
from pgearth.pyfuncs.models.weights import dump
from tests.waiting import PATIENCE, wait_for

Pgearth = Callable[..., Result]
SAME = {"rtol": 1e-4, "atol": 1e-4}
"""How far a vector may be from that of another batch or another number of threads: sums are taken in other orders."""


def register_network(connection: psycopg.Connection, name: str, seed: int, width: int = 8) -> Encoder:
    """Store an untrained resnet18."""
    torch.manual_seed(seed)
    model = ResNet("resnet18", [1000.0] * len(BANDS), [1000.0] * len(BANDS), width)
    return register(
        connection, name, "resnet18", dump(weights_of(model)), bands=BANDS, dimension=model.dimension, input_size=120,
        normalisation={"mean": [1000.0] * len(BANDS), "std": [1000.0] * len(BANDS)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks(module_archive: psycopg.Connection, sample: Path) -> Iterator[psycopg.Connection]:
    """The real BigEarthNet v1 patches and two networks, `one` and `two`, with 0.7 MB of weights each."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    for seed, name in enumerate(("one", "two")):
        register_network(module_archive, name, seed)
    yield module_archive
    EncoderProcess.of(module_archive).stop()


@pytest.fixture(scope="module")
def patch_ids(networks: psycopg.Connection) -> list[int]:
    """The eleven patches of Sentinel-2."""
    rows = networks.execute("select patch_id from eo.patch where platform like 'sentinel-2%' order by 1")
    return [patch_id for (patch_id,) in rows]


@pytest.fixture(scope="module")
def computed_here(networks: psycopg.Connection, patch_ids: list[int]) -> np.ndarray:
    """Vectors of the patches by `one`, from before there is a process: from now on this session has torch."""
    assert EncoderProcess.of(networks).pid() is None
    return vectors(networks, patch_ids)


@pytest.fixture
def running(networks: psycopg.Connection, computed_here: np.ndarray, run_pgearth: Pgearth) -> int:
    """The process, started if need be, with room for one network and little haste; its number."""
    process = EncoderProcess.of(networks)
    if process.pid() is None:
        options = ("--memory-limit", "1", "--max-batch", "8", "--max-wait", "100")
        result = run_pgearth(networks, "encoder", "start", *options)
        assert result.exit_code == 0, result.output
    pid = process.pid()
    assert pid is not None
    return pid


def vectors(connection: psycopg.Connection, patch_ids: list[int], encoder: str = "one") -> np.ndarray:
    rows = connection.execute("select embedding::text from eo.encode(%s, %s)", (patch_ids, encoder)).fetchall()
    return np.array([np.fromstring(text.strip("[]"), np.float32, sep=",") for (text,) in rows])


def session(connection: psycopg.Connection) -> psycopg.Connection:
    return psycopg.connect(connection.info.dsn, autocommit=True)


def health(connection: psycopg.Connection) -> dict[str, dict]:
    row = connection.execute("select runtime -> 'encoder_process' from eo_internal.python_runtime()").fetchone()
    assert row is not None
    return row[0]


def is_connected(backend: int) -> bool:
    """Whether a backend is connected to the encoder process: only to this are its sockets of packets."""
    open_files = set()
    for file in Path(f"/proc/{backend}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            open_files.add(str(file.readlink()))
    # kind and state, as the kernel numbers them, and inode of each socket
    sockets = [line.split()[4:7] for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any((kind, state) == ("0005", "03") and f"socket:[{inode}]" in open_files for kind, state, inode in sockets)


def counted(connection: psycopg.Connection, count: str) -> int:
    return health(connection)["counts"][count]


def modules(connection: psycopg.Connection) -> list[str]:
    """Those large libraries that the session has imported."""
    connection.execute(
        "create or replace function pg_temp.modules() returns text[] language plpython3u as"
        " $$ import sys; return [name for name in ('torch', 'onnxruntime') if name in sys.modules] $$"
    )
    row = connection.execute("select pg_temp.modules()").fetchone()
    assert row is not None
    return row[0]


def test_the_process_gives_the_numbers_of_the_session(
    networks: psycopg.Connection, computed_here: np.ndarray, running: int, patch_ids: list[int]
) -> None:
    assert computed_here.shape == (11, 64)
    assert np.abs(computed_here).mean() > 0.1, "the tolerance is small beside the numbers"
    assert modules(networks) == ["torch"]
    with session(networks) as connection:
        np.testing.assert_allclose(vectors(connection, patch_ids), computed_here, **SAME)
        one_by_one = np.concatenate([vectors(connection, [patch_id]) for patch_id in patch_ids])
        np.testing.assert_allclose(one_by_one, computed_here, **SAME)
        backwards = vectors(connection, patch_ids[::-1] * 7)
        np.testing.assert_allclose(backwards, np.concatenate([computed_here[::-1]] * 7), **SAME)
        assert modules(connection) == [], "a session that only asks the process needs no torch"
    assert counted(networks, "requests") == 14
    assert counted(networks, "patches") == 11 + 11 + 77


def test_health(networks: psycopg.Connection, running: int, patch_ids: list[int], run_pgearth: Pgearth) -> None:
    with networks.transaction():
        networks.execute("set local role eo_reader")
        before = components(networks)
        vectors(networks, patch_ids[:3], "two:1")
        rows = components(networks)
    assert rows["encoder process"][0] == "running"
    assert rows["encoder process"][1].startswith(f"pid {running} since ")
    assert rows["device"] == (health(networks)["device"], "of the encoder process")
    assert "two:1" in rows["encoders loaded"][1].split(", ")
    assert rows["encoding queue"][0] == "0 requests, 0 patches"
    assert rows["encoding so far"] != before["encoding so far"]
    shown = run_pgearth(networks, "encoder", "status")
    assert shown.exit_code == 0
    assert f"encoder process: running; pid {running} since" in shown.output


def components(connection: psycopg.Connection) -> dict[str, tuple[str, str]]:
    return {name: (version, note) for name, version, note in connection.execute("select * from eo.runtime()")}


def test_there_is_one_process_per_database_and_it_is_the_servers_users(
    networks: psycopg.Connection, running: int, run_pgearth: Pgearth
) -> None:
    with pytest.raises(PgearthError, match=f"running already: process {running}"):
        raise run_pgearth(networks, "encoder", "start").exception
    process = EncoderProcess.of(networks)
    owner = Path(f"/proc/{running}").stat().st_uid
    assert pwd.getpwuid(owner) == process.account
    for name, mode in {".": 0o700, "socket": 0o600, "lock": 0o600, "log": 0o600}.items():
        found = (process.folder / name).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (owner, mode), name


def test_sessions_share_batches(
    networks: psycopg.Connection, running: int, patch_ids: list[int], computed_here: np.ndarray
) -> None:
    before = health(networks)["counts"]
    with ThreadPoolExecutor(8) as pool:

        def encode(number: int) -> np.ndarray:
            with session(networks) as connection:
                return np.concatenate([vectors(connection, [patch_ids[number]]) for _ in range(4)])

        for number, found in enumerate(pool.map(encode, range(8))):
            np.testing.assert_allclose(found, np.repeat(computed_here[number : number + 1], 4, 0), **SAME)
    after = health(networks)["counts"]
    assert after["requests"] - before["requests"] == after["patches"] - before["patches"] == 32
    assert after["batches"] - before["batches"] <= 16


def test_a_process_that_hangs_hangs_no_session(
    networks: psycopg.Connection, running: int, patch_ids: list[int]
) -> None:
    """Cancel and statement_timeout act; what was cancelled is given up by the process, too."""
    cancelled = counted(networks, "cancelled")
    with session(networks) as connection, ThreadPoolExecutor(1) as pool:
        vectors(connection, patch_ids[:1])
        os.kill(running, signal.SIGSTOP)
        try:
            waiting = pool.submit(vectors, connection, patch_ids[:1])
            assert components(networks)["encoder process"] == (
                "failing",
                "the encoder process did not answer in time",
            )
            connection.cancel()
            with pytest.raises(errors.QueryCanceled, match="user request"):
                waiting.result(PATIENCE)
            connection.execute("set statement_timeout = '200ms'")
            for query in ("select * from eo.encode(%(ids)s, 'one')", "select * from eo.runtime()"):
                with pytest.raises(errors.QueryCanceled, match="statement timeout"):
                    connection.execute(query, {"ids": patch_ids[:1]})
        finally:
            os.kill(running, signal.SIGCONT)
        connection.execute("reset statement_timeout")
        wait_for(lambda: counted(networks, "cancelled") == cancelled + 2)
        assert health(networks)["queue"] == {"requests": 0, "patches": 0}
        assert vectors(connection, patch_ids[:1]).shape == (1, 64)


def test_an_encoder_of_the_same_transaction_is_computed_here(
    networks: psycopg.Connection, running: int, patch_ids: list[int]
) -> None:
    declined = counted(networks, "declined")
    with networks.transaction(force_rollback=True):
        register_network(networks, "uncommitted", 7)
        assert vectors(networks, patch_ids[:2], "uncommitted").shape == (2, 64)
        assert counted(networks, "declined") == declined + 1


def test_damaged_weights_are_an_error_of_the_statement(
    networks: psycopg.Connection, running: int, patch_ids: list[int]
) -> None:
    register_network(networks, "damaged", 8)
    networks.execute("alter table eo.encoder drop constraint encoder_check")  # what a fault of the disk need not heed
    networks.execute(
        "update eo.encoder set weights = set_byte(weights, 5000, 255 - get_byte(weights, 5000)) where name = 'damaged'"
    )
    with pytest.raises(errors.DataCorrupted, match="weights have the SHA-256 digest") as caught:
        vectors(networks, patch_ids[:1], "damaged")
    assert "restore eo.encoder" in (caught.value.diag.message_hint or "")


def test_the_memory_limit_holds(networks: psycopg.Connection, running: int, patch_ids: list[int]) -> None:
    evicted = health(networks)["evicted"]
    first = vectors(networks, patch_ids[:1], "one")
    assert not np.allclose(vectors(networks, patch_ids[:1], "two"), first, **SAME)
    assert health(networks)["loaded"] == ["two:1"]
    np.testing.assert_allclose(vectors(networks, patch_ids[:1], "one"), first, **SAME)
    found = health(networks)
    assert found["loaded"] == ["one:1"]
    assert found["evicted"] >= evicted + 2
    assert 500_000 < found["loaded_bytes"] <= found["memory_limit"] == 1 << 20
    register_network(networks, "large", 9, width=16)
    with pytest.raises(errors.InsufficientResources, match="the weights take 3 MB") as caught:
        vectors(networks, patch_ids[:1], "large")
    assert "--memory-limit" in (caught.value.diag.message_hint or "")


def test_killed_while_it_works(
    networks: psycopg.Connection,
    running: int,
    patch_ids: list[int],
    computed_here: np.ndarray,
    run_pgearth: Pgearth,
) -> None:
    """The statement fails and leaves nothing; the next computes by itself; with a new process it goes there."""
    networks.execute("create table public.copies (embedding vector)")
    insert = "insert into public.copies select embedding from eo.encode(%s, 'one')"
    with ThreadPoolExecutor(1) as pool:
        os.kill(running, signal.SIGSTOP)
        waiting = pool.submit(networks.execute, insert, (patch_ids,))
        wait_for(lambda: is_connected(networks.info.backend_pid))
        os.kill(running, signal.SIGKILL)
        with pytest.raises(errors.SystemError, match="the encoder process ended before it answered") as caught:
            waiting.result(PATIENCE)
    assert "pgearth encoder start" in (caught.value.diag.message_hint or "")
    assert networks.execute("select count(*) from public.copies").fetchone() == (0,)
    np.testing.assert_allclose(vectors(networks, patch_ids), computed_here, **SAME)
    assert (EncoderProcess.of(networks).folder / "socket").exists(), "a stale socket"
    result = run_pgearth(networks, "encoder", "start")
    assert result.exit_code == 0, result.output
    networks.execute(insert, (patch_ids,))
    assert networks.execute("select count(*) from public.copies").fetchone() == (11,)
    assert counted(networks, "requests") == 1


def test_stopped_while_it_is_busy(
    networks: psycopg.Connection, running: int, patch_ids: list[int], computed_here: np.ndarray, run_pgearth: Pgearth
) -> None:
    """No statement fails: the batch under way is finished, and what comes later is computed by its session."""
    stopped = threading.Event()
    with ThreadPoolExecutor(1) as pool, session(networks) as other:

        def encode() -> list[np.ndarray]:
            found = []
            while not stopped.is_set():
                found.append(vectors(networks, patch_ids))
            return [*found, vectors(networks, patch_ids)]

        working = pool.submit(encode)
        wait_for(lambda: counted(other, "requests") > 4)
        assert run_pgearth(other, "encoder", "stop").output == "Stopped.\n"
        stopped.set()
        for found in working.result(PATIENCE):
            np.testing.assert_allclose(found, computed_here, **SAME)
    assert not (EncoderProcess.of(networks).folder / "socket").exists()
    assert run_pgearth(networks, "encoder", "stop").output == "The encoder process is not running.\n"
    assert run_pgearth(networks, "encoder", "status").exit_code == 3


def test_starting_fails_with_its_reason(networks: psycopg.Connection, run_pgearth: Pgearth) -> None:
    networks.execute("update eo_internal.schema_version set version = '9.9.9'")
    try:
        with pytest.raises(PgearthError, match=r"did not start:(\n.*)*the schema is of 9\.9\.9") as caught:
            raise run_pgearth(networks, "encoder", "start").exception
    finally:
        networks.execute("update eo_internal.schema_version set version = %s", (pyfuncs.__version__,))
    assert "Its log is" in str(caught.value)


def test_a_role_that_does_not_see_the_data_folder_cannot_start_it(networks: psycopg.Connection) -> None:
    with networks.transaction():
        networks.execute("set local role eo_writer")
        with pytest.raises(PgearthError, match="is not shown to this role"):
            EncoderProcess.of(networks)
