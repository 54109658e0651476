"""A piece of work: a call of a module's function with one task (picklable, and naming all it needs: paths, options).

Each opens its own connection to the database, by the same settings as this process, and leaves behind either the
whole of its result or nothing; so a piece that was lost is simply run again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from pgearth.pyfuncs.errors import PgearthError

Task = TypeVar("Task")
Result = TypeVar("Result")

SPARK_HINT = "It needs Java 17 (docker/install-optional.sh spark, as root) and PySpark (pip install 'pgearth[spark]')."


@dataclass(frozen=True)
class Engine:
    """What runs the work: `jobs` processes of this machine, or the Spark cluster at `spark_master`.

    Without a master, Spark starts a cluster of `jobs` processes on this machine.
    """

    name: Literal["local", "spark"] = "local"
    jobs: int = 1
    spark_master: str | None = None


def attempt(work: Callable[[Task], Result], task: Task) -> Result | PgearthError:
    """The result of one piece of work, or the PgearthError that it raised."""
    try:
        return work(task)
    except PgearthError as error:
        return error
