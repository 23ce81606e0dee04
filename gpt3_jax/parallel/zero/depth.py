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

The first and last iterations send one redundant block, so that all iterations are alike: backward the first one
reduces zeros and the last gathers its own weights again. That is one block in L more than ZeRO counts. In memory are
one block's weights and two blocks' gradients more than in a plain scan, whole and in the compute dtype.

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
Arrays = tuple[jax.Array, ...]
"""One for each weight of a block."""


def scan_blocks(step: Callable[[jax.Array, Any], jax.Array], x: jax.Array, stack: Any) -> jax.Array:
    """`step` applied to the blocks in turn, as a scan over `stack` would; the stream after the last block.

    Args:
        step: one block: from the stream and one block of `stack`, its weights gathered, the stream behind it.
        stack: a tree of weights, and of arrays that pass no gradient on, L in front.
    """
    leaves, tree = jax.tree.flatten(stack, is_leaf=_is_weight)
    weights = tuple(leaf for leaf in leaves if _is_weight(leaf))
    others = tuple(lax.stop_gradient(leaf) for leaf in leaves if not _is_weight(leaf))
    last = weights[0].target.shape[0] - 1

    def block(x: jax.Array, whole: Arrays, others: Arrays) -> jax.Array:
        given = iter(weight.whole(array) for weight, array in zip(weights, whole, strict=True))
        beside = iter(others)
        return step(x, jax.tree.unflatten(tree, [next(given if _is_weight(leaf) else beside) for leaf in leaves]))

    def shaped(values: Arrays) -> Arrays:
        return tuple(weight.in_shape(value) for weight, value in zip(weights, values, strict=True))

    def gather(weights: tuple[Weight, ...], i: jax.Array | int) -> Arrays:
        return tuple(weight.value for weight in _at(weights, i))

    @jax.custom_vjp
    def through(x: jax.Array, weights: tuple[Weight, ...], others: Arrays) -> jax.Array:
        def one(carry: tuple[jax.Array, Arrays], i: jax.Array) -> tuple[tuple[jax.Array, Arrays], None]:
            x, values = carry
            ahead = gather(weights, jnp.minimum(i + 1, last))
            return (block(x, shaped(values), _at(others, i)), ahead), None

        (x, _), _ = lax.scan(one, (x, gather(weights, 0)), jnp.arange(last + 1))
        return x

    def forward(x: jax.Array, weights: tuple[Weight, ...], others: Arrays) -> tuple[jax.Array, Any]:
        def one(carry: tuple[jax.Array, Arrays], i: jax.Array) -> tuple[tuple[jax.Array, Arrays], Any]:
            x, values = carry
            ahead = gather(weights, jnp.minimum(i + 1, last))
            whole = shaped(values)
            x, pull = jax.vjp(block, x, whole, _at(others, i))
            return (x, ahead), _without(pull, whole)

        (x, values), kept = lax.scan(one, (x, gather(weights, 0)), jnp.arange(last + 1))
        return x, (kept, values, weights)

    def backward(saved: Any, ct: jax.Array) -> tuple[jax.Array, tuple[Weight, ...], None]:
        kept, values, weights = saved
        Carry = tuple[jax.Array, Arrays, Arrays, Arrays]

        def one(carry: Carry, i_and_kept: tuple[jax.Array, Any]) -> tuple[Carry, None]:
            ct, values, made, reduced = carry
            i, kept = i_and_kept
            ahead = gather(weights, jnp.maximum(i - 1, 0))
            reduced = _put(reduced, _reduced(weights, made), jnp.minimum(i + 1, last))
            ct, gradients, _ = _filled(kept, shaped(values))(ct)
            made = tuple(gradient.reshape(value.shape) for gradient, value in zip(gradients, values, strict=True))
            return (ct, ahead, made, reduced), None

        zeros = tuple(jnp.zeros_like(weight.target) for weight in weights)
        none_made = tuple(jnp.zeros_like(value) for value in values)
        steps = (jnp.arange(last + 1), kept)
        (ct, _, made, reduced), _ = lax.scan(one, (ct, values, none_made, zeros), steps, reverse=True)
        reduced = _put(reduced, _reduced(weights, made), 0)
        return ct, tuple(w.replace(target=t, source=None) for w, t in zip(weights, reduced, strict=True)), None

    through.defvjp(forward, backward)
    return through(x, weights, others)


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, Weight)


def _at(stack: Tree, i: jax.Array | int) -> Tree:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), stack)  # type: ignore[no-any-return]


def _reduced(weights: tuple[Weight, ...], made: Arrays) -> Arrays:
    """One block's gradients, reduced: from whole ones in the shape of `Weight.value` to the shape of the shards."""
    pairs = zip(_at(weights, 0), made, strict=True)
    return tuple(weight.cotangent(weight.how.reduce_scatter(gradient)).target for weight, gradient in pairs)


def _put(stacks: Arrays, block: Arrays, i: jax.Array | int) -> Arrays:
    pairs = zip(stacks, block, strict=True)
    return tuple(lax.dynamic_update_index_in_dim(stack, array, i, 0) for stack, array in pairs)


# What a block keeps for its derivative is a tree of arrays. `jax.vjp` leaves its own arguments in it as they are, the
# very same objects: so the weights are found there.


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Missing:
    """The place of one weight."""

    index: int


def _without(kept: Tree, values: Arrays) -> Tree:
    """`kept` without the weights.

    Raises:
        RuntimeError: a matrix is not in `kept`. Every derivative needs each one, so `kept` has a copy of it, and the
            loop would stack those of all blocks.
    """
    places = {id(value): _Missing(i) for i, value in enumerate(values)}
    rest: Tree = jax.tree.map(lambda leaf: places.get(id(leaf), leaf), kept)
    found = {leaf.index for leaf in jax.tree.leaves(rest, is_leaf=_is_missing) if _is_missing(leaf)}
    largest = max(value.size for value in values)
    # The kernels of a block have D² to 4 D² elements, all else has 4 D at most.
    copied = [value.shape for i, value in enumerate(values) if 4 * value.size >= largest and i not in found]
    if copied:
        raise RuntimeError(
            f"JAX {jax.__version__} keeps copies of weights of shapes {copied} for the backward pass of every block; "
            "set parallel.overlap to false, or take a version of JAX that constraints.txt names"
        )
    return rest


def _is_missing(leaf: Any) -> bool:
    return isinstance(leaf, _Missing)


def _filled(kept: Tree, values: Arrays) -> Tree:
    """What `_without` made, with weights in their places."""

    def fill(leaf: Any) -> Any:
        return values[leaf.index] if isinstance(leaf, _Missing) else leaf

    return jax.tree.map(fill, kept, is_leaf=_is_missing)  # type: ignore[no-any-return]
