"""The database cluster that is private to a checkout: where it lies, how it starts and stops.

A cluster has a home folder, `.pgearth` in the checkout or PGEARTH_HOME, with the data in `data`, the Unix socket in
`run` (a link to a shorter path where that is too long for a socket), the log in `server.log` and the settings in
`pgearth.conf`. The OS users who own the cluster or the folder around it, and root, may connect, by peer authentication,
as the superuser `postgres`; all others over TCP, where it is opened, by the password of their role.

PostgreSQL refuses to run as root. Started by root, the server therefore runs as the OS user `postgres` that Debian's
package creates. What that user cannot reach (a checkout below a home folder of mode 0700) is kept where it can: the
cluster goes to /var/lib/pgearth/, with a pointer to it in `location`, and the Python environment is mirrored to
`python` in the cluster's folder.

PL/Python takes the environment whose `bin` is first on the server's PATH: the one that runs `pgearth`.
"""

from __future__ import annotations

import compileall
import errno
import fcntl
import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from pgearth import pyfuncs
from pgearth.loaders.server.environment import PYTHON, mirror_environment
from pgearth.pyfuncs.errors import PgearthError

POSTGRESQL_FOLDER = Path("/usr/lib/postgresql")
EXTENSION_FOLDER = "/usr/share/postgresql/{version}/extension"
EXTENSIONS = ("plpython3u", "postgis", "postgis_raster", "vector")
OLDEST_VERSION = 15
RELOCATED_HOMES = Path("/var/lib/pgearth")
SUPERUSER = "postgres"
PORT = 5432
# A socket's path may have 107 bytes (sockaddr_un).
LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.65535")
WAIT_SECONDS = "600"  # crash recovery of a large archive takes minutes
# All that the server gets of the caller's environment: no secrets, and no PYTHON*, PG*, GDAL_* or PROJ_* to mislead it.
INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
INSTALL_HINT = "Run docker/install-server.sh as root; it installs PostgreSQL, PostGIS, plpython3u and pgvector."

MEGABYTE = 1 << 20
GIGABYTE = 1 << 30


def default_home() -> Path:
    """Home of the private cluster: PGEARTH_HOME, else `.pgearth` in the checkout (without one: current folder)."""
    if home := os.environ.get("PGEARTH_HOME"):
        return Path(home).absolute()
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / ".pgearth"


def default_dsn() -> str:
    """Connection string of the private server's database `pgearth`, whether the server runs or not."""
    return Cluster(default_home()).dsn()


@dataclass(frozen=True)
class Cluster:
    """A database cluster of its own below the folder `home`, which is made when the cluster first starts."""

    home: Path

    user = SUPERUSER

    @property
    def folder(self) -> Path:
        """Where the cluster's files lie: `home`, or the place that `home/location` names."""
        try:
            return Path((self.home / "location").read_text().strip())
        except FileNotFoundError:
            return self.home.absolute()

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.folder / "server.log"

    @property
    def socket_directory(self) -> Path:
        """Folder of the Unix socket: what libpq takes as host."""
        run = self.folder / "run"
        return run.readlink() if run.is_symlink() else run

    @property
    def port(self) -> int:
        """Port of the socket (and of TCP where it was asked for) at the last start."""
        return int(self._setting("port") or PORT)

    def dsn(self, database: str = "pgearth") -> str:
        """Connection string of `database` through the Unix socket as superuser; no password is needed."""
        return make_conninfo(host=str(self.socket_directory), port=self.port, dbname=database, user=self.user)

    def running(self) -> bool:
        """Whether the server accepts connections, or is about to."""
        try:
            return self._postmaster() is not None
        except PermissionError:  # another user's cluster
            return PGconn.ping(self.dsn().encode()) in (Ping.OK, Ping.REJECT)

    def start(self, durable: bool = True, listen: str | None = None, memory: int | None = None) -> bool:
        """Start the server and return True, or return False if it is running; create cluster and database if missing.

        `listen`, as ADDRESS[:PORT], opens TCP for the superuser with the password in PGEARTH_PASSWORD. `durable=False`
        trades safety against power failure for speed: for tests. `memory`: bytes that the settings are made for; None:
        default_memory(). Raises PgearthError with the reason when the server cannot start.
        """
        address, port = parse_address(listen) if listen else ("", PORT)
        password = os.environ.get("PGEARTH_PASSWORD", "") if listen else ""
        if listen and not password:
            raise PgearthError(
                "TCP needs a password.", "Set PGEARTH_PASSWORD; it becomes the password of the database user postgres."
            )
        if self.running() and not self._may_control():
            return False
        self._require_control("start")
        try:
            self._settle()
            with self._locked():
                if not self.running():
                    self._start(durable, address, port, password, memory or default_memory())
                    return True
                if listen and (self._setting("listen_addresses"), self.port) != (address, port):
                    raise PgearthError(
                        f"The server runs already and does not listen on {listen}.", "Run `pgearth server stop` first."
                    )
                if memory and self._setting("shared_buffers") != settings(memory)["shared_buffers"]:
                    raise PgearthError(
                        f"The server runs already, with shared buffers of {self._setting('shared_buffers')}.",
                        "Run `pgearth server stop` first.",
                    )
                self._python_environment()  # a mirror follows the checkout
                self._create_database(password)
                return False
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise self._disk_full() from error

    def stop(self) -> bool:
        """Stop the server, ending open connections; return whether it was running."""
        if not self.running():
            return False
        self._require_control("stop")
        stopped = self._run(self._binary("pg_ctl"), "stop", "-D", self.data, "-m", "fast", "-w", "-t", WAIT_SECONDS)
        if stopped.returncode:
            raise PgearthError(f"The server did not stop: {stopped.stderr.strip()}", f"See {self.log}.")
        return True

    def remove(self) -> None:
        """Stop the server and delete the cluster with all its data."""
        self.stop()
        for folder in (self.socket_directory, self.folder, self.home):
            shutil.rmtree(folder, ignore_errors=True)

    # Who runs the server, and with what

    @property
    def account(self) -> pwd.struct_passwd:
        """The OS user that the server runs as: the data's owner, else the caller, or `postgres` if that is root."""
        user_id = self.data.stat().st_uid if self.data.exists() else os.geteuid()
        try:
            return pwd.getpwuid(user_id) if user_id else pwd.getpwnam("postgres")
        except KeyError as error:
            if user_id:
                raise PgearthError(
                    f"PostgreSQL needs a name for OS user {user_id}, who has none in /etc/passwd.",
                    "Give the user an entry there, or run the command as one who has a name.",
                ) from error
            raise PgearthError(
                "Root cannot run PostgreSQL, and there is no OS user `postgres`.", INSTALL_HINT
            ) from error

    def _may_control(self) -> bool:
        return os.geteuid() in (0, self.account.pw_uid)

    def _require_control(self, action: str) -> None:
        if not self._may_control():
            owner = self.account.pw_name
            raise PgearthError(
                f"The cluster in {self.folder} belongs to the OS user {owner}.",
                f"Only {owner} and root may {action} it.",
            )

    def _run(self, *command: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command as the server's OS user."""
        account = self.account
        identity: dict[str, object] = {}
        if account.pw_uid != os.geteuid():
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
        inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
        own = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name, "LANG": "C.UTF-8"}
        return subprocess.run(  # type: ignore[call-overload]
            command,
            env={**inherited, **own, **(environment or {})},
            cwd="/",
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            **identity,
        )

    def _binary(self, name: str) -> Path:
        return POSTGRESQL_FOLDER / str(self._version()) / "bin" / name

    def _version(self) -> int:
        """Major version of the installed server to use: the data's, else the newest that has all extensions."""
        installed = installed_versions()
        if self.data.exists():
            result = self._run("cat", self.data / "PG_VERSION")
            found = result.stdout.strip()
            if not found.isdecimal():
                raise PgearthError(
                    f"{self.data} is not a PostgreSQL data folder: {result.stderr.strip() or 'PG_VERSION is damaged'}",
                    "Bring the folder back from a backup, or let PGEARTH_HOME name another place.",
                )
            if int(found) not in installed:
                raise PgearthError(
                    f"The data in {self.data} are of PostgreSQL {found}, which is not installed.",
                    f"Run `PG_MAJOR={found} docker/install-server.sh`, or begin a new cluster with PGEARTH_HOME.",
                )
            return int(found)
        if not installed:
            raise PgearthError(
                f"No PostgreSQL {OLDEST_VERSION} or newer is installed below {POSTGRESQL_FOLDER}.", INSTALL_HINT
            )
        missing: list[str] = []
        for version in reversed(installed):
            extensions = Path(EXTENSION_FOLDER.format(version=version))
            missing = [name for name in EXTENSIONS if not (extensions / f"{name}.control").exists()]
            if not missing:
                return version
        raise PgearthError(f"PostgreSQL {installed[0]} lacks the extension {', '.join(missing)}.", INSTALL_HINT)

    # Where everything lies

    def _reaches(self, path: Path) -> bool:
        return self._run("test", "-x", path).returncode == 0

    def _settle(self) -> None:
        """Make the cluster's folders, in a place that the server's OS user can reach."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not any(self.folder.iterdir()):  # never open up a folder that holds something else
            self.folder.chmod(0o755)
        if not self._reaches(self.folder):
            name = self.account.pw_name
            if self.data.exists():
                raise PgearthError(
                    f"The OS user {name}, who runs the server, cannot reach the cluster in {self.folder} any more.",
                    "Let that user pass through the folders above it (chmod o+x), or move it to another PGEARTH_HOME.",
                )
            (self.home / "location").write_text(f"{relocated_home(self.home)}\n")
            (self.home / "location").chmod(0o644)
            if not self._reaches(self.folder):
                raise PgearthError(
                    f"The OS user {name}, who runs the server, cannot reach {self.folder} either.", "Set PGEARTH_HOME."
                )
        run = self.folder / "run"
        if run.is_symlink() and not self._owned(run):
            run.unlink()  # the system's temporary folder was emptied
        if not run.exists():
            if len(os.fsencode(run)) > LONGEST_SOCKET_DIRECTORY:
                run.symlink_to(tempfile.mkdtemp(prefix="pgearth-"))
            else:
                run.mkdir(exist_ok=True)
        self.log.touch()
        for path in (run, self.log):
            os.chown(path, self.account.pw_uid, self.account.pw_gid)
        run.chmod(0o755)

    def _owned(self, path: Path) -> bool:
        return path.is_dir() and path.stat().st_uid == self.account.pw_uid

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one start at a time do its work."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    # The Python environment

    def _python_environment(self) -> Path:
        """The environment for PL/Python: the running one, or a mirror if the server's OS user cannot read that."""
        environment, account = Path(sys.prefix), self.account
        if account.pw_uid == os.geteuid():
            return environment
        compileall.compile_dir(Path(pyfuncs.__file__).parent, quiet=2)  # the server may not write there
        if not self._python_error(environment / "bin" / "python3", "import numpy, pgearth.pyfuncs"):
            return environment
        base = Path(sys.base_prefix) / "bin" / PYTHON
        if reason := self._python_error(base, "import json"):
            raise PgearthError(
                f"The OS user {account.pw_name}, who runs the server, cannot run the interpreter {base}: {reason}",
                "Make the environment with an interpreter that all users can read: /usr/bin/python3.11 -m venv .venv",
            )
        mirror = self.folder / "python"
        try:
            mirror_environment(environment, mirror)
        except OSError as error:  # also shutil.Error, a list of what could not be copied
            shutil.rmtree(mirror.with_name(f"{mirror.name}.partial"), ignore_errors=True)
            if "No space left on device" in str(error):
                raise self._disk_full() from error
            raise
        if reason := self._python_error(mirror / "bin" / "python3", "import numpy, pgearth.pyfuncs"):
            raise PgearthError(
                f"The mirror {mirror} of the Python environment {environment} does not work: {reason}",
                "Make the environment with an interpreter that all users can read: /usr/bin/python3.11 -m venv .venv",
            )
        return mirror

    def _python_error(self, interpreter: Path, statement: str) -> str:
        """Why the server's OS user cannot run `statement` with `interpreter`; empty if it can."""
        try:
            result = self._run(interpreter, "-I", "-c", statement)
        except OSError as error:
            return error.strerror or str(error)
        if result.returncode == 0:
            return ""
        return result.stderr.strip().rpartition("\n")[2] or f"exit status {result.returncode}"

    # Starting

    def _start(self, durable: bool, address: str, port: int, password: str, memory: int) -> None:
        pg_ctl = self._binary("pg_ctl")
        environment = self._python_environment()
        if not self.data.exists():
            self._initialise(durable)
        self._configure(durable, address, port, memory)
        logged = self.log.stat().st_size
        path = f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        command = (pg_ctl, "start", "-D", self.data, "-l", self.log, "-w", "-t", WAIT_SECONDS)
        started = self._run(*command, environment={"PATH": path})
        if started.returncode:
            raise self._failure(started.stderr + self._log_since(logged))
        try:
            self._create_database(password)
            self._check_python(environment)
        except psycopg.Error as error:
            self.stop()
            raise self._failure(f"{error}\n{self._log_since(logged)}") from error
        except BaseException:
            self.stop()
            raise

    def _initialise(self, durable: bool) -> None:
        """Create the cluster; `data` appears when it is complete."""
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        os.chown(partial, self.account.pw_uid, self.account.pw_gid)
        options = [
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--no-instructions",
        ]
        if not durable:
            options.append("--no-sync")
        initdb = self._run(self._binary("initdb"), "-D", partial, "-U", self.user, *options)
        if initdb.returncode:
            raise self._failure(initdb.stderr)
        with (partial / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude = '../pgearth.conf'\n")
        partial.rename(self.data)

    def _configure(self, durable: bool, address: str, port: int, memory: int) -> None:
        folder = self.folder
        values = {
            "listen_addresses": address,
            "port": str(port),
            "unix_socket_directories": str(self.socket_directory),
            "hba_file": str(folder / "pg_hba.conf"),
            "ident_file": str(folder / "pg_ident.conf"),
            **settings(memory),
        }
        if not durable:
            values |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        quoted = {name: value.replace("'", "''") for name, value in values.items()}
        lines = [f"{name} = '{value}'" for name, value in quoted.items()]
        note = "# Written by every `pgearth server start`. Your own settings: ALTER SYSTEM.\n"
        superusers = {"root", self.account.pw_name}
        with suppress(KeyError):  # an owner without a name
            superusers.add(self.home.absolute().parent.owner())
        write(folder / "pgearth.conf", note + "\n".join(lines) + "\n")
        write(
            folder / "pg_ident.conf", note + "".join(f'pgearth "{name}" "{self.user}"\n' for name in sorted(superusers))
        )
        write(
            folder / "pg_hba.conf",
            note + "local all all peer map=pgearth\n" + "host all all all scram-sha-256\n" * bool(address),
        )

    def _create_database(self, password: str) -> None:
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            if connection.execute("select from pg_database where datname = 'pgearth'").fetchone() is None:
                connection.execute("create database pgearth")
            if password:
                # Sent as a verifier: the password itself is in no log.
                verifier = connection.pgconn.encrypt_password(
                    password.encode(), self.user.encode(), b"scram-sha-256"
                ).decode()
                connection.execute(
                    sql.SQL("alter role {} password {}").format(sql.Identifier(self.user), sql.Literal(verifier))
                )

    def _check_python(self, environment: Path) -> None:
        """Raise PgearthError unless PL/Python uses `environment` and finds this version of pyfuncs in it."""
        with psycopg.connect(self.dsn()) as connection:
            connection.execute("set client_min_messages = warning")
            connection.execute("create extension if not exists plpython3u")
            connection.execute(
                """
                create function pg_temp.python_environment() returns text language plpython3u as $$
                import json, sys
                try:
                    import numpy
                    from pgearth import pyfuncs
                    return json.dumps([sys.prefix, pyfuncs.__version__, None])
                except Exception as error:
                    return json.dumps([sys.prefix, None, repr(error)])
                $$
                """
            )
            (answer,) = connection.execute("select pg_temp.python_environment()").fetchone() or ("",)
            connection.rollback()
        prefix, version, error = json.loads(answer)
        hint = "Make the environment with the Python that plpython3u is linked to: /usr/bin/python3.11 -m venv .venv"
        if Path(prefix).resolve() != environment.resolve():
            raise PgearthError(f"PL/Python does not use the Python environment {environment}, but {prefix}.", hint)
        if error:
            raise PgearthError(f"PL/Python cannot import numpy and pyfuncs from {environment}: {error}", hint)
        if version != pyfuncs.__version__:
            raise PgearthError(
                f"PL/Python finds pyfuncs {version} in {environment}, this is pgearth {pyfuncs.__version__}.",
                "Stop and start the server (pgearth server): that brings the mirror of the environment up to date.",
            )

    # What the server says

    def _setting(self, name: str) -> str | None:
        """A setting of the last start."""
        try:
            found = re.search(rf"^{name} = '(.*)'$", (self.folder / "pgearth.conf").read_text(), re.MULTILINE)
        except FileNotFoundError:
            return None
        return found[1] if found else None

    def _postmaster(self) -> psutil.Process | None:
        """The server's process, or None. Raises PermissionError where the data folder is another user's."""
        try:
            process = psutil.Process(int((self.data / "postmaster.pid").read_text().split("\n")[0]))
            # The command line, postgres -D FOLDER, tells it from a process that took over a dead server's number.
            command = process.cmdline()
            return process if command[1:2] == ["-D"] and Path(command[2]).samefile(self.data) else None
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    def _log_since(self, position: int) -> str:
        with self.log.open(errors="replace") as log:
            log.seek(position)
            return log.read()

    def _failure(self, output: str) -> PgearthError:
        # On a full disk the log itself may be cut short.
        if "No space left on device" in output or shutil.disk_usage(self.folder).free < MEGABYTE:
            return self._disk_full()
        return explain(output, self.data, self.log)

    def _disk_full(self) -> PgearthError:
        return PgearthError(
            f"The disk is full: no space is left for the database cluster in {self.folder}.",
            "Free some space there, or set PGEARTH_HOME to a folder on a larger disk.",
        )


def installed_versions() -> list[int]:
    """Major versions of the servers that Debian's packages installed, oldest first."""
    found = (int(path.parts[-3]) for path in POSTGRESQL_FOLDER.glob("*/bin/initdb") if path.parts[-3].isdecimal())
    return sorted(version for version in found if version >= OLDEST_VERSION)


def parse_address(text: str) -> tuple[str, int]:
    """Split ADDRESS[:PORT]; an IPv6 address with a port stands in brackets."""
    found = re.fullmatch(r"(?:\[(?P<bracketed>[^]]+)\]|(?P<plain>[^:\s]+))(?::(?P<port>\d{1,5}))?", text)
    if not found or not 0 < int(found["port"] or PORT) < 1 << 16:
        raise PgearthError(f"{text!r} is not ADDRESS[:PORT].", "Examples: 127.0.0.1, 0.0.0.0:5433, [::1]:5432")
    return found["bracketed"] or found["plain"], int(found["port"] or PORT)


def default_memory() -> int:
    """Bytes that a private server may plan with: an eighth of the machine's, for it is seldom alone there."""
    return min(psutil.virtual_memory().total // 8, 4 * GIGABYTE)


def settings(memory: int) -> dict[str, str]:
    """PostgreSQL's settings for a server with `memory` bytes: a quarter is shared buffers, as its manual advises."""

    def megabytes(size: int) -> str:
        return f"{size // MEGABYTE}MB"

    return {
        "shared_buffers": megabytes(min(memory // 4, 8 * GIGABYTE)),
        "effective_cache_size": megabytes(memory * 3 // 4),
        "maintenance_work_mem": megabytes(min(max(memory // 16, 64 * MEGABYTE), 2 * GIGABYTE)),
        "work_mem": megabytes(min(max(memory // 256, 8 * MEGABYTE), 128 * MEGABYTE)),
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        "random_page_cost": "1.1",
        "effective_io_concurrency": "200",
        # Compiling costs more than it gains: most queries take milliseconds.
        "jit": "off",
        "timezone": "UTC",
        # Uploaded GeoTIFFs in, PNG previews out.
        "postgis.gdal_enabled_drivers": "GTiff PNG",
    }


def relocated_home(home: Path) -> Path:
    """Make a folder for a cluster that cannot lie in `home`: the same one each time, unless /var/lib is read-only."""
    folder = RELOCATED_HOMES / hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        RELOCATED_HOMES.chmod(0o755)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="pgearth-"))
    folder.chmod(0o755)
    return folder


def write(path: Path, text: str) -> None:
    """Write a configuration file that all may read, in place of one that may be another user's."""
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o644)


def explain(output: str, data: Path, log: Path) -> PgearthError:
    """Turn what PostgreSQL printed when it failed to start into an error that says what to do."""
    other = re.search(r"\(PID (\d+)\)", output)
    process = f"process {other[1]}" if other else "another process"
    if re.search(r'lock file "[^"]*\.s\.PGSQL\.\d+\.lock" already exists', output):
        return PgearthError(
            f"The socket is taken by another server, {process}: {data.parent / 'run'}",
            "Stop that server, or set PGEARTH_HOME to another folder.",
        )
    if found := re.search(r'could not bind \S+ address "([^"]+)": Address already in use', output):
        return PgearthError(
            f"The address {found[1]} is taken by another server.", "Stop that server, or give --listen another port."
        )
    if 'lock file "postmaster.pid" already exists' in output:
        pid_file = data / "postmaster.pid"
        name = psutil.Process(int(other[1])).name() if other and psutil.pid_exists(int(other[1])) else "unknown"
        if name in ("postgres", "postmaster"):
            return PgearthError(
                f"Another server, {process}, uses the data folder {data}.", f"Stop it: kill -INT {other and other[1]}"
            )
        return PgearthError(
            f"The pid file {pid_file} is stale: its server is gone, and {process} ({name}) has the number now.",
            f"If no server uses that folder, for example from another container, delete the file: rm {pid_file}",
        )
    if "Cannot allocate memory" in output:
        return PgearthError(
            "There is not enough memory for the server.",
            f"End other programs or raise the container's limit; see {log}.",
        )
    tail = "\n".join(output.strip().splitlines()[-12:])
    return PgearthError(f"PostgreSQL failed to start:\n{tail}", f"The whole log is {log}.")
