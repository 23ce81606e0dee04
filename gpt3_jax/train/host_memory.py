"""Host memory: how glibc reuses what the CPU backend frees, how much a process uses, and what GPUs may pin.

XLA allocates each step's temporary buffers anew, as one block. By default glibc returns large blocks to the kernel when
they are freed, and the next step pays for every page fault again: a third of a small model's step. So freed memory is
kept (`keep_freed_memory`).

A block in a new place costs that step its page faults after all, and the old place stays resident. Two things move it:

* Dispatched ahead, as JAX does, a step may allocate its block before another thread has freed the last one. So
  training runs its steps in the thread that calls them (`run_in_turn`).
* A small long-lived object takes a part of the place while it is free, or the few bytes that glibc splits off behind
  an aligned block.

So what is left of compiling is returned to the kernel before the first step (`give_back`), and free pages again
whenever the process grows (`hooks/host_memory.py`). Large blocks are in huge pages (`_in_huge_pages`).
Mapping large blocks separately instead avoids the growth and makes every step pay: half as much again for the
quickstart.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import jax

from gpt3_jax.config import Config

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h
_NEVER = -1  # any int threshold would be exceeded by 2 GiB of free memory
_HUGE_PAGE = 2**21
_ARENA_BYTES = 60e6
"""Maximum size of one thread's arena (glibc's HEAP_MAX_SIZE, 64 MiB), with a margin."""
_BYTES_KEPT = 125.0
"""Bytes per token, layer and unit of width, in fp32: near what the small shipped models take (shakespeare: 113)."""


def keep_freed_memory(largest_block: float) -> None:
    """Makes glibc's malloc keep freed memory. Does nothing with another C library.

    Call before JAX starts its threads.

    Args:
        largest_block: about how many bytes XLA will allocate at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_M_TOP_PAD, 2**28)
    if largest_block > _ARENA_BYTES:
        # A thread's own arena cannot hold the block, and glibc would map it after all. One arena for all threads can,
        # but they wait for one another there, which small steps feel most.
        libc.mallopt(_M_ARENA_MAX, 1)
        _in_huge_pages(int(largest_block))


def give_back(next_block: int = 0) -> None:
    """Returns free pages of glibc's heap to the kernel. What is in use, such as a running step's buffers, stays. Does
    nothing with another C library.

    Args:
        next_block: bytes that will be allocated at once from now on. A large block will be in huge pages.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
        if next_block > _ARENA_BYTES:
            _in_huge_pages(next_block)


def _in_huge_pages(size: int) -> None:
    """Asks the kernel for huge pages where the next block of so many bytes will be: by default Linux uses them only
    where it is asked to. A step reads its memory more than once, from one end to the other, and finds pages faster if
    they are few."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if block := libc.malloc(size):
        # Whole pages inside of the block, of which no byte is touched. A kernel without huge pages refuses, and then
        # nothing is lost.
        first = -(-block // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(first, max(0, block + size - first) // _HUGE_PAGE * _HUGE_PAGE, mmap.MADV_HUGEPAGE)
        libc.free(block)


def run_in_turn() -> None:
    """Makes the CPU backend run a program in the thread that calls it, until its memory is free again. Call before
    JAX's devices start; it changes nothing where they have."""
    with contextlib.suppress(AttributeError):  # an option that a later JAX may no longer have
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def temporary_bytes(programs: Iterable[jax.stages.Compiled]) -> int:
    """Bytes that the largest of these programs allocates in this process while it runs, on all its devices."""
    memory = [program.memory_analysis() for program in programs]
    more = [m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes for m in memory if m is not None]
    return jax.local_device_count() * max(more, default=0)


def resident() -> int | None:
    """Resident bytes of this process; None where the system does not report them (not Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def peak_resident() -> int:
    """Peak resident bytes of this process since it started."""
    try:
        # getrusage counts what the parent had in memory when it forked.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def predicted_peak(temporary: int) -> int | None:
    """The process's peak memory, in bytes, after programs have run whose arguments are in memory and of which the
    largest allocates `temporary` bytes; None where the system does not report what is resident."""
    now = resident()
    return None if now is None else max(peak_resident(), now + temporary)


def step_bytes(config: Config) -> float:
    """Upper estimate of the bytes that one forward pass keeps for its backward pass, on one device without remat."""
    model, batch = config.model, config.train.batch_tokens
    tokens = min(batch, config.memory.microbatch * model.n_ctx or batch)
    return _BYTES_KEPT * tokens * model.n_layers * model.d_model
