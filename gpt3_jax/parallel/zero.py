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

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from gpt3_jax.config import ParallelConfig
from gpt3_jax.parallel.collectives import Local, reduction_dtype
from gpt3_jax.parallel.mesh import DATA, TENSOR, active_axes
from gpt3_jax.parallel.rules import partitions, sharded_axes

Tree = Any


@dataclasses.dataclass(frozen=True)
class Gather:
    """How one weight is gathered, and its gradient scattered."""

    dim: int
    """Dimension of one block's tensor that the data axis shards."""
    axis: str | None
    """The data axis, or None where nothing is sharded."""
    compute: jnp.dtype
    reduce: jnp.dtype


def _collect(shard: jax.Array, how: Gather) -> jax.Array:
    weight = shard.astype(how.compute)
    return lax.all_gather(weight, how.axis, axis=how.dim, tiled=True) if how.axis else weight


def _scatter(gradient: jax.Array, how: Gather) -> jax.Array:
    if how.axis is None:
        return gradient.astype(jnp.float32)
    summed = lax.psum_scatter(gradient.astype(how.reduce), how.axis, scatter_dimension=how.dim, tiled=True)
    return summed.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(shard: jax.Array, how: Gather) -> jax.Array:
    """fp32 shard to whole weight in the compute dtype; backward, the reduce-scatter of its gradient."""
    return _collect(shard, how)


gather.defvjp(lambda shard, how: (_collect(shard, how), None), lambda how, _, ct: (_scatter(ct, how),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def attach(shard: jax.Array, bits: jax.Array, how: Gather) -> jax.Array:
    """Stage 2: a weight gathered before, whose gradient goes, reduce-scattered, to its shard.

    The weight comes as the integers of its bits: an integer has no tangent, so the scan over the blocks does not
    build a full-size zero gradient for the stack of gathered weights.
    """
    return lax.bitcast_convert_type(bits, how.compute)


attach.defvjp(
    lambda shard, bits, how: (lax.bitcast_convert_type(bits, how.compute), None),
    lambda how, _, ct: (_scatter(ct, how), None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gather_again(shard: jax.Array, first: jax.Array, how: Gather) -> jax.Array:
    """Stage 3: a second gather of a weight that was dropped since its `first`, before the gradient's one reduction.

    Backward, the gradient joins that of `first`, so that the weight is reduce-scattered once, not twice.
    """
    return _collect(shard, how)


gather_again.defvjp(
    lambda shard, first, how: (_collect(shard, how), shard),
    lambda how, shard, ct: (jnp.zeros_like(shard), ct),
)


def _bits(weight: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(weight, jnp.dtype(f"uint{8 * weight.dtype.itemsize}"))


class Zero:
    """One stage on one mesh, for one parameter table.

    Args:
        table: pytree of `ParamSpec` (a `Params`).
        compute: dtype of the weights in the forward pass.
        platform: platform that the step is compiled for.
    """

    def __init__(self, table: Tree, mesh: Mesh, parallel: ParallelConfig, compute: str, platform: str) -> None:
        active = active_axes(mesh)
        self.stage = parallel.stage
        self.local = Local(active, TENSOR if TENSOR in active else None, mesh.shape[TENSOR], platform)
        self.specs: Tree = partitions(table, mesh, zero=self.stage >= 1)
        """A PartitionSpec for each parameter, its gradient, moments and master weight."""
        self._table = table
        self._whole: Tree = partitions(table, mesh, zero=False)
        self._reduce = reduction_dtype(jnp.dtype(parallel.reduce_dtype), platform)
        axis = DATA if DATA in active and self.stage >= 1 else None
        self._gathers: Tree = jax.tree.map(
            lambda spec: Gather(spec.zero_dim, axis, jnp.dtype(compute), self._reduce), table
        )

    # -- before the loss -------------------------------------------------------------------------------------------

    def prepare(self, shards: Tree) -> tuple[Tree, Tree]:
        """From the master shards: what the loss is differentiated by, and what it needs besides."""
        shards = self.local.vary(shards)
        if self.stage == 3:
            return shards, None
        weights = jax.tree.map(self._gather_stack, self._table, self._gathers, shards)
        return (shards, jax.tree.map(_bits, weights)) if self.stage == 2 else (weights, None)

    def _gather_stack(self, spec: Any, how: Gather, shard: jax.Array) -> jax.Array:
        # Block by block: gathered whole, a stack would be gathered along its second dimension, and on GPU that costs
        # a transposed second copy of all the weights.
        return _each_block(spec, functools.partial(_collect, how=how), shard)

    # -- within the loss -------------------------------------------------------------------------------------------

    def weights(self, active: Tree, passive: Tree) -> _Weights:
        """The weights as the forward pass asks for them (`model.transformer.Weights`)."""
        return _Weights(self.stage, active, passive, self._gathers)

    # -- after the loss --------------------------------------------------------------------------------------------

    def reduce(self, gradients: Tree) -> Tree:
        """Gradients of `prepare`'s first result to fp32 shards of the sum over all devices."""
        return jax.tree.map(self._reduce_leaf, self._table, self._gathers, self.specs, gradients)

    def _reduce_leaf(self, spec: Any, how: Gather, partition: PartitionSpec, gradient: jax.Array) -> jax.Array:
        if self.stage == 1:
            gradient = _each_block(spec, functools.partial(_scatter, how=how), gradient)
        # Over `data` the gradient is reduced by now (at stage 0 it is not, and data is missing from the partition);
        # what is left are plain sums: over replicas, and over tensor shards for what these hold in common.
        left = tuple(axis for axis in self.local.axes if axis not in sharded_axes(partition))
        if not left:
            return gradient.astype(jnp.float32)
        return lax.psum(gradient.astype(self._reduce), left).astype(jnp.float32)

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

    def __init__(self, stage: int, active: Tree, passive: Tree, gathers: Tree) -> None:
        self._stage, self._active, self._passive, self._gathers = stage, active, passive, gathers

    def _open(self, active: Tree, passive: Tree, gathers: Tree) -> Tree:
        if self._stage <= 1:
            return active
        if self._stage == 2:
            return jax.tree.map(attach, active, passive, gathers)
        return jax.tree.map(gather, active, gathers)

    @property
    def blocks(self) -> Tree:
        return (self._active.blocks, self._passive.blocks) if self._stage == 2 else (self._active.blocks, None)

    @property
    def made_inside(self) -> bool:
        return self._stage >= 2

    def block(self, layer: Tree) -> Tree:
        active, passive = layer
        return self._open(active, passive, self._gathers.blocks)

    def _top(self, *names: str) -> tuple[jax.Array, ...]:
        return tuple(
            self._open(
                getattr(self._active, name),
                getattr(self._passive, name) if self._passive is not None else None,
                getattr(self._gathers, name),
            )
            for name in names
        )

    def embeddings(self) -> tuple[jax.Array, jax.Array]:
        token, position = self._top("token_embedding", "position_embedding")
        return token, position

    def head(self, h: jax.Array, token_embedding: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale, bias = self._top("ln_f_scale", "ln_f_bias")
        if self._stage == 3:
            # The barrier ties the second gather to the blocks' result: without it the compiler would see the same
            # gather twice and hold the first through all the blocks.
            shard, _ = lax.optimization_barrier((self._active.token_embedding, h))
            token_embedding = gather_again(shard, token_embedding, self._gathers.token_embedding)
        return scale, bias, token_embedding
