"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BETWEEN_PLAIN_LINES = 10.0
SECONDS_BEFORE_THE_FIRST = 1.0  # what takes less shows nothing


def progress(items: Iterable[Item], description: str, unit: str, total: int | None = None) -> tqdm[Item]:
    """Wrap `items` (or, with `total` only, an empty iterable to `update` by hand) in a progress display on stderr.

    On a terminal the processes of a pool show none: their bars would overwrite each other, and their parent's.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=description,
        unit=f" {unit}",
        total=total,
        ascii=None if terminal else " #",
        ncols=None if terminal else 80,
        delay=SECONDS_BEFORE_THE_FIRST,
        mininterval=0.1 if terminal else SECONDS_BETWEEN_PLAIN_LINES,
        file=sys.stderr if terminal else PlainLines(),
        disable=terminal and multiprocessing.parent_process() is not None,
    )


class PlainLines:
    """A stream that turns tqdm's carriage returns into lines, for logs."""

    def write(self, text: str) -> None:
        """Write `text` to stderr as a line of its own; nothing is written for blank text."""
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        """Flush stderr."""
        sys.stderr.flush()
