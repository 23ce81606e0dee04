"""How a weight's bytes travel over the data axis: in its all-gather, and in its gradient's reduce-scatter.

=============  =====================================================================================================
none           one device on the axis, or stage 0: nothing travels
ring           one collective over the whole axis
torus          on a TPU torus, two collectives one after the other, each along rings of its own (`mesh.data_steps`)
… by device    the reduce-scatter (of a ring or a torus) splits a dimension of its own that counts the devices, for a
               compiler that pads what it splits: there is nothing to pad (`compiler_options.pads_scatters`)
=============  =====================================================================================================

All of them give the same values; a sum in two steps may round differently. At the end stands what a TPU's compiler has
to be told about shards: its backend would otherwise copy the stack of all blocks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from gpt3_jax.parallel.compiler_options import pads_scatters
from gpt3_jax.parallel.mesh import DATA, Groups, active_axes, data_steps, mesh_platform
from gpt3_jax.spec import ParamSpec


@dataclasses.dataclass(frozen=True)
class Transport:
    """The transport of one weight."""

    axis: str | None
    """The data axis, or None where nothing travels."""
    steps: tuple[Groups, ...] = ()
    """Of a torus: the groups of devices of each step, the gather's first one first. Empty: one ring."""
    by_device: bool = False
    tpu: bool = False
    """Whether the program is compiled for a TPU."""

    @property
    def name(self) -> str:
        if self.axis is None:
            return "none"
        return ("torus" if self.steps else "ring") + (" by device" if self.by_device else "")

    def all_gather(self, shard: jax.Array, dim: int) -> jax.Array:
        """The shards of all N devices of the axis along dimension `dim`: [..., R, ...] to [..., N × R, ...]."""
        if self.axis is None:
            return shard
        for groups in self.steps or (None,):
            shard = lax.all_gather(shard, self.axis, axis=dim, tiled=True, axis_index_groups=groups)
        return shard

    def reduce_scatter(self, summand: jax.Array, dim: int) -> jax.Array:
        """The sum over the axis, of which each device gets its shard: [..., N × R, ...] to [..., R, ...]. A torus takes
        the steps of a gather backwards."""
        if self.axis is None:
            return summand
        dims = summand.shape
        for groups in reversed(self.steps or (None,)):
            if self.by_device:
                devices = len(groups[0]) if groups else lax.axis_size(self.axis)
                summand = summand.reshape(*summand.shape[:dim], devices, -1, *summand.shape[dim + 1 :])
            summand = lax.psum_scatter(
                summand, self.axis, scatter_dimension=dim, tiled=not self.by_device, axis_index_groups=groups
            )
        return summand.reshape(*dims[:dim], -1, *dims[dim + 1 :])

    # -- what a TPU's compiler has to be told ------------------------------------------------------------------------

    def cast(self, shard: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The shard in `dtype`."""
        if self.tpu and dtype == jnp.bfloat16:
            # Rounded first, to the same value. A bare cast of one block's slice becomes a slice of the cast stack,
            # which is then there in both dtypes.
            shard = lax.reduce_precision(shard, 8, 7)
        return shard.astype(dtype)

    def stored(self, shard: jax.Array) -> jax.Array:
        """The shard, pinned to the layout that the training state has it in. Left to choose, the compiler copies the
        stack of all blocks into the layout that suits a single gather, padded."""
        if not self.tpu or shard.ndim != 3:
            return shard
        # The short dimension of three in front, so that the other two fill whole tiles.
        pinned: jax.Array = with_layout_constraint(shard, Layout((1, 0, 2)))
        return pinned

    def row_major(self, matrix: jax.Array) -> jax.Array:
        """A matrix, pinned to rows in front: the layout that the training state has it in."""
        if not self.tpu or matrix.ndim != 2:
            return matrix
        pinned: jax.Array = with_layout_constraint(matrix, Layout((0, 1)))
        return pinned


def choose(spec: ParamSpec, mesh: Mesh, *, sharded: bool, overlap: bool) -> Transport:
    """The transport of one parameter.

    Args:
        sharded: whether the stage shards parameters over the data axis.
        overlap: whether the step is compiled with `compiler_options`.
    """
    axis = DATA if sharded and DATA in active_axes(mesh) else None
    # The token table's second dimension is sharded, and few columns are left to a device.
    by_columns = not spec.stacked and spec.zero_dim == 1
    return Transport(
        axis,
        data_steps(mesh) if axis else (),
        by_device=pads_scatters(mesh, overlap, columns=by_columns),
        tpu=mesh_platform(mesh) == "tpu",
    )
