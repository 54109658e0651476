"""Where a private server lies: its folders, its socket, its log.

The home is `.pgearth` in the checkout or PGEARTH_HOME, with the data in `data`, the Unix socket in `run` (a link to a
shorter path where that is too long for a socket), the log in `server.log` and the settings in `pgearth.conf`. What the
server's OS user cannot reach (a checkout below a home folder of mode 0700) is kept where it can: all this goes to
/var/lib/pgearth/ then, with a pointer to it in `location`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgearth.loaders.server.account import account_for, run_as
from pgearth.pyfuncs.errors import PgearthError

RELOCATED_HOMES = Path("/var/lib/pgearth")
# A socket's path may have 107 bytes (sockaddr_un).
LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.65535")


def default_home() -> Path:
    """Home of the private cluster: PGEARTH_HOME, else `.pgearth` in the checkout (without one: current folder)."""
    if home := os.environ.get("PGEARTH_HOME"):
        return Path(home).absolute()
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / ".pgearth"


@dataclass(frozen=True)
class Place:
    """The files of a private server, below the folder `home`, which is made when the server first starts."""

    home: Path

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
    def account(self) -> pwd.struct_passwd:
        """The OS user that the server runs as."""
        return account_for(self.data)

    def reaches(self, path: Path) -> bool:
        """Whether the server's OS user can pass through a folder."""
        return run_as(self.account, "test", "-x", path).returncode == 0

    def settle(self) -> None:
        """Make the cluster's folders, in a place that the server's OS user can reach."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not any(self.folder.iterdir()):  # never open up a folder that holds something else
            self.folder.chmod(0o755)
        if not self.reaches(self.folder):
            name = self.account.pw_name
            if self.data.exists():
                raise PgearthError(
                    f"The OS user {name}, who runs the server, cannot reach the cluster in {self.folder} any more.",
                    "Let that user pass through the folders above it (chmod o+x), or move it to another PGEARTH_HOME.",
                )
            (self.home / "location").write_text(f"{relocated_home(self.home)}\n")
            (self.home / "location").chmod(0o644)
            if not self.reaches(self.folder):
                raise PgearthError(
                    f"The OS user {name}, who runs the server, cannot reach {self.folder} either.", "Set PGEARTH_HOME."
                )
        run = self.folder / "run"
        if run.is_symlink() and not (run.is_dir() and run.stat().st_uid == self.account.pw_uid):
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one start at a time do its work."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


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
