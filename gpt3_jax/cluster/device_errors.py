"""Turns XLA's errors about devices, compilers and other processes into one line for the user."""

from __future__ import annotations

import jax

from gpt3_jax.devices import XLA_HOST_LIMIT_DEFAULT, XLA_HOST_LIMIT_VARIABLE


def device_error(error: jax.errors.JaxRuntimeError) -> str | None:
    """The line for an error of the devices or of other processes; None for an error that needs a traceback."""
    if line := refused_option(error) or pinned_memory_is_full(error):
        return line
    why = " ".join(str(error).split())[:300]
    if out_of_memory(error):
        return (
            f"out of memory on a device: {why}; lower memory.microbatch, raise parallel.stage, spread the model over "
            "more devices (parallel.data, parallel.tensor), or set memory.remat to full or offload"
        )
    gone = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "gloo", "Connection", "heartbeat", "NCCL")
    if jax.process_count() > 1 and any(sign in why for sign in gone):
        return f"process {jax.process_index()} lost the connection to another process, which has probably ended: {why}"
    return None


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device or a compiler ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


def refused_option(error: Exception) -> str:
    """The line for a compiler that does not know one of the options; empty for any other error."""
    why = " ".join(str(error).split())
    if "No such compile option" not in why:
        return ""
    return f"the compiler does not know an option that this version sets ({why[:200]}); set parallel.overlap to false"


def pinned_memory_is_full(error: Exception) -> str:
    """The line for XLA's error that its limit on host memory is reached (`memory.remat: offload` on GPUs); empty for
    any other error."""
    why = " ".join(str(error).split())
    if XLA_HOST_LIMIT_VARIABLE not in why:
        return ""
    return (
        f"XLA's limit on host memory is reached: {why[:200]}; set {XLA_HOST_LIMIT_VARIABLE} above "
        f"{XLA_HOST_LIMIT_DEFAULT} (GiB) if the machine has more, or memory.remat to full"
    )
