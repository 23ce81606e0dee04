"""The forward pass (GPT-3 section 2.1; GPT-2's code for what it leaves out).

Pre-LayerNorm blocks, learned positions, biases, tanh GELU, tied output. Three functions, `embed`, `blocks` and `head`,
with the residual stream between them. Blocks alternate kinds of attention; they are scanned over, so that compile time
does not grow with depth.

Shapes: B batch, T positions; the residual stream is [B, S, D], all positions, or with tensor parallelism a shard of the
flattened rows and positions, [1, B × T / tensor, D]; D = d_model, H heads and A = H × K attention width and F = d_ff of
this tensor shard, V its slice of the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gpt3_jax.config import Config, ModelConfig
from gpt3_jax.model import cpu
from gpt3_jax.model.attention import attention
from gpt3_jax.model.loss import Deferred, token_loss
from gpt3_jax.model.matmul import einsum, gathered_linear, scattered_linear
from gpt3_jax.model.mlp import sequence_sharded_mlp
from gpt3_jax.model.params import Block, Params
from gpt3_jax.model.pointwise import add_bias, layer_norm
from gpt3_jax.model.remat import UNNAMED, Names, Remat, policy
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import MeshShape, platform_of
from gpt3_jax.parallel.zero import Weight, scan_blocks

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Attention of one kind: from queries, keys and values the heads' outputs, each [B, T, H, K]."""


def forward(
    params: Params[jax.Array], tokens_BT: jax.Array, config: ModelConfig, platform: str | None = None
) -> jax.Array:
    """Logits [B, T, n_vocab] in fp32 for int32 tokens [B, T], T <= n_ctx. On one device, all logits at once.

    Args:
        platform: the platform that the program is compiled for: cpu, gpu, rocm or tpu. Attention runs in its kernel:
            cuDNN's on gpu, splash on tpu. Default: that of the devices which hold the arguments; inside `jax.jit`,
            where arguments have none, that of JAX's default device. Name it when you compile for a device that is not
            the default.
    """
    platform = platform or platform_of((params, tokens_BT))
    weights, local = plain_weights(params, config.dtype), Local(platform)
    x_BTD, _ = embed(weights, tokens_BT, local, None)
    x_BTD = blocks(weights.blocks, x_BTD, tokens_BT.shape[1], config, local, remat="none")
    h_BTD, _ = head(weights, x_BTD, tokens_BT.shape[1], config, local)
    logits = einsum("btd,vd->btv", h_BTD, params.token_embedding.astype(config.dtype), jnp.float32)
    return logits[..., : config.n_vocab]


def plain_weights(params: Params[jax.Array], dtype: str) -> Params[Weight]:
    """All parameters as weights on one device, cast to the compute dtype."""
    return params.map(lambda leaf: Weight.plain(leaf.astype(dtype)))


def loss_sum(
    weights: Params[Weight],
    rows_BT1: jax.Array,
    config: ModelConfig,
    local: Local,
    remat: Remat,
    loss_chunk: int,
    unroll: int = 1,
) -> jax.Array:
    """Sum of -log p over the T targets of each row of T + 1 tokens, in nats (fp32 scalar, one per tensor group)."""
    tokens_BT, labels_N = rows_BT1[:, :-1], rows_BT1[:, 1:].reshape(-1)
    length, vocab = tokens_BT.shape[1], weights.token_embedding.target.shape[0]
    deferred = Deferred.zeros(tokens_BT.size, loss_chunk, vocab, config.d_model, jnp.dtype(config.dtype), local)
    x_BSD, deferred = embed(weights, tokens_BT, local, deferred)
    x_BSD = blocks(weights.blocks, x_BSD, length, config, local, remat, unroll)
    h_BTD, matrix_VD = head(weights, x_BSD, length, config, local)
    h_ND = h_BTD.reshape(-1, config.d_model)
    with jax.named_scope("head_loss"):
        return token_loss(h_ND, matrix_VD, labels_N, config.n_vocab, loss_chunk, local, deferred)


# -- embed ---------------------------------------------------------------------------------------------------------


Carried = TypeVar("Carried", Deferred, None)


def embed(
    weights: Params[Weight],
    tokens_BT: jax.Array,
    local: Local,
    deferred: Carried,
    positions_BT: jax.Array | None = None,
) -> tuple[jax.Array, Carried]:
    """Token and position embeddings: the residual stream [B, S, D] in front of the blocks.

    Args:
        deferred: carries the gradient of the output matrix from `token_loss` to here (see `lookup`); passed through.
        positions_BT: each token's position, below n_ctx. None: 0, 1, 2, … in every row.
    """
    table = weights.token_embedding.gathered()
    with jax.named_scope("embed"):
        ids_BT = tokens_BT - local.tensor_index() * table.target.shape[0]
        x_BTD, deferred = lookup(table, ids_BT, deferred)
        table_CD = weights.position_embedding.gathered().as_array()
        added = table_CD[: tokens_BT.shape[1]] if positions_BT is None else table_CD[positions_BT]
        if local.tensor is not None:
            # Each tensor shard has the embeddings of its slice of the vocabulary, zeros for other tokens. The positions
            # are added on one shard, so that the sum over shards has them once.
            added = jnp.where(local.tensor_index() == 0, added, 0)
        return local.scatter_sequence(x_BTD + added), deferred


@jax.custom_vjp
def lookup(table: Weight, ids_BT: jax.Array, deferred: Carried) -> tuple[jax.Array, Carried]:
    """Rows of the table [V, D], zeros for ids outside it; and `deferred`, unchanged.

    Backward, the gradient of the output matrix that `deferred` carries (the same table, tied) and the gradient of the
    rows are summed in fp32, some rows of the table at a time, and reduced: once, for both uses of the table.
    """
    value_VD = table.value
    inside = (ids_BT >= 0) & (ids_BT < value_VD.shape[0])
    return jnp.where(inside[..., None], value_VD[jnp.where(inside, ids_BT, 0)], 0), deferred


def _lookup_forward(
    table: Weight, ids_BT: jax.Array, deferred: Carried
) -> tuple[tuple[jax.Array, Carried], tuple[Weight, jax.Array]]:
    return lookup(table, ids_BT, deferred), (table, ids_BT)


def _lookup_backward(
    saved: tuple[Weight, jax.Array], cts: tuple[jax.Array, Deferred | None]
) -> tuple[Weight, None, None]:
    table, ids_BT = saved
    ct_BTD, deferred = cts
    vocab, d = table.target.shape[0], ct_BTD.shape[-1]
    parts = next(n for n in range(1, vocab + 1) if vocab % n == 0 and vocab * d <= n * TABLE_PART)
    size = vocab // parts

    def part(first: jax.Array | int) -> jax.Array:
        ids = ids_BT - first
        inside = (ids >= 0) & (ids < size)
        head_PD = jnp.zeros((size, d), jnp.float32) if deferred is None else deferred.product(first, size)
        # Ids outside are set past the end, where `drop` ignores them.
        return table.reduce(head_PD.at[jnp.where(inside, ids, size)].add(ct_BTD.astype(jnp.float32), mode="drop"))

    gradient = part(0) if parts == 1 else lax.map(part, jnp.arange(parts) * size).reshape(vocab, -1)
    return table.replace(target=gradient, source=None), None, None  # type: ignore[attr-defined]


lookup.defvjp(_lookup_forward, _lookup_backward)

TABLE_PART = 2**25
"""Elements of the token embedding's gradient that are made, and reduced, at once: 128 MB in fp32."""


# -- blocks --------------------------------------------------------------------------------------------------------

_LONG_BLOCK = 2**26
"""Weights of a block, on one device, from which on a switch, some 50 µs on the host, is less than 1 % of the block's
time on a current GPU at a few thousand tokens. By arithmetic; not measured."""
L = TypeVar("L")
"""One layer, or what it is made from."""


def qkv_projection(
    block: Block[Weight], x_BSD: jax.Array, length: int, config: ModelConfig, local: Local, names: Names = UNNAMED
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values [B, T, H, K] of this tensor shard's heads, from the residual stream [B, S, D]."""
    keep_rows = names.get("qkv_proj") is None
    product_BT3A = gathered_linear(x_BSD, block.qkv_kernel, length, local, keep_rows)
    qkv_BT3A = add_bias(product_BT3A, block.qkv_bias.as_array())
    qkv_BT3HK = qkv_BT3A.reshape(*qkv_BT3A.shape[:3], -1, config.d_head)
    parts = cpu.queries_keys_values(qkv_BT3HK) if local.platform == "cpu" else (qkv_BT3HK[:, :, i] for i in range(3))
    q, k, v = (names(part, "qkv_proj") for part in parts)
    return q, k, v


def one_layer(
    block: Block[Weight],
    x_BSD: jax.Array,
    length: int,
    attend: Attend,
    config: ModelConfig,
    local: Local,
    names: Names = UNNAMED,
) -> jax.Array:
    """One block, the residual stream [B, S, D] in and out, with the attention that it is given."""
    x_BSD = names(x_BSD, "block_input")
    block = block.map(Weight.gathered)
    h_BSD = layer_norm(x_BSD, block.ln_1_scale.as_array(), block.ln_1_bias.as_array(), config.norm_eps)
    with jax.named_scope("attention"):
        q, k, v = qkv_projection(block, h_BSD, length, config, local, names)
        heads_BTA = attend(q, k, v).reshape(*q.shape[:2], -1)
        out_BSD = scattered_linear(heads_BTA, block.attn_out_kernel, local)
        x_BSD = names(add_bias(x_BSD + out_BSD, block.attn_out_bias.as_array()), "residual")
    h_BSD = layer_norm(x_BSD, block.ln_2_scale.as_array(), block.ln_2_bias.as_array(), config.norm_eps)
    with jax.named_scope("mlp"):
        out_BSD = sequence_sharded_mlp(block, h_BSD, length, local, names)
        return add_bias(x_BSD + out_BSD, block.mlp_down_bias.as_array())


def bands(config: ModelConfig) -> tuple[int | None, ...]:
    """The band of each layer of one period of the attention pattern; None is dense."""
    return tuple(config.band_width if kind == "banded" else None for kind in config.attention_pattern)


def switches_attention(config: ModelConfig, tensor: int, platform: str) -> bool:
    """Whether one block's code serves layers of every kind of attention, over `tensor` shards: a GPU waits for its host
    at every switch, which only a long block hides."""
    return platform not in ("gpu", "rocm") or 12 * config.d_model**2 // tensor >= _LONG_BLOCK


def band_shares(config: ModelConfig) -> dict[int | None, float]:
    """Share of the layers by band, in the order of the branches that a block switches between; None is dense."""
    period = bands(config)
    return {band: period.count(band) / len(period) for band in sorted(set(period), key=str)}


def gathers_ahead(config: Config, mesh: MeshShape, platform: str, overlaps_scatters: bool) -> bool:
    """Whether the blocks of a step run in the loop that gathers a block ahead and reduces one late (`zero.depth`).

    It needs traffic to hide, several periods in a loop, and one code for all blocks. With an MLP in parts it does not
    run: parts are chosen to save the memory that a block ahead takes.

    Args:
        overlaps_scatters: whether the compiler runs reduce-scatters beside compute (`compiler_options`).
    """
    model, parallel, memory = config.model, config.parallel, config.memory
    sends = parallel.stage == 3 and mesh.data > 1
    # Over several devices an `unroll` of 0 is 1.
    loops = memory.unroll <= 1 and len(bands(model)) < model.n_layers
    one_code = len(band_shares(model)) == 1 or switches_attention(model, mesh.tensor, platform)
    return overlaps_scatters and parallel.overlap and sends and loops and one_code and memory.mlp_parts == 1


def blocks(
    weights: Block[Weight],
    x_BSD: jax.Array,
    length: int,
    config: ModelConfig,
    local: Local,
    remat: Remat,
    unroll: int = 1,
) -> jax.Array:
    """All blocks, the residual stream [B, S, D] in and out.

    Args:
        weights: stacked, L in front. Those of the kind `loop` are for one step in which `gathers_ahead` holds, those of
            the kind `layers` for one in which `cpu.casts_layers` does.
        length: T, the positions of a row.
        remat: what the backward pass recomputes (the setting of this name).
        unroll: periods of the attention pattern in one iteration of the loop over depth.
    """
    period, names = bands(config), Names.of(remat)
    gathers = weights.qkv_kernel.partitioned
    # The backward pass of a scan is another loop, so the compiler cannot merge what `jax.checkpoint` recomputes with
    # the forward pass. Fully unrolled there is no loop: it would merge them, and keep what is to be recomputed or
    # gathered again.
    no_loop = unroll * len(period) >= config.n_layers

    def with_remat(one_block: Callable[[jax.Array, L], jax.Array]) -> Callable[[jax.Array, L], jax.Array]:
        if remat == "none" and not gathers:
            return one_block
        return jax.checkpoint(one_block, policy=policy(remat), prevent_cse=no_loop)

    if weights.qkv_kernel.kind == "layers":
        return _unrolled(weights, x_BSD, length, config, local, remat)
    kinds = tuple(band_shares(config))
    ahead = weights.qkv_kernel.kind == "loop"
    switches = len(kinds) > 1 and switches_attention(config, local.tensor_size, local.platform)
    if ahead or (switches and unroll == 1 and not no_loop):
        # One block's code for all layers, which switches its attention: half the program. And the backward pass cannot
        # postpone one block's weight gradients until the next block's, and hold all that they need until then.
        branches = [_attend(band, local.platform, names) for band in kinds]

        def any_block(x_BSD: jax.Array, layer_and_kind: tuple[Block[Weight], jax.Array]) -> jax.Array:
            layer, kind = layer_and_kind

            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                return lax.switch(kind, branches, q, k, v)  # type: ignore[no-any-return]

            return one_layer(layer, x_BSD, length, attend, config, local, names)

        step = with_remat(any_block)
        which = jnp.array([kinds.index(band) for band in period] * (config.n_layers // len(period)))
        if ahead:
            return scan_blocks(step, x_BSD, (weights, which))
        x_BSD, _ = lax.scan(lambda x_BSD, layer: (step(x_BSD, layer), None), x_BSD, (weights, which))
        return x_BSD

    def one_period(x_BSD: jax.Array, layers: Block[Weight]) -> tuple[jax.Array, None]:
        for i, band in enumerate(period):
            attend = _attend(band, local.platform, names)

            # The layer is sliced in here: a slice made outside would be kept for the backward pass, in every block.
            def one_block(x_BSD: jax.Array, layers: Block[Weight], i: int = i, attend: Attend = attend) -> jax.Array:
                layer: Block[Weight] = jax.tree.map(lambda leaf: leaf[i], layers)
                return one_layer(layer, x_BSD, length, attend, config, local, names)

            x_BSD = with_remat(one_block)(x_BSD, layers)
        return x_BSD, None

    periods = jax.tree.map(lambda leaf: leaf.reshape(-1, len(period), *leaf.shape[1:]), weights)
    x_BSD, _ = lax.scan(one_period, x_BSD, periods, unroll=unroll)
    return x_BSD


def _unrolled(
    weights: Block[Weight], x_BSD: jax.Array, length: int, config: ModelConfig, local: Local, remat: Remat
) -> jax.Array:
    """`blocks` without a loop, for weights of the kind `layers`.

    With `everything_saveable`, `jax.checkpoint` recomputes nothing. But its barriers keep the compiler from merging the
    backward pass's elementwise work with the forward pass's, whose results it would then store in fp32: 0.28 GiB more
    for gpt3-small with 2,048 tokens, and no faster.
    """
    period, names = bands(config), Names.of(remat)
    kept = jax.checkpoint_policies.everything_saveable if remat == "none" else policy(remat)
    for i, layer in enumerate(cpu.layers(weights, config.n_layers)):
        attend = _attend(period[i % len(period)], local.platform, names)

        def one_block(x_BSD: jax.Array, layer: Block[Weight], attend: Attend = attend) -> jax.Array:
            return one_layer(layer, x_BSD, length, attend, config, local, names)

        x_BSD = jax.checkpoint(one_block, policy=kept)(x_BSD, layer)
    return x_BSD


def _attend(band: int | None, platform: str, names: Names) -> Attend:
    return functools.partial(attention, band=band, platform=platform, name=names.get("attention"))


# -- head ----------------------------------------------------------------------------------------------------------


def head(
    weights: Params[Weight], x_BSD: jax.Array, length: int, config: ModelConfig, local: Local
) -> tuple[jax.Array, jax.Array]:
    """Final hidden states [B, T, D] after the last LayerNorm, whole rows on every tensor shard; and the output matrix
    [V, D], which passes no gradient on: `embed`'s `deferred` does."""
    scale, bias = weights.ln_f_scale.gathered().as_array(), weights.ln_f_bias.gathered().as_array()
    matrix_VD = weights.token_embedding.gathered(after=x_BSD).value
    h_BSD = layer_norm(x_BSD, scale, bias, config.norm_eps)
    return local.gather_sequence(h_BSD, length), matrix_VD
