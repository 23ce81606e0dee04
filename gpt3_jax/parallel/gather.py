"""One weight's way over the data axis: its shard is gathered, its gradient reduced and scattered (ZeRO section 5).

Parameters live as fp32 shards. A weight is used by casting its shard to the compute dtype and gathering it; the
transpose of that gather is the reduce-scatter that ZeRO needs. Where in the step each stands is `parallel.zero`'s.

Everything here runs on one device's shards, inside the step's `jax.shard_map`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from gpt3_jax.parallel.mesh import Groups


@dataclasses.dataclass(frozen=True)
class Gather:
    """How one weight is gathered, and its gradient scattered."""

    dim: int
    """Dimension of one block's tensor that the data axis shards."""
    axis: str | None
    """The data axis, or None where nothing is sharded."""
    compute: jnp.dtype
    reduce: jnp.dtype
    inside: bool = False
    """Whether the weight is gathered within the loss (stage 3), not ahead of it."""
    steps: tuple[Groups, ...] = ()
    """`mesh.data_steps`: the groups of each step, innermost first; none: one collective over the whole axis."""
    tpu: bool = False
    """Whether it is for a TPU, whose compiler needs telling where to cast (`_cast`) and in which layout (`_stored`)."""
    apart: bool = False
    """Whether a scatter has the devices as a dimension of their own, where there is nothing to pad: for a compiler that
    pads rows (`compiler_options.pads_scatters`)."""
    kernel: bool = False
    """Whether this is a matmul's kernel, whose gradient is reduced as it is made (`Gathered`)."""

    @property
    def gradient(self) -> jnp.dtype:
        """The dtype of a reduced gradient: what it was reduced in, which nothing is lost by keeping it in."""
        return self.reduce if self.axis else jnp.dtype(jnp.float32)


@jax.named_scope("gather_weights")
def collect(shard: jax.Array, how: Gather) -> jax.Array:
    """The whole weight, `_flat`. Nothing stands behind the gather: it would be kept for the backward pass where the
    gathered weight is not (`model.transformer`'s policy)."""
    weight = _flat(_cast(_stored(shard, how), how), how)
    if how.axis is None:
        return weight
    for groups in how.steps or (None,):
        weight = lax.all_gather(weight, how.axis, axis=how.dim, tiled=True, axis_index_groups=groups)
    return weight


def scatter(gradient: jax.Array, how: Gather) -> jax.Array:
    """Reduces what the backward pass has made, which is in the compute dtype or is rounded to it: a whole weight's
    gradient [..., N × R, ...] to the shard [..., R, ...]; see `reduce_scatter`."""
    return reduce_scatter(gradient.astype(how.compute), how)


@jax.named_scope("reduce_gradients")
def reduce_scatter(gradient: jax.Array, how: Gather) -> jax.Array:
    """The device's shard of the gradients' sum over the data axis, in `how.gradient`. Nothing is rounded before.

    Args:
        gradient: of the whole weight; [N × R, ...] where dimension `how.dim` is the first.

    Returns:
        The shard [R, ...]; the gradient as it is where nothing is sharded.
    """
    if how.axis is None:
        return gradient.astype(how.gradient)
    dims = gradient.shape
    summed = _flat(gradient.astype(how.reduce), how)
    for groups in reversed(how.steps or (None,)):
        if how.apart:
            devices = len(groups[0]) if groups else lax.axis_size(how.axis)
            summed = summed.reshape(*summed.shape[: how.dim], devices, -1, *summed.shape[how.dim + 1 :])
        summed = lax.psum_scatter(
            summed, how.axis, scatter_dimension=how.dim, tiled=not how.apart, axis_index_groups=groups
        )
    return _stored(summed.reshape(*dims[: how.dim], -1, *dims[how.dim + 1 :]), how)


def _cast(shard: jax.Array, how: Gather) -> jax.Array:
    if how.tpu and how.compute == jnp.bfloat16:
        # Rounded first, to the same value: a bare cast of a slice its compiler turns into a slice of the cast, and
        # casts the stack of all blocks in front of the loop over them.
        shard = lax.reduce_precision(shard, 8, 7)
    return shard.astype(how.compute)


def _flat(x: jax.Array, how: Gather) -> jax.Array:
    """What stands behind the dimension that is gathered, as one: a short dimension in there (the three of queries,
    keys and values) would be padded in a TPU's tiles."""
    return x.reshape(*x.shape[: how.dim + 1], -1) if x.ndim > how.dim + 2 else x


def _stored(shard: jax.Array, how: Gather) -> jax.Array:
    """A shard in the layout that the state has it in. Left to choose, a TPU's compiler copies the stack of all blocks
    into the one that suits a single gather, padded."""
    if not how.tpu or shard.ndim != 3:
        return shard
    # The short dimension of three in front, so that the other two fill whole tiles.
    pinned: jax.Array = with_layout_constraint(shard, Layout((1, 0, 2)))
    return pinned


@flax.struct.dataclass
class Gathered:
    """A matmul's kernel that is gathered, with the way its gradient takes (`model.matmul.linear`)."""

    value: jax.Array
    """[I, ...O] or [I, O]; passes no gradient on."""
    target: jax.Array
    """What gets the gradient: see `attach`."""
    how: Gather = flax.struct.field(pytree_node=False)

    def reduce(self, gradient: jax.Array) -> jax.Array:
        """Some of the output columns' gradient, [I, columns], to this device's shard of their sum."""
        return scatter(gradient, self.how)

    def shaped(self, gradient: jax.Array) -> jax.Array:
        """The shard's gradient, its columns flat, in the shape and the layout of the shard."""
        if self.how.tpu and self.target.ndim == 2:
            gradient = with_layout_constraint(gradient, Layout((0, 1)))
        return _stored(gradient.reshape(self.target.shape), self.how)


@flax.struct.dataclass
class Sharded:
    """A weight of stage 3 that is left as its shard, for its user to gather a part at a time (`model.mlp`).

    Split along dimension 0, of which a device has R of N × R. In P parts, these stand in front of both arrays.
    """

    target: jax.Array
    """What gets the gradient: see `attach`."""
    source: jax.Array
    """The fp32 shard; passes no gradient on."""
    how: Gather = flax.struct.field(pytree_node=False)

    def row_parts(self, parts: int) -> Sharded:
        """[R, ...] as [P, R / P, ...]. Gathered, a part is a run of rows from each device in turn."""
        return jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), self)  # type: ignore[no-any-return]

    def column_parts(self, parts: int) -> Sharded:
        """[R, N × C] as [P, R, N × C / P], where each part has the columns that `row_parts` takes for rows."""

        def cut(leaf: jax.Array) -> jax.Array:
            if self.how.tpu:
                # As the state has it: a TPU's compiler would lay the stack of all blocks out for this cut, padded.
                leaf = with_layout_constraint(leaf, Layout((0, 1)))
            devices = lax.axis_size(self.how.axis) if self.how.axis else 1
            by_device = leaf.reshape(leaf.shape[0], devices, parts, -1)
            return jnp.moveaxis(by_device, 2, 0).reshape(parts, leaf.shape[0], -1)

        return jax.tree.map(cut, self)  # type: ignore[no-any-return]

    def __getitem__(self, part: Any) -> Sharded:
        """One part, or several."""
        return jax.tree.map(lambda leaf: leaf[part], self)  # type: ignore[no-any-return]

    def value(self) -> jax.Array:
        """The weight, gathered, in the compute dtype; passes no gradient on."""
        return collect(self.source, self.how)


def attach(target: jax.Array, source: jax.Array, how: Gather) -> Gathered | jax.Array:
    """A whole weight, whose gradient goes, reduce-scattered, to `target`.

    Args:
        target: in the shape of a shard and the dtype of its gradient; its values are not looked at.
        source: stage 3: the weight's fp32 shard, gathered here. Stage 2: the weight gathered ahead, as the integers of
            its bits: an integer has no tangent, so the scan over the blocks does not build a full-size zero gradient
            for the stack of gathered weights.
    """
    if how.kernel:
        return Gathered(value(source, how), target, how)
    attached: jax.Array = _attach(target, source, how)
    return attached


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attach(target: jax.Array, source: jax.Array, how: Gather) -> jax.Array:
    return value(source, how)


_attach.defvjp(lambda target, source, how: (value(source, how), None), lambda how, _, ct: (scatter(ct, how), None))


def value(source: jax.Array, how: Gather) -> jax.Array:
    """The whole weight [N × R, ...] in the compute dtype, from the `source` of `attach`: at stage 3 the shard [R, ...],
    at stage 2 the weight's bits. Passes no gradient on."""
    return collect(source, how) if how.inside else lax.bitcast_convert_type(source, how.compute)
