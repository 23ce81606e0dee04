"""The next token from its logits: greedy, temperature, top-k, top-p.

A draw depends only on the seed, the sample's number and the position, so the same seed gives the same text whatever
else is in the batch. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

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
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        scaled_BV = logits_BV / temperature
        scaled_BV = lax.cond(top_k > 0, lambda: _top_k(scaled_BV, top_k), lambda: scaled_BV)
        scaled_BV = lax.cond(top_p < 1, lambda: _top_p(scaled_BV, top_p), lambda: scaled_BV)
        # Adding Gumbel noise and taking the maximum draws from the softmax.
        noise_BV = jax.vmap(lambda sample, position: _noise(key, sample, position, logits_BV.shape[1]))(
            samples_B, positions_B
        )
        return jnp.argmax(scaled_BV + noise_BV, axis=-1).astype(jnp.int32)

    return lax.cond(temperature > 0, draw, greedy)


def _noise(key: jax.Array, sample: jax.Array, position: jax.Array, size: int) -> jax.Array:
    own_key = jax.random.fold_in(jax.random.fold_in(key, sample), position)
    return jax.random.gumbel(own_key, (size,), jnp.float32)


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
