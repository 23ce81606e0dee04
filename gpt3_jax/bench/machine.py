"""The machine that is measured: devices, host, software versions and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from gpt3_jax import __version__, devices
from gpt3_jax.errors import UserError
from gpt3_jax.plan import receipt
from gpt3_jax.train.host_memory import peak_resident


def describe(used: Sequence[jax.Device]) -> dict[str, Any]:
    """Devices, host and versions, as JSON."""
    first = used[0]
    known = devices.lookup(first.device_kind)
    everywhere = ("jax", "jaxlib", "flax", "optax")
    versions = receipt.versions(first.platform)
    return {
        "platform": first.platform,
        "device_kind": first.device_kind,
        "device": known.name if known else None,
        "devices": len(used),
        "processes": jax.process_count(),
        "host": _processor(),
        "host_cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "gpt3-jax": __version__,
            **{k: v for k, v in versions.items() if k != "gpt3-jax" and (first.platform != "cpu" or k in everywhere)},
        },
    }


def capacity(device: jax.Device) -> int | None:
    """Bytes that this process can use on the device: the backend's figure, else the device table's. On CPU, the host's
    available memory divided among the fake devices. None if unknown."""
    if device.process_index != jax.process_index():  # only local devices report statistics; assume the others are alike
        device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform == "cpu":
        left = _host_left()
        return left // jax.local_device_count() if left is not None else None
    known = devices.lookup(device.device_kind)
    return known.hbm_usable if known else None


def require_memory(size: float, what: str, instead: str) -> None:
    """Raises UserError if the host has less than `size` bytes available for `what`. `instead` is the advice given."""
    left = _host_left()
    if left is not None and size > left:
        raise UserError(
            f"{what} need {size / 2**30:,.1f} GiB and {left / 2**30:,.1f} GiB of memory are left; {instead}"
        )


def peak_memory(device: jax.Device, compiled: int | None) -> dict[str, int]:
    """Peak memory in bytes, by source: the device's own statistics if there are any, else the size of the compiled
    program and, on CPU, the process's peak.

    Args:
        compiled: see `program.bytes_on_device`; None if no single program is measured.
    """
    found: dict[str, int] = {}
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        found["device, peak_bytes_in_use since the process began"] = int(stats["peak_bytes_in_use"])
    elif compiled is not None:
        found["compiled program, one device"] = compiled
    if device.platform == "cpu":
        found["process, peak resident set"] = peak_resident()
    return found


def _host_left() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
