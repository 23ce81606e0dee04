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

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from gpt3_jax.config import Config, ModelConfig
from gpt3_jax.parallel.zero import Weight

Tree = TypeVar("Tree")

PLAIN_SCORE_BYTES = 4 * 2**20
"""Attention (`attention.choose`): up to so many bytes of scores `plain` is the fastest, as they stay in the caches;
beyond, `by_head` or `blockwise` is."""
TRIANGLE_BLOCK = 128
"""Positions of a block of `attention.triangle`, at least."""


def takes_triangle(length: int, platform: str) -> bool:
    """Whether attention without gradients is `attention.triangle`. By `bench.cpu_forms` with the heads of GPT-3 Small,
    others take 2.1 to 2.5 times as long (`blockwise`, 11 rows of 352 tokens and 2 of 1,472, bf16 and fp32), 1.6 to 1.9
    times (`plain`, one row of 256) and 2.7 times (`plain`, one row of 2,048 with a band of 128)."""
    return platform == "cpu" and length >= 2 * TRIANGLE_BLOCK


def attends_by_head(dtype: jnp.dtype, platform: str) -> bool:
    """Whether attention beyond `PLAIN_SCORE_BYTES` is `attention.by_head` and not `attention.blockwise`, whose scores
    of all heads do not stay in the caches. In fp32 matmuls take twice as long, and the difference is small."""
    return platform == "cpu" and dtype == jnp.bfloat16


# -- depth ---------------------------------------------------------------------------------------------------------

_UNROLLED_FROM = 5e6
"""Weights of the blocks from which on the loop over depth is unrolled. Below, programs are compiled more often than
long runs are made: a short run that is long enough says so in its configuration."""
_FLOPS = 4e11
"""Floating-point operations per second of a CPU, roughly: for what follows."""
_SAVED, _COMPILE_S = 0.1, 0.5
"""Part of a step that unrolling saves, and seconds that it adds to compiling for each layer: gpt3-small on two cores of
an AMD EPYC."""
_REPAID = 5
"""How many times the compile time must be saved."""


def unroll(model: ModelConfig, tokens: int) -> int:
    """Periods of the attention pattern in an iteration of the loop over depth, for a run of `tokens` on one device.

    All of them, where the steps repay what compiling takes longer: the backend copies each layer's weights, gradients
    and activations out of the stacked arrays and into them. Else 1.
    """
    weights = 12 * model.n_layers * model.d_model**2
    saved = _SAVED * 6 * weights * tokens / _FLOPS
    pays = weights >= _UNROLLED_FROM and saved > _REPAID * _COMPILE_S * model.n_layers
    return model.n_layers // len(model.attention_pattern) if pays else 1


def casts_layers(config: Config, platform: str, devices: int, unroll: int) -> bool:
    """Whether the loop over depth, `unroll` periods an iteration, is `layers`: where it is no loop, on one device, with
    nothing to gather in it."""
    whole = unroll * len(config.model.attention_pattern) >= config.model.n_layers
    return platform == "cpu" and devices == 1 and whole and config.parallel.stage < 2


def layers(stack: Tree, count: int) -> list[Tree]:
    """The layers of a tree of weights of the kind `layers`, `count` of them in front. Each is cast by itself
    (`cast_rows`), so that none is copied out of a stack."""
    weights, tree = jax.tree.flatten(stack, is_leaf=lambda leaf: isinstance(leaf, Weight))
    by_weight = (
        [Weight(row, None, weight.how, "ahead") for row in cast_rows(weight.target, count, weight.how.compute)]
        for weight in weights
    )
    return [jax.tree.unflatten(tree, layer) for layer in zip(*by_weight, strict=True)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
@jax.named_scope("gather_weights")
def cast_rows(stack: jax.Array, count: int, dtype: jnp.dtype) -> list[jax.Array]:
    """The `count` rows of an fp32 stack, cast. The derivative writes each row's gradient into an fp32 stack, once it is
    made. That of a scan keeps them all and concatenates them: in bf16 the backend does so by converting them to fp32
    and back, an element at a time (80 ms of a step of gpt3-small, 2.93 s; with a scan it takes 3.02 s)."""
    return [stack[i].astype(dtype) for i in range(count)]


@jax.named_scope("reduce_gradients")
def _rows_backward(count: int, dtype: jnp.dtype, _: None, cts: list[jax.Array]) -> tuple[jax.Array]:
    stack = jnp.zeros((count, *cts[0].shape), jnp.float32)
    for i in reversed(range(count)):  # the order in which they are made
        stack = lax.dynamic_update_index_in_dim(stack, cts[i].astype(jnp.float32), i, 0)
    return (stack,)


cast_rows.defvjp(lambda stack, count, dtype: (cast_rows(stack, count, dtype), None), _rows_backward)


# -- the update ------------------------------------------------------------------------------------------------------


def updates_in_place(platform: str) -> bool:
    """Whether the optimizer computes parameters from the new moments (`train.optimizer.update_in_place`). Otherwise
    the backend fuses the moments' update into that of the parameters as well, which then reads the old moments: it
    copies all of them at the beginning of a step, and keeps the copies until its end. gpt3-small's step then takes
    3.17 s and 3.85 GiB instead of 2.93 s and 3.30 GiB."""
    return platform == "cpu"


# -- attention ------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def queries_keys_values(qkv_BT3HK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The three parts of a projection. Its derivative writes the three gradients side by side. That of three slices
    pads each with zeros and adds them up, and the backend computes each element from all of them, transposing them as
    it goes: 9.2 ms for a layer of gpt3-small with 2,048 tokens; side by side, 0.4 ms (`bench.cpu_forms`, two cores).
    Its step takes 3.16 s with slices, 2.93 s without."""
    return qkv_BT3HK[:, :, 0], qkv_BT3HK[:, :, 1], qkv_BT3HK[:, :, 2]


def _queries_keys_values_backward(_: None, parts: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array]:
    # Each part is rounded and laid out before they are put together, not within: else a step takes as long as with
    # slices.
    return (jnp.stack(lax.optimization_barrier(parts), axis=2),)


queries_keys_values.defvjp(lambda qkv: (queries_keys_values(qkv), None), _queries_keys_values_backward)


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


# -- generation's weights -------------------------------------------------------------------------------------------


def reads_outputs_first(dtype: jnp.dtype, platform: str, rows: int) -> bool:
    """Whether generation of so many rows keeps its kernels transposed, [O, I]. The backend's matmul of a few rows in
    bf16, and of one row in fp32, reads them a fifth to a third faster so; that of several rows in fp32 takes half as
    long again. Reading a prompt, a matmul of hundreds of rows, takes the same in either order (gpt3-small, fp32, 128 to
    1,920 tokens: within 6 %)."""
    return platform == "cpu" and (dtype == jnp.bfloat16 or rows == 1)


def int8_product(x_NI: jax.Array, values_OI: jax.Array) -> jax.Array:
    """The fp32 product of rows with an int8 matrix [O, I], without its scales.

    The backend converts int8 weights to another dtype at a twentieth of the speed at which its int8 matmul reads them.
    So each row becomes two of int8, its high and its low bits: 15 bits in all, of the row's largest number. int8 has no
    NaN: a row with a number that is not finite gets a unit that is not, and so do its products.
    """
    rows = x_NI.shape[0]
    top_N1 = jnp.max(jnp.abs(x_NI.astype(jnp.float32)), axis=-1, keepdims=True)
    unit_N1 = jnp.where(top_N1 == 0, 1.0, top_N1) / (127 * 128)
    steps_NI = x_NI.astype(jnp.float32) / unit_N1
    high_NI = jnp.round(steps_NI / 128)
    low_NI = jnp.clip(jnp.round(steps_NI - 128 * high_NI), -127, 127)
    both = jnp.concatenate([high_NI, low_NI]).astype(jnp.int8)
    sums = jnp.einsum("ni,oi->no", both, values_OI, preferred_element_type=jnp.int32).astype(jnp.float32)
    return (128 * sums[:rows] + sums[rows:]) * unit_N1


# -- the cache of generation ---------------------------------------------------------------------------------------


def cache_dtype(dtype: jnp.dtype, platform: str) -> jnp.dtype:
    """The dtype of cached keys and values. The backend updates a bf16 array by converting all of it to fp32 and back,
    for one position as for all."""
    return jnp.dtype(jnp.float32) if platform == "cpu" else dtype


def grows_caches(platform: str) -> bool:
    """Whether a cache begins short and doubles when it is full (`inference.lengths.cache_length`). Each size compiles
    the decode step, unrolled over the layers, once more, in the middle of a text. That it pays was measured on CPUs
    alone."""
    return platform == "cpu"


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
