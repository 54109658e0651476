"""How a process that computes networks on the CPU keeps its memory."""

import ctypes
import platform

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
