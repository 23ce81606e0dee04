"""What a device's compiler is told beside its defaults, so that traffic runs beside compute.

All of these change when and by what something runs: the same sums, perhaps in another order. They are options of XLA's
backends, not promises: a test asks each installed compiler whether it still knows them. What they gain is read from the
compiled schedule (`gpt3-jax plan`, with ``--parallel.overlap false`` beside it); none of it was timed on the hardware.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from gpt3_jax.parallel.mesh import device_platform, mesh_platform

Options = dict[str, bool | int]

_GPU: Options = {
    # By default one collective at a time is under way: a gather over the network then waits for those inside the node.
    "xla_gpu_experimental_parallel_collective_overlap_limit": 2,
}
_GATHERS: Options = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": True,
}
_SCATTERS: Options = {"xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True}
_TPU: Mapping[str, Options] = {
    # Left alone, the compiler splits no collective of these: the chip waits for each. Their sparse cores can run them.
    "TPU v5": _GATHERS | _SCATTERS,  # v5p, as JAX names it
    "TPU v6 lite": _GATHERS | _SCATTERS,
}
"""By kind of device. A v5e has no sparse core; its compiler hides gathers in matmuls by itself."""


def compiler_options(mesh: Mesh) -> Options:
    """Options for a step on this mesh; none for a device that nothing is known of, and on one device."""
    return {} if mesh.size == 1 else _options(mesh.devices.flat[0])


def _options(device: jax.Device) -> Options:
    if device.platform == "tpu":
        return dict(_TPU.get(device.device_kind, {}))
    return dict(_GPU) if device_platform(device) == "gpu" else {}


def overlaps_scatters(device: jax.Device) -> bool:
    """Whether the compiler runs reduce-scatters beside compute, given `compiler_options`: on GPUs, and on TPUs with a
    sparse core. On a v5e each one is waited for, whatever the options."""
    return device_platform(device) == "gpu" or _SCATTERS.items() <= _options(device).items()


def pads_scatters(mesh: Mesh, overlap: bool, columns: bool = False) -> bool:
    """Whether the compiler pads what a reduce-scatter splits: each device is then left with others' rows and sends them
    on, or everything is reduced everywhere. A TPU's does; of rows, not where a sparse core runs it.

    Args:
        overlap: whether the step is compiled with `compiler_options`.
        columns: whether the last dimension is split: a device's part of it may be no whole tile of 128.
    """
    options = compiler_options(mesh) if overlap else {}
    return mesh_platform(mesh) == "tpu" and (columns or not _SCATTERS.items() <= options.items())
