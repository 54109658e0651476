"""Long computations are waited for in such a way that the waiting can end."""

from __future__ import annotations

import signal
import threading

import pytest

from pgearth.pyfuncs.interrupts import StoppedError, interruptibly


class CancelledError(Exception):
    pass


def test_results_and_errors_come_through() -> None:
    assert interruptibly(lambda _: 42, lambda: None) == 42
    with pytest.raises(ZeroDivisionError):
        interruptibly(lambda _: 1 / 0, lambda: None)
    with pytest.raises(TimeoutError):  # of the computation, not of the waiting for it
        interruptibly(lambda _: raise_timeout(), lambda: None)


def raise_timeout() -> None:
    raise TimeoutError


def test_what_pause_raises_ends_the_waiting_and_the_work() -> None:
    ended = threading.Event()
    pauses = iter([None, None, CancelledError()])

    def compute(check: object) -> None:
        try:
            while True:
                check()  # type: ignore[operator]
        except StoppedError:
            ended.set()
            raise

    def pause() -> None:
        if error := next(pauses):
            raise error

    with pytest.raises(CancelledError):
        interruptibly(compute, pause)
    assert ended.wait(10)


def test_signals_are_left_to_the_thread_that_waits() -> None:
    here = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    there = interruptibly(lambda _: signal.pthread_sigmask(signal.SIG_BLOCK, []), lambda: None)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1} <= there
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == here
