"""Planning runs on the CPU, whatever the machine has."""

from __future__ import annotations

import os


def hush_compilers() -> None:
    """Keeps the compilers' warnings, such as that they could not save more memory, off the terminal: the receipt says
    what matters. To be called before JAX is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def plan_on_cpu() -> None:
    """Keeps JAX off this machine's accelerators, which somebody may be training on; and hushes the compilers.

    To be called before JAX lists its devices.
    """
    hush_compilers()
    import jax

    jax.config.update("jax_platforms", "cpu")
