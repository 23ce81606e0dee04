"""Keeps planning on the CPU, whatever accelerators the machine has."""

from __future__ import annotations

import os


def hush_compilers() -> None:
    """Keeps the compilers' warnings off the terminal, such as that they could not save more memory. The receipt says
    what matters. Call it before JAX is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def plan_on_cpu() -> None:
    """Keeps JAX off this machine's accelerators, which someone may be training on, and hushes the compilers.

    Call it before JAX lists its devices.
    """
    hush_compilers()
    import jax

    jax.config.update("jax_platforms", "cpu")
