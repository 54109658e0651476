"""The map of the house: every path that it names exists, and every room is on it."""

import re

from tests.conftest import CHECKOUT

NAMED = set(re.findall(r"`([\w.]+(?:/[\w.]+)*/?)`", (CHECKOUT / "docs" / "architecture.md").read_text()))
PATHS = {name for name in NAMED if "/" in name or name.endswith((".py", ".md", ".toml", ".sql"))}


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
