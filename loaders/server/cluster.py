"""The database cluster that is private to a checkout: how it is made, starts and stops.

The OS users who own the cluster or the folder around it, and root, may connect, by peer authentication, as the
superuser `postgres`; all others over TCP, where it is opened, by the password of their role. PostgreSQL refuses to run
as root: started by root, the server runs as the OS user `postgres` that Debian's package creates.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from pgearth.loaders.server.account import may_act_as, run_as
from pgearth.loaders.server.environment import check_python, python_environment
from pgearth.loaders.server.failures import disk_full, failure
from pgearth.loaders.server.installation import binary, installed_versions, newest_complete_version
from pgearth.loaders.server.place import Place, default_home
from pgearth.loaders.server.settings import (
    PORT,
    SUPERUSER,
    configure,
    default_memory,
    parse_address,
    setting,
    settings,
)
from pgearth.pyfuncs.errors import PgearthError

WAIT_SECONDS = "600"  # crash recovery of a large archive takes minutes


def default_dsn() -> str:
    """Connection string of the private server's database `pgearth`, whether the server runs or not."""
    return Cluster(default_home()).dsn()


@dataclass(frozen=True)
class Cluster(Place):
    """A database cluster of its own below the folder `home`, which is made when the cluster first starts."""

    user = SUPERUSER

    @property
    def port(self) -> int:
        """Port of the socket (and of TCP where it was asked for) at the last start."""
        return int(setting(self, "port") or PORT)

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
        if self.running() and not may_act_as(self.account):
            return False
        self._require_control("start")
        try:
            self.settle()
            with self.locked():
                if not self.running():
                    self._start(durable, address, port, password, memory or default_memory())
                    return True
                if listen and (setting(self, "listen_addresses"), self.port) != (address, port):
                    raise PgearthError(
                        f"The server runs already and does not listen on {listen}.", "Run `pgearth server stop` first."
                    )
                if memory and setting(self, "shared_buffers") != settings(memory)["shared_buffers"]:
                    raise PgearthError(
                        f"The server runs already, with shared buffers of {setting(self, 'shared_buffers')}.",
                        "Run `pgearth server stop` first.",
                    )
                python_environment(self)  # a mirror follows the checkout
                self._create_database(password)
                return False
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise disk_full(self.folder) from error

    def stop(self) -> bool:
        """Stop the server, ending open connections; return whether it was running."""
        if not self.running():
            return False
        self._require_control("stop")
        stopped = run_as(
            self.account, self._binary("pg_ctl"), "stop", "-D", self.data, "-m", "fast", "-w", "-t", WAIT_SECONDS
        )
        if stopped.returncode:
            raise PgearthError(f"The server did not stop: {stopped.stderr.strip()}", f"See {self.log}.")
        return True

    def remove(self) -> None:
        """Stop the server and delete the cluster with all its data."""
        self.stop()
        for folder in (self.socket_directory, self.folder, self.home):
            shutil.rmtree(folder, ignore_errors=True)

    def _require_control(self, action: str) -> None:
        if not may_act_as(self.account):
            owner = self.account.pw_name
            raise PgearthError(
                f"The cluster in {self.folder} belongs to the OS user {owner}.",
                f"Only {owner} and root may {action} it.",
            )

    def _binary(self, name: str) -> Path:
        """A program of the installed server to use: of the data's version, else of the newest that is complete."""
        if not self.data.exists():
            return binary(newest_complete_version(), name)
        result = run_as(self.account, "cat", self.data / "PG_VERSION")
        found = result.stdout.strip()
        if not found.isdecimal():
            raise PgearthError(
                f"{self.data} is not a PostgreSQL data folder: {result.stderr.strip() or 'PG_VERSION is damaged'}",
                "Bring the folder back from a backup, or let PGEARTH_HOME name another place.",
            )
        if int(found) not in installed_versions():
            raise PgearthError(
                f"The data in {self.data} are of PostgreSQL {found}, which is not installed.",
                f"Run `PG_MAJOR={found} docker/install-server.sh`, or begin a new cluster with PGEARTH_HOME.",
            )
        return binary(int(found), name)

    def _start(self, durable: bool, address: str, port: int, password: str, memory: int) -> None:
        pg_ctl = self._binary("pg_ctl")
        environment = python_environment(self)
        if not self.data.exists():
            self._initialise(durable)
        configure(self, durable, address, port, memory)
        logged = self.log.stat().st_size
        path = f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        command = (pg_ctl, "start", "-D", self.data, "-l", self.log, "-w", "-t", WAIT_SECONDS)
        started = run_as(self.account, *command, environment={"PATH": path})
        if started.returncode:
            raise failure(self, started.stderr + self._log_since(logged))
        try:
            self._create_database(password)
            check_python(self.dsn(), environment)
        except psycopg.Error as error:
            self.stop()
            raise failure(self, f"{error}\n{self._log_since(logged)}") from error
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
        initdb = run_as(self.account, self._binary("initdb"), "-D", partial, "-U", self.user, *options)
        if initdb.returncode:
            raise failure(self, initdb.stderr)
        with (partial / "postgresql.conf").open("a") as configuration:
            configuration.write("\ninclude = '../pgearth.conf'\n")
        partial.rename(self.data)

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
