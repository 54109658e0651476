"""What a user of the command sees of an error: one message and a hint, whatever went wrong, and never a traceback."""

from __future__ import annotations

import ast
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import BadZipFile

import alembic.util
import psutil
import psycopg
import pyarrow
import pytest
import rasterio.errors
import sqlalchemy.exc
from click.testing import Result
from psycopg import errors, sql

from pgearth import cli, loaders, pyfuncs
from pgearth.loaders.datasets.bigearthnet.images import load_bigearthnet
from pgearth.loaders.work import explain
from pgearth.loaders.work.explain import TRACEBACK, explained
from pgearth.pyfuncs.errors import PgearthError

COMMAND = [sys.executable, "-c", "from pgearth.cli import main; main()"]
# A superuser may read and write anything; without capabilities, permissions count for it, too.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []

ERRORS = ("PgearthError", "BusyError", "DeviceFailedError")


@pytest.fixture(scope="module")
def filled(module_archive: psycopg.Connection, sample: Path) -> psycopg.Connection:
    """The real BigEarthNet v1 patches."""
    load_bigearthnet(module_archive, sample / "bigearthnet-v1")
    return module_archive


@pytest.fixture
def refused(
    filled: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    """Call `refused(*arguments)` runs the command, which must fail for people, and returns what it said."""
    monkeypatch.setenv("PGEARTH_DSN", filled.info.dsn)

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["pgearth", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err
        assert_for_people(said)
        assert ended.value.code == 1, said
        return said

    return run


def assert_for_people(said: str) -> None:
    lines = [line for line in said.splitlines() if "%|" not in line]
    assert "Traceback" not in said and "did not expect" not in said, said
    assert [line.partition(":")[0] for line in lines] == ["Error", "Hint"], said
    assert lines[1] != "Hint: ", said


def start(connection: psycopg.Connection, *arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [*UNPRIVILEGED, *COMMAND, *map(str, arguments)],
        env={**os.environ, "PGEARTH_DSN": connection.info.dsn},
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def said_by(process: subprocess.Popen[str]) -> str:
    """What a command that must fail said."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert_for_people(said)
    return said


def test_a_place_that_is_no_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file/export: Not a directory" in refused("export", tmp_path / "file" / "export")
    assert "/proc/pgearth: No such file" in refused("export", "/proc/pgearth")
    assert "File name too long" in refused("export", tmp_path / ("x" * 300))


def test_a_place_without_permission(filled: psycopg.Connection, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        said = said_by(start(filled, "export", tmp_path / "export"))
    finally:
        tmp_path.chmod(0o700)
    assert f"{tmp_path}/export: Permission denied" in said
    assert "right" in said


@pytest.mark.parametrize("loader", ["product", "bigearthnet", "export"])
def test_a_folder_with_an_unreadable_entry(filled: psycopg.Connection, tmp_path: Path, loader: str) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  hidden/part.json\n{'0' * 64}  hidden/part/one.tif\n")
    (hidden / "B02.tif").touch()
    hidden.chmod(0)
    try:
        said = said_by(start(filled, "load", loader, tmp_path))
    finally:
        hidden.chmod(0o700)
    assert str(hidden) in said


AREAS = {
    "null geometry": (
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": null}]}',
        "feature 1 has no geometry",
    ),
    "feature without geometry": ('{"type": "Feature", "geometry": null}', "it has no geometry"),
    "no features": ('{"type": "FeatureCollection"}', "no features"),
    "features of another kind": ('{"type": "FeatureCollection", "features": [null, 3]}', "feature 1 has no geometry"),
    "features that are none": ('{"type": "FeatureCollection", "features": 3}', "no features"),
    "a list": ("[1, 2]", "no GeoJSON"),
    "a number": ("3", "no GeoJSON"),
    "text for coordinates": ('{"type": "Point", "coordinates": ["a", 1]}', "geometry of it is none"),
    "unclosed ring": ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "geometry of it is none"),
    "empty geometry": ('{"type": "GeometryCollection", "geometries": []}', "empty"),
    "no JSON": ("west", "Expecting value"),
    "nothing": ("", "Expecting value"),
    "another encoding": ('{"type": "Pölygon"}'.encode("latin-1"), "utf-8"),
}


@pytest.mark.parametrize(("content", "reason"), AREAS.values(), ids=AREAS)
def test_an_area_that_is_none(refused: Callable[..., str], tmp_path: Path, content: str | bytes, reason: str) -> None:
    file = tmp_path / "area.geojson"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused("export", tmp_path / "export", "--area", file)
    assert str(file) in said and reason in said
    assert "NoneType" not in said and "object" not in said.replace("no object", "")


def test_an_area_that_is_missing(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "No such file" in refused("export", tmp_path / "export", "--area", tmp_path / "missing.json")


@pytest.mark.parametrize("area", ["nan,2,3,4", "1,4,3,2", "1,2,3,91", "POINT EMPTY"])
def test_an_area_that_is_no_option(refused: Callable[..., str], tmp_path: Path, area: str) -> None:
    assert f"Error: --area '{area}' is no area: " in refused("export", tmp_path / "export", "--area", area)


@pytest.mark.parametrize("area", ["POINT (400 2)", "POINT (1 91)", "SRID=3035;POINT (1e9 1)", "SRID=123;POINT (1 1)"])
def test_an_area_that_is_nowhere(refused: Callable[..., str], tmp_path: Path, area: str) -> None:
    """What it takes the reference system to know, the database refuses."""
    said = refused("export", tmp_path / "export", "--area", area)
    assert "the geometry" in said or "reference system" in said


def test_names_that_are_no_text(refused: Callable[..., str], tmp_path: Path) -> None:
    """A command's arguments are bytes: Python makes lone surrogates of what is not UTF-8."""
    assert "not UTF-8" in refused("export", tmp_path / "export", "--label", "\udcff")
    assert "not UTF-8" in refused("export", tmp_path / "\udcff")


@pytest.mark.parametrize(
    "dsn",
    ["host=/nowhere", "host=127.0.0.1 port=1", "port=x", "nonsense", "postgresql://[", "host=\udcff", "service=none"],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["migrate"],
        ["load", "nomenclature"],
        ["encode"],
        ["export", "never"],
        ["index", "codes"],
        ["encoder", "list"],
        ["annotate"],
        ["train", "hash", "x"],
        ["synthetic", "--patches", "1"],
    ],
    ids=" ".join,
)
def test_a_server_that_is_away(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dsn: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGEARTH_DSN", dsn)
    refused(*arguments)


def test_a_database_that_is_missing(
    refused: Callable[..., str], filled: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEARTH_DSN", f"{filled.info.dsn} dbname=nowhere")
    said = refused("load", "nomenclature")
    assert 'database "nowhere" does not exist' in said
    assert "PGEARTH_DSN" in said


def test_a_server_that_goes_away(filled: psycopg.Connection, sample: Path, tmp_path: Path) -> None:
    """Commands wait for a lock, so that they are surely in the middle; then their connections are ended."""
    commands = [
        ["load", "nomenclature"],
        ["load", "bigearthnet", sample / "bigearthnet-v1"],
        ["load", "nuts", sample / "nuts" / "NUTS_RG_10M_2021_4326.geojson"],
        ["encode"],
        ["annotate"],
        ["export", tmp_path / "export", "--jobs", "2"],
    ]
    with filled.transaction():
        filled.execute(
            "lock eo.label, eo.patch, eo.encoder, eo.label_spelling, eo.nuts, eo.load in access exclusive mode"
        )
        processes = [start(filled, *arguments) for arguments in commands]
        with psycopg.connect(filled.info.dsn, autocommit=True) as watching:
            waiting: list[int] = []
            while len(waiting) < len(commands):
                assert [process.poll() for process in processes] == [None] * len(commands)
                time.sleep(0.05)
                waiting = [
                    pid
                    for (pid,) in watching.execute(
                        "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
                    )
                ]
            watching.execute("select pg_terminate_backend(pid) from unnest(%s::integer[]) as pid", (waiting,))
        for process in processes:
            said = said_by(process)
            assert "Error from the database" in said
            assert "Run the same command again" in said


def test_a_full_disk(filled: psycopg.Connection, tmp_path: Path) -> None:
    """The kernel's limit on the size of a file: as with a full disk, a write fails in the middle."""
    limit = (20_000, 20_000)
    process = start(
        filled,
        "export",
        tmp_path / "export",
        "--pack",
        "zip",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    said = said_by(process)
    assert "it cannot be written: File too large" in said
    assert list(tmp_path.glob("export/*.zip")) == []


def test_output_to_a_full_disk(filled: psycopg.Connection) -> None:
    with Path("/dev/full").open("w") as full:
        assert "No space left on device" in said_by(start(filled, "encoder", "list", stdout=full))


def test_a_reader_of_the_output_that_ends(filled: psycopg.Connection) -> None:
    """As in pgearth ... | head."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start(filled, "encoder", "list", stdout=writing)
    os.close(writing)
    _, said = process.communicate(timeout=300)
    assert said == ""
    assert process.returncode not in (0, None)


def blocks_interrupts(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) >> (signal.SIGINT - 1) & 1)


def start_pool() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A command whose work is in two processes, and its children, ready to be interrupted."""
    script = """
from time import sleep
from pgearth import cli, loaders, pyfuncs
from pgearth.loaders.work.run import run_tasks
from pgearth.loaders.work.task import Engine
cli.pgearth.main = lambda standalone_mode: list(run_tasks(sleep, [600, 600, 600], Engine(jobs=2)))
cli.pgearth = cli.pgearth.main
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal, wherever the tests run
    )
    # Two that work, and one of Python's that keeps track of what they share; until they are ready an interrupt is blocked.
    while len(children := psutil.Process(process.pid).children()) < 3 or any(map(blocks_interrupts, children)):
        assert process.poll() is None
        time.sleep(0.02)
    return process, children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command(number: int) -> None:
    """Ctrl-C reaches the command's own processes, too; what a supervisor sends reaches the command alone."""
    process, children = start_pool()
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=300)
    assert (process.returncode, len(said.splitlines())) == (130, 1), said
    assert said.startswith("Interrupted.")
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)


def test_a_command_that_is_killed_leaves_no_process() -> None:
    process, children = start_pool()
    process.kill()
    process.communicate(timeout=300)
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int, sent: bool) -> list[int]:
    """Interrupt at the n-th time that psycopg waits for the server: before what it waits for is sent, or after.

    Returns a list whose only number counts the times.
    """
    wait, times = psycopg.Connection.wait, [0]

    def interrupted(connection: psycopg.Connection, generator: Generator, *arguments: Any, **options: Any) -> Any:
        times[0] += 1
        if times[0] == number:
            if sent:
                next(generator, None)
            raise KeyboardInterrupt
        return wait(connection, generator, *arguments, **options)

    monkeypatch.setattr(psycopg.Connection, "wait", interrupted)
    return times


LOADS = {
    "product": [
        "load",
        "product",
        "--grid",
        "fixed:120",
        "{sample}/ssl4eo/s2a/0000200/20200604T054639_20200604T054831_T43RCP",
    ],
    "bigearthnet": ["load", "bigearthnet", "{sample}/bigearthnet-v1"],
    "corine": ["load", "corine", "{sample}/corine/clc2018_lanjaron_es.gpkg"],
    "nomenclature": ["load", "nomenclature"],
    "annotate": ["annotate"],
    "encode": ["encode"],
    "export": ["export", "out"],
}


@pytest.mark.parametrize("sent", [False, True], ids=["before", "amid"])
@pytest.mark.parametrize("load", LOADS)
def test_interrupted_anywhere(
    filled: psycopg.Connection,
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    load: str,
    sent: bool,
) -> None:
    """At six places of a command, it says that it was interrupted, not in what state that left its connection."""
    arguments = [text.format(sample=sample) for text in LOADS[load]]
    monkeypatch.chdir(tmp_path)
    name = f"{filled.info.dbname}_interrupted"
    identifier = sql.Identifier(name)

    def run(number: int) -> tuple[int, str, int]:
        filled.execute(sql.SQL("drop database if exists {} with (force)").format(identifier))
        filled.execute(sql.SQL("create database {} template {}").format(identifier, sql.Identifier(filled.info.dbname)))
        with psycopg.connect(filled.info.dsn, dbname=name, autocommit=True) as fresh:
            if load == "bigearthnet":
                fresh.execute("truncate eo.product, eo.load cascade")
        monkeypatch.setenv("PGEARTH_DSN", f"{filled.info.dsn} dbname={name}")
        monkeypatch.setattr(sys, "argv", ["pgearth", *arguments])
        with monkeypatch.context() as patched:
            times = interrupt_at(patched, number, sent)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err, times[0]

    code, said, total = run(0)
    assert code == 0, said
    for number in sorted({1 + place * (total - 1) // 5 for place in range(6)}):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        code, said, _ = run(number)
        assert code == 130, (number, total, said)
        assert said.splitlines()[-1].startswith("Interrupted.") and "command is" not in said, (number, total, said)


CHECKSUM = "0" * 64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it lists no files"),
        (b"\n\n", "line 1: it is not a line of sha256sum: ''"),
        (b"junk\n", "line 1: it is not a line of sha256sum: 'junk'"),
        (bytes(range(256)), "line 1: it is not a line of sha256sum"),
        (f"{CHECKSUM}  a/a.json\n{CHECKSUM[1:]}  a/b.json".encode(), "line 2: it is not a line of sha256sum"),
        (f"{CHECKSUM}  ../a/a.json".encode(), "'../a/a.json' is not the path of a file in an export"),
        (f"{CHECKSUM}  a/a.json\n{'1' * 64}  a/a.json".encode(), "line 2: a/a.json is listed before"),
    ],
    ids=["empty", "empty lines", "junk", "binary", "short", "path", "twice"],
)
@pytest.mark.parametrize("name", ["SHA256SUMS", "shard-00000.sha256"])
def test_checksums_that_are_none(
    refused: Callable[..., str], tmp_path: Path, content: bytes, reason: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    said = refused("load", "export", tmp_path)
    assert said.startswith(f"Error: {tmp_path / name}") and reason in said
    assert "Take this file from the export again" in said


def test_a_downgrade_to_nowhere(filled: psycopg.Connection, run_pgearth: Callable[..., Result]) -> None:
    """The default of REVISION, head, is for upgrades."""
    for options in (["--down"], ["--down", "--yes"]):
        result = run_pgearth(filled, "migrate", *options)
        assert result.exit_code == 2
        assert "--down needs a REVISION" in result.output


@pytest.mark.parametrize(("package", "least"), [(loaders, 200), (pyfuncs, 100)])
def test_every_error_has_a_hint(package: ModuleType, least: int) -> None:
    """What goes wrong is half of what a user needs to know."""
    calls = [
        (file.name, node)
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS
    ]
    assert len(calls) > least
    without = [
        f"{name}:{node.lineno}"
        for name, node in calls
        if len(node.args) < 2 and "hint" not in [keyword.arg for keyword in node.keywords]
    ]
    assert without == []


@pytest.mark.parametrize(
    "sqlstate", ["22003", "22P02", "22021", "23505", "0A000", "42704", "54000", "55000", "P0001", "XX000"]
)
def test_every_error_of_the_database_has_a_hint(sqlstate: str) -> None:
    error = errors.lookup(sqlstate)("no")
    assert explained(error).hint


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (PgearthError("no", "Say yes."), "no", "Say yes."),
        (PgearthError("no", hint="Say yes."), "no", "Say yes."),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device", "Make room"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a to b: Invalid", "disk"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"a\xff"), "a�: Is a directory", "name a file"),
        (OSError("odd"), "odd", "disk"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "connection was lost", "again"),
        (errors.DiskFull("could not extend file"), "could not extend file", "Make room"),
        (errors.UndefinedFunction("no function eo.x"), "no function", "pgearth migrate"),
        (errors.InsufficientPrivilege("permission denied"), "permission denied", "eo_writer"),
        (psycopg.OperationalError("server closed\n\tthe connection"), "server closed the connection", "server runs"),
        (
            sqlalchemy.exc.OperationalError("select 1", None, psycopg.OperationalError("away")),
            "database: away",
            "server runs",
        ),
        (sqlalchemy.exc.ArgumentError("Could not parse"), "Could not parse", "PGEARTH_DSN"),
        (alembic.util.CommandError("Can't locate revision"), "Can't locate revision", "migrate --help"),
        (rasterio.errors.RasterioIOError("not recognized"), "raster cannot be read: not recognized", "intact"),
        (pyarrow.ArrowInvalid("magic bytes"), "Parquet file cannot be read: magic bytes", "intact"),
        (json.JSONDecodeError("Expecting value", "", 0), "JSON file cannot be read", "intact"),
        (BadZipFile("no zip"), "zip archive cannot be read", "intact"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8", "UTF-8"),
        (MemoryError(), "not enough memory", "--jobs"),
        (BrokenProcessPool("terminated abruptly"), "ended from outside", "--jobs"),
        (ModuleNotFoundError("No module named 'pyspark'"), "pyspark", "Install"),
        (KeyError("B02"), "did not expect this: KeyError: 'B02'", TRACEBACK),
        (RuntimeError("x" * 10_000), "did not expect this: RuntimeError: xxx", TRACEBACK),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_is_told_of_an_exception(error: Exception, message: str, hint: str) -> None:
    told = explained(error)
    assert message in told.args[0]
    assert hint in told.hint
    assert "\n" not in told.args[0] and len(told.args[0]) < 600


def test_the_traceback_is_to_be_had(
    filled: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "pgearth", lambda **_: [][1])
    for shown in (False, True):
        monkeypatch.setenv(TRACEBACK, "1" if shown else "")
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr().err
        assert "Error: pgearth did not expect this: IndexError" in said
        assert f"Hint: Please report it, with what the command shows after: export {TRACEBACK}=1" in said
        assert ("Traceback" in said) is shown


@pytest.fixture
def empty_database(filled: psycopg.Connection) -> Iterator[str]:
    """DSN of a database without anything of ours."""
    name = sql.Identifier(f"{filled.info.dbname}_empty")
    filled.execute(sql.SQL("create database {}").format(name))
    yield f"{filled.info.dsn} dbname={filled.info.dbname}_empty"
    filled.execute(sql.SQL("drop database {} with (force)").format(name))


def test_a_database_without_an_archive(
    refused: Callable[..., str], empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEARTH_DSN", empty_database)
    assert "pgearth migrate" in refused("load", "nomenclature")


def test_errors_that_are_their_own_context() -> None:
    """As of an error that is raised anew while another of the same chain is handled: the command would never end."""
    first, second, third = ValueError("first"), PgearthError("second"), KeyboardInterrupt()
    first.__context__, second.__cause__ = second, first
    assert not explain.interrupted(first)
    assert not explain.meets_others(second)
    third.__context__ = first
    second.__cause__ = third
    assert explain.interrupted(first) and explain.interrupted(second)
