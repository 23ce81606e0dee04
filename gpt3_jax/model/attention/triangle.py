"""Attention for XLA's CPU backend where no gradient is taken: small scores, and few of those above the diagonal.

One row at a time, and as many of its heads as have scores that stay in the caches. Queries come in up to four blocks,
each with the keys up to its own end, so that no softmax goes over several blocks of keys.

Shapes: B batch, T positions, H heads, N groups of G heads, K head width, Q queries of a block, S keys that it sees.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.model import cpu
from gpt3_jax.model.attention.plain import MASKED
from gpt3_jax.model.matmul import einsum

_BLOCKS = 4
"""Of a long row. More skip little more above the diagonal (5/8 of all scores are computed, with eight 9/16), and take
longer to compile."""
SCORE_BYTES = 4 * 2**20


def triangle(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    block: int | None = None,
    score_bytes: int = SCORE_BYTES,
) -> jax.Array:
    """As `plain.plain`.

    Args:
        block: positions in a block of queries (default: a quarter of T, rounded up to 128).
        score_bytes: of a block of queries of the heads that are computed at a time; one head at least.
    """
    batch, length, heads, width = q_BTHK.shape
    least = cpu.TRIANGLE_BLOCK
    block = block or least * -(-length // (_BLOCKS * least))
    fits = [n for n in range(1, heads + 1) if heads % n == 0 and n * 4 * block * length <= score_bytes]
    together = max(fits, default=1)

    def groups(x_BTHK: jax.Array) -> jax.Array:
        x_BTNGK = x_BTHK.reshape(batch, length, -1, together, width)
        return jnp.moveaxis(x_BTNGK, 1, 3).reshape(-1, together, length, width)

    def group(qkv_GTK: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q, k, v = qkv_GTK
        out = []
        for first in range(0, length, block):
            end = min(first + block, length)
            start = 0 if band is None else max(0, first - band + 1)
            scores_GQS = einsum("gqk,gsk->gqs", q[:, first:end], k[:, start:end], jnp.float32) * width**-0.5
            distance = jnp.arange(first, end)[:, None] - jnp.arange(start, end)
            visible = distance >= 0 if band is None else (distance >= 0) & (distance < band)
            weights_GQS = jax.nn.softmax(jnp.where(visible, scores_GQS, MASKED), axis=-1).astype(v.dtype)
            out.append(einsum("gqs,gsk->gqk", weights_GQS, v[:, start:end]))
        return jnp.concatenate(out, axis=1)

    out = lax.map(group, tuple(groups(x) for x in (q_BTHK, k_BTHK, v_BTHK)))
    return jnp.moveaxis(out.reshape(batch, -1, together, length, width), 3, 1).reshape(batch, length, heads, width)
