"""NVIDIA GPUs as XLA's CUDA compiler wants them described: GpuTargetConfigProto in text form.

Figures of the architecture (threads, registers, shared memory) are from the CUDA C++ Programming Guide's table of
compute capabilities, those of the product (memory, bandwidth, multiprocessors, clock) from its data sheet.
"""

from __future__ import annotations

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

TARGETS: dict[str, str] = {
    "a100": _TARGET.format(
        major=8,
        shared_core=167936,
        shared_block=166912,
        cores=108,
        fpus=64,
        l2=41943040,
        clock=1.41,
        bandwidth=2_039_000_000_000,
        memory=85_899_345_920,
        kind="NVIDIA A100-SXM4-80GB",
    ),
    "h100": _TARGET.format(
        **_HOPPER, bandwidth=3_350_000_000_000, memory=85_899_345_920, kind="NVIDIA H100 80GB HBM3"
    ),
    "h200": _TARGET.format(**_HOPPER, bandwidth=4_800_000_000_000, memory=151_397_597_184, kind="NVIDIA H200"),
}
"""By family; `device_description_str` becomes the devices' `device_kind`."""
