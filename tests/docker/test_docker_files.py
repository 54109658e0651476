"""The container files and the installer.

Docker cannot run where these tests run, so the image is never built here: the files are parsed, and every path they
name is checked. The installer and the entry point are run for real, the latter with a recording stand-in for `pgearth`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
INSTALLER = DOCKER / "install-server.sh"
ENTRYPOINT = DOCKER / "entrypoint.sh"


def dockerfile_instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments; continued lines joined, comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    parts = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name.upper(), rest) for name, rest in parts]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in dockerfile_instructions() if instruction == name]


def copies() -> list[tuple[list[str], str]]:
    """Sources and destination of every COPY."""
    return [(words[:-1], words[-1]) for words in (shlex.split(rest) for rest in arguments("COPY"))]


def dockerignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves `path` out: the last pattern that matches it or a folder above it decides."""
    ignored = False
    parents = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
    for pattern in patterns:
        wanted = pattern.lstrip("!").strip("/")
        # `*` does not cross a slash; `**/` stands for any number of folders, also none.
        variants = [wanted, wanted.removeprefix("**/")] if wanted.startswith("**/") else [wanted]
        if any(
            fnmatch.fnmatchcase(parent, variant) and (variant.count("/") == parent.count("/") or "**" in variant)
            for parent in parents
            for variant in variants
        ):
            ignored = not pattern.startswith("!")
    return ignored


def dockerignore_patterns() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert list(compose["services"]) == ["pgearth"]
    service: dict[str, Any] = compose["services"]["pgearth"]
    named = {volume.split(":")[0] for volume in service["volumes"] if not volume.startswith("$")}
    assert named <= set(compose["volumes"])
    return service


def test_every_instruction_is_known() -> None:
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "ENTRYPOINT"}
    instructions = dockerfile_instructions()
    assert instructions[0] == ("FROM", "debian:12-slim")
    assert {name for name, _ in instructions} <= known


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    sources = [source for sources, _ in copies() for source in sources]
    assert "docker/install-server.sh" in sources
    missing = [source for source in sources if not (ROOT / source).exists()]
    assert not missing
    left_out = [source for source in sources if dockerignored(source, dockerignore_patterns())]
    assert not left_out
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *sources]
    tracked_or_new = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    in_clone = [s for s in sources if any(f == s or f.startswith(f"{s}/") for f in tracked_or_new)]
    assert in_clone == sources, "git ignores a path that the image needs"


def test_dockerignore_keeps_data_and_environment_out() -> None:
    patterns = dockerignore_patterns()
    for path in (
        ".git/config",
        ".venv/bin/python",
        ".pgearth/data/base",
        "build/demo/map.png",
        ".env",
        "loaders/work/__pycache__/run.pyc",
    ):
        assert dockerignored(path, patterns), path
    assert not dockerignored("migrations/versions/0001_extensions.py", patterns)


def test_every_folder_the_package_is_made_of_is_copied() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert packages == {"find": {"include": ["pgearth*"]}}
    linked = {path.name for path in (ROOT / "pgearth").iterdir() if path.is_symlink()}
    copied = {source for sources, _ in copies() for source in sources}
    assert {"pgearth", *linked} <= copied


def test_folders_keep_their_names() -> None:
    # COPY of a folder copies what is in it, so the destination must repeat the name.
    for sources, destination in copies():
        for source in sources:
            assert not (ROOT / source).is_dir() or destination == f"{source}/"


def test_image_is_made_by_the_installer_with_the_tested_versions() -> None:
    runs = arguments("RUN")
    assert runs[0].startswith("docker/install-server.sh")
    assert not any(re.search(r"apt(-get)? +install", run) for run in runs)
    assert any("/usr/bin/python3.11 -m venv .venv" in run and "--constraint constraints.txt" in run for run in runs)


def test_image_serves_as_postgres_from_a_volume(service: dict[str, Any]) -> None:
    names = [name for name, _ in dockerfile_instructions()]
    assert arguments("USER") == ["postgres"]
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")
    environment = dict(pair.split("=", 1) for pair in shlex.split(arguments("ENV")[0]))
    home = environment["PGEARTH_HOME"]
    assert arguments("VOLUME") == [home]
    assert f"archive:{home}" in service["volumes"]
    [workdir] = arguments("WORKDIR")
    assert environment["PATH"].startswith(f"{workdir}/.venv/bin:")
    assert json.loads(arguments("ENTRYPOINT")[0]) == [f"{workdir}/docker/entrypoint.sh"]


def test_compose_builds_this_image_and_stays_on_this_machine(service: dict[str, Any]) -> None:
    context = (DOCKER / service["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / service["build"]["dockerfile"]).is_file()
    assert service["ports"] == [f"127.0.0.1:5432:{arguments('EXPOSE')[0]}"]
    assert service["healthcheck"]["test"][:2] == ["CMD", "pgearth"]
    assert service["environment"]["PGEARTH_PASSWORD"].startswith("${PGEARTH_PASSWORD:?")


@pytest.mark.parametrize("script", [INSTALLER, ENTRYPOINT], ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


# The entry point


@pytest.fixture
def container(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which `pgearth` writes its arguments to a file, and that file.

    `pgearth server status` fails while a file `status-failing` lies beside it.
    """
    calls = tmp_path / "calls"
    stand_in = tmp_path / "pgearth"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ ! -e "{tmp_path}/${{2:-migrate}}-failing" ]\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PGEARTH_HOME": str(tmp_path)}
    return {**environment, "PGEARTH_PASSWORD": "secret"}, calls


def test_entry_point_migrates_serves_and_stops_on_sigterm(container: tuple[dict[str, str], Path]) -> None:
    environment, calls = container
    # The pause between two looks at the server, made so long that a signal is seen not to wait for its end.
    pause, sleep = calls.parent / "pause", calls.parent / "sleep"
    sleep.write_text(f"#!/bin/sh\necho $$ > {pause}\nexec /bin/sleep {10 * PATIENCE}\n")
    sleep.chmod(0o755)
    process = subprocess.Popen([ENTRYPOINT], env=environment)
    try:
        wait_for(lambda: pause.exists() and pause.read_text().endswith("\n"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        os.kill(int(pause.read_text()), signal.SIGKILL)  # it is there still: nobody waited for its end
    finally:
        process.kill()
        process.wait()
    assert calls.read_text().splitlines() == [
        "server start --listen 0.0.0.0",
        "migrate",
        "server status",
        "server stop",
    ]


def test_entry_point_fails_when_the_server_ends_by_itself(container: tuple[dict[str, str], Path]) -> None:
    environment, calls = container
    (calls.parent / "status-failing").touch()
    ended = subprocess.run([ENTRYPOINT], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert "stopped by itself" in ended.stderr


def test_entry_point_asks_for_a_password(container: tuple[dict[str, str], Path]) -> None:
    environment, calls = container
    del environment["PGEARTH_PASSWORD"]
    refused = subprocess.run([ENTRYPOINT], env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert refused.returncode != 0
    assert "PGEARTH_PASSWORD" in refused.stderr
    assert not calls.exists()


# The installer


def packages_and_lists() -> list[object]:
    status = subprocess.run(["dpkg-query", "--show"], check=True, capture_output=True, text=True).stdout
    folders = [Path("/var/lib/apt/lists"), Path("/etc/apt/sources.list.d"), Path("/etc/postgresql-common")]
    return [status, *[(folder.stat().st_mtime_ns, sorted(folder.iterdir())) for folder in folders]]


def test_second_run_of_the_installer_changes_nothing() -> None:
    before = packages_and_lists()
    run = subprocess.run([INSTALLER], check=True, capture_output=True, text=True)
    server = r"PostgreSQL 15\.\d+, PostGIS 3\.\d+\.\d+, pgvector 0\.\d+\.\d+"
    assert re.match(rf"{server}, plpython3u 15\.\d+ with Python 3\.11\.\d+\n", run.stdout)
    assert packages_and_lists() == before


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can read, unlike `tmp_path`."""
    folder = Path(tempfile.mkdtemp(prefix="pgearth-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_installer_without_root_or_sudo_says_what_to_do(open_folder: Path) -> None:
    script = shutil.copy(INSTALLER, open_folder)
    for command in ("bash", "dpkg-query", "sed"):
        (open_folder / command).symlink_to(str(shutil.which(command)))
    refused = subprocess.run(
        [open_folder / "bash", script],
        env={"PATH": str(open_folder), "PG_MAJOR": "99", "HOME": "/"},
        user="nobody" if os.geteuid() == 0 else None,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 1
    assert "needs root, and there is no sudo" in refused.stderr
    assert f"Run {script} as root." in refused.stderr


@pytest.fixture
def archive(open_folder: Path) -> Path:
    """A Debian archive with one source package, pgvector 1.0-1, in its pool."""
    pool = open_folder / "archive/pool/main/p/pgvector"
    pool.mkdir(parents=True)
    source = pool / "pgvector_1.0.orig.tar.gz"
    source.write_bytes(b"source")
    sum_of_source = hashlib.sha256(source.read_bytes()).hexdigest()
    sums = f"Checksums-Sha256:\n {sum_of_source} 6 {source.name}\nFiles:\n {'0' * 32} 6 {source.name}\n"
    (pool / "pgvector_1.0-1.dsc").write_text(f"Format: 3.0 (quilt)\nVersion: 1.0-1\n{sums}")
    return open_folder


def fetch_from_pool(folder: Path, sha256: str) -> subprocess.CompletedProcess[str]:
    """Call the installer's function on the archive in `folder`, with `sha256` as the pinned sum."""
    commands = """
        source "$1"; work=$2
        debian_archives() { echo "copy:$work/archive/"; }
        fetch_from_pool 1.0-1 "$3" "$work/source"
    """
    command = ["bash", "-c", commands, "bash", str(INSTALLER), str(folder), sha256]
    return subprocess.run(command, capture_output=True, text=True)


def test_pinned_source_is_fetched_whole(archive: Path) -> None:
    [dsc] = archive.glob("archive/pool/main/p/pgvector/*.dsc")
    run = fetch_from_pool(archive, hashlib.sha256(dsc.read_bytes()).hexdigest())
    assert run.returncode == 0, run.stdout + run.stderr
    assert {path.name for path in (archive / "source").iterdir()} == {dsc.name, "pgvector_1.0.orig.tar.gz"}


@pytest.mark.parametrize("changed", ["pgvector_1.0-1.dsc", "pgvector_1.0.orig.tar.gz"])
def test_pinned_source_that_was_changed_is_refused(archive: Path, changed: str) -> None:
    pool = archive / "archive/pool/main/p/pgvector"
    pinned = hashlib.sha256((pool / "pgvector_1.0-1.dsc").read_bytes()).hexdigest()
    content = (pool / changed).read_bytes()
    (pool / changed).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run = fetch_from_pool(archive, pinned)
    assert run.returncode == 1
    assert "Hash Sum mismatch" in run.stdout
