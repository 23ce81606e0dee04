"""Cross-entropy of next tokens that never holds all logits at once.

Rows (tokens) are taken in chunks; only one chunk's logits exist at a time, fp32, sharded over the tensor axis along
the vocabulary. When gradients are wanted they are computed on the way, while a chunk's logits are there: nothing is
kept for the backward pass but the gradients themselves, and no logits are computed twice.

Shapes: N rows, D = d_model, V = this device's slice of the padded vocabulary, C rows of a chunk.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.model.matmul import einsum
from gpt3_jax.parallel.collectives import Local

_MASKED = -1e30


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def token_loss(
    h_ND: jax.Array, embedding_VD: jax.Array, labels_N: jax.Array, n_vocab: int, chunk: int, local: Local
) -> jax.Array:
    """Sum over rows of -log p(label), in nats, fp32 scalar (the same on every tensor shard).

    Args:
        h_ND: final hidden states, whole rows on each tensor shard.
        embedding_VD: the output matrix, tied with the token embedding (GPT-2's code).
        labels_N: int32 next tokens; a negative label leaves its row out.
        n_vocab: true vocabulary size; columns behind it are padding and get no probability.
        chunk: rows of logits held at once.
    """
    return _scan(h_ND, embedding_VD, labels_N, n_vocab, chunk, local, with_gradients=False)[0]


def _token_loss_forward(
    h_ND: jax.Array, embedding_VD: jax.Array, labels_N: jax.Array, n_vocab: int, chunk: int, local: Local
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    loss, gradients = _scan(h_ND, embedding_VD, labels_N, n_vocab, chunk, local, with_gradients=True)
    assert gradients is not None
    return loss, gradients


def _token_loss_backward(
    n_vocab: int, chunk: int, local: Local, gradients: tuple[jax.Array, jax.Array], ct: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    h_ct, embedding_ct = gradients
    dtype = h_ct.dtype
    return (h_ct * ct).astype(dtype), (embedding_ct * ct).astype(dtype), None


token_loss.defvjp(_token_loss_forward, _token_loss_backward)


def _scan(
    h_ND: jax.Array,
    embedding_VD: jax.Array,
    labels_N: jax.Array,
    n_vocab: int,
    chunk: int,
    local: Local,
    with_gradients: bool,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    n, d = h_ND.shape
    n_chunks = -(-n // min(chunk, n))
    size = -(-n // n_chunks)
    pad = n_chunks * size - n
    h_chunks = jnp.pad(h_ND, ((0, pad), (0, 0))).reshape(n_chunks, size, d)
    label_chunks = jnp.pad(labels_N, (0, pad), constant_values=-1).reshape(n_chunks, size)

    vocab = embedding_VD.shape[0]
    first = local.tensor_index() * vocab
    column = first + jnp.arange(vocab)

    def one_chunk(carry: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        h_CD, labels_C = chunk
        logits_CV = einsum("cd,vd->cv", h_CD, embedding_VD, jnp.float32)
        logits_CV = jnp.where(column < n_vocab, logits_CV, _MASKED)
        top_C = local.max_tensor(jnp.max(logits_CV, axis=-1))
        exp_CV = jnp.exp(logits_CV - top_C[:, None])
        total_C = local.sum_tensor(jnp.sum(exp_CV, axis=-1))
        is_label_CV = labels_C[:, None] == column
        label_logit_C = local.sum_tensor(jnp.sum(jnp.where(is_label_CV, logits_CV, 0.0), axis=-1))
        counts_C = labels_C >= 0
        loss = carry[0] + jnp.sum(jnp.where(counts_C, jnp.log(total_C) + top_C - label_logit_C, 0.0))
        if not with_gradients:
            return (loss,), ()
        ct_CV = jnp.where(counts_C[:, None], exp_CV / total_C[:, None] - is_label_CV, 0.0).astype(h_CD.dtype)
        embedding_ct = carry[1] + einsum("cv,cd->vd", ct_CV, h_CD, jnp.float32)
        return (loss, embedding_ct), (einsum("cv,vd->cd", ct_CV, embedding_VD),)

    zero = local.vary_batch(jnp.zeros((), jnp.float32))
    if not with_gradients:
        (loss,), _ = lax.scan(one_chunk, (zero,), (h_chunks, label_chunks))
        return loss, None
    zeros_VD = local.vary(jnp.zeros(embedding_VD.shape, jnp.float32))
    (loss, embedding_ct), (h_ct,) = lax.scan(one_chunk, (zero, zeros_VD), (h_chunks, label_chunks))
    return loss, (h_ct.reshape(-1, d)[:n], embedding_ct)
