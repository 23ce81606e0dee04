"""The MLP of a block (GPT-3 section 2.1): two matmuls with a GELU between them; at ZeRO's stage 3 also in parts.

An MLP has two thirds of a block's weights. With its hidden dimension split into P parts, the full MLP is never
materialised: a device holds the weights of two parts, the one in use and the one being prefetched. Forward, the parts'
outputs are summed; backward, a part's hidden activations are recomputed, used and freed before the next. The network
carries the same bytes in smaller messages; the device's memory traffic grows by the sums and by copies of the parts.

Shapes: B batch, T positions, D = d_model, F = d_ff of this tensor shard, G = F / P.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.model.matmul import einsum, gathered_linear, linear, linear_backward, scattered_linear
from gpt3_jax.model.params import Block
from gpt3_jax.model.pointwise import add_bias, gelu
from gpt3_jax.model.remat import UNNAMED, Names
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.zero import Weight


def mlp(block: Block[Weight], x_BTD: jax.Array, platform: str, names: Names = UNNAMED) -> jax.Array:
    """The MLP [B, T, D] of x, without its output bias, which is added after the reduction over tensor shards.

    Args:
        platform: the platform that the program is compiled for.
    """
    up, bias, down = block.mlp_up_kernel, block.mlp_up_bias, block.mlp_down_kernel
    if down.kind == "parts":
        return _in_parts(x_BTD, (up.cut_columns(), bias.cut_rows(), down.cut_rows()), platform)
    return linear(_hidden(x_BTD, up, bias.as_array(), platform, names), down, platform)


def sequence_sharded_mlp(
    block: Block[Weight], x_BSD: jax.Array, length: int, local: Local, names: Names = UNNAMED
) -> jax.Array:
    """`mlp` between shards of the sequence (`Local.gather_sequence`, `Local.scatter_sequence`): [B, S, D] in and out.

    Args:
        length: T, the positions of a row.
    """
    up, bias, down = block.mlp_up_kernel, block.mlp_up_bias, block.mlp_down_kernel
    if down.kind == "parts" or not local.rings:
        return local.scatter_sequence(mlp(block, local.gather_sequence(x_BSD, length), local.platform, names))
    product_BTF = gathered_linear(x_BSD, up, length, local, keep_rows=names.get("mlp_up") is None)
    return scattered_linear(gelu(names(add_bias(product_BTF, bias.as_array()), "mlp_up")), down, local)


def _hidden(x_BTD: jax.Array, up: Weight, bias_F: jax.Array, platform: str, names: Names = UNNAMED) -> jax.Array:
    return gelu(names(add_bias(linear(x_BTD, up, platform), bias_F), "mlp_up"))


_Weights = tuple[Weight, Weight, Weight]
"""Up kernel, up bias, down kernel: cut into parts, or one part of each."""
_Targets = tuple[jax.Array, jax.Array, jax.Array]
"""Their gradients."""
Given = TypeVar("Given", _Targets, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _in_parts(x_BTD: jax.Array, weights: _Weights, platform: str) -> jax.Array:
    def add(sum_BTD: jax.Array, part: _Weights) -> tuple[jax.Array, None]:
        up, bias, down = part
        hidden_BTG = _hidden(x_BTD, up, bias.value, platform)
        return sum_BTD + einsum("btg,gd->btd", hidden_BTG, down.value, jnp.float32), None

    sum_BTD, _ = _each_part(add, x_BTD, weights)
    return sum_BTD


def _in_parts_backward(
    platform: str, saved: tuple[jax.Array, _Weights], ct_BTD: jax.Array
) -> tuple[jax.Array, _Weights]:
    x_BTD, weights = saved

    def add(sum_BTD: jax.Array, part: _Weights) -> tuple[jax.Array, _Targets]:
        up, bias, down = part
        hidden_BTG, pull = jax.vjp(functools.partial(_hidden, platform=platform), x_BTD, up, bias.value)
        hidden_ct, down_ct = linear_backward(hidden_BTG, down, ct_BTD, platform)
        x_ct, up_ct, bias_ct = pull(hidden_ct)
        targets = up_ct.target, bias.reduce(bias_ct), down_ct.target
        return sum_BTD + x_ct.astype(jnp.float32), targets

    x_ct, targets = _each_part(add, x_BTD, weights)
    return x_ct, tuple(
        weight.replace(target=target, source=None)  # type: ignore[attr-defined]
        for weight, target in zip(weights, targets, strict=True)
    )


_in_parts.defvjp(
    lambda x_BTD, weights, platform: (_in_parts(x_BTD, weights, platform), (x_BTD, weights)), _in_parts_backward
)


def _each_part(
    add: Callable[[jax.Array, _Weights], tuple[jax.Array, Given]], x_BTD: jax.Array, weights: _Weights
) -> tuple[jax.Array, Given]:
    """Applies `add` to the parts in turn, each with its weights gathered, from a sum of zero in fp32. Returns the sum
    in the dtype of x, and the stack of `add`'s second results."""
    Values = tuple[jax.Array, ...]

    def gather(part: _Weights) -> Values:
        return tuple(weight.value for weight in part)

    def cut(part: int | slice) -> _Weights:
        return tuple(weight[part] for weight in weights)  # type: ignore[return-value]

    def with_values(part: _Weights, values: Values) -> _Weights:
        return tuple(weight.with_value(value) for weight, value in zip(part, values, strict=True))  # type: ignore[return-value]

    def one(
        carry: tuple[jax.Array, Values], parts: tuple[_Weights, _Weights]
    ) -> tuple[tuple[jax.Array, Values], Given]:
        sum_BTD, values = carry
        this, following = parts
        # Prefetched: nothing in this iteration needs it.
        ahead = gather(following)
        sum_BTD, given = add(sum_BTD, with_values(this, values))
        return (sum_BTD, ahead), given

    zeros = jnp.zeros_like(x_BTD, jnp.float32)
    (sum_BTD, values), given = lax.scan(one, (zeros, gather(cut(0))), (cut(slice(-1)), cut(slice(1, None))))
    sum_BTD, last = add(sum_BTD, with_values(cut(-1), values))
    given = jax.tree.map(lambda stack, x: jnp.concatenate([stack, x[None]]), given, last)
    return sum_BTD.astype(x_BTD.dtype), given
