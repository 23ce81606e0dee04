"""The forward pass (GPT-3 section 2.1; GPT-2's code for what it leaves out).

Pre-LayerNorm blocks, learned positions, biases, tanh GELU, tied output. Blocks alternate kinds of attention; they are
scanned over periods of that pattern, so that compile time does not grow with depth.

Shapes: B batch, T positions; B × S of the residual stream: all positions, or on a tensor shard 1 × its share of the run
of all rows' positions (B × T / tensor); D = d_model, H heads and A = H × K
attention width and F = d_ff of this tensor shard, V its slice of the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from gpt3_jax.config import ModelConfig
from gpt3_jax.model.attention import attention
from gpt3_jax.model.loss import Deferred, token_loss
from gpt3_jax.model.matmul import einsum, linear
from gpt3_jax.model.mlp import mlp
from gpt3_jax.model.params import Block, Params
from gpt3_jax.model.pointwise import add_bias, layer_norm
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import DATA

Remat = Literal["none", "dots", "full", "offload"]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Attention of one kind: queries, keys and values to heads, each [B, T, H, K]."""


class Weights(Protocol):
    """Where the forward pass gets its weights from, in the compute dtype. `parallel.zero` has ZeRO's stages."""

    @property
    def blocks(self) -> Any:
        """What stands for the blocks: a pytree with L in front."""

    @property
    def made_inside(self) -> bool:
        """Whether `block` makes the weights anew, so that the backward pass should not keep them."""

    def block(self, layer: Any) -> Block:
        """The weights of one block from its slice of `blocks`; called inside the scan. The MLP's may be shards in
        parts (`parallel.gather.Sharded`)."""

    def token_table(self) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
        """The token embedding: what is differentiated, its value [V, D], and what turns some of the value's rows of
        gradient, [rows, D] in fp32, into the gradient of the first. The value itself passes no gradient on."""

    def position_table(self) -> jax.Array:
        """The position embedding [C, D]."""

    def head(self, h: jax.Array, token_table_VD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Final LayerNorm's scale and bias, and the output matrix [V, D], once the blocks have given `h`. The matrix
        is the value of the token embedding, and passes no gradient on either."""


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

    def token_table(self) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array]]:
        table: jax.Array = self._params.token_embedding
        return table, lax.stop_gradient(table), functools.partial(jnp.asarray, dtype=table.dtype)

    def position_table(self) -> jax.Array:
        table: jax.Array = self._params.position_embedding
        return table

    def head(self, h: jax.Array, token_table_VD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self._params.ln_f_scale, self._params.ln_f_bias, token_table_VD


def forward(params: Params, tokens_BT: jax.Array, config: ModelConfig) -> jax.Array:
    """Logits [B, T, n_vocab] in fp32 for int32 tokens [B, T], T <= n_ctx. On one device, all logits at once."""
    weights = PlainWeights(params, config.dtype)
    h_BTD, _, _ = hidden(weights, tokens_BT, config, Local(), remat="none")
    logits = einsum("btd,vd->btv", h_BTD, params.token_embedding.astype(config.dtype), jnp.float32)
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
    h_BTD, embedding_VD, deferred = hidden(weights, rows_BT1[:, :-1], config, local, remat, unroll, loss_chunk)
    h_ND, labels_N = h_BTD.reshape(-1, config.d_model), rows_BT1[:, 1:].reshape(-1)
    with jax.named_scope("head_loss"):
        return token_loss(h_ND, embedding_VD, labels_N, config.n_vocab, loss_chunk, local, deferred)


def hidden(
    weights: Weights,
    tokens_BT: jax.Array,
    config: ModelConfig,
    local: Local,
    remat: Remat,
    unroll: int = 1,
    loss_chunk: int = 1,
) -> tuple[jax.Array, jax.Array, Deferred]:
    """Final hidden states [B, T, D], whole rows on every tensor shard; the output matrix [V, D], without a gradient;
    and where its gradient goes instead."""
    active, table_VD, finish = weights.token_table()
    deferred = Deferred.zeros(tokens_BT.size, loss_chunk, table_VD, local)
    ids_BT = tokens_BT - local.tensor_index() * table_VD.shape[0]
    with jax.named_scope("embed"):
        x_BTD, deferred = lookup(active, table_VD, ids_BT, deferred, finish)
    length = tokens_BT.shape[1]
    with jax.named_scope("embed"):
        x_BSD = local.scatter_sequence(_add_positions(x_BTD, weights.position_table()[:length], local))
    x_BSD = _blocks(weights, x_BSD, length, config, local, remat, unroll)
    scale, bias, table_VD = weights.head(x_BSD, table_VD)
    return local.gather_sequence(layer_norm(x_BSD, scale, bias, config.norm_eps), length), table_VD, deferred


def _add_positions(x_BTD: jax.Array, positions_TD: jax.Array, local: Local) -> jax.Array:
    if local.tensor is not None:
        # What the tensor shards have so far are summands: one of them brings the positions.
        positions_TD = jnp.where(local.tensor_index() == 0, positions_TD, 0)
    return x_BTD + positions_TD


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def lookup(
    active: jax.Array,
    table_VD: jax.Array,
    ids_BT: jax.Array,
    deferred: Deferred,
    finish: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, Deferred]:
    """Rows of the table, zeros for ids outside it; and `deferred`, as it is.

    Backward, what `deferred` brings from the output matrix and the gradient of the rows are summed in fp32, some rows
    of the table at a time, and go through `finish` into the gradient of `active`: once, for both uses of the table.
    """
    inside = (ids_BT >= 0) & (ids_BT < table_VD.shape[0])
    return jnp.where(inside[..., None], table_VD[jnp.where(inside, ids_BT, 0)], 0), deferred


def _lookup_forward(
    active: jax.Array,
    table_VD: jax.Array,
    ids_BT: jax.Array,
    deferred: Deferred,
    finish: Callable[[jax.Array], jax.Array],
) -> tuple[tuple[jax.Array, Deferred], tuple[jax.Array, jax.Array]]:
    # The table goes along for its shape; XLA drops it.
    return lookup(active, table_VD, ids_BT, deferred, finish), (table_VD, ids_BT)


def _lookup_backward(
    finish: Callable[[jax.Array], jax.Array], saved: tuple[jax.Array, jax.Array], cts: tuple[jax.Array, Deferred]
) -> tuple[jax.Array, None, None, None]:
    table_VD, ids_BT = saved
    ct_BTD, deferred = cts
    vocab = table_VD.shape[0]
    parts = next(n for n in range(1, vocab + 1) if vocab % n == 0 and table_VD.size <= n * _TABLE_PART)
    size = vocab // parts

    def part(first: Any) -> jax.Array:
        ids = ids_BT - first
        inside = (ids >= 0) & (ids < size)
        head_PD = deferred.product(first, size)
        # Ids outside are sent behind the end, where `drop` loses them.
        return finish(head_PD.at[jnp.where(inside, ids, size)].add(ct_BTD.astype(jnp.float32), mode="drop"))

    if parts == 1:
        return part(0), None, None, None
    gradient = lax.map(part, jnp.arange(parts) * size)
    return gradient.reshape(vocab, -1), None, None, None


lookup.defvjp(_lookup_forward, _lookup_backward)

_LONG_BLOCK = 2**26
"""Weights of a block, on one device, from which on a choice of the host's, some 50 µs, is less than a hundredth of the
block's time on a current GPU at a few thousand tokens. By arithmetic; not measured."""
_TABLE_PART = 2**25
"""Elements of the token embedding's gradient that are made, and reduced, at once: 128 MB in fp32."""


def qkv_projection(
    block: Block, x_BTD: jax.Array, config: ModelConfig, platform: str = ""
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [B, T, H, K] of this tensor shard's heads."""
    qkv_BT3A = add_bias(linear(x_BTD, block.qkv_kernel, platform), block.qkv_bias)
    qkv_BT3HK = qkv_BT3A.reshape(*qkv_BT3A.shape[:3], -1, config.d_head)
    return qkv_BT3HK[:, :, 0], qkv_BT3HK[:, :, 1], qkv_BT3HK[:, :, 2]


def _block(block: Block, x_BSD: jax.Array, length: int, attend: Attend, config: ModelConfig, local: Local) -> jax.Array:
    h_BTD = local.gather_sequence(layer_norm(x_BSD, block.ln_1_scale, block.ln_1_bias, config.norm_eps), length)
    with jax.named_scope("attention"):
        q, k, v = qkv_projection(block, h_BTD, config, local.platform)
        heads_BTA = attend(q, k, v).reshape(*h_BTD.shape[:2], -1)
        out_BSD = local.scatter_sequence(linear(heads_BTA, block.attn_out_kernel, local.platform))
        x_BSD = add_bias(x_BSD + out_BSD, block.attn_out_bias)
    h_BTD = local.gather_sequence(layer_norm(x_BSD, block.ln_2_scale, block.ln_2_bias, config.norm_eps), length)
    with jax.named_scope("mlp"):
        return add_bias(x_BSD + local.scatter_sequence(mlp(block, h_BTD, local.platform)), block.mlp_down_bias)


def bands(config: ModelConfig) -> tuple[int | None, ...]:
    """The band of each layer of one period of the attention pattern; None is dense."""
    return tuple(config.band_width if kind == "banded" else None for kind in config.attention_pattern)


def band_shares(config: ModelConfig) -> dict[int | None, float]:
    """Each kind of attention by its band, in the order of the branches that a block chooses from; and how often."""
    period = bands(config)
    return {band: period.count(band) / len(period) for band in sorted(set(period), key=str)}


def _blocks(
    weights: Weights, x_BSD: jax.Array, length: int, config: ModelConfig, local: Local, remat: Remat, unroll: int
) -> jax.Array:
    period = bands(config)
    # Scan's backward loop is a loop of its own: what checkpoint recomputes cannot be merged with the forward pass.
    # Unrolled to the last period there is no loop, and the compiler would keep what it is to compute, or gather, anew.
    no_loop = unroll * len(period) >= config.n_layers

    def checked(one_block: Any) -> Any:
        if remat == "none" and not weights.made_inside:
            return one_block

        def named(x_BSD: jax.Array, layer: Any) -> jax.Array:
            return one_block(checkpoint_name(x_BSD, _BLOCK_INPUT), layer)  # type: ignore[no-any-return]

        # Under any other policy a name would only stand in the compiler's way.
        run = named if remat == "offload" else one_block
        return jax.checkpoint(run, policy=_POLICIES[remat], prevent_cse=no_loop)

    kinds = tuple(band_shares(config))
    # A GPU waits for its host at every choice: only a block that takes long does not feel it.
    may_choose = local.platform not in ("gpu", "rocm") or 12 * config.d_model**2 // local.tensor_size >= _LONG_BLOCK
    if unroll == 1 and not no_loop and len(kinds) > 1 and may_choose:
        # One block's code for all of them, which chooses its attention: half the program, and a backward pass whose
        # schedule cannot put one block's weight gradients off until the other's are due, with all that they need.
        branches = [functools.partial(attention, band=band, platform=local.platform) for band in kinds]

        def any_block(x_BSD: jax.Array, layer_and_kind: Any) -> jax.Array:
            layer, kind = layer_and_kind

            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                return lax.switch(kind, branches, q, k, v)  # type: ignore[no-any-return]

            return _block(weights.block(layer), x_BSD, length, attend, config, local)

        step = checked(any_block)
        which = jnp.array([kinds.index(band) for band in period] * (config.n_layers // len(period)))
        x_BSD, _ = lax.scan(lambda x_BSD, layer: (step(x_BSD, layer), None), x_BSD, (weights.blocks, which))
        return x_BSD

    def one_period(x_BSD: jax.Array, layers: Any) -> tuple[jax.Array, None]:
        for i, band in enumerate(period):
            attend = functools.partial(attention, band=band, platform=local.platform)

            # Cut out of the period in here: a slice made outside would be kept for the backward pass, of all blocks.
            def one_block(x_BSD: jax.Array, layers: Any, i: int = i, attend: Attend = attend) -> jax.Array:
                layer = jax.tree.map(lambda leaf: leaf[i], layers)
                return _block(weights.block(layer), x_BSD, length, attend, config, local)

            x_BSD = checked(one_block)(x_BSD, layers)
        return x_BSD, None

    periods = jax.tree.map(lambda leaf: leaf.reshape(-1, len(period), *leaf.shape[1:]), weights.blocks)
    x_BSD, _ = lax.scan(one_period, x_BSD, periods, unroll=unroll)
    return x_BSD


def _save_all_but_weights(primitive: Any, *_: Any, **params: Any) -> bool:
    """Everything is kept for the backward pass, except what ZeRO gathers: at stages 2 and 3 a gathered weight kept
    for later would be the very memory that the stage saves."""
    gathers_weights = primitive.name == "all_gather" and DATA in params["axis_name"]
    return not gathers_weights and primitive.name != "bitcast_convert_type"


_BLOCK_INPUT = "block_input"
_POLICIES: dict[Remat, Callable[..., Any] | None] = {
    "none": _save_all_but_weights,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
