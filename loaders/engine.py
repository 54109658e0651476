"""Runs many pieces of work of one kind, in this process, in several, or on a Spark cluster: how loading, annotating and
exporting scale.

A piece of work is a call of a module's function with one task (picklable, and naming all it needs: paths, options).
Each opens its own connection to the database, by the same settings as this process, and leaves behind either the
whole of its result or nothing; so a piece that was lost is simply run again.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from time import sleep
from typing import Any, Literal, TypeVar

import click

from pyfuncs.errors import PgearthError

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
    work: Callable[[Task], Result], tasks: Sequence[Task], engine: Engine = Engine()
) -> Iterator[tuple[Task, Result | PgearthError]]:
    """Do `work` for every task by `engine`; yield each task with its result, as they are done.

    Bad input of one task (PgearthError) is yielded in place of its result, and the others go on; any other error ends
    the run. With one local job, or one task, the work is done in this process. Raises PgearthError without Spark.
    """
    if engine.name == "spark":
        try:
            from loaders.spark import run_on_spark
        except ModuleNotFoundError as error:
            raise PgearthError(f"The engine spark cannot be used: {error}", SPARK_HINT) from error
        yield from run_on_spark(work, tasks, engine)
        return
    if engine.jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, attempt(work, task)
        return
    # Spawned, not forked: neither libpq's connections nor GDAL's threads survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(engine.jobs, len(tasks)), mp_context=context, initializer=end_quietly) as pool:
        # The processes begin here, and until they know how to end, an interrupt waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = {pool.submit(attempt, work, task): task for task in tasks}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            sleep(1)  # what ended a process may be an interrupt, which this one then hears here
            raise
        except KeyboardInterrupt:
            # Of a terminal they hear it, too; of a supervisor this process alone.
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def end_quietly() -> None:
    """Let a process of the pool end at once, without a traceback, when the command is interrupted.

    Not by an exception, which the pool would take for a result, and go on to the next piece of work.
    """
    # Where interrupts are ignored, as in a script's background, they are here, too.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def attempt(work: Callable[[Task], Result], task: Task) -> Result | PgearthError:
    """The result of one piece of work, or the PgearthError that it raised."""
    try:
        return work(task)
    except PgearthError as error:
        return error
