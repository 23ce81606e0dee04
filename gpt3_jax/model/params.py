"""The parameter table: name, shape, axes, initializer and decay of every parameter, declared once.

Initialisation, sharding, the decay mask, parameter counts and the Hugging Face name map derive from it; a parameter's
shape is stated nowhere else. Shapes: L blocks, D = d_model, F = d_ff, A = n_heads × d_head (= D), C = n_ctx, V = padded
vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from gpt3_jax.config import ModelConfig
from gpt3_jax.spec import Block as Block
from gpt3_jax.spec import LogicalAxis, ParamKind, ParamSpec
from gpt3_jax.spec import Params as Params


def param_table(config: ModelConfig) -> Params[ParamSpec]:
    """The table for one architecture."""
    layers, d, ff, vocab = config.n_layers, config.d_model, config.d_ff, config.n_vocab_padded
    residual = config.init_std * {"2L": (2 * layers) ** -0.5, "L": layers**-0.5, "none": 1.0}[config.residual_init]

    Dim = tuple[LogicalAxis, int]

    def matrix(std: float, *dims: Dim, zero: LogicalAxis) -> ParamSpec:
        axes: tuple[LogicalAxis, ...] = ("layers", *(axis for axis, _ in dims))
        return ParamSpec((layers, *(size for _, size in dims)), axes, zero, std, kind="matrix")

    def vector(value: float, *dims: Dim, zero: LogicalAxis) -> ParamSpec:
        axes: tuple[LogicalAxis, ...] = ("layers", *(axis for axis, _ in dims))
        return ParamSpec((layers, *(size for _, size in dims)), axes, zero, value, constant=True)

    model: Dim = ("model", d)
    heads: Dim = ("heads", d)
    mlp: Dim = ("mlp", ff)
    qkv: Dim = ("qkv", 3)
    return Params(
        token_embedding=ParamSpec((vocab, d), ("vocab", "model"), "model", config.init_std, kind="embedding"),
        position_embedding=ParamSpec(
            (config.n_ctx, d), ("context", "model"), "model", config.position_init_std, kind="embedding"
        ),
        blocks=Block(
            ln_1_scale=vector(1.0, model, zero="model"),
            ln_1_bias=vector(0.0, model, zero="model"),
            qkv_kernel=matrix(config.init_std, model, qkv, heads, zero="model"),
            qkv_bias=vector(0.0, qkv, heads, zero="heads"),
            attn_out_kernel=matrix(residual, heads, model, zero="heads"),
            attn_out_bias=vector(0.0, model, zero="model"),
            ln_2_scale=vector(1.0, model, zero="model"),
            ln_2_bias=vector(0.0, model, zero="model"),
            mlp_up_kernel=matrix(config.init_std, model, mlp, zero="model"),
            mlp_up_bias=vector(0.0, mlp, zero="mlp"),
            mlp_down_kernel=matrix(residual, mlp, model, zero="mlp"),
            mlp_down_bias=vector(0.0, model, zero="model"),
        ),
        ln_f_scale=ParamSpec((d,), ("model",), "model", 1.0, constant=True),
        ln_f_bias=ParamSpec((d,), ("model",), "model", 0.0, constant=True),
    )


def names(tree: Any) -> list[str]:
    """Dotted names of a tree's leaves, in leaf order: ``blocks.qkv_kernel``."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [".".join(getattr(key, "name", str(key)) for key in path) for path, _ in paths]


def init(config: ModelConfig, key: jax.Array) -> Params[jax.Array]:
    """Initial parameters in fp32 (GPT-2's initialisation; GPT-3 section 2.1).

    Values depend on the key, the parameter's name and the true vocabulary only: not on sharding, and not on padding,
    whose rows are zero and stay so.
    """

    def parameter(name: str, spec: ParamSpec, unpadded: ParamSpec) -> jax.Array:
        if spec.constant:
            return jnp.full(spec.shape, spec.init, jnp.float32)
        own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        value = spec.init * jax.random.normal(own_key, unpadded.shape, jnp.float32)
        return jnp.pad(value, [(0, dim - own) for dim, own in zip(spec.shape, unpadded.shape, strict=True)])

    table, unpadded = param_table(config), param_table(dataclasses.replace(config, vocab_multiple=1))
    dotted: Params[str] = jax.tree.unflatten(jax.tree.structure(table), names(table))
    return dotted.map(parameter, table, unpadded)


def abstract(config: ModelConfig) -> Params[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the parameters, without arrays."""
    return param_table(config).map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32))


_DECAYED: dict[str, tuple[ParamKind, ...]] = {
    "matrices": ("matrix",),
    "matrices_and_embeddings": ("matrix", "embedding"),
    "all": ("matrix", "embedding", "vector"),
}


def decay_mask(config: ModelConfig, on: str) -> Params[bool]:
    """True where weight decay applies; `on` is `optimizer.weight_decay_on`."""
    return param_table(config).map(lambda spec: spec.kind in _DECAYED[on])


@functools.cache  # a search asks for each of its candidates
def count_params(config: ModelConfig) -> int:
    """The paper's count (Table D.1): embeddings, positions and biases included, vocabulary padding left out."""
    return sum(spec.size for spec in param_table(dataclasses.replace(config, vocab_multiple=1)).leaves())


def train_flops_per_token(config: ModelConfig, attention: bool = False) -> float:
    """Floating-point operations that training spends on one token.

    Without `attention`, the paper's convention: 6 per parameter (appendix D). With it, the score and value matmuls of
    what a position really sees are added: all earlier positions in a dense layer, the band in a banded one.
    """
    flops = 6.0 * count_params(config)
    if attention:
        for layer in range(config.n_layers):
            kind = config.attention_pattern[layer % len(config.attention_pattern)]
            flops += 12.0 * config.d_model * mean_visible(config.n_ctx, config.band_width if kind == "banded" else None)
    return flops


def mean_visible(n_ctx: int, band: int | None) -> float:
    """Positions that a position sees on average, itself included: min(t + 1, band) over t < n_ctx."""
    band = min(band or n_ctx, n_ctx)
    return (band * (band + 1) / 2 + (n_ctx - band) * band) / n_ctx
