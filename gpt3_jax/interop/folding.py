"""Folds the biases of queries, keys and values into other parameters, for formats without them. The model is the same.

GPT-Neo's attention has no such biases. With y the output of a block's first LayerNorm, W its matrices and b its biases:

- a constant added to every key shifts all scores of a query equally, and softmax cancels it: b_k is dropped;
- attention weights sum to 1, so a constant added to every value is added to the output: it joins the output bias;
- q = y W_q + b_q = (y + d) W_q with d = b_q W_q^-1: d joins LayerNorm's bias. It also shifts keys and values; by the
two
  rules above, that changes only the output bias.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from gpt3_jax.config import ModelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.model.params import Params
from gpt3_jax.model.transformer import forward

_TOLERANCE = 1e-3
"""Maximum change of a logit by rounding, relative to the largest logit."""


def fold_biases(params: Params, config: ModelConfig) -> Params:
    """The same model with all biases of queries, keys and values zero; computed in fp64, returned in fp32.

    Raises:
        UserError: a block's query matrix is too close to singular, so that the logits of some tokens would change.
    """
    blocks = params.blocks
    kernel, bias, out_kernel = (
        np.asarray(leaf, np.float64) for leaf in (blocks.qkv_kernel, blocks.qkv_bias, blocks.attn_out_kernel)
    )
    norm_bias, out_bias = (np.asarray(leaf, np.float64) for leaf in (blocks.ln_1_bias, blocks.attn_out_bias))
    for layer in range(config.n_layers):
        queries, _, values = (kernel[layer, :, part, :] for part in range(3))
        try:
            shift = np.linalg.solve(queries.T, bias[layer, 0])
        except np.linalg.LinAlgError:
            raise _refused(f"the query matrix of block {layer} is singular") from None
        norm_bias[layer] += shift
        out_bias[layer] += (bias[layer, 2] - shift @ values) @ out_kernel[layer]
    moved = dataclasses.replace(
        blocks,
        qkv_bias=jnp.zeros_like(blocks.qkv_bias),
        ln_1_bias=jnp.asarray(norm_bias, jnp.float32),
        attn_out_bias=jnp.asarray(out_bias, jnp.float32),
    )
    folded = dataclasses.replace(params, blocks=moved)
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, (1, min(config.n_ctx, 128)))
    plain = dataclasses.replace(config, dtype="float32")
    before, after = (np.asarray(forward(p, jnp.asarray(tokens), plain)) for p in (params, folded))
    change = float(np.max(np.abs(after - before)) / np.max(np.abs(before)))
    if not change < _TOLERANCE:
        raise _refused(f"a query matrix is so near to singular that logits would change by {change:.1e} of the largest")
    return folded


def _refused(why: str) -> UserError:
    return UserError(
        f"GPT-Neo, Hugging Face's format for banded attention, has no biases of queries, keys and values, and this "
        f"model's cannot be moved elsewhere: {why}; only a model with all layers dense, or with zeros there, can be "
        "written"
    )
