"""Long computations that can be cancelled: PostgreSQL looks for a cancel between its own steps only."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Event, Thread
from typing import TypeVar

SECONDS_BETWEEN_PAUSES = 0.05

Result = TypeVar("Result")


class StoppedError(Exception):
    """Nobody waits for the result any longer."""


def interruptibly(compute: Callable[[Callable[[], None]], Result], pause: Callable[[], object]) -> Result:
    """What `compute` returns, or raises, computed in a thread of its own; meanwhile `pause` is called now and then.

    What `pause` raises ends the waiting. The thread goes on, for nothing, to its end or to where `compute` calls what
    it is given, which then raises StoppedError. It must not talk to the database.
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

    # Signals are for the thread that talks to the database: threads that are started now inherit that they wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        Thread(target=run, name="pgearth", daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        while not wait([future], SECONDS_BETWEEN_PAUSES).done:
            pause()
    finally:
        stopped.set()
    return future.result()
