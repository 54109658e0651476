"""The OS user whom the server, and what belongs to it, runs as."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

from pgearth.loaders.server.installation import INSTALL_HINT
from pgearth.pyfuncs.errors import PgearthError

# All that a process gets of the caller's environment: no secrets, and no PYTHON*, PG*, GDAL_* or PROJ_* to mislead it.
INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def account_for(data: Path) -> pwd.struct_passwd:
    """The OS user for a data folder: its owner, else the caller, or `postgres` if that is root.

    Raises PgearthError where the user has no name, or there is no `postgres`.
    """
    user_id = data.stat().st_uid if data.exists() else os.geteuid()
    try:
        return pwd.getpwuid(user_id) if user_id else pwd.getpwnam("postgres")
    except KeyError as error:
        if user_id:
            raise PgearthError(
                f"PostgreSQL needs a name for OS user {user_id}, who has none in /etc/passwd.",
                "Give the user an entry there, or run the command as one who has a name.",
            ) from error
        raise PgearthError("Root cannot run PostgreSQL, and there is no OS user `postgres`.", INSTALL_HINT) from error


def may_act_as(account: pwd.struct_passwd) -> bool:
    """Whether the caller is this OS user, or root."""
    return os.geteuid() in (0, account.pw_uid)


def run_as(
    account: pwd.struct_passwd, *command: str | Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command as an OS user and return what it said; `environment` adds to that of environment_of."""
    return subprocess.run(  # type: ignore[call-overload]
        command,
        env={**environment_of(account), **(environment or {})},
        cwd="/",
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        **identity_of(account),
    )


def environment_of(account: pwd.struct_passwd) -> dict[str, str]:
    """Environment variables of a process of this OS user."""
    inherited = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    own = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name, "LANG": "C.UTF-8"}
    return {**inherited, **own}


def identity_of(account: pwd.struct_passwd) -> dict[str, object]:
    """Arguments by which subprocess runs a command as this OS user."""
    if account.pw_uid == os.geteuid():
        return {}
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}
