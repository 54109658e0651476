"""Work for tests/spark/test_spark.py: a module of its own, because Spark's processes import it, too."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pgearth.pyfuncs.errors import BusyError, PgearthError


def behave(task: tuple[str, Path]) -> tuple[str, int, int, str, str]:
    """Do as the task's name says; each call leaves a line in a file of that name."""
    name, folder = task
    with (folder / name).open("a") as file:
        file.write("called\n")
    calls = len((folder / name).read_text().split())
    if name == "bad":
        raise PgearthError("bad: no such product", "Take a good one.")
    if name == "busy":
        raise BusyError("busy: another session is loading it now")
    if name == "wrong":
        raise ValueError("an error in the code")
    if name == "dies" and calls == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "dies" and calls <= 3:
        raise BusyError("dies: another session is loading it now")
    if name == "waits":
        for _ in range(300):
            if (folder / "first_result").exists():
                break
            time.sleep(0.1)
        else:
            raise PgearthError("waits: no result came before all were done")
    time.sleep(0.3)
    settings = (os.environ["PGEARTH_DSN"], os.environ["GDAL_NUM_THREADS"])
    return name, calls, os.getppid(), *settings
