from __future__ import annotations

import psycopg

from pgearth.loaders.server.function_reference import reference
from tests.conftest import CHECKOUT


def test_the_reference_is_up_to_date(archive: psycopg.Connection) -> None:
    """`make docs` regenerates it."""
    committed = CHECKOUT / "docs" / "functions.md"
    assert committed.read_text() == reference(archive)
