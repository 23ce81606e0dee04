"""Cross-entropy of next tokens. All logits at once are never materialised.

Rows (tokens) are split into chunks; the logits of one chunk exist at a time, in fp32, their vocabulary sharded over the
tensor axis. Under differentiation the forward pass computes each chunk's gradients as well, so logits are computed
once. The output matrix is tied with the token embedding, whose gradient is made at the end of the backward pass. Until
then the smaller of two forms of the matrix's gradient is kept (`Deferred`).

Shapes: N rows, D = d_model, V = this device's slice of the padded vocabulary, C rows of a chunk.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.model import cpu
from gpt3_jax.model.matmul import contract_rows, einsum
from gpt3_jax.parallel.collectives import Local

_MASKED = -1e30


@flax.struct.dataclass
class Deferred:
    """The gradient of the output matrix, carried to where the gradient of the token embedding is made.

    With few rows (N <= D) the two factors are kept, N × V and N × D in the compute dtype; else their product, V × D,
    summed over the chunks in fp32 and rounded to the compute dtype in the loss's backward pass. In the forward pass
    this is a tree of zeros whose values are never used: the cotangents carry the gradient.
    """

    logits_ct_NV: jax.Array | None = None
    """Cotangent of the logits, in the compute dtype."""
    h_ND: jax.Array | None = None
    scale: jax.Array | None = None
    """fp32 scalar that multiplies the product of the two."""
    product_VD: jax.Array | None = None
    product_DV: jax.Array | None = None
    """The product with the vocabulary last, where that is the faster matmul (`cpu.makes_vocabulary_last`)."""

    @staticmethod
    def zeros(n: int, chunk: int, vocab: int, d: int, dtype: jnp.dtype, local: Local) -> Deferred:
        """For `token_loss` on `n` rows in chunks of `chunk`, with an output matrix [vocab, d] of `dtype`."""
        if n > d and cpu.makes_vocabulary_last(dtype, local.platform):
            return Deferred(product_DV=local.vary(jnp.zeros((d, vocab), dtype)))
        if n > d:
            return Deferred(product_VD=local.vary(jnp.zeros((vocab, d), dtype)))
        rows = _chunks(n, chunk)[0] * _chunks(n, chunk)[1]
        zero = local.vary_batch(jnp.zeros((), jnp.float32))
        factors = local.vary((jnp.zeros((rows, vocab), dtype), jnp.zeros((rows, d), dtype)))
        return Deferred(*factors, zero)

    def product(self, first: jax.Array | int, size: int) -> jax.Array:
        """Rows `first` to `first + size` of the gradient, [size, D] in fp32."""
        if self.product_VD is not None:
            rows: jax.Array = lax.dynamic_slice_in_dim(self.product_VD, first, size)
            return rows.astype(jnp.float32)
        if self.product_DV is not None:
            return lax.dynamic_slice_in_dim(self.product_DV, first, size, axis=1).T.astype(jnp.float32)
        assert self.logits_ct_NV is not None and self.h_ND is not None and self.scale is not None
        part_NV = lax.dynamic_slice_in_dim(self.logits_ct_NV, first, size, axis=1)
        return self.scale * einsum("nv,nd->vd", part_NV, self.h_ND, jnp.float32)


def _chunks(n: int, chunk: int) -> tuple[int, int]:
    """Number and size of the chunks of `n` rows."""
    n_chunks = -(-n // min(chunk, n))
    return n_chunks, -(-n // n_chunks)


def token_loss(
    h_ND: jax.Array,
    embedding_VD: jax.Array,
    labels_N: jax.Array,
    n_vocab: int,
    chunk: int,
    local: Local,
    deferred: Deferred | None = None,
) -> jax.Array:
    """Sum over rows of -log p(label), in nats, fp32 scalar (the same on every tensor shard).

    Args:
        h_ND: final hidden states, whole rows on each tensor shard.
        embedding_VD: the output matrix, tied with the token embedding (GPT-2's code).
        labels_N: int32 next tokens, below n_vocab; a negative label leaves its row out.
        n_vocab: true vocabulary size; the columns after it are padding and get no probability.
        chunk: rows of logits held at once.
        deferred: `Deferred.zeros`; it gets the gradient of the output matrix instead of `embedding_VD`.
    """
    if deferred is None:
        deferred = Deferred(product_VD=embedding_VD)
    return _token_loss(h_ND, lax.stop_gradient(embedding_VD), deferred, labels_N, n_vocab, chunk, local)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _token_loss(
    h_ND: jax.Array,
    embedding_VD: jax.Array,
    deferred: Deferred,
    labels_N: jax.Array,
    n_vocab: int,
    chunk: int,
    local: Local,
) -> jax.Array:
    return _scan(h_ND, embedding_VD, labels_N, n_vocab, chunk, local)[0]


def _token_loss_forward(
    h_ND: jax.Array,
    embedding_VD: jax.Array,
    deferred: Deferred,
    labels_N: jax.Array,
    n_vocab: int,
    chunk: int,
    local: Local,
) -> tuple[jax.Array, tuple[jax.Array, Deferred]]:
    loss, gradients = _scan(h_ND, embedding_VD, labels_N, n_vocab, chunk, local, deferred)
    assert gradients is not None
    return loss, gradients


def _token_loss_backward(
    n_vocab: int, chunk: int, local: Local, gradients: tuple[jax.Array, Deferred], ct: jax.Array
) -> tuple[jax.Array, None, Deferred, None]:
    h_ct, deferred = gradients
    dtype = h_ct.dtype
    if deferred.product_VD is not None:
        deferred = Deferred(product_VD=(deferred.product_VD * ct).astype(dtype))
    elif deferred.product_DV is not None:
        deferred = Deferred(product_DV=(deferred.product_DV * ct).astype(dtype))
    else:
        deferred = deferred.replace(scale=ct)  # type: ignore[attr-defined]
    return (h_ct * ct).astype(dtype), None, deferred, None


_token_loss.defvjp(_token_loss_forward, _token_loss_backward)


def _scan(
    h_ND: jax.Array,
    embedding_VD: jax.Array,
    labels_N: jax.Array,
    n_vocab: int,
    chunk: int,
    local: Local,
    deferred: Deferred | None = None,
) -> tuple[jax.Array, tuple[jax.Array, Deferred] | None]:
    """The loss; and, given `deferred`, the gradient of the hidden states and the deferred gradient of the output
    matrix, in the same form as `deferred`."""
    n, d = h_ND.shape
    n_chunks, size = _chunks(n, chunk)
    pad = n_chunks * size - n
    h_chunks = jnp.pad(h_ND, ((0, pad), (0, 0))).reshape(n_chunks, size, d)
    label_chunks = jnp.pad(labels_N, (0, pad), constant_values=-1).reshape(n_chunks, size)

    vocab = embedding_VD.shape[0]
    first = local.tensor_index() * vocab
    column = first + jnp.arange(vocab)

    def one_chunk(carry: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        h_CD, labels_C = chunk
        logits_CV = einsum("cd,vd->cv", h_CD, embedding_VD, jnp.float32)
        logits_CV = _without_padding(logits_CV, n_vocab, column, local)
        top_C = local.max_tensor(jnp.max(logits_CV, axis=-1))
        exp_CV = jnp.exp(logits_CV - top_C[:, None])
        total_C = local.sum_tensor(jnp.sum(exp_CV, axis=-1))
        is_label_CV = labels_C[:, None] == column
        label_logit_C = _label_logits(logits_CV, labels_C, is_label_CV, local)
        counts_C = labels_C >= 0
        loss = carry[0] + jnp.sum(jnp.where(counts_C, jnp.log(total_C) + top_C - label_logit_C, 0.0))
        if deferred is None:
            return (loss,), ()
        ct_CV = jnp.where(counts_C[:, None], exp_CV / total_C[:, None] - is_label_CV, 0.0).astype(h_CD.dtype)
        h_ct = einsum("cv,vd->cd", ct_CV, embedding_VD)
        if deferred.product_DV is not None:
            return (loss, carry[1] + contract_rows(h_CD, ct_CV, jnp.float32, local.platform)), (h_ct,)
        if deferred.product_VD is None:
            return (loss,), (h_ct, ct_CV)
        return (loss, carry[1] + einsum("cv,cd->vd", ct_CV, h_CD, jnp.float32)), (h_ct,)

    zero = local.vary_batch(jnp.zeros((), jnp.float32))
    if deferred is None:
        (loss,), _ = lax.scan(one_chunk, (zero,), (h_chunks, label_chunks))
        return loss, None
    if deferred.product_DV is not None:
        zeros_DV = local.vary(jnp.zeros((d, vocab), jnp.float32))
        (loss, product_DV), (h_ct,) = lax.scan(one_chunk, (zero, zeros_DV), (h_chunks, label_chunks))
        kept = Deferred(product_DV=product_DV)
    elif deferred.product_VD is None:
        (loss,), (h_ct, ct) = lax.scan(one_chunk, (zero,), (h_chunks, label_chunks))
        kept = Deferred(ct.reshape(-1, vocab), h_chunks.reshape(-1, d), zero)
    else:
        zeros_VD = local.vary(jnp.zeros(embedding_VD.shape, jnp.float32))
        (loss, product_VD), (h_ct,) = lax.scan(one_chunk, (zero, zeros_VD), (h_chunks, label_chunks))
        kept = Deferred(product_VD=product_VD)
    return loss, (h_ct.reshape(-1, d)[:n], kept)


def _without_padding(logits_CV: jax.Array, n_vocab: int, column: jax.Array, local: Local) -> jax.Array:
    if cpu.picks_logits(local.platform, local.tensor_size):
        return cpu.mask_padding(logits_CV, n_vocab, _MASKED)
    return jnp.where(column < n_vocab, logits_CV, _MASKED)


def _label_logits(logits_CV: jax.Array, labels_C: jax.Array, is_label_CV: jax.Array, local: Local) -> jax.Array:
    """Each row's logit of its label; any number for a row that is left out."""
    if cpu.picks_logits(local.platform, local.tensor_size):
        return cpu.pick(logits_CV, labels_C)
    return local.sum_tensor(jnp.sum(jnp.where(is_label_CV, logits_CV, 0.0), axis=-1))
