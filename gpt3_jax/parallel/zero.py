"""ZeRO as the place where a gather stands (ZeRO sections 5 and 7; stages P_os, P_os+g, P_os+g+p).

Parameters, Adam moments and master weights live as fp32 shards over the `data` axis. A weight is used by casting its
shard to the compute dtype and gathering it; the transpose of that gather is the reduce-scatter that ZeRO needs. The
stages differ in where the gather stands:

======  ==========================================  ============================================
stage   weights are gathered                        gradients are
======  ==========================================  ============================================
0       never: everything is replicated             all-reduced once per step
1       once per step, outside the loss             reduce-scattered once per step
2       once per step, outside the loss             reduce-scattered per block, in the backward scan
3       per block, forward and again in backward    reduce-scattered per block, in the backward scan
======  ==========================================  ============================================

Everything here runs on one device's shards, inside the step's `jax.shard_map`. What is differentiated is typed as
varying over every axis, so autodiff reduces nothing by itself: `reduce` states every remaining reduction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.parallel.collectives import Local, reduction_dtype
from gpt3_jax.parallel.compiler_options import pads_scatters
from gpt3_jax.parallel.gather import Gather, Sharded, attach, collect, reduce_scatter, scatter, value
from gpt3_jax.parallel.mesh import DATA, TENSOR, active_axes, data_steps
from gpt3_jax.parallel.rules import partitions, sharded_axes

Tree = Any


def _bits(weight: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(weight, jnp.dtype(f"uint{8 * weight.dtype.itemsize}"))


class Zero:
    """One stage on one mesh, for one parameter table.

    Args:
        table: pytree of `ParamSpec` (a `Params`).
        compute: dtype of the weights in the forward pass.
        platform: platform that the step is compiled for.
        mlp_parts: parts that the blocks get their MLP's weights in (`model.mlp`); only at stage 3.

    Raises:
        UserError: a dimension that its mesh axes, or the parts, do not divide.
    """

    def __init__(
        self, table: Tree, mesh: Mesh, parallel: ParallelConfig, compute: str, platform: str, mlp_parts: int = 1
    ) -> None:
        active = active_axes(mesh)
        self.stage = parallel.stage
        self.local = Local(active, TENSOR if TENSOR in active else None, mesh.shape[TENSOR], platform)
        self.specs: Tree = partitions(table, mesh, zero=self.stage >= 1)
        """A PartitionSpec for each parameter, its gradient, moments and master weight."""
        if mlp_parts > 1:
            d_ff, shards = table.blocks.mlp_up_bias.shape[-1], mesh.shape[DATA] * mesh.shape[TENSOR]
            if d_ff // shards % mlp_parts:
                raise UserError(
                    f"memory.mlp_parts is {mlp_parts}, which does not divide a device's {d_ff // shards} of the MLP's "
                    f"{d_ff} hidden units (parallel.data × parallel.tensor = {shards}); take a divisor of "
                    f"{d_ff // shards}"
                )
        self._mlp_parts = mlp_parts
        self._table = table
        self._whole: Tree = partitions(table, mesh, zero=False)
        self._reduce = reduction_dtype(jnp.dtype(parallel.reduce_dtype), platform)
        axis = DATA if DATA in active and self.stage >= 1 else None
        steps = data_steps(mesh) if axis else ()
        self._gathers: Tree = jax.tree.map(
            lambda spec: Gather(
                spec.zero_dim,
                axis,
                jnp.dtype(compute),
                self._reduce,
                self.stage == 3,
                steps,
                tpu=platform == "tpu",
                apart=pads_scatters(mesh, parallel.overlap, columns=not spec.stacked and spec.zero_dim == 1),
                # One block's matrix, split along its inputs.
                kernel=spec.stacked and len(spec.shape) > 2 and spec.zero_dim == 0,
            ),
            table,
        )

    # -- before the loss -------------------------------------------------------------------------------------------

    def prepare(self, shards: Tree) -> tuple[Tree, Tree]:
        """From the master shards: what the loss is differentiated by, and what it needs besides."""
        shards = self.local.vary(shards)
        if self.stage <= 1:
            return jax.tree.map(self._gather_stack, self._table, self._gathers, shards), None
        targets = jax.tree.map(lambda shard, how: shard.astype(how.gradient), shards, self._gathers)
        if self.stage == 3:
            return targets, lax.stop_gradient(shards)
        return targets, jax.tree.map(self._gather_stack, self._table, self._gathers, shards)

    def _gather_stack(self, spec: Any, how: Gather, shard: jax.Array) -> jax.Array:
        if how.axis is None and self.stage <= 1:
            with jax.named_scope("gather_weights"):
                return shard.astype(how.compute)

        # Block by block: gathered whole, a stack would be gathered along its second dimension, and on GPU that costs
        # a transposed second copy of all the weights.
        def whole(shard: jax.Array) -> jax.Array:
            weight = collect(shard, how)
            if not (how.kernel and self.stage == 2):  # which is taken flat
                weight = weight.reshape(*weight.shape[: how.dim + 1], *shard.shape[how.dim + 1 :])
            # In here, block by block: a stack of one type would be copied into one of the other.
            return _bits(weight) if self.stage == 2 else weight

        return _each_block(spec, whole, shard)

    # -- within the loss -------------------------------------------------------------------------------------------

    def weights(self, active: Tree, passive: Tree) -> _Weights:
        """The weights as the forward pass asks for them (`model.transformer.Weights`)."""
        return _Weights(self.stage, active, passive, self._gathers, self._mlp_parts)

    # -- after the loss --------------------------------------------------------------------------------------------

    def reduce(self, gradients: Tree) -> Tree:
        """Gradients of `prepare`'s first result to fp32 shards of the sum over all devices."""
        return jax.tree.map(self._reduce_leaf, self._table, self._gathers, self.specs, gradients)

    @jax.named_scope("reduce_gradients")
    def _reduce_leaf(self, spec: Any, how: Gather, partition: PartitionSpec, gradient: jax.Array) -> jax.Array:
        # Not rounded to the compute dtype: summed over microbatches, it is in fp32.
        if self.stage == 1 and how.axis is None:
            gradient = reduce_scatter(gradient, how)
        elif self.stage == 1:
            gradient = _each_block(spec, functools.partial(reduce_scatter, how=how), gradient)
        # Over `data` the gradient is reduced by now (at stage 0 it is not, and data is missing from the partition);
        # what is left are plain sums: over replicas, and over tensor shards for what these hold in common.
        left = tuple(axis for axis in self.local.axes if axis not in sharded_axes(partition))
        if not left:
            return gradient.astype(jnp.float32)
        return lax.psum(gradient.astype(self._reduce), left).astype(jnp.float32)

    @jax.named_scope("clip")
    def square_norm(self, shards: Tree) -> jax.Array:
        """Sum of squares over a whole sharded tree, each element counted once."""
        by_axes: dict[tuple[str, ...], jax.Array] = {}
        specs = jax.tree.leaves(self.specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
        for partition, leaf in zip(specs, jax.tree.leaves(shards), strict=True):
            axes = sharded_axes(partition)
            by_axes[axes] = by_axes.get(axes, jnp.zeros((), jnp.float32)) + jnp.sum(jnp.square(leaf))
        return sum((lax.psum(total, axes) if axes else total for axes, total in by_axes.items()), jnp.zeros(()))


def _each_block(spec: Any, f: Any, leaf: jax.Array) -> jax.Array:
    result: jax.Array = lax.map(f, leaf) if spec.stacked else f(leaf)
    return result


class _Weights:
    """`model.transformer.Weights` for one stage, from what `Zero.prepare` gave."""

    def __init__(self, stage: int, active: Tree, passive: Tree, gathers: Tree, mlp_parts: int) -> None:
        self._stage, self._active, self._passive, self._gathers = stage, active, passive, gathers
        self._mlp_parts = mlp_parts

    def _open(self, active: Tree, passive: Tree, gathers: Tree) -> Tree:
        if self._stage <= 1:
            return active
        return jax.tree.map(attach, active, passive, gathers)

    @property
    def blocks(self) -> Tree:
        return self._active.blocks, self._passive.blocks if self._passive is not None else None

    @property
    def made_inside(self) -> bool:
        return self._stage >= 2

    def block(self, layer: Tree) -> Tree:
        active, passive = layer
        gathers = self._gathers.blocks
        if self._mlp_parts == 1:
            return self._open(active, passive, gathers)
        cuts = {
            "mlp_up_kernel": Sharded.column_parts,
            "mlp_up_bias": Sharded.row_parts,
            "mlp_down_kernel": Sharded.row_parts,
        }
        weights = {}
        for name, how in vars(gathers).items():
            leaves = getattr(active, name), getattr(passive, name), how
            weights[name] = cuts[name](Sharded(*leaves), self._mlp_parts) if name in cuts else attach(*leaves)
        return gathers.replace(**weights)

    def _top(self, *names: str) -> tuple[jax.Array, ...]:
        return tuple(
            self._open(
                getattr(self._active, name),
                getattr(self._passive, name) if self._passive is not None else None,
                getattr(self._gathers, name),
            )
            for name in names
        )

    def token_table(self) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
        how: Gather = self._gathers.token_embedding
        active = self._active.token_embedding
        if self._stage <= 1:
            return active, lax.stop_gradient(active), functools.partial(jnp.asarray, dtype=how.compute)
        return active, value(self._passive.token_embedding, how), functools.partial(scatter, how=how)

    def position_table(self) -> jax.Array:
        (table,) = self._top("position_embedding")
        return table

    def head(self, h: jax.Array, token_table_VD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale, bias = self._top("ln_f_scale", "ln_f_bias")
        if self._stage == 3:
            # The barrier ties the second gather to the blocks' result: without it the compiler would see the same
            # gather twice and hold the first through all the blocks.
            shard, _ = lax.optimization_barrier((self._passive.token_embedding, lax.stop_gradient(h)))
            token_table_VD = value(shard, self._gathers.token_embedding)
        return scale, bias, token_table_VD
