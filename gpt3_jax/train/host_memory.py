"""The host's memory: what becomes of what the CPU backend frees; how much a process has; what GPUs may keep there.

XLA allocates each step's temporary buffers anew, as one block. By default glibc gives large blocks back to the kernel
as soon as they are freed, and the next step pays for every page again: a third of a small model's step. So small blocks
are kept.

A large one must not be. Kept in the heap, it fits its old place only as long as nothing has settled beside it: XLA asks
for aligned memory, glibc cuts what it took for that off the end, and a small object that lives long takes the cutting.
Then the block gets a new place, the old one stays resident, and a process grows by a step's memory every few steps (and
that step pays for its pages after all). Blocks that no thread's arena holds are therefore mapped by themselves.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import jax

from gpt3_jax.config import Config

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
_NEVER = -1  # a threshold, which is an int here, would be passed by 2 GiB that are free
_ARENA_BYTES = 60e6
"""What an arena of one thread holds at most (glibc's HEAP_MAX_SIZE, 64 MiB), with a margin."""
_LARGEST_THRESHOLD = 2**25
"""The highest M_MMAP_THRESHOLD that glibc before 2.35 takes."""
_BYTES_KEPT = 135.0
"""Per token, layer and unit of width, in fp32; measured on the small shipped models (129 and 137)."""


def keep_freed_memory(largest_block: float) -> None:
    """Tells glibc's malloc to keep what is freed, but for blocks of 60 MB and more where there are such. Does nothing
    where the C library is another one.

    To be called before JAX starts its threads.

    Args:
        largest_block: about how many bytes XLA will ask for at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_M_TOP_PAD, 2**28)
    if largest_block <= _ARENA_BYTES:
        libc.mallopt(_M_MMAP_MAX, 0)
    elif not libc.mallopt(_M_MMAP_THRESHOLD, int(_ARENA_BYTES)):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)


def resident() -> int | None:
    """Bytes of this process that are in memory now; None where the system does not say (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def peak_resident() -> int:
    """The most bytes of this process that were in memory at once, since it began."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def predicted_peak(programs: Iterable[jax.stages.Compiled], devices: int) -> int | None:
    """The process's peak once these programs have run on the CPU backend, with their arguments in memory already: what
    is resident now, and what the largest of them takes besides, on each of the process's `devices`. Bytes."""
    now = resident()
    if now is None:
        return None
    memory = [program.memory_analysis() for program in programs]
    more = [m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes for m in memory if m is not None]
    return max(peak_resident(), now + devices * max(more, default=0))


def step_bytes(config: Config) -> float:
    """Bytes that one pass of the step keeps for its backward pass, roughly, and at most: on one device, no remat."""
    model, batch = config.model, config.train.batch_tokens
    tokens = min(batch, config.memory.microbatch * model.n_ctx or batch)
    return _BYTES_KEPT * tokens * model.n_layers * model.d_model
