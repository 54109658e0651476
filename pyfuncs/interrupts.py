"""Long computations that can be cancelled: PostgreSQL looks for a cancel between its own steps only."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import cache
from threading import Event, Thread
from typing import TypeVar

SECONDS_BETWEEN_PAUSES = 0.05
SECONDS_TO_STOP = 0.5
"""How long a computation that nobody waits for any longer may take to end before the call does without it."""

Result = TypeVar("Result")

_running: dict[Thread, Callable[[], object]] = {}
"""Threads at work, and what makes each end early."""


class StoppedError(Exception):
    """Nobody waits for the result any longer."""


def interruptibly(
    compute: Callable[[Callable[[], None]], Result],
    pause: Callable[[], object],
    stop: Callable[[], object] = lambda: None,
) -> Result:
    """What `compute` returns, or raises, computed in a thread of its own; meanwhile `pause` is called now and then.

    What `pause` raises ends the waiting. The thread goes on, for nothing, to its end or to where `compute` calls what
    it is given, which then raises StoppedError, or to where `stop` ends it. It must not talk to the database.
    """
    future: Future[Result] = Future()
    stopped = Event()

    def check() -> None:
        if stopped.is_set():
            raise StoppedError

    def run() -> None:
        try:
            future.set_result(compute(check))
        except BaseException as error:
            future.set_exception(error)
        finally:
            _running.pop(thread, None)

    _wait_at_exit()
    thread = Thread(target=run, name="pgearth", daemon=True)
    _running[thread] = stop
    # Signals are for the thread that talks to the database: threads that are started now inherit that they wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        while not wait([future], SECONDS_BETWEEN_PAUSES).done:
            pause()
    except BaseException:
        stopped.set()
        stop()
        wait([future], SECONDS_TO_STOP)
        raise
    return future.result()


@cache
def _wait_at_exit() -> None:
    """Have a server process wait for its threads before it ends.

    What libraries tidy up then, such as OpenBLAS its own threads, waits forever for one that is at work, or takes away
    what it works with. The interpreter of a server process is not finalised, so Python's atexit would do nothing.
    """
    if "plpy" in sys.modules:
        ctypes.CDLL(None)["__cxa_atexit"](_wait_for_threads, None, None)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _wait_for_threads(_: int | None) -> None:
    for thread, stop in list(_running.items()):
        stop()
        thread.join()
