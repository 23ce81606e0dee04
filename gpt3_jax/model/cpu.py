"""What is there for XLA's CPU backend: other forms of the same mathematics, which it runs faster.

Everything in the model that looks whether the platform is "cpu" is here, each form with its reason.
``python -m gpt3_jax.bench.cpu_forms`` measures each one beside the form that other platforms get.

Beside these there are forms that the CPU backend needs and that cost other platforms nothing. They stand where they are
used: matmuls of a kernel are two-dimensional, the only bf16 x bf16 -> fp32 that it has in every shape
(`matmul.linear`); no matmul of attention contracts its left side's first dimension (`attention.blockwise`); biases'
gradients are summed in fp32 (`pointwise.add_bias`); rows and heads are one dimension of a cache (`decode`). That
reductions over devices are in fp32 is `parallel.collectives.reduction_dtype`'s.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

PLAIN_SCORE_BYTES = 4 * 2**20
"""Attention (`attention.choose`): up to so many bytes of scores `plain` is the fastest, as they stay in the caches;
beyond, `blockwise` is."""
TRIANGLE_BLOCK = 128
"""Positions of a block of `attention.triangle`, at least."""


def takes_triangle(length: int, platform: str) -> bool:
    """Whether attention without gradients is `attention.triangle`: for GPT-3 Small it takes half to a third of the time
    of the other implementations for rows of 350 tokens and more, and as long as they for rows of 160 to 200."""
    return platform == "cpu" and length >= 2 * TRIANGLE_BLOCK


# -- matmuls in bf16 -----------------------------------------------------------------------------------------------


def needs_transpose(dtype: jnp.dtype, platform: str) -> bool:
    """Whether the sum over rows of a[n, I] b[n, O] is computed from a transposed copy of a (`transposed`).

    The backend has no bf16 matmul with the contracted dimension first on the left. It would copy both operands to fp32
    and multiply at half the speed.
    """
    return platform == "cpu" and dtype == jnp.bfloat16


def transposed(a_NI: jax.Array) -> jax.Array:
    """A transpose [I, N] that the compiler does not fold back into the matmul that it is for.

    It folds nothing into a matmul from out of a branch. The other branch is taken only where the first element is NaN,
    and returns NaN everywhere: the gradient's norm is NaN either way.
    """

    def rows_first(a_IN: jax.Array) -> jax.Array:
        # Free to choose a layout, the compiler would transpose nothing in the branch, and copy after it.
        pinned: jax.Array = with_layout_constraint(a_IN, Layout((0, 1)))
        return pinned

    return lax.cond(  # type: ignore[no-any-return]
        jnp.isnan(a_NI[0, 0]),
        lambda a_NI: rows_first(jnp.full_like(a_NI, jnp.nan).reshape(a_NI.shape[::-1])),
        lambda a_NI: rows_first(a_NI.T),
        a_NI,
    )


def row_copies(batch: int, dtype: jnp.dtype, platform: str) -> int:
    """How many equal rows a decoding step computes for one. The backend multiplies a single bf16 row at a tenth of the
    speed of two, which read the weights once all the same."""
    return 2 if batch == 1 and dtype == jnp.bfloat16 and platform == "cpu" else 1


# -- the cache of generation ---------------------------------------------------------------------------------------


def cache_dtype(dtype: jnp.dtype, platform: str) -> jnp.dtype:
    """The dtype of cached keys and values. The backend updates a bf16 array by converting all of it to fp32 and back,
    for one position as for all."""
    return jnp.dtype(jnp.float32) if platform == "cpu" else dtype


def write_rows(cache_NSK: jax.Array, new_BHK: jax.Array, slots_B: jax.Array) -> jax.Array:
    """The cache with each row's new keys or values in its slot, in place. The backend expands the scatter of other
    platforms into steps that copy the whole cache several times."""
    batch, heads, _ = new_BHK.shape
    for b in range(batch):
        cache_NSK = lax.dynamic_update_slice(cache_NSK, new_BHK[b][:, None], (b * heads, slots_B[b], 0))
    return cache_NSK


# -- the loss ------------------------------------------------------------------------------------------------------


def makes_vocabulary_last(dtype: jnp.dtype, platform: str) -> bool:
    """Whether the gradient of the output matrix is accumulated as [D, V], and transposed once at the end. In that form
    the small operand, the hidden states, is the one that `transposed` copies, not the logits."""
    return needs_transpose(dtype, platform)


def picks_logits(platform: str, vocabulary_shards: int) -> bool:
    """Whether the label's logit is gathered and padding is overwritten (`mask_padding`, `pick`), instead of a masked
    reduction. The backend makes a pass over all logits of a chunk for each mask; others fuse masks into reductions.
    Only where a device has the whole vocabulary."""
    return platform == "cpu" and vocabulary_shards == 1


def mask_padding(logits_CV: jax.Array, n_vocab: int, masked: float) -> jax.Array:
    """Logits whose columns from `n_vocab` on are `masked`."""
    padding = logits_CV.shape[1] - n_vocab
    if padding <= 0:
        return logits_CV
    return lax.dynamic_update_slice_in_dim(logits_CV, jnp.full_like(logits_CV[:, :padding], masked), n_vocab, axis=1)


def pick(logits_CV: jax.Array, labels_C: jax.Array) -> jax.Array:
    """Each row's logit of its label; for a negative label, some other one."""
    return jnp.take_along_axis(logits_CV, jnp.maximum(labels_C, 0)[:, None], axis=1, mode="clip")[:, 0]
