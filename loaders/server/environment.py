"""A copy of the virtual environment for a server whose OS user cannot reach the original."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

import pgearth
from pgearth import pyfuncs

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


def mirror_environment(environment: Path, mirror: Path) -> None:
    """Make or refresh a copy of the virtual environment `environment` that every user can read, with pyfuncs inside.

    Packages are hard links where the file system allows it, and are mirrored again only when a package was installed or
    removed. The package pgearth.pyfuncs, which an editable installation leaves in the checkout, is copied each time.
    """
    packages = Path("lib", PYTHON, "site-packages")
    original, copy = environment / packages, mirror / packages
    changed = original.stat().st_mtime_ns
    if not copy.exists() or copy.stat().st_mtime_ns != changed:
        click.echo(
            f"Mirroring the Python environment to {mirror}, since the server cannot read {environment}", err=True
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
