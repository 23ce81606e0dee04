"""Maps parameters to Hugging Face tensors, in GPT-2's and GPT-Neo's layout: one row per row of the parameter table.

Shapes come from the parameter table. This file holds only what differs: the name, whether the matrix is transposed, and
GPT-Neo's three separate matrices for queries, keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np

from gpt3_jax.config import ModelConfig
from gpt3_jax.model.params import Params, names, param_table

Layout = Literal["gpt2", "gpt_neo"]
PREFIX = "transformer."


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A Hugging Face tensor and how it maps to one of ours."""

    name: str
    """Without the prefix; ``{}`` stands for the block's index."""
    transposed: bool = False
    """torch.nn.Linear stores [out, in]; GPT-2's Conv1D and this project store [in, out]."""
    part: int | None = None
    """0, 1, 2: the queries, keys or values of our combined tensor, along its second-to-last dimension."""
    scaled: bool = False
    """GPT-Neo does not divide scores by sqrt(d_head), so its query weights include the factor."""


_COMMON = {
    "token_embedding": Tensor("wte.weight"),
    "position_embedding": Tensor("wpe.weight"),
    "ln_f_scale": Tensor("ln_f.weight"),
    "ln_f_bias": Tensor("ln_f.bias"),
    "blocks.ln_1_scale": Tensor("h.{}.ln_1.weight"),
    "blocks.ln_1_bias": Tensor("h.{}.ln_1.bias"),
    "blocks.ln_2_scale": Tensor("h.{}.ln_2.weight"),
    "blocks.ln_2_bias": Tensor("h.{}.ln_2.bias"),
    "blocks.mlp_up_bias": Tensor("h.{}.mlp.c_fc.bias"),
    "blocks.mlp_down_bias": Tensor("h.{}.mlp.c_proj.bias"),
}

_LAYOUTS: dict[Layout, dict[str, Tensor | tuple[Tensor, Tensor, Tensor] | None]] = {
    "gpt2": {
        **_COMMON,
        "blocks.qkv_kernel": Tensor("h.{}.attn.c_attn.weight"),
        "blocks.qkv_bias": Tensor("h.{}.attn.c_attn.bias"),
        "blocks.attn_out_kernel": Tensor("h.{}.attn.c_proj.weight"),
        "blocks.attn_out_bias": Tensor("h.{}.attn.c_proj.bias"),
        "blocks.mlp_up_kernel": Tensor("h.{}.mlp.c_fc.weight"),
        "blocks.mlp_down_kernel": Tensor("h.{}.mlp.c_proj.weight"),
    },
    "gpt_neo": {
        **_COMMON,
        "blocks.qkv_kernel": (
            Tensor("h.{}.attn.attention.q_proj.weight", transposed=True, part=0, scaled=True),
            Tensor("h.{}.attn.attention.k_proj.weight", transposed=True, part=1),
            Tensor("h.{}.attn.attention.v_proj.weight", transposed=True, part=2),
        ),
        "blocks.qkv_bias": None,  # GPT-Neo has none
        "blocks.attn_out_kernel": Tensor("h.{}.attn.attention.out_proj.weight", transposed=True),
        "blocks.attn_out_bias": Tensor("h.{}.attn.attention.out_proj.bias"),
        "blocks.mlp_up_kernel": Tensor("h.{}.mlp.c_fc.weight", transposed=True),
        "blocks.mlp_down_kernel": Tensor("h.{}.mlp.c_proj.weight", transposed=True),
    },
}

IGNORED = (".attn.bias", ".attn.masked_bias", ".attn.attention.bias", ".attn.attention.masked_bias")
"""Suffixes of causal masks, which old files store among the weights."""


def layout(config: ModelConfig) -> Layout:
    """GPT-2's if every layer is dense, otherwise GPT-Neo's."""
    return "gpt2" if set(config.attention_pattern) == {"dense"} else "gpt_neo"


def tensors(config: ModelConfig, kind: Layout) -> Iterator[tuple[str, int | None, Tensor, tuple[int, ...]]]:
    """(our name, block or None, Hugging Face's tensor, its shape there) for every tensor of a model.

    The vocabulary is without padding.
    """
    for name, spec in _specs(config).items():
        entry = _LAYOUTS[kind][name]
        for tensor in () if entry is None else entry if isinstance(entry, tuple) else (entry,):
            for block in range(config.n_layers) if spec.stacked else (None,):
                zeros = np.broadcast_to(np.float32(0), spec.shape[1:] if spec.stacked else spec.shape)
                shape = _out(zeros, tensor, config).shape
                named = dataclasses.replace(tensor, name=PREFIX + tensor.name.format(block))
                yield name, block, named, shape


def without_place(config: ModelConfig, kind: Layout) -> list[str]:
    """Our parameters that the layout does not have."""
    return [name for name in _specs(config) if _LAYOUTS[kind][name] is None]


def to_tensors(params: Params, config: ModelConfig, kind: Layout) -> dict[str, np.ndarray]:
    """Hugging Face's tensors by name, fp32 and contiguous, without the padding of the vocabulary."""
    ours = {
        name: np.asarray(leaf, np.float32) for name, leaf in zip(names(params), jax.tree.leaves(params), strict=True)
    }
    ours["token_embedding"] = ours["token_embedding"][: config.n_vocab]
    return {
        tensor.name: np.ascontiguousarray(_out(ours[name] if block is None else ours[name][block], tensor, config))
        for name, block, tensor, _ in tensors(config, kind)
    }


def from_tensors(read: Callable[[str], np.ndarray], config: ModelConfig, kind: Layout) -> dict[str, np.ndarray]:
    """The inverse: our parameters by name, in fp32 and full shape. The vocabulary's padding and missing parameters are
    zero.

    `read` returns a tensor of `tensors` by name.
    """
    ours: dict[str, np.ndarray] = {}
    for name, spec in _specs(config, padded=True).items():
        ours[name] = np.zeros(spec.shape, np.float32)
    for name, block, tensor, _ in tensors(config, kind):
        theirs = np.asarray(read(tensor.name), np.float32)
        if tensor.scaled:
            theirs = theirs * np.float32(config.d_head**0.5)
        theirs = theirs.T if tensor.transposed else theirs
        place = ours[name] if block is None else ours[name][block]
        place = place[: config.n_vocab] if name == "token_embedding" else place
        place = place if tensor.part is None else place[..., tensor.part, :]
        place[...] = theirs.reshape(place.shape)
    return ours


def _out(ours: np.ndarray, tensor: Tensor, config: ModelConfig) -> np.ndarray:
    """Converts our tensor of one block to Hugging Face's layout."""
    if tensor.part is not None:
        ours = ours[..., tensor.part, :]
    elif "c_attn" in tensor.name:
        ours = ours.reshape(*ours.shape[:-2], -1)  # queries, keys and values side by side
    theirs = ours.T if tensor.transposed else ours
    return theirs * np.float32(config.d_head**-0.5) if tensor.scaled else theirs


def _specs(config: ModelConfig, padded: bool = False) -> dict[str, Any]:
    table = param_table(config if padded else dataclasses.replace(config, vocab_multiple=1))
    return dict(zip(names(table), jax.tree.leaves(table), strict=True))
