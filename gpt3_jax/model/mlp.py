"""The MLP of a block (GPT-3 section 2.1): two matmuls and a GELU between them; and, where ZeRO's stage 3 leaves its
weights as shards, a part of the hidden layer at a time.

An MLP has two thirds of a block's weights. In parts, its hidden layer cut into P, two parts' weights are there at once:
those that are worked with, and the next on their way. Forward, the parts' outputs are summed; backward, a part's hidden
layer is computed again, used, and gone before the next. The network carries the same bytes, in smaller pieces; the
device's own memory carries more: the sums, and cuts and copies of the parts.

Shapes: B batch, T positions, D = d_model, F = d_ff of this tensor shard, G = F / P.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.model.matmul import einsum, linear, linear_backward
from gpt3_jax.model.params import Block
from gpt3_jax.model.pointwise import add_bias, gelu
from gpt3_jax.parallel.gather import Gathered, Sharded, scatter


def mlp(block: Block, x_BTD: jax.Array, platform: str = "") -> jax.Array:
    """The MLP [B, T, D] of x, without its output bias, which stands behind the reduction over tensor shards.

    Args:
        platform: the platform that the program is compiled for, where it is differentiated.
    """
    up, bias, down = block.mlp_up_kernel, block.mlp_up_bias, block.mlp_down_kernel
    if isinstance(down, Sharded):
        return _in_parts(x_BTD, (up, bias, down), platform)
    return linear(_hidden(x_BTD, up, bias, platform), down, platform)


def _hidden(x_BTD: jax.Array, up: jax.Array | Gathered, bias_F: jax.Array, platform: str) -> jax.Array:
    return gelu(add_bias(linear(x_BTD, up, platform), bias_F))


_Weights = tuple[Sharded, Sharded, Sharded]
_Values = tuple[jax.Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _in_parts(x_BTD: jax.Array, weights: _Weights, platform: str) -> jax.Array:
    def add(sum_BTD: jax.Array, values: _Values, _: _Weights) -> tuple[jax.Array, None]:
        up_DG, bias_G, down_GD = values
        return sum_BTD + einsum("btg,gd->btd", _hidden(x_BTD, up_DG, bias_G, platform), down_GD, jnp.float32), None

    sum_BTD, _ = _each_part(add, x_BTD, weights)
    return sum_BTD


def _in_parts_backward(
    platform: str, saved: tuple[jax.Array, _Weights], ct_BTD: jax.Array
) -> tuple[jax.Array, _Weights]:
    x_BTD, weights = saved

    def add(sum_BTD: jax.Array, values: _Values, part: _Weights) -> tuple[jax.Array, Any]:
        up, down = (Gathered(values[i], part[i].target, part[i].how) for i in (0, 2))
        bias_G = values[1]
        hidden_BTG, pull = jax.vjp(functools.partial(_hidden, platform=platform), x_BTD, up, bias_G)
        hidden_ct, down_ct = linear_backward(hidden_BTG, down, ct_BTD, platform)
        x_ct, up_ct, bias_ct = pull(hidden_ct)
        targets = up_ct.target, scatter(bias_ct, part[1].how), down_ct.target
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
    add: Callable[[jax.Array, _Values, _Weights], tuple[jax.Array, Any]], x_BTD: jax.Array, weights: _Weights
) -> tuple[jax.Array, Any]:
    """`add` over the parts, from a sum of zero in fp32, with each part's gathered weights and shards. Its sum, in the
    dtype of x; and a stack of what it gives beside."""

    def gather(part: _Weights) -> _Values:
        return tuple(weight.value() for weight in part)

    def cut(part: Any) -> _Weights:
        return tuple(weight[part] for weight in weights)  # type: ignore[return-value]

    def one(carry: tuple[jax.Array, _Values], parts: tuple[_Weights, _Weights]) -> tuple[Any, Any]:
        sum_BTD, values = carry
        this, following = parts
        # Nothing here waits for it: it is on its way while this part is worked with.
        ahead = gather(following)
        sum_BTD, given = add(sum_BTD, values, this)
        return (sum_BTD, ahead), given

    zeros = jnp.zeros_like(x_BTD, jnp.float32)
    (sum_BTD, values), given = lax.scan(one, (zeros, gather(cut(0))), (cut(slice(-1)), cut(slice(1, None))))
    sum_BTD, last = add(sum_BTD, values, cut(-1))
    given = jax.tree.map(lambda stack, x: jnp.concatenate([stack, x[None]]), given, last)
    return sum_BTD.astype(x_BTD.dtype), given
