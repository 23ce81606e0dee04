"""Attention a few heads at a time, a block of queries against all their keys: for CPUs.

The scores of a few heads and one block of queries stay in the caches. Blocks are unrolled, so each is cut to the keys
that it sees: no running maximum, hardly a masked score. The program grows with the number of blocks, so there are at
most eight. The backward pass recomputes the scores, a block of keys against all queries that see it, from the queries,
the keys and the log-sum-exp of each row of scores. Where no gradient is taken, `triangle` is faster in bf16.

Shapes: B batch, T positions, H heads, K head width; N groups of G heads; Q queries of a block and the S keys that they
see, or S keys of a block and the Q queries that see them.

Results of a group of heads are in fp32 until all are there: the backend writes a part of a bf16 array by converting all
of it, 11 ms of a core for a layer of gpt3-small with 2,048 tokens, and 4 ms in fp32. A step takes 2.93 s and 3.30 GiB;
in bf16 it would take 3.02 s and 3.19 GiB.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from gpt3_jax.model.attention.plain import MASKED
from gpt3_jax.model.matmul import einsum

_LEAST_BLOCK, _MOST_BLOCKS = 256, 8
_ALIGNED = 64
"""A banded block's first key is a multiple of this."""


def by_head(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    name: str | None = None,
    block: int | None = None,
    group: int | None = None,
) -> jax.Array:
    """As `plain.plain`.

    Args:
        block: positions in a block (default: 256, or an eighth of T where that is more).
        group: heads computed at once, or the largest divisor of it that divides them (default: one for each core, at
            least 2).
    """
    batch, length, heads, _ = q_BTHK.shape
    block = min(length, block or max(_LEAST_BLOCK, -(-length // _MOST_BLOCKS)))
    group = math.gcd(batch * heads, group or max(2, _cores()))
    return _attention(q_BTHK, k_BTHK, v_BTHK, band, name, block, group)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _attention(
    q: jax.Array, k: jax.Array, v: jax.Array, band: int | None, name: str | None, block: int, group: int
) -> jax.Array:
    return _forward(q, k, v, band, name, block, group)[0]


Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, band: int | None, name: str | None, block: int, group: int
) -> tuple[jax.Array, Saved]:
    length = q.shape[1]

    def some_heads(qkv_GTK: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q, k, v = qkv_GTK
        outs, lses = [], []
        for rows in _blocks(length, block):
            keys = _keys(rows, band)
            scores_GQS = _scores(q[:, rows], k[:, keys], _visible(rows, keys, band))
            highest_GQ1 = scores_GQS.max(-1, keepdims=True)
            weights = jnp.exp(scores_GQS - highest_GQ1)
            total_GQ1 = weights.sum(-1, keepdims=True)
            outs.append(einsum("gqs,gsk->gqk", weights.astype(v.dtype), v[:, keys], jnp.float32) / total_GQ1)
            lses.append((highest_GQ1 + jnp.log(total_GQ1))[..., 0])
        return jnp.concatenate(outs, 1), jnp.concatenate(lses, 1)

    out_NGTK, lse_NGT = lax.map(some_heads, tuple(_grouped(x, group) for x in (q, k, v)))
    out_BTHK = _ungrouped(out_NGTK, q.shape[0]).astype(q.dtype)
    if name:
        out_BTHK, lse_NGT = checkpoint_name(out_BTHK, name), checkpoint_name(lse_NGT, name)
    return out_BTHK, (q, k, v, out_BTHK, lse_NGT)


def _backward(
    band: int | None, name: str | None, block: int, group: int, saved: Saved, ct: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, lse_NGT = saved
    length = q.shape[1]
    # The softmax's derivative takes from each weight's cotangent their mean, weighted: Σ_s w_s (ct · v_s) = ct · out.
    mean_BTH = jnp.sum(ct.astype(jnp.float32) * out.astype(jnp.float32), -1)
    mean_NGT = jnp.swapaxes(mean_BTH, 1, 2).reshape(lse_NGT.shape)

    # Scores have the keys first here: then no matmul contracts its left operand's first dimension (`blockwise`).
    def some_heads(x: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v, ct, lse_GT, mean_GT = x
        k_GKT = jnp.swapaxes(k, -1, -2)
        q_ct_GKT, k_cts, v_cts = jnp.zeros_like(k_GKT, jnp.float32), [], []
        for keys in _blocks(length, block):
            rows = _rows(keys, band, length)
            scores_GSQ = _scores(k[:, keys], q[:, rows], _visible(rows, keys, band).T)
            weights = jnp.exp(scores_GSQ - lse_GT[:, None, rows])
            v_cts.append(einsum("gsq,gqk->gsk", weights.astype(ct.dtype), ct[:, rows], jnp.float32))
            weights_ct = einsum("gsk,gqk->gsq", v[:, keys], ct[:, rows], jnp.float32)
            scores_ct = (weights * (weights_ct - mean_GT[:, None, rows]) * q.shape[-1] ** -0.5).astype(q.dtype)
            k_cts.append(einsum("gsq,gqk->gsk", scores_ct, q[:, rows], jnp.float32))
            part_GKQ = einsum("gks,gsq->gkq", k_GKT[:, :, keys], scores_ct, jnp.float32)
            q_ct_GKT = q_ct_GKT.at[:, :, rows].add(part_GKQ)
        return jnp.swapaxes(q_ct_GKT, -1, -2), jnp.concatenate(k_cts, 1), jnp.concatenate(v_cts, 1)

    grouped = (*(_grouped(x, group) for x in (q, k, v, ct)), lse_NGT, mean_NGT)
    cts = lax.map(some_heads, grouped)
    return tuple(_ungrouped(x_NGTK, q.shape[0]).astype(q.dtype) for x_NGTK in cts)  # type: ignore[return-value]


_attention.defvjp(_forward, _backward)


def _blocks(length: int, block: int) -> Iterator[slice]:
    return (slice(first, min(first + block, length)) for first in range(0, length, block))


def _keys(rows: slice, band: int | None) -> slice:
    """The keys that a block of queries sees, and some before them."""
    first = 0 if band is None else max(0, rows.start - band + 1)
    return slice(first // _ALIGNED * _ALIGNED, rows.stop)


def _rows(keys: slice, band: int | None, length: int) -> slice:
    """The queries that see a block of keys, and some after them."""
    last = length if band is None else min(length, keys.stop + band - 1)
    return slice(keys.start, min(length, -(-last // _ALIGNED) * _ALIGNED))


def _visible(rows: slice, keys: slice, band: int | None) -> jax.Array:
    distance_QS = jnp.arange(rows.start, rows.stop)[:, None] - jnp.arange(keys.start, keys.stop)
    return distance_QS >= 0 if band is None else (distance_QS >= 0) & (distance_QS < band)


def _scores(rows: jax.Array, columns: jax.Array, visible: jax.Array) -> jax.Array:
    scores = einsum("grk,gck->grc", rows, columns, jnp.float32) * rows.shape[-1] ** -0.5
    return jnp.where(visible, scores, MASKED)


def _grouped(x_BTHK: jax.Array, group: int) -> jax.Array:
    """[B, T, H, K] to [N, G, T, K]."""
    _, length, _, width = x_BTHK.shape
    return jnp.swapaxes(x_BTHK, 1, 2).reshape(-1, group, length, width)


def _ungrouped(x_NGTK: jax.Array, batch: int) -> jax.Array:
    """[N, G, T, K] to [B, T, H, K]."""
    *_, length, width = x_NGTK.shape
    return jnp.swapaxes(x_NGTK.reshape(batch, -1, length, width), 1, 2)
