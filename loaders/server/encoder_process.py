"""The encoder process, which owns the device and encodes for all sessions of a database: started, found, stopped."""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import Connection
from psycopg.conninfo import make_conninfo

from pgearth.loaders.server.account import environment_of, identity_of, may_act_as
from pgearth.pyfuncs.errors import PgearthError
from pgearth.pyfuncs.service.protocol import socket_folder

START_SECONDS = 120.0
STOP_SECONDS = 30.0
SECONDS_BETWEEN_LOOKS = 0.05
# The OS user whom the folder is to belong to makes it: root does not write where that user could lead it astray.
RUN_WITH_LOG = 'umask 077 && mkdir -p "$0" && exec "$@" >>"$0/log" 2>&1'


@dataclass(frozen=True)
class EncoderProcess:
    """The encoder process of the database that a connection is to, which lies in the server's data folder.

    It runs as the OS user of the server, in the Python environment of PL/Python: what its sessions have.
    """

    folder: Path
    account: pwd.struct_passwd
    interpreter: Path
    conninfo: str

    @classmethod
    def of(cls, connection: Connection) -> EncoderProcess:
        """Find out where it lies. Raises PgearthError where the server is on another machine, or another user's."""
        try:
            row = connection.execute(
                """
                select current_setting('data_directory'), oid::bigint
                from pg_database
                where datname = current_database()
                """
            ).fetchone()
        except psycopg.errors.InsufficientPrivilege as error:
            raise PgearthError(
                "The data folder, where the encoder process lies, is not shown to this role.",
                "Connect as a superuser, or as a role of pg_read_all_settings.",
            ) from error
        prefix = connection.execute("select note from eo.runtime() where component = 'Python'").fetchone()
        assert row is not None
        if prefix is None:
            raise PgearthError(
                "The server has no PL/Python, so no session would call the encoder process.",
                "Install the extension plpython3u on the server, then run: pgearth migrate",
            )
        data, oid = Path(row[0]), row[1]
        interpreter = Path(prefix[0]) / "bin" / "python3"
        try:
            account = pwd.getpwuid(data.stat().st_uid)
        except (FileNotFoundError, PermissionError, KeyError) as error:
            raise PgearthError(
                f"The server's data folder {data} is not to be found from here.",
                "The encoder process runs on the server's machine: run this there, as root or the server's OS user.",
            ) from error
        if not may_act_as(account):
            raise PgearthError(
                f"The server runs as OS user {account.pw_name}.",
                f"Only {account.pw_name} and root may start and stop its encoder process.",
            )
        conninfo = make_conninfo(connection.info.dsn, password=connection.info.password or None)
        return cls(data / socket_folder(oid), account, interpreter, conninfo)

    @property
    def log(self) -> Path:
        """The process's log file."""
        return self.folder / "log"

    def pid(self) -> int | None:
        """The process's number, None where it does not run: it holds a lock as long as it lives."""
        try:
            with (self.folder / "lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read() or 0) or None
                return None
        except FileNotFoundError:
            return None

    def start(self, connection: Connection, options: Sequence[str]) -> int:
        """Start the process and wait until sessions reach it; return its number. Raises PgearthError where it fails."""
        self._refuse_second()
        logged = self.log.stat().st_size if self.log.exists() else 0
        process = subprocess.Popen(  # type: ignore[call-overload]
            ["sh", "-c", RUN_WITH_LOG, self.folder, *self._command(options)],
            env=self._environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **identity_of(self.account),
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._reached(connection, process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                with self.log.open(errors="replace") as text:
                    text.seek(logged)
                    tail = text.read().strip().splitlines()[-12:]
                raise PgearthError("\n".join(["The encoder process did not start:", *tail]), f"Its log is {self.log}.")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return process.pid

    def become(self, options: Sequence[str]) -> None:
        """Turn this very process into the encoder process."""
        self._refuse_second()
        if os.geteuid() != self.account.pw_uid:
            os.initgroups(self.account.pw_name, self.account.pw_gid)
            os.setgid(self.account.pw_gid)
            os.setuid(self.account.pw_uid)
        os.chdir("/")
        sys.stdout.flush()
        os.execve(self.interpreter, self._command(options), self._environment())

    def stop(self) -> bool:
        """End the process, after the batch that it is at; return whether it was running."""
        pid = self.pid()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while self.pid() == pid:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return True

    def _refuse_second(self) -> None:
        if (pid := self.pid()) is not None:
            raise PgearthError(f"The encoder process is running already: process {pid}.", "Run: pgearth encoder stop")

    def _reached(self, connection: Connection, pid: int) -> bool:
        """Whether a session of the database reaches this very process."""
        row = connection.execute("select note from eo.runtime() where component = 'encoder process'").fetchone()
        return row is not None and row[0].startswith(f"pid {pid} ")

    def _command(self, options: Sequence[str]) -> list[str]:
        return [str(self.interpreter), "-I", "-m", "pgearth.pyfuncs.service.process", str(self.folder), *options]

    def _environment(self) -> dict[str, str]:
        """No more than it needs: no secrets but the connection's."""
        return {**environment_of(self.account), "PGEARTH_DSN": self.conninfo}
