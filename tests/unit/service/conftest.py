"""For all tests of the encoder process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.service.serving import Archive, serving


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def path(archive: Archive) -> Iterator[Path]:
    with serving(archive) as server:
        yield server._path
