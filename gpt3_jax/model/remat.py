"""What the backward pass of a block finds kept, and what it recomputes: the policies of `memory.remat`.

A policy keeps values by name. `Names` gives a value its name where the policy keeps it: in the compute dtype, as it is
next read, and on the device's own shard of the sequence where tensor shards split it. Inputs of matmuls that tensor
shards gather are never kept: each shard would hold all of them. Neither are gathered weights (`save_all_but_weights`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name

from gpt3_jax.parallel.zero import save_all_but_weights

Remat = Literal["none", "minimal", "save_qkv_proj", "save_attention", "full", "offload"]
Name = Literal["block_input", "attention", "residual", "qkv_proj", "mlp_up"]
"""block_input: the residual stream in front of a block. attention: the attention kernel's result and the log-sum-exp of
each row of scores. residual: the stream after attention. qkv_proj: queries, keys and values. mlp_up: the MLP's hidden
units in front of the activation."""

KEPT: dict[Remat, tuple[Name, ...]] = {
    "none": (),
    "minimal": ("attention", "residual", "qkv_proj", "mlp_up"),
    "save_qkv_proj": ("attention", "residual", "qkv_proj"),
    "save_attention": ("attention", "residual"),
    "full": (),
    "offload": ("block_input",),
}
"""What each policy keeps by name, beside the block's input. `none` keeps everything but weights, without names."""

CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"
"""JAX's primitive of cuDNN's attention, which is behind `jax.nn` and has no place for a name. It is no public name:
`attention.cudnn` tells if it is gone."""


@dataclasses.dataclass(frozen=True)
class Names:
    """Names the values that one policy keeps. The others stay as they are: under a policy that does not look for it, a
    name would only hinder the compiler."""

    kept: tuple[Name, ...] = ()

    @classmethod
    def of(cls, remat: Remat) -> Names:
        return cls(KEPT[remat])

    def get(self, name: Name) -> str | None:
        """The name if the policy keeps it."""
        return name if name in self.kept else None

    def __call__(self, x: jax.Array, name: Name) -> jax.Array:
        return checkpoint_name(x, name) if name in self.kept else x  # type: ignore[no-any-return]


UNNAMED = Names()
"""Names nothing."""


def policy(remat: Remat) -> Callable[..., Any] | None:
    """The policy for `jax.checkpoint`. None: keep nothing.

    Raises:
        KeyError: there is no such policy.
    """
    if remat == "none":
        return save_all_but_weights
    if remat == "offload":
        return jax.checkpoint_policies.save_and_offload_only_these_names(  # type: ignore[no-any-return]
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=list(KEPT[remat]),
            offload_src="device",
            offload_dst="pinned_host",
        )
    return _save_named if KEPT[remat] else None


def _save_named(primitive: Any, *_: Any, **params: Any) -> bool:
    return primitive.name in ("name", CUDNN_FORWARD)
