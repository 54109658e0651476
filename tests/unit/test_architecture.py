"""The map of the house: every path that it names exists, and every room is on it; so do paths that comments name."""

import re

from tests.conftest import CHECKOUT

NAMED = set(re.findall(r"`([\w.]+(?:/[\w.]+)*/?)`", (CHECKOUT / "docs" / "architecture.md").read_text()))
PATHS = {name for name in NAMED if "/" in name or name.endswith((".py", ".md", ".toml", ".sql"))}
FOLDERS = ("benchmarks", "docs", "loaders", "migrations", "pyfuncs", "sql", "tests")


def test_every_path_exists() -> None:
    assert len(PATHS) > 40
    assert [name for name in sorted(PATHS) if not (CHECKOUT / name).exists()] == []


def test_every_room_is_named() -> None:
    rooms = {
        f"{folder}/{room.parent.name}/"
        for folder in ("loaders", "pyfuncs")
        for room in (CHECKOUT / folder).glob("*/__init__.py")
    }
    assert len(rooms) > 15
    assert rooms - PATHS == set()


def test_paths_that_comments_name_exist() -> None:
    path = re.compile(rf"\b(?:{'|'.join(FOLDERS)})/[\w/]+\.(?:md|py|sql)\b")
    named = {
        (str(source.relative_to(CHECKOUT)), name)
        for folder in set(FOLDERS) - {"tests"}
        for source in (CHECKOUT / folder).rglob("*")
        # Revisions and results tell of the past.
        if source.suffix in (".md", ".py", ".sql") and "versions" not in source.parts and source.name != "RESULTS.md"
        for name in path.findall(source.read_text())
    }
    assert len(named) > 20
    assert [(source, name) for source, name in sorted(named) if not (CHECKOUT / name).exists()] == []
