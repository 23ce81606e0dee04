"""The loop over depth at ZeRO's stage 3, with the traffic of one block beside the compute of another.

In a plain scan a block waits for its own gather, and the next one for its gradients' reduction: a compiler moves
nothing from one iteration into another. Here each iteration gathers the weights of the block that follows, forward and
backward, and backward it reduces the gradients of the block before. Nothing in the iteration needs either.

===========  =====================================  ================================================================
iteration    computes                               sends
===========  =====================================  ================================================================
forward      block i with the weights it got        gathers i + 1; the last one gathers its own for the backward pass
backward     the derivative of block i              gathers i - 1; reduces the gradients of i + 1
===========  =====================================  ================================================================

At either end something is sent that nothing needs, so that the iterations are all alike: backward the first iteration
reduces zeros and the last gathers its own weights again. That is one block in L more than ZeRO counts. In memory are
one block's weights and one block's gradients, whole and in the compute dtype, more than without.

Autodiff of such a scan would keep every block's whole weights, since they are carried. So the loop has a derivative of
its own: forward it keeps what each block's own derivative needs (`jax.vjp`; with `jax.checkpoint`, what its policy
keeps) but the weights, and backward it puts weights in their places that were gathered anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.parallel.zero.weight import Weight

Tree = TypeVar("Tree")
Step = Callable[[jax.Array, Any], jax.Array]
"""One block: the residual stream, and a tree with the block's weights and whatever else it takes."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Missing:
    """The place of one weight in what a block keeps for its backward pass."""

    index: int


def scan_blocks(step: Step, x: jax.Array, stack: Any) -> jax.Array:
    """`step` applied to the blocks in turn, as a scan over `stack` would; the stream after the last block.

    Args:
        step: gets its weights whole, of the kind `ahead`, without a source (`Weight.whole`).
        stack: a tree of weights of the kind `inside`, and of other arrays that pass no gradient on, L in front.
    """
    leaves, tree = jax.tree.flatten(stack, is_leaf=_is_weight)
    weights = tuple(leaf for leaf in leaves if _is_weight(leaf))
    others = tuple(lax.stop_gradient(leaf) for leaf in leaves if not _is_weight(leaf))
    length = weights[0].target.shape[0]

    def block(x: jax.Array, whole: tuple[jax.Array, ...], others: tuple[jax.Array, ...]) -> jax.Array:
        given = iter(weight.whole(array) for weight, array in zip(weights, whole, strict=True))
        beside = iter(others)
        return step(x, jax.tree.unflatten(tree, [next(given if _is_weight(leaf) else beside) for leaf in leaves]))

    def gather(weights: tuple[Weight, ...], i: jax.Array | int) -> tuple[jax.Array, ...]:
        return tuple(_at(weight, i).value for weight in weights)

    @jax.custom_vjp
    def through(x: jax.Array, weights: tuple[Weight, ...], others: tuple[jax.Array, ...]) -> jax.Array:
        def one(carry: tuple[jax.Array, Any], i: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
            x, values = carry
            ahead = gather(weights, jnp.minimum(i + 1, length - 1))
            return (block(x, _whole(weights, values), _at(others, i)), ahead), None

        (x, _), _ = lax.scan(one, (x, gather(weights, 0)), jnp.arange(length))
        return x

    def forward(x: jax.Array, weights: tuple[Weight, ...], others: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        def one(carry: tuple[jax.Array, Any], i: jax.Array) -> tuple[tuple[jax.Array, Any], Any]:
            x, values = carry
            ahead = gather(weights, jnp.minimum(i + 1, length - 1))
            whole, other = _whole(weights, values), _at(others, i)
            x, pull = jax.vjp(lambda x, whole: block(x, whole, other), x, whole)
            return (x, ahead), _without(pull, whole)

        (x, values), kept = lax.scan(one, (x, gather(weights, 0)), jnp.arange(length))
        return x, (kept, values, weights)

    def backward(saved: Any, ct: jax.Array) -> tuple[jax.Array, tuple[Weight, ...], None]:
        kept, values, weights = saved

        def one(carry: Any, i_and_kept: tuple[jax.Array, Any]) -> tuple[Any, None]:
            ct, values, made, reduced = carry
            i, kept = i_and_kept
            ahead = gather(weights, jnp.maximum(i - 1, 0))
            reduced = put(reduced, made, jnp.minimum(i + 1, length - 1))
            ct, gradients = _filled(kept, _whole(weights, values))(ct)
            return (ct, ahead, tuple(_like(g, value) for g, value in zip(gradients, values, strict=True)), reduced), None

        def put(reduced: tuple[jax.Array, ...], made: tuple[jax.Array, ...], i: jax.Array | int) -> Any:
            shards = tuple(
                weight.cotangent(weight.how.reduce_scatter(gradient)).target
                for weight, gradient in zip((_at(weight, 0) for weight in weights), made, strict=True)
            )
            return tuple(lax.dynamic_update_index_in_dim(r, shard, i, 0) for r, shard in zip(reduced, shards, strict=True))

        zeros = tuple(jnp.zeros_like(weight.target) for weight in weights)
        first = (ct, values, tuple(jnp.zeros_like(value) for value in values), zeros)
        (ct, _, made, reduced), _ = lax.scan(one, first, (jnp.arange(length), kept), reverse=True)
        targets = put(reduced, made, 0)
        return ct, tuple(w.replace(target=t, source=None) for w, t in zip(weights, targets, strict=True)), None

    through.defvjp(forward, backward)
    return through(x, weights, others)


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, Weight)


def _at(stack: Tree, i: jax.Array | int) -> Tree:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), stack)


def _like(x: jax.Array, other: jax.Array) -> jax.Array:
    return x.reshape(other.shape)


def _whole(weights: tuple[Weight, ...], values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(weight.in_shape(value) for weight, value in zip(weights, values, strict=True))


def _without(kept: Tree, weights: tuple[jax.Array, ...]) -> Tree:
    """`kept`, and where it has one of the weights, the place alone."""
    places = {id(weight): _Missing(i) for i, weight in enumerate(weights)}
    return jax.tree.map(lambda leaf: places.get(id(leaf), leaf), kept)


def _filled(kept: Tree, weights: tuple[jax.Array, ...]) -> Tree:
    def fill(leaf: Any) -> Any:
        return weights[leaf.index] if isinstance(leaf, _Missing) else leaf

    return jax.tree.map(fill, kept, is_leaf=lambda leaf: isinstance(leaf, _Missing))
