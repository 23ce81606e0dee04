"""NVIDIA GPUs as XLA's CUDA compiler wants them described: GpuTargetConfigProto in text form.

Figures of the architecture (threads, registers, shared memory) are from the CUDA C++ Programming Guide's table of
compute capabilities, multiprocessors and clock from the product's data sheet; memory is the device table's.
"""

from __future__ import annotations

from gpt3_jax.devices import lookup

_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: 0 }}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_core}
  shared_memory_per_block_optin: {shared_block}
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{kind}"
"""

_HOPPER = {
    "major": 9,
    "shared_core": 233472,
    "shared_block": 232448,
    "cores": 132,
    "fpus": 128,
    "l2": 52428800,
    "clock": 1.98,
}
_AMPERE = {
    "major": 8,
    "shared_core": 167936,
    "shared_block": 166912,
    "cores": 108,
    "fpus": 64,
    "l2": 41943040,
    "clock": 1.41,
}


def _target(kind: str, **figures: float) -> str:
    device = lookup(kind)
    assert device is not None
    return _TARGET.format(**figures, bandwidth=int(device.hbm_bandwidth), memory=device.hbm_usable, kind=kind)


TARGETS: dict[str, str] = {
    "a100": _target("NVIDIA A100-SXM4-80GB", **_AMPERE),
    "h100": _target("NVIDIA H100 80GB HBM3", **_HOPPER),
    "h200": _target("NVIDIA H200", **_HOPPER),
}
"""By family; the kind becomes the devices' `device_kind`."""
