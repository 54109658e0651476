from __future__ import annotations

from pathlib import Path

import psycopg

from pgearth.loaders.server.function_reference import reference


def test_the_reference_is_up_to_date(archive: psycopg.Connection) -> None:
    """`make docs` regenerates it."""
    committed = Path(__file__).parent.parent.parent / "docs" / "functions.md"
    assert committed.read_text() == reference(archive)
