"""Attention block by block with an online softmax: the score matrix is never materialised (FlashAttention's algorithm).

A scan runs over the pairs of a query block and a key block in which some query sees some key: the lower triangle, or
the part of it that the band touches. The backward pass recomputes the scores, pair by pair, from the queries, the keys
and the log-sum-exp of each row of scores.

Shapes: B batch, T positions, H heads, K head width; N blocks of Q query or S key positions, Q = S.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from gpt3_jax.model.attention.plain import MASKED
from gpt3_jax.model.matmul import einsum


def blockwise(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    name: str | None = None,
    block: int | None = None,
) -> jax.Array:
    """As `plain.plain`.

    Args:
        block: positions in a block (default: `block_size`).
    """
    return _attention(q_BTHK, k_BTHK, v_BTHK, band, name, block or block_size(q_BTHK.shape[1], band))


def block_size(length: int, band: int | None) -> int:
    """Positions in a block: 512, fewer where a band would waste larger blocks; at least 128 unless T is shorter.

    Blocks as long as the band compute about twice the scores that they need.
    """
    fitting = 1 << (min(band or length, length) - 1).bit_length()
    return min(max(128, min(512, fitting)), length)


def visited_blocks(length: int, band: int | None, block: int) -> np.ndarray:
    """The pairs (query block, key block) [P, 2] with a visible key, each row's own block first."""
    n_blocks = -(-length // block)
    # The nearest key of a block `back` blocks before is back × block - (block - 1) positions away from a row's first.
    reach = n_blocks - 1 if band is None else min(n_blocks - 1, (band + block - 2) // block)
    pairs = [(i, i - back) for i in range(n_blocks) for back in range(min(i, reach) + 1)]
    return np.array(pairs, np.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attention(q: jax.Array, k: jax.Array, v: jax.Array, band: int | None, name: str | None, block: int) -> jax.Array:
    return _forward(q, k, v, band, name, block)[0]


Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
Sums = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
Step = tuple[jax.Array, jax.Array, jax.Array]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, band: int | None, name: str | None, block: int
) -> tuple[jax.Array, Saved]:
    q_N, k_N, v_N = (_blocks(x, block) for x in (q, k, v))
    # Made from an argument, so that under `shard_map` they have its type over the mesh, as a scan's carry must.
    out_BHQK = jnp.zeros_like(q_N[0], jnp.float32)
    row_BHQ = jnp.zeros_like(q_N[0, ..., 0], jnp.float32)

    def visit(carry: Sums, step: Step) -> tuple[Sums, None]:
        out, highest, total, out_N, lse_N = carry
        i, j, first = step
        out, highest, total = (jnp.where(first, new, old) for new, old in ((0, out), (MASKED, highest), (0, total)))
        scores = _scores(q_N[i], k_N[j], i, j, band)
        # A row's own block comes first and has a visible key for each row: `highest` is a true score from then on,
        # and what is masked has weight 0.
        new_highest = jnp.maximum(highest, scores.max(-1))
        weights = jnp.exp(scores - new_highest[..., None])
        rescale = jnp.exp(highest - new_highest)
        total = total * rescale + weights.sum(-1)
        seen = einsum("bhqs,bhsk->bhqk", weights.astype(v.dtype), v_N[j], jnp.float32)
        out = out * rescale[..., None] + seen
        # Written at every step, the last of a row's writes stays.
        out_N = _put(out_N, (out / total[..., None]).astype(out_N.dtype), i)
        lse_N = _put(lse_N, new_highest + jnp.log(total), i)
        return (out, new_highest, total, out_N, lse_N), None

    start = (out_BHQK, row_BHQ, row_BHQ, jnp.zeros_like(q_N), jnp.zeros_like(q_N[..., 0], jnp.float32))
    (*_, out_N, lse_N), _ = lax.scan(visit, start, _steps(visited_blocks(q.shape[1], band, block), q))
    out_BTHK = _positions(out_N, q.shape[1])
    if name:
        out_BTHK, lse_N = checkpoint_name(out_BTHK, name), checkpoint_name(lse_N, name)
    return out_BTHK, (q, k, v, out_BTHK, lse_N)


def _backward(
    band: int | None, name: str | None, block: int, saved: Saved, ct: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, lse_N = saved
    q_N, k_N, v_N, ct_N = (_blocks(x, block) for x in (q, k, v, ct))
    # The softmax's derivative takes from each weight's cotangent their mean, weighted: Σ_s w_s (ct · v_s) = ct · out.
    mean_N = _blocks(jnp.sum(ct.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True), block)[..., 0]
    key_ct_BHSK = jnp.zeros_like(q_N[0], jnp.float32)
    k_NBHKS = jnp.swapaxes(k_N, -1, -2)

    # Scores have the keys first here: then no matmul contracts its left operand's first dimension, the form that XLA's
    # CPU backend runs at a fifth of the speed of others (`model.cpu`).
    def visit(carry: Sums, step: Step) -> tuple[Sums, None]:
        k_ct, v_ct, q_ct_NBHKQ, k_ct_N, v_ct_N = carry
        i, j, first = step
        k_ct, v_ct = jnp.where(first, 0, k_ct), jnp.where(first, 0, v_ct)
        weights = jnp.exp(_scores(k_N[j], q_N[i], i, j, band, keys_first=True) - lse_N[i][..., None, :])
        v_ct = v_ct + einsum("bhsq,bhqk->bhsk", weights.astype(ct.dtype), ct_N[i], jnp.float32)
        weights_ct = einsum("bhsk,bhqk->bhsq", v_N[j], ct_N[i], jnp.float32)
        scores_ct = (weights * (weights_ct - mean_N[i][..., None, :]) * q.shape[-1] ** -0.5).astype(q.dtype)
        k_ct = k_ct + einsum("bhsq,bhqk->bhsk", scores_ct, q_N[i], jnp.float32)
        q_ct = q_ct_NBHKQ[i] + einsum("bhks,bhsq->bhkq", k_NBHKS[j], scores_ct, jnp.float32)
        k_ct_N, v_ct_N = _put(k_ct_N, k_ct.astype(k.dtype), j), _put(v_ct_N, v_ct.astype(v.dtype), j)
        return (k_ct, v_ct, _put(q_ct_NBHKQ, q_ct, i), k_ct_N, v_ct_N), None

    pairs = visited_blocks(q.shape[1], band, block)
    # Ordered by key block: two of the three sums are then one block long, and only one is as long as the queries.
    pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
    zeros_NBHKQ = jnp.zeros_like(k_NBHKS, jnp.float32)
    start = (key_ct_BHSK, key_ct_BHSK, zeros_NBHKQ, jnp.zeros_like(k_N), jnp.zeros_like(v_N))
    (*_, q_ct_NBHKQ, k_ct_N, v_ct_N), _ = lax.scan(visit, start, _steps(pairs, q))
    q_ct_N = jnp.swapaxes(q_ct_NBHKQ.astype(q.dtype), -1, -2)
    return tuple(_positions(x_N, q.shape[1]) for x_N in (q_ct_N, k_ct_N, v_ct_N))  # type: ignore[return-value]


_attention.defvjp(_forward, _backward)


def _steps(pairs: np.ndarray, q_BTHK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The scan's inputs: query block, key block, and whether they are the same, where a new sum begins."""
    # Tied to an argument. As constants they would let the derivative of a scan over layers compute the masks of all
    # pairs ahead of its loop, once for all layers, and keep them.
    i, j, _ = lax.optimization_barrier((pairs[:, 0], pairs[:, 1], q_BTHK[0, 0, 0, 0]))
    return i, j, i == j


def _scores(
    rows: jax.Array, columns: jax.Array, i: jax.Array, j: jax.Array, band: int | None, keys_first: bool = False
) -> jax.Array:
    """Scores of query block i and key block j, in fp32: [B, H, Q, S] of queries and keys [B, H, Q or S, K], or, keys
    first, [B, H, S, Q] of keys and queries."""
    scores = einsum("bhrk,bhck->bhrc", rows, columns, jnp.float32) * rows.shape[-1] ** -0.5
    block = rows.shape[-2]
    row, column = jnp.arange(block)[:, None], jnp.arange(block)
    distance = (i - j) * block + (column - row if keys_first else row - column)
    visible = distance >= 0 if band is None else (distance >= 0) & (distance < band)
    return jnp.where(visible, scores, MASKED)


def _blocks(x_BTHK: jax.Array, block: int) -> jax.Array:
    """[B, T, H, K] to [N, B, H, Q, K], padded with zeros at the end, which no true query sees."""
    batch, length, heads, width = x_BTHK.shape
    n_blocks = -(-length // block)
    x = jnp.pad(x_BTHK, ((0, 0), (0, n_blocks * block - length), (0, 0), (0, 0)))
    return x.reshape(batch, n_blocks, block, heads, width).transpose(1, 0, 3, 2, 4)


def _positions(x_NBHQK: jax.Array, length: int) -> jax.Array:
    """[N, B, H, Q, K] to [B, T, H, K]."""
    n_blocks, batch, heads, block, width = x_NBHQK.shape
    return x_NBHQK.transpose(1, 0, 3, 2, 4).reshape(batch, n_blocks * block, heads, width)[:, :length]


def _put(x_N: jax.Array, block: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x_N, block, i, 0)
