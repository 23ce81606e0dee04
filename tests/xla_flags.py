"""XLA's flags in the tests: so many fake CPU devices, and compilation that takes little time."""

import os
from importlib.metadata import version

_FAST = "--xla_backend_optimization_level=0"
"""LLVM optimizes nothing: XLA's own program is the same, and most of a test's time would go into compiling what runs
for milliseconds."""
_FUSIONS = "xla_cpu_use_fusion_emitters"
_HAS_FUSIONS = version("jaxlib").startswith("0.10.")
"""Whether XLA's CPU compiler has its older way of writing fusions too, and other passes for it. 188 programs of the
generator's tests take 4.6 s to compile with it in place of 11 to 18. jaxlib 0.12 ends at the flag."""


def xla_flags(devices: int = 1, user: str = "") -> str:
    """What XLA_FLAGS is to be.

    Args:
        user: flags that win over the one for speed.
    """
    return f"{_FAST} {user} --xla_force_host_platform_device_count={devices}"


def start_jax() -> None:
    """Starts JAX with XLA_FLAGS and the older fusions.

    XLA reads its flags once. Afterwards that of the fusions is gone, as libtpu reads XLA_FLAGS when it is loaded, and
    ends at it.
    """
    if not _HAS_FUSIONS:
        return
    flags = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] = f"--{_FUSIONS}=false {flags}"
    import jax

    jax.numpy.zeros(1).block_until_ready()
    os.environ["XLA_FLAGS"] = flags


def user_fusions() -> dict[str, str | bool]:
    """Compiler options for a program as a user gets it, but for LLVM's optimizations: where its memory or its text is
    looked at, or the last bit of what it computes in two ways."""
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    return options | {_FUSIONS: True} if _HAS_FUSIONS else options
