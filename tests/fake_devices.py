"""XLA's flags in the tests' processes: so many fake CPU devices, and compilation that takes little time."""

from importlib.metadata import version

# LLVM optimizes nothing: XLA's own program is the same, and most of a test's time would go into compiling what runs for
# milliseconds. Nor does MLIR write the fusions: without it 188 programs of the generator's tests took 4.6 s of
# compilation in place of 11 to 18. jaxlib 0.12 no longer has that choice, and ends at a flag that it does not know.
_FAST = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    _FAST.append("--xla_cpu_use_fusion_emitters=false")


def xla_flags(devices: int = 1, user: str = "") -> str:
    """What XLA_FLAGS is to be.

    Args:
        user: flags that win over those for speed.
    """
    return " ".join([*_FAST, user, f"--xla_force_host_platform_device_count={devices}"])
