"""Runs many pieces of work of one kind, in this process or in several: how loading, annotating and exporting scale.

A piece of work is a call of a module's function with one task (picklable, and naming all it needs: paths, options).
Each opens its own connection to the database, by the same settings as this process, and leaves behind either the
whole of its result or nothing; so a piece that was lost is simply run again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from loaders.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int = 1
) -> Iterator[tuple[Task, Result | InputError]]:
    """Do `work` for every task in at most `jobs` processes; yield each task with its result, as they are done.

    Bad input of one task (InputError) is yielded in place of its result, and the others go on; any other error ends
    the run. With one job, or one task, the work is done in this process.
    """
    if jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, attempt(work, task)
        return
    # Spawned, not forked: neither libpq's connections nor GDAL's threads survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        futures = {pool.submit(attempt, work, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def attempt(work: Callable[[Task], Result], task: Task) -> Result | InputError:
    """The result of one piece of work, or the InputError that it raised."""
    try:
        return work(task)
    except InputError as error:
        return error
