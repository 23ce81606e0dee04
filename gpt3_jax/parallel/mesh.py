"""The device mesh: the only place that names mesh axes.

``replica`` is plain data parallelism across slices or nodes, ``data`` is ZeRO's data parallelism, ``tensor`` is
Megatron's. Devices of one ``tensor`` group are the nearest neighbours, those of one ``replica`` group the farthest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices along each mesh axis, from the farthest neighbours to the nearest. The names of the fields are the names
    of the axes, here and in `config.ParallelConfig`."""

    replica: int = 1
    data: int = 1
    tensor: int = 1

    @classmethod
    def asked(cls, parallel: ParallelConfig) -> MeshShape:
        """As configured; `data` may be -1 (`ParallelConfig.data`)."""
        return cls(**{field.name: getattr(parallel, field.name) for field in dataclasses.fields(cls)})

    @property
    def sizes(self) -> tuple[int, ...]:
        """In the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def axes(self) -> dict[str, int]:
        """Sizes by name, in the order of `AXES`."""
        return dict(zip(AXES, self.sizes, strict=True))

    @property
    def devices(self) -> int:
        return math.prod(self.sizes)

    @property
    def batch_shards(self) -> int:
        """Number of parts that the rows of a batch are split into."""
        return math.prod(self.axes[axis] for axis in BATCH_AXES)

    def __str__(self) -> str:
        return " × ".join(f"{axis} {size}" for axis, size in self.axes.items())


AXES = REPLICA, DATA, TENSOR = tuple(field.name for field in dataclasses.fields(MeshShape))
BATCH_AXES = (REPLICA, DATA)
"""The axes that split the rows of a batch."""


def make_mesh(parallel: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run over all devices, its axes in the order of `AXES`.

    Raises:
        UserError: the axes do not multiply to the number of devices (no device is left out silently); or, on a
            multi-slice machine, `replica` is not a multiple of the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _shape(parallel, len(devices))
    slices = _tpu_slices(devices)
    if slices > 1:
        if shape.replica % slices:
            raise UserError(
                f"parallel.replica {shape.replica} is not a multiple of the machine's {slices} slices; ZeRO's gathers "
                f"stay inside a slice, set parallel.replica to {slices}"
            )
        inside, across = dataclasses.replace(shape, replica=shape.replica // slices), MeshShape(replica=slices)
        try:
            grid = mesh_utils.create_hybrid_device_mesh(
                inside.sizes, across.sizes, devices=devices, allow_split_physical_axes=True
            )
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"parallel.data {shape.data} × parallel.tensor {shape.tensor} cannot be laid on a slice of this "
                f"machine: {' '.join(str(error).split())[:200]}; choose others"
            ) from None
    else:
        if devices[0].platform != "tpu":
            # In the order of the nodes, so that a tensor group stays inside one.
            devices.sort(key=lambda device: (device.process_index, device.id))
        grid = mesh_utils.create_device_mesh(shape.sizes, devices=devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _tpu_slices(devices: Sequence[jax.Device]) -> int:
    """Slices of a TPU machine; 1 on others. GPUs have a slice_index too, which only counts nodes."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def mesh_platform(mesh: Mesh) -> str:
    """The platform of a mesh's devices: cpu, tpu, gpu, or rocm: AMD's GPUs, which JAX calls gpu too, have no cuDNN."""
    return device_platform(mesh.devices.flat[0])


def platform_of(tree: object) -> str:
    """The platform of the devices that hold a tree's arrays; where it has none (numpy arrays, or the arguments of a
    function that is being traced), that of JAX's default device."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            return device_platform(next(iter(leaf.devices())))
    default: Any = getattr(jax.config, "jax_default_device", None)  # a device, the name of a platform, or None
    return device_platform(default if isinstance(default, jax.Device) else jax.devices(default)[0])


def device_platform(device: jax.Device) -> str:
    """As `mesh_platform`, of one device."""
    platform: str = device.platform
    version = getattr(getattr(device, "client", None), "platform_version", "")
    return "rocm" if platform == "gpu" and "rocm" in version.lower() else platform


def _shape(parallel: ParallelConfig, n_devices: int) -> MeshShape:
    asked = MeshShape.asked(parallel)
    fixed = dataclasses.replace(asked, data=1)
    if asked.data == -1:
        if n_devices % fixed.devices:
            others = " × ".join(f"parallel.{axis} {getattr(fixed, axis)}" for axis in AXES if axis != DATA)
            raise UserError(
                f"{others} = {fixed.devices} does not divide the {n_devices} devices at hand; choose axes that do"
            )
        return dataclasses.replace(asked, data=n_devices // fixed.devices)
    if asked.devices != n_devices:
        raise UserError(
            f"mesh {asked} = {asked.devices} devices, but {n_devices} are at hand; set parallel.data to -1 to take "
            "what the others leave"
        )
    return asked


def active_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of more than one device. Only these appear in the step: no collective runs over a group of one."""
    return tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1)


def shape_of(mesh: Mesh) -> MeshShape:
    """The shape of a mesh that `make_mesh` made."""
    return MeshShape(**mesh.shape)


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that the rows of a batch are split into."""
    return shape_of(mesh).batch_shards


Groups = tuple[tuple[int, ...], ...]
"""Groups of indices along one mesh axis, as the collectives' `axis_index_groups` take them."""


def data_steps(mesh: Mesh) -> tuple[Groups, ...]:
    """The steps of an all-gather over `data`, in order; a reduce-scatter runs them backwards.

    Empty (one collective over the whole axis) except on a TPU torus. Over all chips of a plane or a cube, the TPU
    compiler has no all-gather and no reduce-scatter: it all-reduces the whole tensor, twice the bytes and the full size
    in memory. In two steps, along the last dimension of the torus and then across the others, each step is a ring.

    Only the first group of each step is checked. On a small slice whose mesh winds through the plane (v5e:4x4) other
    groups bend, and only some of the scatters stay scatters; that is still fewer bytes than in one step.
    """
    size = mesh.shape[DATA]
    if mesh_platform(mesh) != "tpu" or size < 4:
        return ()
    along = np.moveaxis(mesh.devices, AXES.index(DATA), 0).reshape(size, -1)[:, 0]
    coordinates = [tuple(device.coords) for device in along]
    moving = [len({one[i] for one in coordinates}) > 1 for i in range(len(coordinates[0]))]
    # The longest run of neighbours that differ from the first in one coordinate only.
    changed = [{i for i, (a, b) in enumerate(zip(one, coordinates[0], strict=True)) if a != b} for one in coordinates]
    inner = 1
    while inner < size and len(set().union(*changed[: inner + 1])) == 1:
        inner += 1
    if sum(moving) < 2 or inner == 1 or size % inner:
        return ()
    rows = tuple(tuple(range(first, first + inner)) for first in range(0, size, inner))
    return rows, tuple(zip(*rows, strict=True))
