"""How the process gets its memory."""

import ctypes
import sys

# of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
LARGEST = 2**30  # bytes of a block that is kept
MOST_KEPT = 2**31 - 1  # bytes at the end of the heap, the largest number that the function takes


def keep_memory() -> None:
    """Let this process keep the memory that it frees, for what it needs next; on Linux with glibc.

    glibc gives each block of 32 MB or more back to the system, and the next one comes page by page, filled with zeros.
    On a CPU, a map of 50 MB costs more time to get than to compute. ``docs/performance.md`` has the figures.
    """
    if sys.platform != 'linux':
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, 'gnu_get_libc_version'):
        return
    if not libc.mallopt(M_MMAP_THRESHOLD, LARGEST):
        libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
