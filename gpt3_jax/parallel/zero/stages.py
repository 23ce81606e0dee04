"""ZeRO as the place where a gather stands (ZeRO sections 5 and 7; stages P_os, P_os+g, P_os+g+p).

Parameters, Adam moments and master weights live as fp32 shards over the `data` axis, N devices. A weight is used by
casting its shard to the compute dtype and all-gathering it; the derivative of that gather is the reduce-scatter that
ZeRO needs. The stages differ in where the gather stands. What a device sends over `data` in a step, for a weight of Ψ
elements (on a tensor shard) and M microbatches; c and r are the bytes of an element in the compute dtype, `model.dtype`
(default bfloat16), and in the reduce dtype, `parallel.reduce_dtype` (default float32):

=====  ===================================================  ======================================================
stage  weights, in the compute dtype                        gradients, in the reduce dtype
=====  ===================================================  ======================================================
0      every device holds all of them: nothing              all-reduced once a step, after the loss:
                                                            2 (N-1)/N r Ψ
1      all-gathered once a step, ahead of the loss:         summed over microbatches whole, in fp32;
       (N-1)/N c Ψ                                          reduce-scattered once a step, after the loss:
                                                            (N-1)/N r Ψ
2      as stage 1: (N-1)/N c Ψ                              reduce-scattered in each microbatch's backward pass,
                                                            as soon as they are made: M (N-1)/N r Ψ; the shards
                                                            are summed over microbatches in fp32
3      all-gathered in each microbatch, inside the block,   as stage 2: M (N-1)/N r Ψ
       forward, and again backward where the value is
       needed there: 2 M (N-1)/N c Ψ. The token table
       twice forward: for the look-up and for the output.
       Where the loop over depth gathers a block ahead      Where it reduces them a block late, one block's more
       (`zero.depth`), one block's more
=====  ===================================================  ======================================================

For example stage 2 with 3 microbatches and the default dtypes: one all-gather of each weight, 2 (N-1)/N Ψ bytes, and
three reduce-scatters of its gradient, 12 (N-1)/N Ψ bytes.

Then, at every stage, once a step and in the reduce dtype, sums that are left are all-reduced: over `replica` of shards,
and over `tensor` of the gradients of parameters that tensor shards hold in common (LayerNorms, two biases a block,
positions). Loss and gradient norm are all-reduced as scalars. A gradient is rounded to the compute dtype before it is
reduced, except one summed over several microbatches (stages 0 and 1). On CPU gradients are reduced in fp32 whatever the
setting (`collectives.reduction_dtype`).

Everything here runs on one device's shards, inside the step's `jax.shard_map`. What is differentiated is typed as
varying over every axis, so autodiff reduces nothing by itself: `Weight` and `Zero.reduce` state every reduction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.parallel import rings
from gpt3_jax.parallel.collectives import Local, reduction_dtype
from gpt3_jax.parallel.mesh import DATA, TENSOR
from gpt3_jax.parallel.rules import partitions, sharded_axes
from gpt3_jax.parallel.zero import transport
from gpt3_jax.parallel.zero.weight import Gather, Kind, Weight
from gpt3_jax.spec import Params, ParamSpec


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the table."""

    sharded: bool
    """Whether parameters, moments and reduced gradients are shards over `data`."""
    gathered: Literal["ahead", "inside"]
    """Where weights are gathered: ahead of the loss, once a step; or inside the loss, in each block."""
    reduced: Literal["after", "inside"]
    """Where gradients are reduced over `data`: after the loss, once a step; or inside it, as they are made."""


STAGES = {
    0: Stage(sharded=False, gathered="ahead", reduced="after"),
    1: Stage(sharded=True, gathered="ahead", reduced="after"),
    2: Stage(sharded=True, gathered="ahead", reduced="inside"),
    3: Stage(sharded=True, gathered="inside", reduced="inside"),
}


def parameter_partitions(table: Params[ParamSpec], mesh: Mesh, stage: int) -> Params[PartitionSpec]:
    """How each parameter, its gradient, moments and master weight lie on the mesh.

    Raises:
        UserError: a dimension that its mesh axes do not divide.
    """
    return partitions(table, mesh, zero=STAGES[stage].sharded)


class Zero:
    """One stage on one mesh, for one parameter table.

    Args:
        compute: dtype of the weights in the forward pass.
        mlp_parts: parts in which the blocks get their MLP's weights (`model.mlp`); only at stage 3.
        blocks: the kind of the blocks' weights; None: the stage's. `loop` only at stage 3 without parts, `layers` only
            at stages 0 and 1 on one device.

    Raises:
        UserError: a dimension that its mesh axes, or the parts, do not divide.
    """

    def __init__(
        self,
        table: Params[ParamSpec],
        mesh: Mesh,
        parallel: ParallelConfig,
        compute: str,
        mlp_parts: int = 1,
        blocks: Kind | None = None,
    ) -> None:
        self.local = Local.of(mesh, rings.chosen(parallel))
        self.specs = parameter_partitions(table, mesh, parallel.stage)
        if mlp_parts > 1:
            _check_parts(table, mesh, mlp_parts)
        self._table = table
        self._stage = stage = STAGES[parallel.stage]
        self._reduce = reduction_dtype(jnp.dtype(parallel.reduce_dtype), self.local.platform)
        self._parts = mlp_parts
        self._blocks: Kind = blocks or stage.gathered

        def gather(spec: ParamSpec) -> Gather:
            how = transport.choose(spec, mesh, sharded=stage.sharded, overlap=parallel.overlap)
            return Gather(spec.zero_dim, jnp.dtype(compute), self._reduce, how)

        self._gathers = table.map(gather)

    # -- before the loss -------------------------------------------------------------------------------------------

    def prepare(self, shards: Params[jax.Array]) -> tuple[Params[jax.Array], Params[jax.Array] | None]:
        """From the master shards, the `targets` and the `sources` of the weights: the loss is differentiated with
        respect to the targets (`Weight`)."""
        shards = self.local.vary(shards)
        if self._stage.reduced == "after":
            return self._table.map(self._gather_ahead, self._gathers, shards), None
        targets = shards.map(lambda shard, how: shard.astype(how.gradient), self._gathers)
        if self._stage.gathered == "inside":
            return targets, lax.stop_gradient(shards)
        return targets, self._table.map(self._gather_ahead, self._gathers, shards)

    def _gather_ahead(self, spec: ParamSpec, how: Gather, shard: jax.Array) -> jax.Array:
        whole_gradient = self._stage.reduced == "after"
        if spec.stacked and self._blocks == "layers":
            return shard
        if how.transport.axis is None and whole_gradient:
            with jax.named_scope("gather_weights"):
                return shard.astype(how.compute)

        def gather(shard: jax.Array) -> jax.Array:
            weight = how.all_gather(shard)
            if whole_gradient:
                return weight.reshape(*weight.shape[: how.dim + 1], *shard.shape[how.dim + 1 :])
            # To integers in here, block by block: a stack of one dtype would be copied into one of the other.
            return lax.bitcast_convert_type(weight, jnp.dtype(f"uint{8 * weight.dtype.itemsize}"))

        # Block by block: gathered at once, a stack would be gathered along its second dimension, and on GPU that costs
        # a transposed second copy of all the weights.
        return _each_block(spec, gather, shard)

    # -- within the loss -------------------------------------------------------------------------------------------

    def weights(self, targets: Params[jax.Array], sources: Params[jax.Array] | None) -> Params[Weight]:
        """The weights as the model gets them, from what `prepare` gave."""

        def weight(spec: ParamSpec, how: Gather, target: jax.Array, source: jax.Array | None = None) -> Weight:
            parts = self._parts if "mlp" in spec.axes else 1
            kind: Kind = "parts" if parts > 1 else self._blocks if spec.stacked else self._stage.gathered
            return Weight(target, source, how, kind, parts)

        return self._table.map(weight, self._gathers, targets, *([] if sources is None else [sources]))

    # -- after the loss --------------------------------------------------------------------------------------------

    def reduce(self, gradients: Params[jax.Array]) -> Params[jax.Array]:
        """Gradients of the targets to fp32 shards of the sum over all devices."""
        return self._table.map(self._reduce_leaf, self._gathers, self.specs, gradients)

    @jax.named_scope("reduce_gradients")
    def _reduce_leaf(self, spec: ParamSpec, how: Gather, partition: PartitionSpec, gradient: jax.Array) -> jax.Array:
        if self._stage.sharded and self._stage.reduced == "after":
            # Not rounded to the compute dtype: summed over microbatches, it is in fp32.
            reduce = how.reduce_scatter
            gradient = _each_block(spec, reduce, gradient) if how.transport.axis else reduce(gradient)
        # What is left are plain sums: over `data` at stage 0, over replicas, and over tensor shards for what these hold
        # in common.
        left = tuple(axis for axis in self.local.axes if axis not in sharded_axes(partition))
        if not left:
            return gradient.astype(jnp.float32)
        return lax.psum(gradient.astype(self._reduce), left).astype(jnp.float32)

    @jax.named_scope("clip")
    def square_norm(self, shards: Params[jax.Array]) -> jax.Array:
        """Sum of squares over a whole sharded tree, each element counted once."""
        by_axes: dict[tuple[str, ...], jax.Array] = {}
        for partition, leaf in zip(self.specs.leaves(), shards.leaves(), strict=True):
            axes = sharded_axes(partition)
            by_axes[axes] = by_axes.get(axes, jnp.zeros((), jnp.float32)) + jnp.sum(jnp.square(leaf))
        return sum((lax.psum(total, axes) if axes else total for axes, total in by_axes.items()), jnp.zeros(()))


def _each_block(spec: ParamSpec, f: Callable[[jax.Array], jax.Array], leaf: jax.Array) -> jax.Array:
    result: jax.Array = lax.map(f, leaf) if spec.stacked else f(leaf)
    return result


def _check_parts(table: Params[ParamSpec], mesh: Mesh, parts: int) -> None:
    d_ff, shards = table.blocks.mlp_up_bias.shape[-1], mesh.shape[DATA] * mesh.shape[TENSOR]
    if d_ff // shards % parts:
        raise UserError(
            f"memory.mlp_parts is {parts}, which does not divide a device's {d_ff // shards} of the MLP's "
            f"{d_ff} hidden units (parallel.data × parallel.tensor = {shards}); take a divisor of "
            f"{d_ff // shards}"
        )
