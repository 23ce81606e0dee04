"""Planning runs on the CPU, whatever the machine has: to be called before JAX is imported."""

from __future__ import annotations

import os


def plan_on_cpu() -> None:
    """Keeps JAX off this machine's accelerators, which somebody may be training on, and the compilers' warnings, such
    as that they could not save more memory, off the terminal: the receipt says what matters."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_platforms", "cpu")
