"""Runs pieces of work in this process, or in several of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from time import sleep

from pgearth.loaders.work.task import Result, Task, attempt
from pgearth.pyfuncs.errors import PgearthError


def run_here(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Result | PgearthError]]:
    """Do `work` for every task in `jobs` processes; yield each task with its result, as they are done.

    With one job, or one task, the work is done in this process.
    """
    if jobs == 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, attempt(work, task)
        return
    # Spawned, not forked: neither libpq's connections nor GDAL's threads survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context, initializer=end_quietly) as pool:
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
            # Waited for: Python's own clean-up at exit else meets the pool's thread that is about to end.
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def end_quietly() -> None:
    """Let a process of the pool end at once, without a traceback, when the command is interrupted or gone.

    Not by an exception, which the pool would take for a result, and go on to the next piece of work.
    """
    threading.Thread(target=end_with_command, daemon=True).start()
    # Where interrupts are ignored, as in a script's background, they are here, too.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def end_with_command() -> None:
    """End this process when the command is gone, however that was: the pipe that it waits on has other writers."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()
    os._exit(1)
