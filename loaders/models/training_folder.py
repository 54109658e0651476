"""The folder in which one training at a time keeps, until it is done, what it needs to go on after it was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgearth.loaders.work.locks import lock

PLAN = "plan.safetensors"
"""What it is trained on, which stays as it was when it began."""
STATE = "state.safetensors"
"""How far it is: see pgearth.pyfuncs.training.loop."""


@contextmanager
def training_folder(folder: Path | None) -> Iterator[tuple[Path | None, Path | None]]:
    """Make the folder and hold its lock; yield the paths of plan and state (None without a folder).

    Both files are removed when the training is done. Raises BusyError while another training has the folder.
    """
    if folder is None:
        yield None, None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder, f"{folder}: another training keeps its state in this folder"):
        yield folder / PLAN, folder / STATE
        # The plan last: a state without its plan would be taken for that of the next training.
        for name in (STATE, PLAN):
            (folder / name).unlink(missing_ok=True)
