"""Model FLOPs utilisation in several named conventions, relative to a named peak rate."""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh

from gpt3_jax import devices
from gpt3_jax.bench.timing import MATMUL_SIZE, matmul_rate
from gpt3_jax.parallel.mesh import mesh_platform
from gpt3_jax.plan.receipt import Flops

CONVENTIONS = {
    "6N": "6 per parameter and token (GPT-3 appendix D)",
    "6N + dense attention": "counting attention as dense and not causal, as most published figures do",
    "6N + visible attention": "counting attention as computed, causal and banded",
    "executed": "all executed matmuls, recomputation included (hardware utilisation, not MFU)",
}


@dataclasses.dataclass(frozen=True)
class Peak:
    """A rate that utilisation is relative to."""

    name: str
    flops: float
    """Floating-point operations per second of all the devices together."""


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """One convention relative to one peak."""

    convention: str
    peak: str
    share: float


def peaks(mesh: Mesh, dtype: str) -> tuple[list[Peak], str]:
    """The known peaks for matmuls in `dtype`, and a message if the device has none.

    On a CPU, the peak is the measured rate of a matmul, because the fake devices share one host.
    """
    device = mesh.devices.flat[0]
    known = devices.lookup(device.device_kind)
    rate = None if known is None else known.bf16_flops if dtype == "bfloat16" else known.fp32_flops
    found = []
    missing = ""
    if known is not None and rate is not None:
        found.append(Peak(f"{known.name}'s {dtype} peak × {mesh.size}", rate * mesh.size))
    elif known is not None:
        missing = f"no MFU is given: no document says what {known.name} reaches in {dtype}"
    else:
        missing = f"no MFU against a data sheet: the peak rate of this device, {device.device_kind!r}, is not known"
    if mesh_platform(mesh) == "cpu" and jax.process_count() == 1:
        short = "bf16" if dtype == "bfloat16" else "fp32"
        name = f"a {short} × {short} → fp32 matmul of {MATMUL_SIZE}³ on this CPU, measured now"
        found.append(Peak(name, matmul_rate(device, dtype)))
    return found, missing


def utilisations(flops: Flops, device_count: int, step_seconds: float, peaks: list[Peak]) -> list[Utilisation]:
    """Each convention's FLOPs of a step, divided by what each peak could compute in the step's time."""
    work = (flops.model, flops.model_dense, flops.model_visible, flops.device * device_count)
    return [
        Utilisation(convention, peak.name, amount / step_seconds / peak.flops)
        for peak in peaks
        for convention, amount in zip(CONVENTIONS, work, strict=True)
    ]
