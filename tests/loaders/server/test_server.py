"""The private server: real clusters in temporary folders, run by root (as OS user `postgres`) or by anybody else."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy
import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgearth import pyfuncs
from pgearth.loaders.server import connection as database
from pgearth.loaders.server import installation
from pgearth.loaders.server.cluster import Cluster
from pgearth.loaders.server.environment import PYTHON
from pgearth.loaders.server.failures import explain
from pgearth.loaders.server.settings import default_memory, parse_address
from pgearth.pyfuncs.errors import PgearthError
from tests.conftest import CHECKOUT
from tests.waiting import PATIENCE

ROOT = os.geteuid() == 0
SITE_PACKAGES = Path(numpy.__file__).parents[1]
INSPECT = """
create function pg_temp.inspect(statement text) returns text language plpython3u as $$
import json, os, sys
import numpy
from pgearth import pyfuncs
names = {"sys": sys, "os": os, "numpy": numpy, "pyfuncs": pyfuncs}
return json.dumps(eval(statement, names))
$$
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the caller's PG* variables, PGEARTH_* among them."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


@contextmanager
def temporary_folder(mode: int = 0o755) -> Iterator[Path]:
    """A folder with a short path; unlike pytest's own, other OS users may be let in."""
    folder = Path(tempfile.mkdtemp(prefix="pgearth-test-"))
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def temporary_cluster(home: str = "home") -> Iterator[Cluster]:
    """A cluster that does not exist yet."""
    with temporary_folder() as folder:
        cluster = Cluster(folder / home)
        try:
            yield cluster
        finally:
            cluster.remove()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster that does not exist yet."""
    with temporary_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A running cluster, for tests that leave it as it is."""
    with pytest.MonkeyPatch.context() as monkeypatch, temporary_cluster() as cluster:
        monkeypatch.setenv("PGEARTH_PASSWORD", "secret of the caller")
        cluster.start(durable=False)
        yield cluster


@pytest.fixture(scope="module")
def stopped() -> Iterator[Cluster]:
    """A cluster that was running, for tests that break it and mend it again."""
    with temporary_cluster() as cluster:
        cluster.start(durable=False)
        cluster.stop()
        yield cluster


def pgearth(*arguments: str, program: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command, or `program -m pgearth.cli`, in a process of its own."""
    command = [program, "-c", "from pgearth.cli import main; main()"] if program else [Path(sys.prefix, "bin/pgearth")]
    return subprocess.run(
        [*command, *arguments],
        env={**os.environ, **environment},
        cwd="/",
        text=True,
        capture_output=True,
        timeout=2 * PATIENCE,
    )


def inspect(cluster: Cluster, *expressions: str) -> list[object]:
    """Evaluate Python expressions inside a new backend."""
    with psycopg.connect(cluster.dsn()) as connection:
        connection.execute("create extension if not exists plpython3u")
        connection.execute(INSPECT)
        answers = [connection.execute("select pg_temp.inspect(%s)", [text]).fetchone() for text in expressions]
        connection.rollback()
    return [json.loads(answer[0]) for answer in answers if answer]


def test_start_status_psql_stop() -> None:
    """Each command says what it did, may be repeated, and leaves the data in place."""
    with temporary_cluster() as cluster:
        home = {"PGEARTH_HOME": str(cluster.home)}
        stopped = pgearth("server", "status", **home)
        assert (stopped.returncode, "stopped" in stopped.stdout) == (3, True)
        assert not cluster.home.exists()
        assert "not running" in pgearth("server", "stop", **home).stdout
        refused = pgearth("server", "psql", "--", "-c", "select 1", **home)
        assert refused.returncode == 1
        assert "Hint: Start it with `pgearth server start`" in refused.stderr

        with ThreadPoolExecutor() as threads:
            both = list(threads.map(lambda _: pgearth("server", "start", **home), range(2)))
        assert [one.returncode for one in both] == [0, 0]
        for line in "".join(one.stderr for one in both).splitlines():
            assert line.startswith("Mirroring the Python environment") and not environment_is_readable()
        assert sorted(one.stdout.splitlines()[0] for one in both) == ["Started.", "The server is running already."]
        again = pgearth("server", "start", **home)
        assert (again.returncode, "running already" in again.stdout) == (0, True)

        query = "create table kept as select 42 as answer"
        assert pgearth("server", "psql", "--", "-c", query, **home).stdout == "SELECT 1\n"
        status = pgearth("server", "status", **home)
        assert status.returncode == 0
        for part in ("running", str(cluster.home), str(cluster.socket_directory), cluster.dsn(), "PostgreSQL 1", "off"):
            assert part in status.stdout

        assert pgearth("server", "stop", **home).stdout == "Stopped.\n"
        assert pgearth("server", "status", **home).returncode == 3
        assert pgearth("server", "start", **home).returncode == 0
        rows = pgearth(
            "server", "psql", "--", "--no-align", "--tuples-only", "-c", "table kept", "-c", "\\conninfo", **home
        )
        assert rows.stdout.splitlines()[0] == "42"
        assert f'database "pgearth" as user "postgres" via socket in "{cluster.socket_directory}"' in rows.stdout
        failed = pgearth("server", "psql", "--", "-v", "ON_ERROR_STOP=1", "-c", "table missing", **home)
        assert (failed.returncode, 'relation "missing" does not exist' in failed.stderr) == (1, True)


def test_plpython_uses_the_environment(running: Cluster) -> None:
    """PL/Python's packages are those of the environment that started the server; the caller's secrets stay outside."""
    expressions = ("sys.prefix", "pyfuncs.__version__", "numpy.__version__", "'PGEARTH_PASSWORD' in os.environ")
    prefix, version, numpy_version, secret = inspect(running, *expressions)
    mirror = running.folder / "python"
    assert prefix == (str(mirror) if mirror.exists() else sys.prefix)
    assert (version, numpy_version, secret) == (pyfuncs.__version__, numpy.__version__, False)


def test_settings_and_access(running: Cluster) -> None:
    """The server listens on its socket only, lets in only its owner and root, and reads rasters by two drivers."""
    names = ("listen_addresses", "postgis.gdal_enabled_drivers", "jit", "server_encoding", "fsync", "timezone")
    with psycopg.connect(running.dsn()) as connection:
        values = [connection.execute("select current_setting(%s)", [name]).fetchone() for name in names]
        collation = connection.execute("select datcollate from pg_database where datname = 'pgearth'").fetchone()
        rules = connection.execute("select type, auth_method, options from pg_hba_file_rules").fetchall()
        users = connection.execute("select sys_name, pg_username from pg_ident_file_mappings").fetchall()
    assert [value[0] for value in values if value] == ["", "GTiff PNG", "off", "UTF8", "off", "UTC"]
    assert collation == ("C.UTF-8",)
    assert rules == [("local", "peer", ["map=pgearth"])]
    assert set(users) == {("root", "postgres"), (running.account.pw_name, "postgres")} | {
        (running.home.parent.owner(), "postgres")
    }
    assert running.data.stat().st_mode & 0o777 == 0o700
    assert running.account.pw_name == ("postgres" if ROOT else Path(running.home).owner())


def test_a_server_takes_modest_memory_unless_told(running: Cluster) -> None:
    """Five private servers fit on one machine (case C13); a running server's memory is not changed without a word."""
    total = psutil.virtual_memory().total
    with psycopg.connect(running.dsn()) as connection:
        row = connection.execute("select pg_size_bytes(current_setting('shared_buffers'))").fetchone()
    assert row is not None
    assert row[0] <= min(total // 32, 1 << 30)
    assert not running.start(memory=default_memory())
    with pytest.raises(
        PgearthError, match=r"runs already, with shared buffers of \d+MB.*\nHint: Run `pgearth server stop`"
    ):
        running.start(memory=2 * default_memory())


def test_more_memory_by_option(stopped: Cluster) -> None:
    """`--memory` is what the settings are made for."""
    for memory, shared_buffers in ((256 << 20, "64MB"), (512 << 20, "128MB")):
        stopped.start(durable=False, memory=memory)
        with psycopg.connect(stopped.dsn()) as connection:
            assert connection.execute("select current_setting('shared_buffers')").fetchone() == (shared_buffers,)
        stopped.stop()


def test_another_user_may_neither_start_nor_stop(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not own the cluster is told who does; a start of a running server stays harmless."""
    stranger = 54321
    if ROOT:
        os.seteuid(stranger)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: stranger)
    try:
        assert running.running()
        assert not running.start()
        with pytest.raises(PgearthError, match=r"belongs to the OS user .*\nHint: Only .* and root may stop it"):
            running.stop()
    finally:
        if ROOT:
            os.seteuid(0)
    assert running.running()


def test_tcp_needs_a_password(stopped: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--listen` opens TCP with scram-sha-256; a wrong or missing password is refused; a taken address is named."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        listen = f"127.0.0.1:{port}"
        with pytest.raises(PgearthError, match="PGEARTH_PASSWORD"):
            stopped.start(durable=False, listen=listen)
        assert not stopped.running()
        monkeypatch.setenv("PGEARTH_PASSWORD", "it's secret")
        with pytest.raises(
            PgearthError, match=r"address 127\.0\.0\.1 is taken by another server.*\n.*--listen another port"
        ):
            stopped.start(durable=False, listen=listen)
        assert not stopped.running()

    assert stopped.start(durable=False, listen=listen)
    tcp = f"host=127.0.0.1 port={port} user=postgres dbname=pgearth"
    with psycopg.connect(tcp, password="it's secret") as connection:
        verifier = connection.execute("select rolpassword from pg_authid where rolname = 'postgres'").fetchone()
    assert verifier is not None
    assert verifier[0].startswith("SCRAM-SHA-256$")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(tcp, password="secret")
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(tcp)
    assert stopped.port == port
    with psycopg.connect(stopped.dsn()) as connection:
        assert connection.execute("select inet_server_addr()").fetchone() == (None,)
        # As README says: another user logs in by TCP, not by the socket.
        connection.execute("create role eo_reader")
        [anna] = re.findall(r"create role anna [^\"]*", (CHECKOUT / "README.md").read_text())
        connection.execute(anna)
    with psycopg.connect(f"host=127.0.0.1 port={port} dbname=pgearth user=anna", password="of anna") as connection:
        assert connection.execute("select pg_has_role('eo_reader', 'member')").fetchone() == (True,)
    with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
        psycopg.connect(f"{stopped.dsn()} user=anna")
    assert not stopped.start(listen=listen)
    with pytest.raises(PgearthError, match="does not listen on"):
        stopped.start(listen="127.0.0.1:1")

    stopped.stop()
    assert stopped.start(durable=False)
    assert stopped.port == 5432
    with pytest.raises(psycopg.OperationalError, match="Connection refused"):
        psycopg.connect(tcp, password="it's secret")
    stopped.stop()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", ("127.0.0.1", 5432)),
        ("0.0.0.0:5433", ("0.0.0.0", 5433)),
        ("*", ("*", 5432)),
        ("[::1]:6000", ("::1", 6000)),
        ("[::]", ("::", 5432)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_parse_address(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", ":5432", "host:", "host:0", "host:65536", "host:port", "::1", "two words"])
def test_parse_address_refuses(text: str) -> None:
    with pytest.raises(PgearthError, match=r"is not ADDRESS\[:PORT\]"):
        parse_address(text)


def test_killed_server_starts_again(cluster: Cluster) -> None:
    """The pid file and socket of a killed server, and an initdb that was killed, stand in nobody's way."""
    (cluster.home / "data.partial" / "base").mkdir(parents=True)
    (cluster.home / "data.partial" / "PG_VERSION").write_text("15\n")
    assert cluster.start()
    with psycopg.connect(cluster.dsn()) as connection:
        connection.execute("create table kept as select 42 as answer")
    postmaster = psutil.Process(int((cluster.data / "postmaster.pid").read_text().split()[0]))
    processes = [postmaster, *postmaster.children()]
    postmaster.kill()
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert not alive
    assert (cluster.data / "postmaster.pid").exists()
    assert not cluster.running()
    assert cluster.start()
    with psycopg.connect(cluster.dsn()) as connection:
        assert connection.execute("table kept").fetchall() == [(42,)]


def test_pid_file_with_another_process(stopped: Cluster) -> None:
    """A pid file whose number another process has got since is named, with that process; deleting it helps."""
    stopped.start(durable=False)
    pid_file = stopped.data / "postmaster.pid"
    content = pid_file.read_text()
    stopped.stop()
    account = stopped.account
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if ROOT else {}
    with subprocess.Popen(["sleep", "60"], **identity) as process:  # type: ignore[call-overload]
        pid_file.write_text(content.replace(content.split()[0], str(process.pid), 1))
        os.chown(pid_file, account.pw_uid, account.pw_gid)
        try:
            assert not stopped.running()
            with pytest.raises(PgearthError, match=rf"stale: .*process {process.pid} \(sleep\)(.|\n)*rm {pid_file}"):
                stopped.start(durable=False)
            assert not stopped.stop()
            assert process.poll() is None
            pid_file.unlink()
            assert stopped.start(durable=False)
            assert stopped.stop()
        finally:
            process.kill()


def test_taken_socket(running: Cluster, stopped: Cluster) -> None:
    """A second cluster on the same socket (here: as in a copied home) is refused, naming the server that has it."""
    run = stopped.folder / "run"
    run.rename(run.with_name("own"))
    run.symlink_to(running.socket_directory)
    pid = (running.data / "postmaster.pid").read_text().split()[0]
    try:
        with pytest.raises(PgearthError, match=rf"socket is taken by another server, process {pid}"):
            stopped.start(durable=False)
        assert not stopped.running()
        assert running.running()
    finally:
        run.unlink()
        run.with_name("own").rename(run)


def test_long_path() -> None:
    """Below a path that is too long for a socket, the socket lies in a short folder, which `remove` deletes."""
    with temporary_cluster("long/" * 25 + "it's home") as cluster:
        cluster.start(durable=False)
        directory = cluster.socket_directory
        assert len(str(directory)) < 60
        assert directory.is_relative_to(tempfile.gettempdir())
        assert cluster.running()
        cluster.stop()
        shutil.rmtree(directory)  # as after a reboot
        cluster.start(durable=False)
        assert cluster.socket_directory != directory
        directory = cluster.socket_directory
    assert not directory.exists()


def environment_is_readable() -> bool:
    """Whether other users reach this environment, as they do not below a home folder of mode 0700."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(sys.prefix).resolve().parents)


NO_SPACE = """\
2026-11-21 07:40:00.000 UTC [77] FATAL:  could not write to file "pg_wal/xlogtemp.77": No space left on device
child process exited with exit code 1
initdb: removing contents of data directory "/srv/home/data.partial"
"""


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of 24 MB on `folder`; False where this process may not."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], capture_output=True).returncode
    try:
        yield mounted == 0
    finally:
        if mounted == 0:
            subprocess.run(["umount", folder], check=True)


def test_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for a cluster, or for a start, is called so; with room again the same cluster starts."""
    message = "disk is full: .* cluster in {}\\.\nHint: Free some space"
    with temporary_folder() as folder, small_disk(folder / "disk") as mounted:
        cluster = Cluster(folder / "disk" / "home")
        if not mounted:  # initdb's part is played by its own words
            script = folder / "postgresql" / str(installation.installed_versions()[-1]) / "bin" / "initdb"
            script.parent.mkdir(parents=True)
            script.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{NO_SPACE}END\nexit 1\n")
            script.chmod(0o755)
            monkeypatch.setattr(installation, "POSTGRESQL_FOLDER", folder / "postgresql")
        with pytest.raises(PgearthError, match=message.format(cluster.folder)):
            cluster.start(durable=False)
        assert not cluster.data.exists()
        if not mounted:
            return
        # A mirror of the environment, if the server needs one, takes room too.
        size = "300m" if environment_is_readable() else "4g"
        subprocess.run(["mount", "-o", f"remount,size={size}", folder / "disk"], check=True)
        assert cluster.start(durable=False)
        cluster.stop()
        filler = folder / "disk" / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 20)):
                pass
        with pytest.raises(PgearthError, match=message.format(cluster.folder)):
            cluster.start(durable=False)
        assert not cluster.running()
        filler.unlink()
        assert cluster.start(durable=False)
        cluster.remove()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            'FATAL:  lock file "/srv/home/run/.s.PGSQL.5432.lock" already exists\n'
            'HINT:  Is another postmaster (PID 2147483646) using socket file "/srv/home/run/.s.PGSQL.5432"?',
            "socket is taken by another server, process 2147483646: /srv/home/run",
        ),
        (
            'LOG:  could not bind IPv6 address "::1": Address already in use\n'
            "HINT:  Is another postmaster already running on port 5432? If not, wait a few seconds and retry.",
            "address ::1 is taken",
        ),
        (
            'FATAL:  lock file "postmaster.pid" already exists\n'
            'HINT:  Is another postmaster (PID 2147483646) running in data directory "/srv/home/data"?',
            "pid file /srv/home/data/postmaster.pid is stale",
        ),
        ("FATAL:  could not map anonymous shared memory: Cannot allocate memory", "not enough memory"),
        (
            'FATAL:  data directory "/srv/home/data" has invalid permissions',
            'failed to start:\nFATAL:  data directory "/srv/home/data" has invalid permissions\n'
            "Hint: The whole log is /srv/home/server.log",
        ),
    ],
)
def test_explain(output: str, expected: str) -> None:
    assert expected in str(explain(output, Path("/srv/home/data"), Path("/srv/home/server.log")))


def test_broken_setting_is_shown(stopped: Cluster) -> None:
    """A failure of no known kind shows the end of this start's log."""
    stopped.start(durable=False)
    with psycopg.connect(stopped.dsn(), autocommit=True) as connection:
        connection.execute("alter system set shared_preload_libraries = 'no_such_library'")
    stopped.stop()
    with pytest.raises(PgearthError, match=r'could not access file "no_such_library"(.|\n)*server\.log'):
        stopped.start(durable=False)
    (stopped.data / "postgresql.auto.conf").write_text("")


def test_data_of_another_version(stopped: Cluster) -> None:
    """Data of a server that is not installed are left alone, and the error says which server to install."""
    version_file = stopped.data / "PG_VERSION"
    version = version_file.read_text()
    version_file.write_text("9\n")
    with pytest.raises(PgearthError, match=r"PostgreSQL 9, which is not installed.\n.*PG_MAJOR=9"):
        stopped.start(durable=False)
    version_file.write_text(version)
    assert stopped.start(durable=False)
    stopped.stop()


def test_missing_packages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the server packages or an extension, the error names them and the script that installs them."""
    with monkeypatch.context() as patch:
        patch.setattr(installation, "EXTENSION_FOLDER", f"{tmp_path}/{{version}}")
        with pytest.raises(
            PgearthError, match=r"lacks the extension plpython3u, .*vector(.|\n)*docker/install-server\.sh"
        ):
            cluster.start()
    monkeypatch.setattr(installation, "POSTGRESQL_FOLDER", tmp_path)
    with pytest.raises(PgearthError, match=r"No PostgreSQL 15 or newer(.|\n)*docker/install-server\.sh"):
        cluster.start()
    assert not cluster.data.exists()


def small_environment(folder: Path, interpreter: Path, checkout: Path) -> Path:
    """A virtual environment below `folder` with just what the server command needs, and pgearth installed editable."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # another file system, or another owner's file
            shutil.copy2(source, target)

    environment = folder / ".venv"
    subprocess.run([interpreter, "-m", "venv", "--without-pip", environment], check=True)
    packages = environment / "lib" / PYTHON / "site-packages"
    names = ["numpy", "numpy.libs", "click", "psutil", "psycopg", "psycopg_binary", "psycopg_binary.libs"]
    for name in names:
        shutil.copytree(SITE_PACKAGES / name, packages / name, copy_function=link)
    shutil.copy2(SITE_PACKAGES / "typing_extensions.py", packages)
    (packages / "__editable__.pgearth-0.1.0.pth").write_text(f"{checkout}\n")
    return environment


def test_checkout_that_the_server_cannot_reach() -> None:
    """Below a home folder of mode 0700, root's cluster and environment go elsewhere; an ordinary user's stay."""
    with temporary_folder(0o700) as private:
        checkout = private / "checkout"
        for package in ("pgearth", "loaders", "pyfuncs"):
            shutil.copytree(
                CHECKOUT / package, checkout / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy2(CHECKOUT / "pyproject.toml", checkout)
        environment = small_environment(checkout, Path(sys.base_prefix, "bin", PYTHON), checkout)
        packages = environment / "lib" / PYTHON / "site-packages"
        for path in (checkout / "pyfuncs", *(checkout / "pyfuncs").rglob("*"), packages / "typing_extensions.py"):
            path.chmod(0o700 if path.is_dir() else 0o600)  # as under umask 077
        python = environment / "bin" / "python3"
        cluster = Cluster(checkout / ".pgearth")
        try:
            started = pgearth("server", "start", program=python)
            assert started.returncode == 0, started.stderr
            status = pgearth("server", "status", program=python)
            assert status.returncode == 0, status.stderr
            assert f"folder:  {cluster.folder}\n" in status.stdout
            if ROOT:
                mirror = cluster.folder / "python"
                assert not cluster.folder.is_relative_to(private)
                assert f"not {cluster.home}, which the OS user running the server cannot reach" in status.stdout
                assert f"a mirror of {environment}" in status.stdout
                assert Path(cluster.home, "location").read_text() == f"{cluster.folder}\n"
            else:
                mirror = environment
                assert cluster.folder == checkout / ".pgearth"
            expressions = (
                "sys.prefix",
                "numpy.__file__",
                "__import__('typing_extensions').__file__",
                "'x' in dir(pyfuncs)",
            )
            prefix, numpy_file, other_file, edited = inspect(cluster, *expressions)
            assert (prefix, edited) == (str(mirror), False)
            assert Path(str(numpy_file)).is_relative_to(mirror)
            assert Path(str(other_file)).is_relative_to(mirror)
            assert (packages / "typing_extensions.py").stat().st_mode & 0o777 == 0o600
            if ROOT:
                assert not list(mirror.rglob("__editable__*pgearth*"))
                assert sorted(path.name for path in (mirror / "bin").iterdir()) == [
                    "python",
                    "python3",
                    PYTHON,
                ]

            with (checkout / "pyfuncs" / "__init__.py").open("a") as module:
                module.write("x = 1\n")
            with (packages / "installed_later.py").open("w") as module:
                module.write("y = 2\n")
            again = pgearth("server", "start", program=python)
            assert "running already" in again.stdout, again.stderr
            assert inspect(cluster, "pyfuncs.x", "__import__('installed_later').y") == [1, 2]
            before = (mirror / "lib").stat().st_ino
            assert pgearth("server", "start", program=python).stderr == ""
            assert (mirror / "lib").stat().st_ino == before  # nothing changed, nothing is copied
            assert pgearth("server", "stop", program=python).stdout == "Stopped.\n"
        finally:
            folder = cluster.folder
            cluster.remove()
            assert not folder.exists()


@pytest.mark.parametrize("fault", ["missing", *(["private"] if ROOT else [])])
def test_interpreter_that_the_server_cannot_run(fault: str) -> None:
    """An environment whose Python the server cannot run is refused; it would silently use another one's packages."""
    with temporary_folder() as folder, temporary_folder(0o700) as private:
        if fault == "private":
            interpreter = private / "bin" / PYTHON
            interpreter.parent.mkdir()
            (private / "lib").mkdir()
            shutil.copy2(Path(sys.base_prefix, "bin", PYTHON), interpreter)
            (private / "lib" / PYTHON).symlink_to(os.__file__.rpartition("/")[0])
            expected = f"The OS user postgres, who runs the server, cannot run the interpreter {interpreter}"
        else:
            interpreter = Path(sys.base_prefix, "bin", PYTHON)
            expected = "No such file or directory" if ROOT else "PL/Python does not use the Python environment"
        environment = folder / ".venv"
        subprocess.run([interpreter, "-m", "venv", "--without-pip", environment], check=True)
        packages = environment / "lib" / PYTHON / "site-packages"
        (packages / "all.pth").write_text(f"{SITE_PACKAGES}\n{CHECKOUT}\n")
        if fault == "missing":
            (environment / "bin" / "python3").unlink()
            (environment / "bin" / "python").unlink()
            (environment / "bin" / "python").symlink_to(interpreter)
        home = folder / "home"
        try:
            result = pgearth("server", "start", program=environment / "bin" / "python", PGEARTH_HOME=str(home))
            assert result.returncode == 1
            assert expected in result.stderr
            assert "Traceback" not in result.stderr
            assert not Cluster(home).running()
        finally:
            Cluster(home).remove()


def test_database_names_the_server(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGEARTH_DSN comes first, then libpq's variables, then the private server; all lead to a connection."""
    import sqlalchemy

    from pgearth.loaders.server.migrate import upgrade

    upgrade(f"postgresql+psycopg://postgres@/pgearth?host={running.socket_directory}")
    for variables in (
        {"PGEARTH_HOME": str(running.home)},
        {"PGHOST": str(running.socket_directory), "PGUSER": "postgres", "PGDATABASE": "pgearth"},
        {"PGEARTH_DSN": running.dsn(), "PGHOST": "nowhere.invalid"},
        {"PGEARTH_DSN": f"postgresql://postgres@/pgearth?host={running.socket_directory}"},
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with database.connect(autocommit=True) as connection:
                assert connection.info.host == str(running.socket_directory)
                assert connection.execute("show application_name").fetchone() == ("pgearth",)
            with sqlalchemy.create_engine(database.sqlalchemy_url()).connect() as connected:
                row = connected.execute(sqlalchemy.text("select current_database(), current_user")).one()
                assert tuple(row) == ("pgearth", "postgres")


def test_sqlalchemy_url_keeps_what_the_dsn_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Password, host, port and options of a DSN survive the way through SQLAlchemy."""
    from sqlalchemy.dialects.postgresql.psycopg import dialect

    dsn = "host=archive.example port=5433 user=reader password='p@ss/w:rd' dbname=earth sslmode=require"
    monkeypatch.setenv("PGEARTH_DSN", dsn)
    _, arguments = dialect().create_connect_args(database.sqlalchemy_url())
    expected = {**conninfo_to_dict(dsn), "application_name": "pgearth"}
    assert {name: str(value) for name, value in arguments.items() if name in expected} == expected


def test_stopped_server_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command on the private server says how to start it."""
    monkeypatch.setenv("PGEARTH_HOME", str(cluster.home))
    for connect in (database.connect, database.sqlalchemy_url):
        with pytest.raises(PgearthError, match=r"is not running(.|\n)*pgearth server start"):
            connect()


def test_a_database_without_an_archive_is_called_so() -> None:
    with temporary_cluster() as cluster:
        home = {"PGEARTH_HOME": str(cluster.home)}
        assert pgearth("server", "start", **home).returncode == 0
        refused = pgearth("load", "nomenclature", **home)
        assert refused.returncode == 1
        assert "holds no archive yet" in refused.stderr and "pgearth migrate" in refused.stderr
        assert pgearth("migrate", **home).returncode == 0
        assert pgearth("load", "nomenclature", **home).returncode == 0
