"""The host's memory: what the CPU backend frees is kept by the process.

XLA allocates each step's buffers anew. By default glibc gives large blocks back to the kernel as soon as they are
freed, and the next step pays for every page again: a third of a small model's step.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import jax

from gpt3_jax.config import Config

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h
_NEVER = -1  # a threshold, which is an int here, would be passed by 2 GiB that are free
_ACCELERATOR_NODES = ("nvidia[0-9]*", "dxg", "kfd", "accel*", "vfio/[0-9]*")
_ARENA_BYTES = 60e6
"""What an arena of one thread holds at most (glibc's HEAP_MAX_SIZE, 64 MiB), with a margin."""
_BYTES_KEPT = 135.0
"""Per token, layer and unit of width, in fp32; measured on the small shipped models (129 and 137)."""


def cpu_only() -> bool:
    """Whether JAX will run on the CPU here, told without starting it: no accelerator is asked for, or none is there."""
    asked = getattr(jax.config, "jax_platforms", None)  # the flag or its variable; not in JAX's type stubs
    if asked:
        return bool(asked == "cpu")
    if not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None:
        return True
    # A plugin without a device may be there to plan with.
    return not any(any(Path("/dev").glob(node)) for node in _ACCELERATOR_NODES)


def keep_freed_memory(largest_block: float) -> None:
    """Tells glibc's malloc to keep what is freed. Does nothing where the C library is another one.

    To be called before JAX starts its threads.

    Args:
        largest_block: about how many bytes XLA will ask for at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_M_TOP_PAD, 2**28)
    if largest_block > _ARENA_BYTES:
        # A thread's own arena cannot hold it: glibc would map and unmap it after all. One arena for all can; but
        # threads wait for one another there, which a small step feels more than anything else.
        libc.mallopt(_M_ARENA_MAX, 1)


def step_bytes(config: Config) -> float:
    """Bytes that one pass of the step keeps for its backward pass, roughly, and at most: on one device, no remat."""
    model, batch = config.model, config.train.batch_tokens
    tokens = min(batch, config.memory.microbatch * model.n_ctx or batch)
    return _BYTES_KEPT * tokens * model.n_layers * model.d_model
