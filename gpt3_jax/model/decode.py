"""The forward pass of generation: the whole prompt at once, then one token at a time, with a cache of keys and values.

Rows of a batch have their own lengths, without padding on the left. A dense layer's cache holds all positions, a banded
layer's only the band, as a ring buffer: position p is in slot p mod S. Blocks are unrolled, not scanned: a scan would
copy each layer's weights and cache for every token, and the cost of a token is to read them once.

On a mesh both functions run on one device's shards, inside `jax.shard_map`: rows over replica and data; heads, MLP and
vocabulary over tensor, as Megatron splits them. A block all-reduces twice over tensor, the embedding once, and the
logits are all-gathered. `inference.generate` has the programs.

Shapes, on one device: B rows, T positions of the prompts, Q copies of the one position, H heads, N = B × H, K head
width, S slots of a layer's cache, D = d_model, V = the true vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.config import ModelConfig
from gpt3_jax.model import cpu
from gpt3_jax.model.attention import attention
from gpt3_jax.model.matmul import einsum
from gpt3_jax.model.params import Block, Params, param_table
from gpt3_jax.model.pointwise import add_bias, gelu, layer_norm
from gpt3_jax.model.stored import Form, Matrix, Stored, product, rows, store
from gpt3_jax.model.transformer import bands
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import platform_of
from gpt3_jax.spec import ParamSpec

_MASKED = -1e30
"""As in `attention`: finite, and far below any score."""

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""From the queries, keys and values [B, T, H, K] of one layer its heads' outputs, in the same shape."""


@flax.struct.dataclass
class DecodeWeights:
    """Weights as generation reads them, block by block: in the compute dtype, or the matrices in int8 (`stored`)."""

    token_embedding: Matrix
    position_embedding: jax.Array
    blocks: tuple[Block[Any], ...]
    """Kernels are each a `Matrix`."""
    ln_f_scale: jax.Array
    ln_f_bias: jax.Array


@flax.struct.dataclass
class Cache:
    """Keys and values of the positions that each row's next token may see."""

    keys: tuple[jax.Array, ...]
    """By layer, [N, S, K], in `cpu.cache_dtype`. On a mesh the first dimension runs over the devices, and on each over
    its rows and heads."""
    values: tuple[jax.Array, ...]
    lengths_B: jax.Array
    """Tokens that each row has been given, int32: the position of its next one."""


def decode_weights(
    params: Params, config: ModelConfig, form: Form = "compute", platform: str | None = None
) -> DecodeWeights:
    """Casts, or quantises, and unstacks the parameters once, so that no step has to.

    Args:
        form: compute: all in `config.dtype`; int8: the matrices in int8, a scale for each output channel.
        platform: that generation's programs are compiled for; None: that of the devices that hold the parameters.
    """
    return _decode_weights(params, config, form, platform or platform_of(params))


@functools.partial(jax.jit, static_argnames=("config", "form", "platform"))
def _decode_weights(params: Params, config: ModelConfig, form: Form, platform: str) -> DecodeWeights:
    dtype, table = jnp.dtype(config.dtype), param_table(config)

    def layer(i: int) -> Block[Any]:
        def of_layer(leaf: Matrix, spec: ParamSpec) -> Matrix:
            return store(jax.tree.map(lambda stack: stack[i], leaf), spec, form, dtype, platform)

        return params.blocks.map(of_layer, table.blocks)

    return DecodeWeights(
        store(params.token_embedding, table.token_embedding, form, dtype, platform),
        params.position_embedding.astype(dtype),
        tuple(layer(i) for i in range(config.n_layers)),
        params.ln_f_scale.astype(dtype),
        params.ln_f_bias.astype(dtype),
    )


def init_cache(config: ModelConfig, batch: int, platform: str, capacity: int | None = None) -> Cache:
    """An empty cache for `batch` rows of at most `capacity` tokens (default: n_ctx), on this platform."""
    shapes = [(batch * config.n_heads, slots, config.d_head) for slots in slots_of(config, capacity or config.n_ctx)]
    dtype = cpu.cache_dtype(jnp.dtype(config.dtype), platform)
    # Each array its own: one shared array could not be donated several times.
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for shape in shapes),
        values=tuple(jnp.zeros(shape, dtype) for shape in shapes),
        lengths_B=jnp.zeros(batch, jnp.int32),
    )


@flax.struct.dataclass
class Prefix:
    """Keys and values of tokens that all prompts of a batch begin with, by layer, [P, H, K], in the compute dtype."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def read_prefix(weights: DecodeWeights, tokens_P: jax.Array, config: ModelConfig, local: Local) -> Prefix:
    """Reads the tokens (int32) that prompts have in common, once for all of them, for `prefill`."""
    keys, values = [], []
    x_BTD = _embed(weights, tokens_P[None], local) + weights.position_embedding[: tokens_P.shape[0]]
    for block, band in zip(weights.blocks, _bands(config), strict=True):

        def attend(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None = band) -> jax.Array:
            keys.append(k_BTHK[0])
            values.append(v_BTHK[0])
            return attention(q_BTHK, k_BTHK, v_BTHK, band, local.platform)

        x_BTD = _block(block, x_BTD, config, local, attend)
    return Prefix(tuple(keys), tuple(values))


@functools.partial(jax.jit, static_argnames=("config", "local", "capacity"))
def prefill(
    weights: DecodeWeights,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    config: ModelConfig,
    local: Local,
    capacity: int | None = None,
    prefix: Prefix | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads the prompts. Returns the logits [B, V] (fp32) of each row's next token, and the cache for `decode_step`.

    Args:
        tokens_BT: int32; a row starts with its prompt, and what follows is ignored. T is at most `capacity`.
        lengths_B: int32, from 1 to T.
        local: what the device's code knows of the mesh; ``Local(platform)`` on one device.
        capacity: tokens that a row may reach, prompt and prefix included (default: n_ctx).
        prefix: what stands in front of all prompts (`read_prefix`); tokens and lengths are then those of the rest.
            Worth it for a large part of them: the rest attends without the platform's kernel, row by row, with scores
            [H, T, P + T] in fp32 and no work saved in banded layers.

    Compiled once per shape: round T, P and `capacity` to a few sizes.
    """
    capacity = capacity or config.n_ctx
    before = 0 if prefix is None else prefix.keys[0].shape[0]
    end = before + tokens_BT.shape[1]
    if not end <= capacity <= config.n_ctx:
        raise ValueError(f"prompts of {end}, capacity {capacity}, n_ctx {config.n_ctx}: must not decrease")
    keys, values = [], []
    dtype = cpu.cache_dtype(jnp.dtype(config.dtype), local.platform)
    x_BTD = _embed(weights, tokens_BT, local) + weights.position_embedding[before:end]
    for i, (block, band, slots) in enumerate(
        zip(weights.blocks, _bands(config), slots_of(config, capacity), strict=True)
    ):

        def attend(
            q_BTHK: jax.Array,
            k_BTHK: jax.Array,
            v_BTHK: jax.Array,
            i: int = i,
            band: int | None = band,
            slots: int = slots,
        ) -> jax.Array:
            if prefix is None:
                out_BTHK = attention(q_BTHK, k_BTHK, v_BTHK, band, local.platform)
            else:
                k_BTHK, v_BTHK = _behind(prefix.keys[i], k_BTHK), _behind(prefix.values[i], v_BTHK)
                out_BTHK = _attend_behind(q_BTHK, k_BTHK, v_BTHK, band)
            keys.append(_to_slots(k_BTHK, before + lengths_B, slots, dtype))
            values.append(_to_slots(v_BTHK, before + lengths_B, slots, dtype))
            return out_BTHK

        x_BTD = _block(block, x_BTD, config, local, attend)
    last_B1D = jnp.take_along_axis(x_BTD, (lengths_B - 1)[:, None, None], axis=1)
    # A copy: jit would hand the caller's own array on, and donating the cache would then delete it.
    reached_B = jnp.copy(lengths_B) if prefix is None else before + lengths_B
    return _logits(weights, last_B1D, config, local), Cache(tuple(keys), tuple(values), reached_B)


def decode_step(
    weights: DecodeWeights, cache: Cache, tokens_B: jax.Array, config: ModelConfig, local: Local
) -> tuple[jax.Array, Cache]:
    """Appends one token (int32) to each row. Returns the logits [B, V] (fp32) of the token after it, and the cache.

    To be jitted with the cache donated, so that it is updated in place. A row must not outgrow the cache's capacity.
    """
    positions_B = cache.lengths_B
    keys, values = [], []
    x_BD = _embed(weights, tokens_B, local) + weights.position_embedding[positions_B]
    copies = _copies(weights, x_BD.shape[0], local.platform)
    x_BQD = jnp.broadcast_to(x_BD[:, None], (x_BD.shape[0], copies, x_BD.shape[1]))
    for block, keys_NSK, values_NSK in zip(weights.blocks, cache.keys, cache.values, strict=True):

        def attend(
            q_BQHK: jax.Array,
            k_BQHK: jax.Array,
            v_BQHK: jax.Array,
            keys_NSK: jax.Array = keys_NSK,
            values_NSK: jax.Array = values_NSK,
        ) -> jax.Array:
            keys.append(_put(keys_NSK, k_BQHK[:, 0], positions_B, local.platform))
            values.append(_put(values_NSK, v_BQHK[:, 0], positions_B, local.platform))
            heads_BHK = _attend_to_cache(q_BQHK[:, 0], keys[-1], values[-1], positions_B)
            return jnp.broadcast_to(heads_BHK[:, None], q_BQHK.shape)

        x_BQD = _block(block, x_BQD, config, local, attend)
    return _logits(weights, x_BQD, config, local), Cache(tuple(keys), tuple(values), positions_B + 1)


def longer(x_NSK: jax.Array, slots: int) -> jax.Array:
    """One layer's keys or values with room for more positions: for a cache that holds each position so far in the slot
    of its number, as one does that has not outgrown its capacity before."""
    return jnp.pad(x_NSK, ((0, 0), (0, slots - x_NSK.shape[1]), (0, 0)))


def _copies(weights: DecodeWeights, batch: int, platform: str) -> int:
    if isinstance(weights.token_embedding, Stored):
        return 1  # of int8 weights the product itself makes rows
    return cpu.row_copies(batch, weights.token_embedding.dtype, platform)


def _bands(config: ModelConfig) -> tuple[int | None, ...]:
    period = bands(config)
    return period * (config.n_layers // len(period))


def slots_of(config: ModelConfig, capacity: int) -> tuple[int, ...]:
    """Of each layer's cache."""
    return tuple(capacity if band is None else min(band, capacity) for band in _bands(config))


def _held(last_B: jax.Array, slots: int) -> jax.Array:
    """The position [B, S] in each slot after `last_B` is written: the latest that maps to it; negative if none does."""
    return last_B[:, None] - (last_B[:, None] - jnp.arange(slots)) % slots


def _to_slots(x_BTHK: jax.Array, lengths_B: jax.Array, slots: int, dtype: jnp.dtype) -> jax.Array:
    """A prompt's keys or values as the cache holds them; slots without a position hold an arbitrary one."""
    held_BS = jnp.maximum(_held(lengths_B - 1, slots), 0)
    x_BHSK = jnp.swapaxes(jnp.take_along_axis(x_BTHK, held_BS[:, :, None, None], axis=1), 1, 2)
    return x_BHSK.reshape(-1, *x_BHSK.shape[2:]).astype(dtype)


def _behind(prefix_PHK: jax.Array, x_BTHK: jax.Array) -> jax.Array:
    """The keys or values of each row's whole prompt, [B, P + T, H, K]."""
    shape = (x_BTHK.shape[0], *prefix_PHK.shape)
    return jnp.concatenate([jnp.broadcast_to(prefix_PHK, shape).astype(x_BTHK.dtype), x_BTHK], axis=1)


def _attend_behind(q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, band: int | None) -> jax.Array:
    """Attention of the last T of S positions to all of them. Row by row, so that the scores of one row, [H, T, S] in
    fp32, are in memory at a time: the platforms' kernels take as many queries as keys."""
    length, total = q_BTHK.shape[1], k_BSHK.shape[1]
    distance_TS = jnp.arange(total - length, total)[:, None] - jnp.arange(total)
    visible_TS = (distance_TS >= 0) & (distance_TS < (band or total))

    def row(of_row: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q_HTK, k_HSK, v_HSK = (jnp.swapaxes(x, 0, 1) for x in of_row)
        scores_HTS = einsum("htk,hsk->hts", q_HTK, k_HSK, jnp.float32) * q_HTK.shape[-1] ** -0.5
        weights_HTS = jax.nn.softmax(jnp.where(visible_TS, scores_HTS, _MASKED), axis=-1).astype(v_HSK.dtype)
        return jnp.swapaxes(einsum("hts,hsk->htk", weights_HTS, v_HSK), 0, 1)

    with jax.named_scope("attention"):
        return lax.map(row, (q_BTHK, k_BSHK, v_BSHK))


def _put(cache_NSK: jax.Array, new_BHK: jax.Array, positions_B: jax.Array, platform: str) -> jax.Array:
    """Writes the keys or values of each row's newest position into their slot of the cache."""
    batch, heads, _ = new_BHK.shape
    slots_B = positions_B % cache_NSK.shape[1]
    new_BHK = new_BHK.astype(cache_NSK.dtype)
    if platform == "cpu":
        return cpu.write_rows(cache_NSK, new_BHK, slots_B)
    new_NK = new_BHK.reshape(batch * heads, -1)
    return cache_NSK.at[jnp.arange(batch * heads), jnp.repeat(slots_B, heads)].set(new_NK)


def _attend_to_cache(q_BHK: jax.Array, keys_NSK: jax.Array, values_NSK: jax.Array, positions_B: jax.Array) -> jax.Array:
    """Attention of one position to the cached ones, itself included. The ring holds exactly what the band shows."""
    batch, heads, width = q_BHK.shape
    slots = keys_NSK.shape[1]
    # Rows and heads stay one dimension: in two shapes the cache would be there twice (`model.cpu`).
    q_N1K = q_BHK.reshape(-1, 1, width).astype(keys_NSK.dtype)
    scores_N1S = einsum("nqk,nsk->nqs", q_N1K, keys_NSK, jnp.float32) * width**-0.5
    visible_B1S = _held(positions_B, slots)[:, None] >= 0
    scores_BHS = jnp.where(visible_B1S, scores_N1S.reshape(batch, heads, slots), _MASKED)
    weights_BHS = jax.nn.softmax(scores_BHS, axis=-1).astype(q_BHK.dtype)
    weights_N1S = weights_BHS.reshape(-1, 1, slots).astype(values_NSK.dtype)
    return einsum("nqs,nsk->nqk", weights_N1S, values_NSK).reshape(q_BHK.shape).astype(q_BHK.dtype)


def _embed(weights: DecodeWeights, tokens: jax.Array, local: Local) -> jax.Array:
    """The token embeddings, [..., D]."""
    table, dtype = weights.token_embedding, weights.position_embedding.dtype
    if local.tensor is None:
        return rows(table, tokens, dtype)
    # Each tensor shard has the rows of its slice of the vocabulary, zeros for other tokens.
    size = (table.values if isinstance(table, Stored) else table).shape[0]
    ids = tokens - local.tensor_index() * size
    inside = (ids >= 0) & (ids < size)
    return local.sum_partials(jnp.where(inside[..., None], rows(table, jnp.where(inside, ids, 0), dtype), 0))


def _block(block: Block[Any], x_BTD: jax.Array, config: ModelConfig, local: Local, attend: Attend) -> jax.Array:
    """`transformer`'s block without gradients, with the attention that generation needs. The residual stream is whole
    on each tensor shard: for the few rows of a token, sharding it would only split one message into two."""
    platform = local.platform
    h_BTD = layer_norm(x_BTD, block.ln_1_scale, block.ln_1_bias, config.norm_eps)
    qkv_BT3A = add_bias(product(h_BTD, block.qkv_kernel, platform), block.qkv_bias)
    qkv_BT3HK = qkv_BT3A.reshape(*qkv_BT3A.shape[:3], -1, config.d_head)
    heads_BTHK = attend(qkv_BT3HK[:, :, 0], qkv_BT3HK[:, :, 1], qkv_BT3HK[:, :, 2])
    heads_BTA = heads_BTHK.reshape(*h_BTD.shape[:2], -1)
    x_BTD = x_BTD + local.sum_partials(product(heads_BTA, block.attn_out_kernel, platform)) + block.attn_out_bias
    h_BTD = layer_norm(x_BTD, block.ln_2_scale, block.ln_2_bias, config.norm_eps)
    hidden_BTF = gelu(add_bias(product(h_BTD, block.mlp_up_kernel, platform), block.mlp_up_bias))
    return x_BTD + local.sum_partials(product(hidden_BTF, block.mlp_down_kernel, platform)) + block.mlp_down_bias


def _logits(weights: DecodeWeights, x_BQD: jax.Array, config: ModelConfig, local: Local) -> jax.Array:
    """Logits [B, V] of the first of each row's Q copies, without the padding of the vocabulary."""
    h_BQD = layer_norm(x_BQD, weights.ln_f_scale, weights.ln_f_bias, config.norm_eps)
    table = weights.token_embedding
    copies = _copies(weights, h_BQD.shape[0], local.platform)
    h_RD = jnp.repeat(h_BQD[:, 0], copies, axis=0)
    if isinstance(table, Stored):
        logits_RV = product(h_RD, table, local.platform, jnp.dtype(jnp.float32))
    else:
        logits_RV = einsum("rd,vd->rv", h_RD, table, jnp.float32)
    return local.gather_columns(logits_RV)[::copies, : config.n_vocab]
