"""Log-likelihoods of given tokens, without gradients: one pass over a context and several continuations of it.

A row is a tree. Its trunk is a context of T tokens; R branches of J tokens each continue it, and see the trunk and
themselves, not each other. So a context is computed once for all its continuations. In front of the trunk there may be
a prefix that all rows share, as keys and values from an earlier pass (`Past`). All tokens of a row pass the blocks side
by side, S = T + R × J in all; only attention knows of the tree.

Shapes: B rows, T trunk tokens, R branches of J tokens, S = T + R × J, P prefix tokens, N asked tokens of a row, H heads
of this tensor shard, K head width, D = d_model, V this shard's slice of the vocabulary.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gpt3_jax.config import ModelConfig
from gpt3_jax.model.attention import attention_without_gradients
from gpt3_jax.model.matmul import einsum, linear
from gpt3_jax.model.mlp import mlp
from gpt3_jax.model.params import Block, Params
from gpt3_jax.model.pointwise import add_bias, layer_norm
from gpt3_jax.model.transformer import bands, embed, head, one_layer
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.zero import Weight

_MASKED = -1e30
"""As in `attention`: finite, and far below any score."""
_CHUNK = 512
"""Asked tokens whose logits, fp32 [chunk, V], are in memory at a time."""


@flax.struct.dataclass
class Tree:
    """A batch of contexts with their continuations, and the tokens that are asked for."""

    tokens_BS: jax.Array
    """int32: the trunk, then the branches, one after the other. What fills up trunk or branch is any token."""
    lengths_B: jax.Array
    """int32, 1 to T: tokens of the trunk that are the context."""
    at_BN: jax.Array
    """int32, below S: the position in the row whose next token is asked for."""
    labels_BN: jax.Array
    """int32: that token. Any, where nothing is asked."""
    trunk: int = flax.struct.field(pytree_node=False)
    branches: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Past:
    """Keys and values of a prefix that all rows share."""

    keys: jax.Array
    """[L, P, H, K], in the compute dtype."""
    values: jax.Array


def scores(
    weights: Params[Weight], tree: Tree, past: Past | None, config: ModelConfig, local: Local
) -> tuple[jax.Array, jax.Array]:
    """Natural log-likelihood of each asked token [B, N] (fp32), and whether it is the likeliest one [B, N] (bool; of
    equally likely tokens the one with the lowest id)."""
    prefix = 0 if past is None else past.keys.shape[1]
    batch, length = tree.tokens_BS.shape
    x_BSD, _ = embed(weights, tree.tokens_BS, local, None, _positions(tree, prefix, config.n_ctx))
    layers = tuple(functools.partial(_attend, band=band, tree=tree, local=local) for band in bands(config))
    periods = config.n_layers // len(layers)

    def layer(period: jax.Array | int, i: int) -> tuple[Block[Weight], Past | None]:
        n = period * len(layers) + i
        return jax.tree.map(  # type: ignore[no-any-return]
            lambda leaf: lax.dynamic_index_in_dim(leaf, n, keepdims=False), (weights.blocks, past)
        )

    def some(x_BSD: jax.Array, period: jax.Array | int, kinds: int) -> jax.Array:
        """The first `kinds` layers of a period."""
        for i, attend in enumerate(layers[:kinds]):
            block, of_prefix = layer(period, i)
            x_BSD = one_layer(block, x_BSD, length, functools.partial(attend, past=of_prefix), config, local)
        return x_BSD

    def all_but(last: int) -> jax.Array:
        x, _ = lax.scan(lambda x, period: (some(x, period, len(layers)), None), x_BSD, jnp.arange(periods - last))
        return x

    if 2 * tree.at_BN.shape[1] > length:
        h_BSD, matrix_VD = head(weights, all_but(0), length, config, local)
        h_BND = _at(h_BSD.reshape(batch, length, -1), tree.at_BN)
    else:
        # The last layer's keys and values are of all positions, all else of it is of the asked ones.
        x_BSD = some(all_but(1), periods - 1, len(layers) - 1)
        block, of_prefix = layer(periods - 1, len(layers) - 1)
        x_BND = _last_layer(block, x_BSD, bands(config)[-1], tree, of_prefix, config, local)
        h_BND, matrix_VD = _head(weights, x_BND, config)
    flat = (h_BND.reshape(-1, config.d_model), tree.labels_BN.reshape(-1))
    logprob_M, greedy_M = _asked(*flat, matrix_VD, config.n_vocab, local)
    return logprob_M.reshape(tree.at_BN.shape), greedy_M.reshape(tree.at_BN.shape)


def _at(x_BSD: jax.Array, at_BN: jax.Array) -> jax.Array:
    """The positions `at_BN` of each row: [B, N, D]."""
    return jnp.take_along_axis(x_BSD, at_BN[..., None], axis=1)


def _last_layer(
    block: Block[Weight],
    x_BSD: jax.Array,
    band: int | None,
    tree: Tree,
    past: Past | None,
    config: ModelConfig,
    local: Local,
) -> jax.Array:
    """The last block at the asked positions: the residual stream [B, N, D], whole on each tensor shard."""
    block = block.map(Weight.gathered)
    at_BN, platform = tree.at_BN, local.platform
    x_BSD = local.gather_sequence(x_BSD, tree.tokens_BS.shape[1])
    h_BSD = layer_norm(x_BSD, block.ln_1_scale.as_array(), block.ln_1_bias.as_array(), config.norm_eps)
    with jax.named_scope("attention"):
        kernel_D3A = block.qkv_kernel.value.reshape(config.d_model, 3, -1)
        bias_3A = block.qkv_bias.as_array().reshape(3, -1)

        def project(h_BQD: jax.Array, which: slice) -> jax.Array:
            of_BQ3A = add_bias(linear(h_BQD, Weight.plain(kernel_D3A[:, which]), platform), bias_3A[which])
            return of_BQ3A.reshape(*of_BQ3A.shape[:3], -1, config.d_head)

        q_BNHK = project(_at(h_BSD, at_BN), slice(0, 1))[:, :, 0]
        kv_BS2HK = project(h_BSD, slice(1, 3))
        row = functools.partial(_asked_of_row, band=band, tree=tree, past=past)
        # Row by row, as in `_attend`.
        heads_BNA = lax.map(row, (q_BNHK, kv_BS2HK[:, :, 0], kv_BS2HK[:, :, 1], at_BN, tree.lengths_B))
        out_BND = local.sum_partials(linear(heads_BNA, block.attn_out_kernel, platform))
        x_BND = add_bias(_at(x_BSD, at_BN) + out_BND, block.attn_out_bias.as_array())
    h_BND = layer_norm(x_BND, block.ln_2_scale.as_array(), block.ln_2_bias.as_array(), config.norm_eps)
    with jax.named_scope("mlp"):
        out_BND = local.sum_partials(mlp(block, h_BND, platform))
        return add_bias(x_BND + out_BND, block.mlp_down_bias.as_array())


def _asked_of_row(args: tuple[jax.Array, ...], *, band: int | None, tree: Tree, past: Past | None) -> jax.Array:
    """Attention of one row's asked positions to the prefix, the trunk and their branches: the heads' outputs [N, A]."""
    q_NHK, k_AHK, v_AHK, at_N, length = args
    size = (k_AHK.shape[0] - tree.trunk) // max(tree.branches, 1)
    # Of every token: its branch, -1 in front of all; its position; whether branches see it.
    branch_A = jnp.asarray(np.repeat(np.arange(-1, tree.branches), [tree.trunk, *[size] * tree.branches]))
    place_A = jnp.concatenate([jnp.arange(tree.trunk), jnp.tile(length + jnp.arange(size), tree.branches)])
    is_context_A = (branch_A < 0) & (jnp.arange(len(branch_A)) < length)
    branch_N, place_N = branch_A[at_N], place_A[at_N]
    if past is not None:
        prefix = past.keys.shape[0]
        k_AHK, v_AHK = (jnp.concatenate(pair) for pair in ((past.keys, k_AHK), (past.values, v_AHK)))
        branch_A = jnp.concatenate([jnp.full(prefix, -1), branch_A])
        place_A, place_N = jnp.concatenate([jnp.arange(prefix), place_A + prefix]), place_N + prefix
        is_context_A = jnp.concatenate([jnp.ones(prefix, bool), is_context_A])
    visible_NA = _visible(place_N[:, None], place_A, band) & (is_context_A | (branch_A == branch_N[:, None]))
    q_HNK, k_HAK, v_HAK = (jnp.swapaxes(x, 0, 1) for x in (q_NHK, k_AHK, v_AHK))
    scores_HNA = jnp.where(visible_NA, _scores("hnk,hak->hna", q_HNK, k_HAK), _MASKED)
    weights_HNA = jax.nn.softmax(scores_HNA, axis=-1).astype(v_HAK.dtype)
    return jnp.swapaxes(einsum("hna,hak->hnk", weights_HNA, v_HAK), 0, 1).reshape(q_NHK.shape[0], -1)


def _head(weights: Params[Weight], x_BND: jax.Array, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """As `transformer.head`, of positions that are whole on each tensor shard."""
    scale, bias = weights.ln_f_scale.gathered().as_array(), weights.ln_f_bias.gathered().as_array()
    return layer_norm(x_BND, scale, bias, config.norm_eps), weights.token_embedding.gathered(after=x_BND).value


def read_prefix(weights: Params[Weight], tokens_P: jax.Array, config: ModelConfig, local: Local) -> Past:
    """Keys and values of a prefix (int32 [P], P at most n_ctx), for `scores`."""
    x_BSD, _ = embed(weights, tokens_P[None], local, None)
    period = bands(config)

    def one_period(x_BSD: jax.Array, layers: Block[Weight]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        kept = []
        for i, band in enumerate(period):

            def attend(q: jax.Array, k: jax.Array, v: jax.Array, band: int | None = band) -> jax.Array:
                kept.append((k[0], v[0]))
                return attention_without_gradients(q, k, v, band, local.platform)

            block = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
            x_BSD = one_layer(block, x_BSD, tokens_P.shape[0], attend, config, local)
        return x_BSD, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)

    _, (keys, values) = lax.scan(one_period, x_BSD, _by_period(weights.blocks, len(period)))
    return Past(*(x.reshape(-1, *x.shape[2:]) for x in (keys, values)))


Stack = TypeVar("Stack")


def _by_period(tree: Stack, period: int) -> Stack:
    """Stacks [L, …] as [L / period, period, …]."""
    return jax.tree.map(  # type: ignore[no-any-return]
        lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), tree
    )


def _positions(tree: Tree, prefix: int, n_ctx: int) -> jax.Array:
    """The position [B, S] of each token: a branch goes on where its context ends. Those of filling stay below n_ctx."""
    batch, length = tree.tokens_BS.shape
    trunk_BT = jnp.broadcast_to(jnp.arange(tree.trunk), (batch, tree.trunk))
    size = (length - tree.trunk) // max(tree.branches, 1)
    branch_BJ = tree.lengths_B[:, None] + jnp.arange(size)
    places_BS = jnp.concatenate([trunk_BT, jnp.tile(branch_BJ, (1, tree.branches))], axis=1) + prefix
    return jnp.minimum(places_BS, n_ctx - 1)


def _attend(
    q_BSHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    *,
    band: int | None,
    tree: Tree,
    past: Past | None,
    local: Local,
) -> jax.Array:
    """Attention over prefix, trunk and branches. The trunk alone is ordinary attention, by the platform's kernel."""
    trunk = tree.trunk
    if past is None:
        q_BTHK, k_BTHK, v_BTHK = (x[:, :trunk] for x in (q_BSHK, k_BSHK, v_BSHK))
        of_trunk = attention_without_gradients(q_BTHK, k_BTHK, v_BTHK, band, local.platform)
        if not tree.branches:
            return of_trunk
        first = trunk
    else:
        of_trunk = q_BSHK[:, :0]
        first = 0

    # Row by row: the scores of a row, [H, queries, P + T], are in memory at a time.
    def row(args: tuple[jax.Array, ...]) -> jax.Array:
        return _row(*args, first=first, band=band, tree=tree, past=past)

    with jax.named_scope("attention"):
        rest = lax.map(row, (q_BSHK[:, first:], k_BSHK, v_BSHK, tree.lengths_B))
    return jnp.concatenate([of_trunk, rest], axis=1)


def _row(
    q_QHK: jax.Array,
    k_SHK: jax.Array,
    v_SHK: jax.Array,
    length: jax.Array,
    *,
    first: int,
    band: int | None,
    tree: Tree,
    past: Past | None,
) -> jax.Array:
    """One row's queries, from position `first` of the row on, [Q, H, K]."""
    trunk, branches = tree.trunk, tree.branches
    size = (k_SHK.shape[0] - trunk) // max(branches, 1)
    k_AHK, v_AHK, prefix = k_SHK[:trunk], v_SHK[:trunk], 0
    if past is not None:
        prefix = past.keys.shape[0]
        k_AHK, v_AHK = (jnp.concatenate(pair) for pair in ((past.keys, k_AHK), (past.values, v_AHK)))
    # Positions of the queries and of the keys in front of the branches.
    places_Q = jnp.concatenate([jnp.arange(first, trunk), jnp.tile(length + jnp.arange(size), branches)]) + prefix
    places_A = jnp.arange(prefix + trunk)
    n_trunk = trunk - first
    # A branch does not see what fills up the trunk; for the trunk's own queries that comes later anyway.
    ends_Q = jnp.where(jnp.arange(places_Q.shape[0]) < n_trunk, prefix + trunk, prefix + length)
    visible_QA = _visible(places_Q[:, None], places_A, band) & (places_A < ends_Q[:, None])

    q_HQK, k_HAK, v_HAK = (jnp.swapaxes(x, 0, 1) for x in (q_QHK, k_AHK, v_AHK))
    scores_HQA = jnp.where(visible_QA, _scores("hqk,hak->hqa", q_HQK, k_HAK), _MASKED)
    if not branches:
        weights_HQA = jax.nn.softmax(scores_HQA, axis=-1).astype(v_HAK.dtype)
        return jnp.swapaxes(einsum("hqa,hak->hqk", weights_HQA, v_HAK), 0, 1)

    def by_branch(x_QHK: jax.Array) -> jax.Array:
        return jnp.swapaxes(x_QHK.reshape(branches, size, *x_QHK.shape[1:]), 1, 2)  # [R, H, J, K]

    own = jnp.arange(size)
    own_scores_RHJI = _scores("rhjk,rhik->rhji", by_branch(q_QHK[n_trunk:]), by_branch(k_SHK[trunk:]))
    own_scores_RHJI = jnp.where(_visible(own[:, None], own, band), own_scores_RHJI, _MASKED)
    heads = q_HQK.shape[0]
    own_HQI = jnp.swapaxes(own_scores_RHJI, 0, 1).reshape(heads, branches * size, size)
    # The trunk's queries see no branch.
    own_HQI = jnp.pad(own_HQI, ((0, 0), (n_trunk, 0), (0, 0)), constant_values=_MASKED)
    weights = jax.nn.softmax(jnp.concatenate([scores_HQA, own_HQI], axis=-1), axis=-1).astype(v_HAK.dtype)
    keys = prefix + trunk
    seen_HQK = einsum("hqa,hak->hqk", weights[..., :keys], v_HAK, jnp.float32)
    own_RHJI = jnp.swapaxes(weights[:, n_trunk:, keys:].reshape(heads, branches, size, size), 0, 1)
    own_RHJK = einsum("rhji,rhik->rhjk", own_RHJI, by_branch(v_SHK[trunk:]), jnp.float32)
    own_HQK = jnp.swapaxes(own_RHJK, 0, 1).reshape(heads, branches * size, -1)
    seen_HQK = seen_HQK.at[:, n_trunk:].add(own_HQK)
    return jnp.swapaxes(seen_HQK, 0, 1).astype(q_QHK.dtype)


def _scores(spec: str, q: jax.Array, k: jax.Array) -> jax.Array:
    return einsum(spec, q, k, jnp.float32) * q.shape[-1] ** -0.5


def _visible(query: jax.Array, key: jax.Array, band: int | None) -> jax.Array:
    distance = query - key
    return distance >= 0 if band is None else (distance >= 0) & (distance < band)


def _asked(
    h_MD: jax.Array, labels_M: jax.Array, matrix_VD: jax.Array, n_vocab: int, local: Local
) -> tuple[jax.Array, jax.Array]:
    """Log-likelihood of each label after its hidden state, and whether no token is likelier."""
    rows = h_MD.shape[0]
    n_chunks = -(-rows // _CHUNK)
    pad = n_chunks * -(-rows // n_chunks) - rows
    column_V = local.tensor_index() * matrix_VD.shape[0] + jnp.arange(matrix_VD.shape[0])

    def chunk(args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h_CD, labels_C = args
        logits_CV = einsum("cd,vd->cv", h_CD, matrix_VD, jnp.float32)
        logits_CV = jnp.where(column_V < n_vocab, logits_CV, _MASKED)
        top_C = local.max_tensor(jnp.max(logits_CV, axis=-1))
        total_C = local.sum_tensor(jnp.sum(jnp.exp(logits_CV - top_C[:, None]), axis=-1))
        is_label_CV = labels_C[:, None] == column_V
        label_C = local.sum_tensor(jnp.sum(jnp.where(is_label_CV, logits_CV, 0.0), axis=-1))
        # The first of the likeliest; on a shard that has none of them, a column past the end.
        here_C = jnp.where(logits_CV == top_C[:, None], column_V, n_vocab).min(axis=-1)
        likeliest_C = -local.max_tensor(-here_C)
        return label_C - top_C - jnp.log(total_C), likeliest_C == labels_C

    parts = (jnp.pad(h_MD, ((0, pad), (0, 0))), jnp.pad(labels_M, (0, pad)))
    logprob, greedy = lax.map(chunk, jax.tree.map(lambda x: x.reshape(n_chunks, -1, *x.shape[1:]), parts))
    return logprob.reshape(-1)[:rows], greedy.reshape(-1)[:rows]
