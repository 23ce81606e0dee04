"""The device mesh: the only place that names mesh axes.

``replica`` is plain data parallelism across slices or nodes, ``data`` is ZeRO's data parallelism, ``tensor`` is
Megatron's. Devices of one ``tensor`` group are the nearest neighbours, those of one ``replica`` group the farthest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError

REPLICA, DATA, TENSOR = "replica", "data", "tensor"
AXES = (REPLICA, DATA, TENSOR)
BATCH_AXES = (REPLICA, DATA)
"""The axes that split the rows of a batch."""


def make_mesh(parallel: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over all devices, with the axes `AXES` in this order.

    Raises:
        UserError: the axes do not multiply to the number of devices (no device is ever left out silently), or a
            multi-slice machine whose slices the replica axis does not divide into.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _shape(parallel, len(devices))
    slices = _tpu_slices(devices)
    if slices > 1:
        replica, data, tensor = shape
        if replica % slices:
            raise UserError(
                f"parallel.replica {replica} is not a multiple of the machine's {slices} slices; ZeRO's gathers stay "
                f"inside a slice, set parallel.replica to {slices}"
            )
        try:
            grid = mesh_utils.create_hybrid_device_mesh(
                (replica // slices, data, tensor), (slices, 1, 1), devices=devices, allow_split_physical_axes=True
            )
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"parallel.data {data} × parallel.tensor {tensor} cannot be laid on a slice of this machine: "
                f"{' '.join(str(error).split())[:200]}; choose others"
            ) from None
    else:
        if devices[0].platform != "tpu":
            # In the order of the nodes, so that a tensor group stays inside one.
            devices.sort(key=lambda device: (device.process_index, device.id))
        grid = mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _tpu_slices(devices: Sequence[jax.Device]) -> int:
    """Slices of a TPU machine. GPUs bear a slice_index too, one for each node, but no network boundary of a slice."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def mesh_platform(mesh: Mesh) -> str:
    """The platform of a mesh's devices: cpu, tpu, gpu, or rocm: AMD's GPUs, which JAX calls gpu too, have no cuDNN."""
    return _platform(mesh.devices.flat[0])


def platform_of(tree: Any) -> str:
    """The platform of the devices that hold a tree's arrays; where it has none (numpy arrays, or the arguments of a
    function that is being traced), that of JAX's default device."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            return _platform(next(iter(leaf.devices())))
    default: Any = getattr(jax.config, "jax_default_device", None)  # a device, the name of a platform, or None
    return _platform(default if isinstance(default, jax.Device) else jax.devices(default)[0])


def _platform(device: jax.Device) -> str:
    platform: str = device.platform
    version = getattr(getattr(device, "client", None), "platform_version", "")
    return "rocm" if platform == "gpu" and "rocm" in version.lower() else platform


def _shape(parallel: ParallelConfig, n_devices: int) -> tuple[int, int, int]:
    fixed = parallel.replica * parallel.tensor
    data = parallel.data
    if data == -1:
        if n_devices % fixed:
            raise UserError(
                f"parallel.replica {parallel.replica} × parallel.tensor {parallel.tensor} = {fixed} does not divide "
                f"the {n_devices} devices at hand; choose axes that do"
            )
        data = n_devices // fixed
    shape = (parallel.replica, data, parallel.tensor)
    if math.prod(shape) != n_devices:
        raise UserError(
            f"mesh replica {shape[0]} × data {shape[1]} × tensor {shape[2]} = {math.prod(shape)} devices, but "
            f"{n_devices} are at hand; set parallel.data to -1 to take what the others leave"
        )
    return shape


def active_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of more than one device. Only these appear in the step: no collective over a group of one."""
    return tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


Groups = tuple[tuple[int, ...], ...]
"""Groups of indices along one mesh axis, as the collectives' `axis_index_groups` take them."""


def data_steps(mesh: Mesh) -> tuple[Groups, ...]:
    """The steps in which a gather over `data` runs, innermost first; a reduce-scatter takes them backwards.

    None (one collective over the whole axis) but on a TPU torus: over all chips of a plane or a cube its compiler has
    no gather and no scatter, and takes all-reduces of the whole tensor instead, twice the bytes and the full size in
    memory. In two steps, along the last dimension of the torus and across the others, each has its own ring.

    Only the first group of each step is looked at. On a small slice whose mesh winds through the plane (v5e:4x4) others
    bend, and only some of the scatters stay scatters; that is still fewer bytes than in one step.
    """
    size = mesh.shape[DATA]
    if mesh_platform(mesh) != "tpu" or size < 4:
        return ()
    coordinates = [tuple(device.coords) for device in mesh.devices[0, :, 0]]
    moving = [len({one[i] for one in coordinates}) > 1 for i in range(len(coordinates[0]))]
    # The run of neighbours that differ from the first in one coordinate.
    changed = [{i for i, (a, b) in enumerate(zip(one, coordinates[0], strict=True)) if a != b} for one in coordinates]
    inner = 1
    while inner < size and len(set().union(*changed[: inner + 1])) == 1:
        inner += 1
    if sum(moving) < 2 or inner == 1 or size % inner:
        return ()
    rows = tuple(tuple(range(first, first + inner)) for first in range(0, size, inner))
    return rows, tuple(zip(*rows, strict=True))
