"""The next token from its logits: greedy, temperature, top-k, top-p.

A draw depends only on the seed, the sample's number and the position, so the same seed gives the same text whatever
else is in the batch. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


def sample(
    logits_BV: jax.Array,
    key: jax.Array,
    samples_B: jax.Array,
    positions_B: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """One token per row, int32 [B].

    Args:
        logits_BV: fp32.
        key: a key made from the seed.
        samples_B: each row's sample number, int32.
        positions_B: the position of the drawn token, int32.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: int32; draws from the k likeliest tokens only (and those that tie with the last of them); 0: from all.
        top_p: fp32; draws only from the likeliest tokens that together reach this probability, after temperature and
            top-k; 1: from all.
    """

    def greedy() -> jax.Array:
        return _likeliest(logits_BV)

    def draw() -> jax.Array:
        scaled_BV = logits_BV / temperature
        scaled_BV = lax.cond(top_k > 0, lambda: _top_k(scaled_BV, top_k), lambda: scaled_BV)
        scaled_BV = lax.cond(top_p < 1, lambda: _top_p(scaled_BV, top_p), lambda: scaled_BV)
        uniform_B = jax.vmap(functools.partial(_uniform, key))(samples_B, positions_B)
        return _drawn(scaled_BV, uniform_B)

    return lax.cond(temperature > 0, draw, greedy)


def _likeliest(x_BV: jax.Array) -> jax.Array:
    """As `jnp.argmax`, the first NaN included. XLA's CPU backend takes ten times as long to reduce pairs."""
    top_B1 = jnp.max(x_BV, axis=-1, keepdims=True)
    place_V = jnp.arange(x_BV.shape[1], dtype=jnp.int32)
    return jnp.min(jnp.where((x_BV == top_B1) | jnp.isnan(x_BV), place_V, x_BV.shape[1] - 1), axis=-1)


def _uniform(key: jax.Array, sample: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, sample), position))


_BLOCK = 256
"""Tokens whose probabilities are summed first."""


def _drawn(scaled_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The token at which the cumulated softmax of its row passes this part of the whole, from 0 to below 1.

    One random number a row: noise for each token of the vocabulary would take longer than small models' steps. First
    the block of tokens is found and then the token, so that no sum runs over the whole vocabulary one by one.
    """
    batch, vocab = scaled_BV.shape
    weight_BV = jnp.exp(scaled_BV - jnp.max(scaled_BV, axis=-1, keepdims=True))
    weight_BNV = jnp.pad(weight_BV, ((0, 0), (0, -vocab % _BLOCK))).reshape(batch, -1, _BLOCK)

    of_block_BN = jnp.sum(weight_BNV, axis=-1)
    wanted_B1 = uniform_B[:, None] * jnp.sum(of_block_BN, axis=-1, keepdims=True)
    block_B1, rest_B1 = _passed(of_block_BN, jnp.cumsum(of_block_BN, axis=-1), wanted_B1)
    weight_BV = jnp.take_along_axis(weight_BNV, block_B1[..., None], axis=1)[:, 0]
    place_B1, _ = _passed(weight_BV, jnp.cumsum(weight_BV, axis=-1), rest_B1)
    return (block_B1 * _BLOCK + place_B1)[:, 0].astype(jnp.int32)


def _passed(weight_BX: jax.Array, sum_BX: jax.Array, wanted_B1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first place with weight at which the cumulated `sum_BX` is above `wanted_B1`, and what is wanted of its own.

    Platforms that sum in parallel round each sum otherwise: sums may fall, and move where there is no weight.
    """
    top_B1 = jnp.max(jnp.where(weight_BX > 0, sum_BX, 0), axis=-1, keepdims=True)
    # Below the largest sum, whatever the order in which another one was summed.
    wanted_B1 = jnp.minimum(wanted_B1, top_B1 * (1 - 2**-23))
    place_B1 = jnp.argmax((sum_BX > wanted_B1) & (weight_BX > 0), axis=-1, keepdims=True)
    before_BX = jnp.pad(sum_BX, ((0, 0), (1, 0)))
    return place_B1, wanted_B1 - jnp.take_along_axis(before_BX, place_B1, axis=-1)


def _top_k(scaled_BV: jax.Array, top_k: jax.Array) -> jax.Array:
    return _keep_heaviest(scaled_BV, jnp.ones_like(scaled_BV), top_k.astype(jnp.float32))


def _top_p(scaled_BV: jax.Array, top_p: jax.Array) -> jax.Array:
    probability_BV = jax.nn.softmax(scaled_BV, axis=-1)
    return _keep_heaviest(scaled_BV, probability_BV, top_p)


def _keep_heaviest(scaled_BV: jax.Array, weight_BV: jax.Array, wanted: jax.Array) -> jax.Array:
    """Keeps, from the largest value down, as many as are needed for their weights to sum to `wanted`; -inf elsewhere.

    The cutoff is found by bisection over the bits of a float, not by sorting the vocabulary.
    """
    # Unsigned integers in the order of the floats: the sign bit flipped; of negative numbers, all the bits.
    bits_BV = lax.bitcast_convert_type(scaled_BV, jnp.uint32)
    order_BV = jnp.where(bits_BV >> 31 == 1, ~bits_BV, bits_BV | jnp.uint32(1 << 31))
    # Against the row's own sum: rounding must not put `wanted` out of reach.
    wanted_B = jnp.minimum(wanted, jnp.sum(weight_BV, axis=-1))

    def try_bit(i: jax.Array, cutoff_B: jax.Array) -> jax.Array:
        higher_B = cutoff_B | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        reached_B = jnp.sum(jnp.where(order_BV >= higher_B[:, None], weight_BV, 0.0), axis=-1)
        return jnp.where(reached_B >= wanted_B, higher_B, cutoff_B)

    # Zeros made from the rows, so that on a mesh they are typed as varying like these.
    cutoff_B = lax.fori_loop(0, 32, try_bit, order_BV[:, 0] & jnp.uint32(0))
    return jnp.where(order_BV >= cutoff_B[:, None], scaled_BV, -jnp.inf)
