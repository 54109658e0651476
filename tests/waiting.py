"""Waiting for what another process or thread does: long enough for a machine that is busy with other things."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 300
"""Seconds after which something hangs. No test waits so long where nothing does."""


def wait_for(condition: Callable[[], object]) -> None:
    """Return once the condition holds. Fails after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.01)
