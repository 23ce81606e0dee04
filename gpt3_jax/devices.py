"""Peak arithmetic rates of the devices that training runs on. An unknown device has none: no MFU is ever guessed."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of device, as its maker's data sheet describes it."""

    name: str
    bf16_flops: float
    """Dense bf16 floating-point operations per second and device, without sparsity."""
    source: str


_CLOUD_TPU = "Cloud TPU documentation, system architecture"
_KNOWN = {
    "TPU v4": Device("TPU v4", 275e12, _CLOUD_TPU),
    "TPU v5 lite": Device("TPU v5e", 197e12, _CLOUD_TPU),
    "TPU v5": Device("TPU v5p", 459e12, _CLOUD_TPU),
    "TPU v5p": Device("TPU v5p", 459e12, _CLOUD_TPU),
    "TPU v6 lite": Device("TPU v6e", 918e12, _CLOUD_TPU),
    "NVIDIA H100 80GB HBM3": Device("H100 SXM", 989.4e12, "NVIDIA H100 data sheet, dense"),
    "NVIDIA H200": Device("H200 SXM", 989.4e12, "NVIDIA H200 data sheet, dense"),
}


def lookup(device_kind: str) -> Device | None:
    """The device with this `jax.Device.device_kind`, or None when it is not in the table."""
    return _KNOWN.get(device_kind)
