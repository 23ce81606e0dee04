"""Attention with all scores at once: the reference for the other implementations, and the fastest for short sequences.

Shapes: B batch, T positions, H heads, K head width; N blocks of W positions. Scores and softmax are fp32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt3_jax.model.matmul import einsum

MASKED = -1e30
"""Finite, so that a row's maximum never becomes NaN; far below any score, so that its weight is exactly 0."""


def plain(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None, name: str | None = None
) -> jax.Array:
    """Each position attends to itself and the positions before it: all of them, or `band` in total.

    Returns [B, T, H, K] in the dtype of `q`.
    """
    length = q_BTHK.shape[1]
    band = min(band or length, length)
    out_BTHK = (_banded if _has_blocks(length, band) else _dense)(q_BTHK, k_BTHK, v_BTHK, band)
    return checkpoint_name(out_BTHK, name) if name else out_BTHK


def score_bytes(shape_BTHK: tuple[int, ...], band: int | None) -> int:
    """Bytes of the scores that `plain` holds for queries of this shape."""
    batch, length, heads, _ = shape_BTHK
    band = min(band or length, length)
    rows, keys = (-(-length // band) * band, 2 * band) if _has_blocks(length, band) else (length, length)
    return 4 * batch * heads * rows * keys


def _has_blocks(length: int, band: int) -> bool:
    # Blocks pay from three of them on: with two, a block of queries and its two blocks of keys are everything.
    return 2 * band < length


def _softmax(scores: jax.Array, visible: jax.Array, like: jax.Array) -> jax.Array:
    scores = jnp.where(visible, scores * like.shape[-1] ** -0.5, MASKED)
    return jax.nn.softmax(scores, axis=-1).astype(like.dtype)


def _heads_first(x: jax.Array) -> jax.Array:
    """[..., T, H, K] to [..., H, T, K]: the batched matmuls' own layout, which every backend runs as it is."""
    return jnp.swapaxes(x, -2, -3)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, band: int) -> jax.Array:
    position = jnp.arange(q.shape[1])
    distance = position[:, None] - position
    q, k, v = _heads_first(q), _heads_first(k), _heads_first(v)
    scores = einsum("bhqk,bhsk->bhqs", q, k, jnp.float32)
    weights = _softmax(scores, (distance >= 0) & (distance < band), q)
    return _heads_first(einsum("bhqs,bhsk->bhqk", weights, v))


def _banded(q: jax.Array, k: jax.Array, v: jax.Array, band: int) -> jax.Array:
    """Blocks as long as the band: a block of queries sees keys of its own block and of the one before, of no other.

    The work is T × 2W, not T × T: scores outside these two blocks are never computed.
    """
    batch, length, heads, width = q.shape
    n_blocks = -(-length // band)
    pad = n_blocks * band - length

    def blocks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
        return padded.reshape(batch, n_blocks, band, heads, width)

    def with_previous(x: jax.Array) -> jax.Array:
        """Each block with the one before it in front (zeros for the first block)."""
        x = blocks(x)
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))
        return jnp.concatenate([before, x], axis=2)

    query = jnp.arange(band)[:, None]
    key = jnp.arange(2 * band) - band
    in_band = (key <= query) & (query - key < band)
    exists = (key >= 0) | (jnp.arange(n_blocks)[:, None] > 0)
    visible = in_band & exists[:, None, :]  # [N, W, 2W]

    q, k, v = _heads_first(blocks(q)), _heads_first(with_previous(k)), _heads_first(with_previous(v))
    scores = einsum("bnhqk,bnhsk->bnhqs", q, k, jnp.float32)
    weights = _softmax(scores, visible[:, None], q)
    out = _heads_first(einsum("bnhqs,bnhsk->bnhqk", weights, v))
    return out.reshape(batch, n_blocks * band, heads, width)[:, :length]
