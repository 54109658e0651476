"""Runs many pieces of work of one kind, in this process, in several, or on a Spark cluster: how loading, annotating and
exporting scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import click

from pgearth.loaders.work.local import run_here
from pgearth.loaders.work.task import SPARK_HINT, Engine, Result, Task
from pgearth.pyfuncs.errors import PgearthError


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --jobs, --engine and --spark-master; it takes them as one argument, `engine`."""

    @click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes.")
    @click.option(
        "--engine",
        type=click.Choice(["local", "spark"]),
        default="local",
        show_default=True,
        help="local: processes of this machine. spark: a Spark cluster's.",
    )
    @click.option(
        "--spark-master",
        metavar="URL",
        envvar="SPARK_MASTER",
        help="With --engine spark: spark://HOST:PORT, yarn, ...; default: a cluster of --jobs workers on this machine.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any, jobs: int, engine: Literal["local", "spark"], spark_master: str | None, **kwargs: Any
    ) -> Any:
        return command(*args, engine=Engine(engine, jobs, spark_master), **kwargs)

    return wrapper


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
