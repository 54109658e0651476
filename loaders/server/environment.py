"""The Python environment of PL/Python: the one that runs `pgearth`, or a copy that the server's OS user can read.

PL/Python takes the environment whose `bin` is first on the server's PATH.
"""

from __future__ import annotations

import compileall
import json
import os
import pwd
import shutil
import sys
from pathlib import Path

import psycopg

import pgearth
from pgearth import pyfuncs
from pgearth.loaders.server.account import run_as
from pgearth.loaders.server.failures import disk_full
from pgearth.loaders.server.place import Place
from pgearth.pyfuncs.errors import PgearthError

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def python_environment(place: Place) -> Path:
    """The environment for PL/Python: the running one, or a mirror if the server's OS user cannot read that.

    Raises PgearthError where that user can run neither.
    """
    environment, account = Path(sys.prefix), place.account
    if account.pw_uid == os.geteuid():
        return environment
    compileall.compile_dir(Path(pyfuncs.__file__).parent, quiet=2)  # the server may not write there
    if not python_error(account, environment / "bin" / "python3", "import numpy, pgearth.pyfuncs"):
        return environment
    base = Path(sys.base_prefix) / "bin" / PYTHON
    if reason := python_error(account, base, "import json"):
        raise PgearthError(
            f"The OS user {account.pw_name}, who runs the server, cannot run the interpreter {base}: {reason}",
            "Make the environment with an interpreter that all users can read: /usr/bin/python3.11 -m venv .venv",
        )
    mirror = place.folder / "python"
    try:
        mirror_environment(environment, mirror)
    except OSError as error:  # also shutil.Error, a list of what could not be copied
        shutil.rmtree(mirror.with_name(f"{mirror.name}.partial"), ignore_errors=True)
        if "No space left on device" in str(error):
            raise disk_full(place.folder) from error
        raise
    if reason := python_error(account, mirror / "bin" / "python3", "import numpy, pgearth.pyfuncs"):
        raise PgearthError(
            f"The mirror {mirror} of the Python environment {environment} does not work: {reason}",
            "Make the environment with an interpreter that all users can read: /usr/bin/python3.11 -m venv .venv",
        )
    return mirror


def python_error(account: pwd.struct_passwd, interpreter: Path, statement: str) -> str:
    """Why an OS user cannot run `statement` with `interpreter`; empty if it can."""
    try:
        result = run_as(account, interpreter, "-I", "-c", statement)
    except OSError as error:
        return error.strerror or str(error)
    if result.returncode == 0:
        return ""
    return result.stderr.strip().rpartition("\n")[2] or f"exit status {result.returncode}"


def check_python(dsn: str, environment: Path) -> None:
    """Raise PgearthError unless PL/Python uses `environment` and finds this version of pyfuncs in it."""
    with psycopg.connect(dsn) as connection:
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


def mirror_environment(environment: Path, mirror: Path) -> None:
    """Make or refresh a copy of the virtual environment `environment` that every user can read, with pyfuncs inside.

    Packages are hard links where the file system allows it, and are mirrored again only when a package was installed or
    removed. The package pgearth.pyfuncs, which an editable installation leaves in the checkout, is copied each time.
    """
    packages = Path("lib", PYTHON, "site-packages")
    original, copy = environment / packages, mirror / packages
    changed = original.stat().st_mtime_ns
    if not copy.exists() or copy.stat().st_mtime_ns != changed:
        print(
            f"Mirroring the Python environment to {mirror}, since the server cannot read {environment}", file=sys.stderr
        )
        partial = mirror.with_name(f"{mirror.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        copy_readable(environment, partial)
        for script in (partial / "bin").iterdir():  # their first line names the interpreter of the original
            if not script.name.startswith("python"):
                script.unlink()
        for leftover in (partial / packages).glob("__editable__*pgearth*"):
            leftover.unlink()
        replace(mirror, partial)
    partial = copy / "pgearth.partial"
    shutil.rmtree(partial, ignore_errors=True)
    copy_readable(Path(pyfuncs.__file__).parent, partial / "pyfuncs", link=False)
    shutil.copyfile(pgearth.__file__, partial / "__init__.py")
    make_readable(partial / "__init__.py")
    replace(copy / "pgearth", partial)
    os.utime(copy, ns=(changed, changed))


def copy_readable(source: Path, target: Path, link: bool = True) -> None:
    """Copy a folder so that every user can read it, by hard links where `link` is set and they can be had."""

    def copy_file(source: str, target: str) -> None:
        if link and Path(source).stat().st_mode & 0o004:
            try:
                os.link(source, target)
                return
            except OSError:  # another file system, or one without hard links
                pass
        shutil.copy2(source, target)
        make_readable(Path(target))

    shutil.copytree(source, target, symlinks=True, copy_function=copy_file)
    for folder, _, _ in os.walk(target):
        make_readable(Path(folder))


def make_readable(path: Path) -> None:
    """Give everybody the owner's right to read, and to execute or enter."""
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)


def replace(folder: Path, new: Path) -> None:
    """Put the folder `new` in the place of `folder`."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
