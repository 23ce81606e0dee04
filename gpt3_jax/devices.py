"""Published properties of training devices. Training, benchmarks and plans share this table.

Each figure names the document that states it. A device that is not in the table has no figures: MFU and plans are never
guessed. GB is 1e9 bytes where the source writes GB and 2**30 where it writes GiB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

XLA_GPU_FRACTION = 0.92
"""Fraction of a GPU's memory that XLA should use for programs. The driver, NCCL and cuDNN need the rest. The scripts in
launch/ set it through `XLA_GPU_FRACTION_VARIABLE`."""
XLA_GPU_FRACTION_DEFAULT = 0.75
"""XLA's default fraction (JAX's documentation, GPU memory allocation)."""
XLA_GPU_FRACTION_VARIABLE = "XLA_CLIENT_MEM_FRACTION"
"""Environment variable. Its older name, XLA_PYTHON_CLIENT_MEM_FRACTION, still works, but not both together."""
XLA_HOST_LIMIT_DEFAULT = 64
"""Default limit, in GiB, of the host memory that XLA pins for a process with GPUs (XLA's GPU client)."""
XLA_HOST_LIMIT_VARIABLE = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"
"""Environment variable that sets this limit."""

_GIB = 2**30
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Links:
    """The fast links of a device: to its neighbours on a torus (ICI), or through a switch to its node (NVLink)."""

    kind: Literal["ICI", "NVLink"]
    bandwidth: float
    """Bytes per second of one link in one direction."""
    per_device: int
    """Links of one device."""
    torus_dims: int
    """Dimensions of the torus, each with two links per device; 0 for a switch that connects all links."""
    wrap_multiple: int = 0
    """If an extent of the torus is a multiple of this, it wraps around to a ring. Others are lines, with half the
    bandwidth."""
    node_devices: int = 0
    """Devices behind one switch; 0 if the links span the whole slice."""

    @property
    def device_bandwidth(self) -> float:
        """Bytes per second that a device can send over all its links together."""
        return self.bandwidth * self.per_device


@dataclasses.dataclass(frozen=True)
class Device:
    """One `jax.Device` of a kind, as public documents describe it."""

    name: str
    family: Literal["TPU", "Ampere", "Hopper"]
    """Devices of one family reach a similar fraction of their peak."""
    bf16_flops: float
    """Dense bf16 floating-point operations per second, without sparsity."""
    fp32_flops: float | None
    """fp32 operations per second without reduced-precision passes (no TF32); None if no document states it."""
    hbm_bytes: int
    """Capacity according to the data sheet."""
    hbm_usable: int
    """Bytes available to a program. TPU: the limit above which its compiler refuses a program, which needs no device to
    measure. GPU: the total that the driver reports, of which XLA uses the fraction `XLA_GPU_FRACTION`."""
    hbm_bandwidth: float
    """Bytes per second."""
    links: Links
    network: float
    """Bytes per second and device, in one direction, to other nodes or slices."""
    host_link: float | None
    """Bytes per second and device, in one direction, to the host's memory; None if no document states it."""
    sources: Mapping[str, str] = dataclasses.field(compare=False, repr=False)
    """For each figure above, the document that states it."""


_TPU_DOC = "Google Cloud documentation, page {}"
_ISCA = "Jouppi et al., TPU v4 (ISCA 2023), table 4"
_BOOK = "Austin et al., How to Scale Your Model (2025), chapter 2"
_REFUSAL = "libtpu 0.0.52: available HBM in its refusal (E1000) of a program that is too large"
_DGX_H100 = "NVIDIA DGX BasePOD reference architecture, DGX H200 and H100: eight ConnectX-7 of 400 Gb/s for eight GPUs"


def _tpu(page: str, **others: str) -> Mapping[str, str]:
    figures = ("bf16_flops", "hbm_bytes", "hbm_bandwidth", "links", "network")
    return MappingProxyType(dict.fromkeys(figures, _TPU_DOC.format(page)) | {"hbm_usable": _REFUSAL} | others)


def _gpu(sheet: str, driver: str, network: str) -> Mapping[str, str]:
    figures = ("bf16_flops", "fp32_flops", "hbm_bytes", "hbm_bandwidth", "links", "host_link")
    return MappingProxyType(dict.fromkeys(figures, sheet) | {"hbm_usable": f"nvidia-smi, {driver}", "network": network})


_V4 = Device(
    name="TPU v4",
    family="TPU",
    bf16_flops=275e12,
    fp32_flops=None,
    hbm_bytes=32 * _GIB,
    hbm_usable=int(30.5 * _GIB),
    hbm_bandwidth=1200e9,
    links=Links("ICI", 50e9, 6, torus_dims=3, wrap_multiple=4),
    network=6.25e9,
    host_link=16e9,
    sources=_tpu(
        "TPU v4",
        links=_ISCA,
        network=_BOOK,
        host_link=_BOOK,
        hbm_usable=f"{_REFUSAL}: 15.25 GiB for each of a chip's two cores",
    ),
)
_V5E = Device(
    name="TPU v5e",
    family="TPU",
    bf16_flops=197e12,
    fp32_flops=None,
    hbm_bytes=16 * 10**9,
    hbm_usable=int(15.75 * _GIB),
    hbm_bandwidth=819e9,
    links=Links("ICI", 50e9, 4, torus_dims=2, wrap_multiple=16),
    network=3.125e9,
    host_link=15e9,
    sources=_tpu("TPU v5e", host_link=_BOOK, network=_TPU_DOC.format("TPU v5e: 2 × 100 Gb/s for a host of 8 chips")),
)
_V5P = Device(
    name="TPU v5p",
    family="TPU",
    bf16_flops=459e12,
    fp32_flops=None,
    hbm_bytes=95 * _GIB,
    hbm_usable=int(95.73 * _GIB),
    hbm_bandwidth=2765e9,
    links=Links("ICI", 100e9, 6, torus_dims=3, wrap_multiple=4),
    network=6.25e9,
    host_link=15e9,
    sources=_tpu("TPU v5p", host_link=_BOOK),
)
_V6E = Device(
    name="TPU v6e",
    family="TPU",
    bf16_flops=918e12,
    fp32_flops=None,
    hbm_bytes=32 * 10**9,
    hbm_usable=int(31.24 * _GIB),
    hbm_bandwidth=1638e9,
    links=Links("ICI", 100e9, 4, torus_dims=2, wrap_multiple=16),
    network=12.5e9,
    host_link=32e9,
    sources=_tpu("TPU v6e", host_link=_BOOK, network=_TPU_DOC.format("TPU v6e: 4 × 200 Gb/s for a host of 8 chips")),
)
# JAX shows a TPU7x chip as two devices, one for each chiplet. They share the chip's links and network, so each has half
# of the chip's figures.
_TPU7X = Device(
    name="TPU7x",
    family="TPU",
    bf16_flops=2307e12 / 2,
    fp32_flops=None,
    hbm_bytes=192 * _GIB // 2,
    hbm_usable=int(94.74 * _GIB),
    hbm_bandwidth=7380e9 / 2,
    links=Links("ICI", 100e9 / 2, 6, torus_dims=3, wrap_multiple=4),
    network=12.5e9 / 2,
    host_link=None,
    sources=_tpu("TPU7x (Ironwood)"),
)
_A100 = Device(
    name="A100 SXM 80GB",
    family="Ampere",
    bf16_flops=312e12,
    fp32_flops=19.5e12,
    hbm_bytes=80 * 10**9,
    hbm_usable=81920 * _MIB,
    hbm_bandwidth=2039e9,
    links=Links("NVLink", 25e9, 12, torus_dims=0, node_devices=8),
    network=25e9,
    host_link=32e9,
    sources=_gpu(
        "NVIDIA A100 data sheet",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA DGX A100: eight ConnectX-6 of 200 Gb/s for eight GPUs (recalled, not looked up)",
    ),
)
_H100 = Device(
    name="H100 SXM",
    family="Hopper",
    bf16_flops=989.4e12,
    fp32_flops=66.9e12,
    hbm_bytes=80 * 10**9,
    hbm_usable=81559 * _MIB,
    hbm_bandwidth=3350e9,
    links=Links("NVLink", 25e9, 18, torus_dims=0, node_devices=8),
    network=50e9,
    host_link=64e9,
    sources=_gpu("NVIDIA H100 data sheet, dense", "NVIDIA H100 80GB HBM3", _DGX_H100),
)
_H200 = dataclasses.replace(
    _H100,
    name="H200 SXM",
    hbm_bytes=141 * 10**9,
    hbm_usable=143771 * _MIB,
    hbm_bandwidth=4800e9,
    sources=_gpu("NVIDIA H200 data sheet, dense", "NVIDIA H200", _DGX_H100),
)

_KNOWN = {
    "TPU v4": _V4,
    "TPU v5 lite": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU7x": _TPU7X,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H200": _H200,
}


def lookup(device_kind: str) -> Device | None:
    """The device with this `jax.Device.device_kind`, or None if it is not in the table.

    A TPU v4 is the whole chip, as jobs see it. A topology that is compiled for without the hardware lists its two cores
    as two devices of the same kind, each with half of these figures.
    """
    return _KNOWN.get(device_kind)


def known() -> dict[str, Device]:
    """The table: devices by their `jax.Device.device_kind`. Some devices have two kinds."""
    return dict(_KNOWN)
