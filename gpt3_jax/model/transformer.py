"""The forward pass (GPT-3 section 2.1; GPT-2's code for what it leaves out).

Pre-LayerNorm blocks, learned positions, biases, tanh GELU, tied output. Blocks alternate kinds of attention; they are
scanned over periods of that pattern, so that compile time does not grow with depth.

Shapes: B batch, T positions, S = T / tensor positions of this tensor shard, D = d_model, H heads and A = H × K
attention width and F = d_ff of this tensor shard, V its slice of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.config import ModelConfig
from gpt3_jax.model.attention import attention
from gpt3_jax.model.loss import token_loss
from gpt3_jax.model.matmul import einsum, linear
from gpt3_jax.model.params import Block, Params
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import DATA

Remat = Literal["none", "dots", "full"]


class Weights(Protocol):
    """Where the forward pass gets its weights from, in the compute dtype. `parallel.zero` has ZeRO's stages."""

    @property
    def blocks(self) -> Any:
        """What stands for the blocks: a pytree with L in front."""

    @property
    def made_inside(self) -> bool:
        """Whether `block` makes the weights anew, so that the backward pass should not keep them."""

    def block(self, layer: Any) -> Block:
        """The weights of one block from its slice of `blocks`; called inside the scan."""

    def embeddings(self) -> tuple[jax.Array, jax.Array]:
        """Token embedding [V, D] and position embedding [C, D]."""

    def head(self, h: jax.Array, token_embedding: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Final LayerNorm's scale and bias, and the output matrix [V, D], once the blocks have given `h`."""


class PlainWeights:
    """Weights of one device: `Params` as they are, cast to the compute dtype."""

    def __init__(self, params: Params, dtype: str) -> None:
        self._params: Params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    @property
    def blocks(self) -> Block:
        return self._params.blocks  # type: ignore[no-any-return]

    @property
    def made_inside(self) -> bool:
        return False

    def block(self, layer: Block) -> Block:
        return layer

    def embeddings(self) -> tuple[jax.Array, jax.Array]:
        return self._params.token_embedding, self._params.position_embedding

    def head(self, h: jax.Array, token_embedding: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self._params.ln_f_scale, self._params.ln_f_bias, token_embedding


def forward(params: Params, tokens_BT: jax.Array, config: ModelConfig) -> jax.Array:
    """Logits [B, T, n_vocab] in fp32 for int32 tokens [B, T], T <= n_ctx. On one device, all logits at once."""
    weights = PlainWeights(params, config.dtype)
    h_BTD, embedding_VD = hidden(weights, tokens_BT, config, Local(), remat="none")
    logits = einsum("btd,vd->btv", h_BTD, embedding_VD, jnp.float32)
    return logits[..., : config.n_vocab]


def loss_sum(
    weights: Weights,
    rows_BT1: jax.Array,
    config: ModelConfig,
    local: Local,
    remat: Remat,
    loss_chunk: int,
    unroll: int = 1,
) -> jax.Array:
    """Sum of -log p over the T targets of each row of T + 1 tokens, in nats (fp32 scalar, one per tensor group)."""
    h_BTD, embedding_VD = hidden(weights, rows_BT1[:, :-1], config, local, remat, unroll)
    labels_N = rows_BT1[:, 1:].reshape(-1)
    return token_loss(h_BTD.reshape(-1, config.d_model), embedding_VD, labels_N, config.n_vocab, loss_chunk, local)


def hidden(
    weights: Weights, tokens_BT: jax.Array, config: ModelConfig, local: Local, remat: Remat, unroll: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Final hidden states [B, T, D], whole rows on every tensor shard, and the output matrix [V, D]."""
    token_embedding_VD, position_embedding_CD = weights.embeddings()
    x_BSD = embed(token_embedding_VD, position_embedding_CD, tokens_BT, local)
    x_BSD = _blocks(weights, x_BSD, config, local, remat, unroll)
    scale, bias, embedding_VD = weights.head(x_BSD, token_embedding_VD)
    return local.gather_sequence(layer_norm(x_BSD, scale, bias, config.norm_eps)), embedding_VD


def embed(
    token_embedding_VD: jax.Array, position_embedding_CD: jax.Array, tokens_BT: jax.Array, local: Local
) -> jax.Array:
    """Token plus position embeddings, this tensor shard's positions: [B, S, D]."""
    length = tokens_BT.shape[1] // local.tensor_size
    x_BSD = local.scatter_sequence(
        lookup(token_embedding_VD, tokens_BT - local.tensor_index() * token_embedding_VD.shape[0])
    )
    positions = lax.dynamic_slice_in_dim(position_embedding_CD, local.tensor_index() * length, length, axis=0)
    return x_BSD + positions


@jax.custom_vjp
def lookup(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """Rows of the table; zeros for ids outside it. Backward, a frequent row's gradient is summed in fp32, not bf16."""
    inside = (ids_BT >= 0) & (ids_BT < table_VD.shape[0])
    return jnp.where(inside[..., None], table_VD[jnp.where(inside, ids_BT, 0)], 0)


def _lookup_forward(table_VD: jax.Array, ids_BT: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The table goes along for its shape and its type over the mesh; XLA drops it.
    return lookup(table_VD, ids_BT), (table_VD, ids_BT)


def _lookup_backward(saved: tuple[jax.Array, jax.Array], ct_BTD: jax.Array) -> tuple[jax.Array, None]:
    table_VD, ids_BT = saved
    vocab = table_VD.shape[0]
    inside = (ids_BT >= 0) & (ids_BT < vocab)
    zeros = jnp.zeros_like(table_VD, jnp.float32)
    # Ids outside are sent behind the end, where `drop` loses them.
    summed = zeros.at[jnp.where(inside, ids_BT, vocab)].add(ct_BTD.astype(jnp.float32), mode="drop")
    return summed.astype(table_VD.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last dimension, statistics in fp32, result in the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    centred = x32 - mean
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * inverse * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def qkv_projection(block: Block, x_BTD: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [B, T, H, K] of this tensor shard's heads."""
    qkv_BT3A = linear(x_BTD, block.qkv_kernel) + block.qkv_bias
    qkv_BT3HK = qkv_BT3A.reshape(*qkv_BT3A.shape[:3], -1, config.d_head)
    return qkv_BT3HK[:, :, 0], qkv_BT3HK[:, :, 1], qkv_BT3HK[:, :, 2]


def mlp(block: Block, x_BTD: jax.Array) -> jax.Array:
    """The MLP without its output bias, which stands behind the reduction over tensor shards."""
    up = linear(x_BTD, block.mlp_up_kernel) + block.mlp_up_bias
    return linear(jax.nn.gelu(up, approximate=True), block.mlp_down_kernel)


def _block(block: Block, x_BSD: jax.Array, band: int | None, config: ModelConfig, local: Local) -> jax.Array:
    h_BTD = local.gather_sequence(layer_norm(x_BSD, block.ln_1_scale, block.ln_1_bias, config.norm_eps))
    q, k, v = qkv_projection(block, h_BTD, config)
    heads_BTA = attention(q, k, v, band, local.platform).reshape(*h_BTD.shape[:2], -1)
    x_BSD = x_BSD + local.scatter_sequence(linear(heads_BTA, block.attn_out_kernel)) + block.attn_out_bias
    h_BTD = local.gather_sequence(layer_norm(x_BSD, block.ln_2_scale, block.ln_2_bias, config.norm_eps))
    return x_BSD + local.scatter_sequence(mlp(block, h_BTD)) + block.mlp_down_bias


def bands(config: ModelConfig) -> tuple[int | None, ...]:
    """The band of each layer of one period of the attention pattern; None is dense."""
    return tuple(config.band_width if kind == "banded" else None for kind in config.attention_pattern)


def _blocks(
    weights: Weights, x_BSD: jax.Array, config: ModelConfig, local: Local, remat: Remat, unroll: int
) -> jax.Array:
    period = bands(config)
    # Scan's backward loop is a loop of its own: what checkpoint recomputes cannot be merged with the forward pass.
    # Unrolled to the last period there is no loop, and the compiler would keep what it is to compute, or gather, anew.
    no_loop = unroll * len(period) >= config.n_layers

    def one_period(x_BSD: jax.Array, layers: Any) -> tuple[jax.Array, None]:
        for i, band in enumerate(period):

            def one_block(x_BSD: jax.Array, layer: Any, band: int | None = band) -> jax.Array:
                return _block(weights.block(layer), x_BSD, band, config, local)

            if remat != "none" or weights.made_inside:
                one_block = jax.checkpoint(one_block, policy=_POLICIES[remat], prevent_cse=no_loop)
            x_BSD = one_block(x_BSD, jax.tree.map(lambda leaf, i=i: leaf[i], layers))
        return x_BSD, None

    periods = jax.tree.map(lambda leaf: leaf.reshape(-1, len(period), *leaf.shape[1:]), weights.blocks)
    x_BSD, _ = lax.scan(one_period, x_BSD, periods, unroll=unroll)
    return x_BSD


def _save_all_but_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Everything is kept for the backward pass, except what ZeRO gathers: at stages 2 and 3 a gathered weight kept
    for later would be the very memory that the stage saves."""
    gathers_weights = primitive.name == "all_gather" and DATA in params["axis_name"]
    return not gathers_weights and primitive.name != "bitcast_convert_type"


_POLICIES: dict[Remat, Callable[..., bool] | None] = {
    "none": _save_all_but_weights,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}
