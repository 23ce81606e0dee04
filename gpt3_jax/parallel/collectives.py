"""The collectives of tensor parallelism, and the dtype that reductions may use on this backend.

Inside the step's `jax.shard_map` every array is a device's own shard. `Local` says which mesh axes exist there. Without
axes (one device, or a plain call of the model) each operation is the identity.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from gpt3_jax.parallel.mesh import TENSOR, active_axes, mesh_platform

Tree = TypeVar("Tree")


def reduction_dtype(wanted: jnp.dtype, platform: str) -> jnp.dtype:
    """The dtype to reduce in: `wanted`, but fp32 on CPU, whose compiler aborts on a bf16 reduction."""
    return jnp.dtype(jnp.float32) if platform == "cpu" else jnp.dtype(wanted)


@dataclasses.dataclass(frozen=True)
class Local:
    """What one device's code knows of the mesh."""

    platform: str
    """Platform that the program is compiled for (`mesh.mesh_platform`)."""
    axes: tuple[str, ...] = ()
    """The axes of more than one device. Values that differ between devices are typed as varying over them."""
    tensor: str | None = None
    """The tensor axis, or None when it has one device."""
    tensor_size: int = 1
    rings: bool = False
    """Whether tensor shards gather and scatter the sequence by pieces, in rings (`parallel.rings`)."""

    @classmethod
    def of(cls, mesh: Mesh, rings: bool = False) -> Local:
        """What the code of each device of this mesh knows."""
        active = active_axes(mesh)
        tensor = TENSOR if TENSOR in active else None
        return cls(mesh_platform(mesh), active, tensor, mesh.shape[TENSOR], rings and tensor is not None)

    def vary(self, tree: Tree) -> Tree:
        """Types replicated values as varying over all axes, so that autodiff leaves their gradients unreduced."""
        return jax.tree.map(lambda leaf: vary(leaf, self.axes), tree)

    def tensor_index(self) -> jax.Array | int:
        return lax.axis_index(self.tensor) if self.tensor else 0

    def vary_batch(self, x: jax.Array) -> jax.Array:
        """Types `x` as varying over every axis but tensor."""
        return vary(x, tuple(axis for axis in self.axes if axis != self.tensor))

    def sum_tensor(self, x: jax.Array) -> jax.Array:
        """Sum over tensor shards; the same on each of them, and typed so."""
        return lax.psum(x, self.tensor) if self.tensor else x

    def max_tensor(self, x: jax.Array) -> jax.Array:
        """Maximum over tensor shards; the same on each of them, and typed so."""
        return lax.pmax(x, self.tensor) if self.tensor else x

    def sum_partials(self, x: jax.Array) -> jax.Array:
        """All-reduces partial sums, the result of a row-parallel matmul, over tensor shards; in the dtype of `x`."""
        if self.tensor is None:
            return x
        return self.sum_tensor(x.astype(reduction_dtype(x.dtype, self.platform))).astype(x.dtype)

    def gather_columns(self, x: jax.Array) -> jax.Array:
        """All-gathers the last dimension over tensor shards; the same on each of them, and typed so."""
        return lax.all_gather(x, self.tensor, axis=x.ndim - 1, tiled=True, to="invarying") if self.tensor else x

    def gather_rows(self, x: jax.Array) -> jax.Array:
        """All-gathers the first dimension over every axis but tensor; the same on each device, and typed so."""
        axes = tuple(axis for axis in self.axes if axis != self.tensor)
        return lax.all_gather(x, axes, axis=0, tiled=True, to="invarying") if axes else x

    def gather_sequence(self, x_BSD: jax.Array, length: int) -> jax.Array:
        """All-gathers the residual stream: its shard [1, B × T / tensor, D] to whole rows of `length` positions,
        [B, T, D], before a column-parallel matmul. The derivative is `scatter_sequence`."""
        if self.tensor is None:
            return x_BSD
        whole = _gather(x_BSD, self.tensor, reduction_dtype(x_BSD.dtype, self.platform))
        return whole.reshape(-1, length, x_BSD.shape[-1])

    def scatter_sequence(self, x_BTD: jax.Array) -> jax.Array:
        """Reduce-scatters partial sums [B, T, D], the result of a row-parallel matmul: the sum's shard
        [1, B × T / tensor, D].

        Rows and positions are flattened to [B × T] and that is sharded, not each row: the collectives then run along
        the leading dimension, and no device has to transpose what they move.
        """
        if self.tensor is None:
            return x_BTD
        as_one = x_BTD.reshape(1, -1, x_BTD.shape[-1])
        return _scatter(as_one, self.tensor, reduction_dtype(x_BTD.dtype, self.platform))


def vary(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """`x` typed as varying over `axes`; those over which it varies already are left as they are."""
    missing = tuple(axis for axis in axes if axis not in jax.typeof(x).manual_axis_type.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


def _all_gather(x: jax.Array, axis: str) -> jax.Array:
    return lax.all_gather(x, axis, axis=1, tiled=True)


def _reduce_scatter(x: jax.Array, axis: str, dtype: jnp.dtype) -> jax.Array:
    return lax.psum_scatter(x.astype(dtype), axis, scatter_dimension=1, tiled=True).astype(x.dtype)


# Custom derivatives only for the dtypes: autodiff would carry the fp32 of a CPU reduction into the all-gather of the
# other direction, twice the bytes.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, axis: str, dtype: jnp.dtype) -> jax.Array:
    return _all_gather(x, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _scatter(x: jax.Array, axis: str, dtype: jnp.dtype) -> jax.Array:
    return _reduce_scatter(x, axis, dtype)


_gather.defvjp(
    lambda x, axis, dtype: (_all_gather(x, axis), None),
    lambda axis, dtype, _, ct: (_reduce_scatter(ct, axis, dtype),),
)
_scatter.defvjp(
    lambda x, axis, dtype: (_reduce_scatter(x, axis, dtype), None),
    lambda axis, dtype, _, ct: (_all_gather(ct, axis),),
)
