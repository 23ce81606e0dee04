"""A weight as a layer gets it: its value in the compute dtype, where its gradient goes, and how that is reduced.

Parameters live as fp32 shards. A weight is used by casting its shard to the compute dtype and all-gathering it; the
derivative of that gather is the reduce-scatter of ZeRO (section 5). The kinds:

=======  ==========================================  ===================================================================
kind     the value is gathered                       used at
=======  ==========================================  ===================================================================
ahead    already, ahead of the loss                  stages 0, 1 and 2; at stage 3 what `Weight.gathered` returns
inside   inside the block, by `Weight.gathered`      stage 3
loop     by the loop over depth, a block ahead of    stage 3, the blocks' weights, where that loop runs
         its use (`zero.depth`)                      (`transformer.gathers_ahead`)
parts    by the layer that uses it, part by part     stage 3, the MLP's weights, where they come in parts (`model.mlp`)
layers   by the unrolled loop over depth, which      stages 0 and 1 on one CPU device, the blocks' weights
         casts fp32 masters layer by layer           (`model.cpu.layers`)
=======  ==========================================  ===================================================================

Everything here runs on one device's shards, inside the step's `jax.shard_map`. Which stage uses which kind, and when
what is gathered and reduced, is the table of `parallel.zero.stages`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.parallel.mesh import DATA
from gpt3_jax.parallel.zero.transport import Transport

Kind = Literal["ahead", "loop", "inside", "parts", "layers"]


@dataclasses.dataclass(frozen=True)
class Gather:
    """One weight's all-gather and its derivative, the reduce-scatter."""

    dim: int
    """Dimension of one block's tensor that the data axis shards."""
    compute: jnp.dtype
    """Dtype that the value is gathered in."""
    reduce: jnp.dtype
    """Dtype that the gradient is reduced in."""
    transport: Transport

    @property
    def gradient(self) -> jnp.dtype:
        """Dtype of a reduced gradient: what it was reduced in, or fp32 where nothing is reduced."""
        return self.reduce if self.transport.axis else jnp.dtype(jnp.float32)

    @jax.named_scope("gather_weights")
    def all_gather(self, shard: jax.Array) -> jax.Array:
        """The whole weight in the compute dtype, from its fp32 shard; trailing dimensions are `_flat`.

        The gather is the last operation: the result of any other would be kept for the backward pass, where
        `save_all_but_weights` keeps no gathered weight.
        """
        shard = self.transport.cast(self.transport.stored(shard), self.compute)
        return self.transport.all_gather(_flat(shard, self.dim), self.dim)

    @jax.named_scope("reduce_gradients")
    def reduce_scatter(self, gradient: jax.Array) -> jax.Array:
        """The device's shard of the gradients' sum over the data axis. Does not round: the caller has.

        Args:
            gradient: of the whole weight, [..., N × R, ...] where dimension `dim` is split.

        Returns:
            The shard [..., R, ...] in the dtype `self.gradient`; the whole gradient where nothing is sharded.
        """
        if self.transport.axis is None:
            return gradient.astype(self.gradient)
        dims = gradient.shape
        summed = self.transport.reduce_scatter(_flat(gradient.astype(self.reduce), self.dim), self.dim)
        return self.transport.stored(summed.reshape(*dims[: self.dim], -1, *dims[self.dim + 1 :]))


def _flat(x: jax.Array, dim: int) -> jax.Array:
    """`x` with the dimensions after `dim` flattened into one. A short one among them, the three of queries, keys and
    values, would be padded in a TPU's tiles."""
    return x.reshape(*x.shape[: dim + 1], -1) if x.ndim > dim + 2 else x


@flax.struct.dataclass
class Weight:
    """One weight; or a stack of them with L in front, to be scanned over as an array is."""

    target: jax.Array
    """What gets the gradient. Stages 0 and 1: the value itself, or the fp32 masters (`layers`). Stages 2 and 3
    (`partitioned`): an array in the shape of the shard and the dtype of a reduced gradient, whose own values are never
    used."""
    source: jax.Array | None
    """What the value is made of; passes no gradient on. Stages 0 and 1: None, the target is the value. Stage 2: the
    value, or the integers of its bits: an integer has no tangent, so the scan over the blocks builds no full-size zero
    gradient for the stack of gathered weights. Stage 3: the fp32 shard."""
    how: Gather = flax.struct.field(pytree_node=False)
    kind: Kind = flax.struct.field(pytree_node=False)
    parts: int = flax.struct.field(pytree_node=False, default=1)
    """Of the kind `parts`: how many."""

    @staticmethod
    def plain(array: jax.Array) -> Weight:
        """A whole weight on one device, in the compute dtype: nothing is gathered, and its gradient is not reduced."""
        return Weight(array, None, Gather(0, array.dtype, array.dtype, Transport(None)), "ahead")

    @property
    def partitioned(self) -> bool:
        """Whether the gradient is reduce-scattered in the backward pass, as soon as it is made (stages 2 and 3), and
        the value made anew there, not kept. At stages 0 and 1 the gradient stays whole until after the loss."""
        return self.source is not None

    @property
    def value(self) -> jax.Array:
        """The whole weight in the compute dtype, its dimensions after the sharded one flat; passes no gradient on.

        Raises:
            ValueError: of the kind `layers`, which only the unrolled loop casts.
        """
        self._require_cast()
        if self.source is None:
            return lax.stop_gradient(self.target)
        if self.kind != "ahead":
            return self.how.all_gather(self.source)
        if self.source.dtype == self.how.compute:
            return self.source
        return lax.bitcast_convert_type(self.source, self.how.compute)

    def gathered(self, after: jax.Array | None = None) -> Weight:
        """The weight with its value at hand, of the kind `ahead`. One in parts stays as it is.

        Args:
            after: at stage 3, the gather does not start before this array is computed. Without it the compiler sees
                two gathers of one shard as the same, and holds the first one's result until the second's use.
        """
        if self.kind == "parts" or self.source is None:
            return self
        source = self.source
        if after is not None and self.kind == "inside":
            source, _ = lax.optimization_barrier((source, lax.stop_gradient(after)))
        return self.with_value(self.replace(source=source).value)  # type: ignore[attr-defined]

    def with_value(self, value: jax.Array) -> Weight:
        """The same weight, gathered already."""
        return Weight(self.target, value, self.how, "ahead")

    def in_shape(self, value: jax.Array) -> jax.Array:
        """One block's value with all its dimensions, from a flat one (`value`); of a stack, which has one more."""
        return value.reshape(*value.shape[: self.how.dim + 1], *self.target.shape[self.how.dim + 2 :])

    def whole(self, value: jax.Array) -> Weight:
        """The weight as one that holds its value and is not reduced: its gradient stays whole, in the compute dtype."""
        return Weight(value, None, self.how, "ahead")

    def as_array(self) -> jax.Array:
        """The whole weight as an array that any operation may differentiate: its gradient, a whole one, is reduced and
        goes to the target.

        Raises:
            ValueError: as `value`.
        """
        self._require_cast()
        if self.source is None:
            return self.target
        return _attach(self.target, self.value, self.how)

    def _require_cast(self) -> None:
        if self.kind == "layers":
            raise ValueError("a weight of the kind layers is fp32 masters, which model.cpu.layers casts one by one")

    # -- the derivative --------------------------------------------------------------------------------------------

    def reduce(self, gradient: jax.Array) -> jax.Array:
        """What the backward pass has made of the gradient, rounded to the compute dtype, and where `partitioned`
        reduce-scattered over the data axis: [..., N × R, ...] to [..., R, ...] along `how.dim`. It may be a part of
        the whole along any other dimension."""
        gradient = gradient.astype(self.how.compute)
        return self.how.reduce_scatter(gradient) if self.partitioned else gradient

    def cotangent(self, gradient: jax.Array) -> Weight:
        """The cotangent of the weight from its reduced gradient, whose dimensions after the first may be flat."""
        if self.partitioned:
            transport = self.how.transport
            if self.target.ndim == 2:
                gradient = transport.row_major(gradient)
            gradient = transport.stored(gradient.reshape(self.target.shape))
        else:
            gradient = gradient.reshape(self.target.shape)
        return self.replace(target=gradient, source=None)  # type: ignore[attr-defined,no-any-return]

    # -- in parts: dimension 0 is sharded, a device has R of N × R rows ----------------------------------------------

    def cut_rows(self) -> Weight:
        """[R, ...] as [P, R / P, ...]. Gathered, a part is a run of rows from each device in turn."""
        return jax.tree.map(lambda leaf: leaf.reshape(self.parts, -1, *leaf.shape[1:]), self)  # type: ignore[no-any-return]

    def cut_columns(self) -> Weight:
        """[R, N × C] as [P, R, N × C / P], where each part has the columns that `cut_rows` takes for rows."""
        axis = self.how.transport.axis

        def cut(leaf: jax.Array) -> jax.Array:
            leaf = self.how.transport.row_major(leaf)
            by_device = leaf.reshape(leaf.shape[0], lax.axis_size(axis) if axis else 1, self.parts, -1)
            return jnp.moveaxis(by_device, 2, 0).reshape(self.parts, leaf.shape[0], -1)

        return jax.tree.map(cut, self)  # type: ignore[no-any-return]

    def __getitem__(self, part: int | slice) -> Weight:
        """One part, or several, of a weight that was cut."""
        return jax.tree.map(lambda leaf: leaf[part], self)  # type: ignore[no-any-return]


# The gather has been made by then; this gives it its derivative: the reduce-scatter of the gradient, rounded to the
# compute dtype first.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attach(target: jax.Array, value: jax.Array, how: Gather) -> jax.Array:
    return value


_attach.defvjp(
    lambda target, value, how: (value, None),
    lambda how, _, ct: (how.reduce_scatter(ct.astype(how.compute)), None),
)


def save_all_but_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint`: the backward pass keeps everything but the values of weights. At stages 2 and 3 a
    gathered weight kept for later would be the very memory that the stage saves."""
    gathers_weights = primitive.name == "all_gather" and DATA in params["axis_name"]
    return not gathers_weights and primitive.name != "bitcast_convert_type"
