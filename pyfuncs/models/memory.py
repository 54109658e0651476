"""How a process that computes networks on the CPU keeps its memory, and what it says where a GPU has too little."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from pgearth.pyfuncs.errors import INSUFFICIENT_RESOURCES, PgearthError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
LARGEST_KEPT_ARRAY = 32 << 20  # what mallopt(3) allows
MOST_KEPT_MEMORY = 256 << 20


def keep_freed_memory() -> None:
    """Make malloc keep the arrays of a batch for the next one: to get new memory may take as long as to compute.

    glibc otherwise gives large arrays back to the system, or does not, as the order of requests happens to be. To be
    called before there is a thread that computes: memory that is a thread's own is given back as soon as it is free.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_ARRAY)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT_MEMORY)
        libc.mallopt(M_ARENA_MAX, 1)


@contextmanager
def memory_errors(hint: str) -> Iterator[None]:
    """Raise PgearthError, with this hint, where the memory of a GPU does not suffice."""
    import torch  # not before, for keep_freed_memory is called by those who have yet to set its variables

    try:
        yield
    except torch.OutOfMemoryError as error:
        # What follows is advice for programmers.
        message = str(error).partition(" If reserved but unallocated")[0]
        raise PgearthError(
            f"the GPU has too little memory: {message}", sqlstate=INSUFFICIENT_RESOURCES, hint=hint
        ) from error
