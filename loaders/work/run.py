"""Runs many pieces of work of one kind, in this process, in several, or on a Spark cluster: how loading, annotating and
exporting scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pgearth.loaders.work.local import run_here
from pgearth.loaders.work.task import SPARK_HINT, Engine, Result, Task
from pgearth.pyfuncs.errors import PgearthError


def run_tasks(
    work: Callable[[Task], Result], tasks: Sequence[Task], engine: Engine
) -> Iterator[tuple[Task, Result | PgearthError]]:
    """Do `work` for every task by `engine`; yield each task with its result, as they are done.

    Bad input of one task (PgearthError) is yielded in place of its result, and the others go on; any other error ends
    the run. Raises PgearthError without Spark.
    """
    if engine.name == "spark":
        try:
            from pgearth.loaders.work.spark import run_on_spark
        except ModuleNotFoundError as error:
            raise PgearthError(f"The engine spark cannot be used: {error}", SPARK_HINT) from error
        yield from run_on_spark(work, tasks, engine)
    else:
        yield from run_here(work, tasks, engine.jobs)
