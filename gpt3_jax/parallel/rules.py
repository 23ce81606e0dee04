"""Logical axes to mesh axes, strictly: a dimension that its mesh axes do not divide is an error that names it.

Tensor parallelism shards `vocab`, `heads` and `mlp`. From stage 1 on, ZeRO shards each parameter's `zero_axis` over
`data` as well. A dimension sharded over both is split over tensor first, so that an all-gather over `data` gives one
contiguous tensor shard.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3_jax.errors import UserError
from gpt3_jax.parallel.mesh import BATCH_AXES, DATA, TENSOR, active_axes
from gpt3_jax.spec import LogicalAxis, Params, ParamSpec

TENSOR_RULES: dict[LogicalAxis, str | None] = {
    "layers": None,
    "vocab": TENSOR,
    "context": None,
    "model": None,
    "qkv": None,
    "heads": TENSOR,
    "mlp": TENSOR,
}


def partition(spec: ParamSpec, mesh: Mesh, *, zero: bool) -> PartitionSpec:
    """How one parameter is sharded over the mesh; with `zero`, its zero_axis over `data` too.

    Raises:
        UserError: a dimension that its mesh axes do not divide, with the numbers.
    """
    active = active_axes(mesh)
    entries: list[tuple[str, ...] | str | None] = []
    for dim, axis in zip(spec.shape, spec.axes, strict=True):
        names = [name for name in (TENSOR_RULES[axis], DATA if zero and axis == spec.zero_axis else None) if name]
        names = [name for name in names if name in active]
        parts = 1
        for name in names:
            parts *= mesh.shape[name]
        if dim % parts:
            raise UserError(
                f"dimension {axis} of size {dim} does not divide over mesh axes "
                f"{' × '.join(f'{name} {mesh.shape[name]}' for name in names)} = {parts}; choose axes that divide it "
                "(parallel.data, parallel.tensor), or spend the devices on parallel.replica"
            )
        entries.append(tuple(names) if len(names) > 1 else names[0] if names else None)
    return PartitionSpec(*entries)


def partitions(table: Params[ParamSpec], mesh: Mesh, *, zero: bool) -> Params[PartitionSpec]:
    """`partition` for a whole table."""
    return table.map(lambda spec: partition(spec, mesh, zero=zero))


def batch_partition(mesh: Mesh) -> PartitionSpec:
    """A batch of token rows: sharded over replica and data, the same on every tensor shard."""
    names = tuple(axis for axis in BATCH_AXES if axis in active_axes(mesh))
    return PartitionSpec(names or None)


def sharded_axes(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes that a PartitionSpec names."""
    return tuple(
        name for entry in spec if entry is not None for name in ((entry,) if isinstance(entry, str) else entry)
    )


def shardings(specs: Any, mesh: Mesh) -> Any:
    """NamedShardings in the structure of a pytree of PartitionSpecs."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
