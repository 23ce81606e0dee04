"""Host memory that the CPU backend frees is kept by the process.

XLA allocates each step's buffers anew. By default glibc gives large blocks back to the kernel as soon as they are
freed, and the next step pays for every page again: a third of a small model's step.
"""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Tells glibc's malloc to keep what is freed. Does nothing where the C library is another one."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # One arena: those of other threads are too small for such blocks, and map them one by one after all.
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    libc.mallopt(_M_TOP_PAD, 2**28)
