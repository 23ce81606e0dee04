"""Causal attention, dense and locally banded (GPT-3 section 2.1; Sparse Transformer's `local` pattern).

One function, and an implementation for each kind of hardware. All compute the same; tests compare them with `plain`:

- `plain`: all scores at once. The reference, and the fastest for short sequences.
- `blockwise`: block by block, the score matrix is never materialised; pure JAX, for every platform, dtype and shape.
- `by_head`: a few heads at a time, a block of queries against all their keys; for CPUs.
- `splash`: the Pallas kernel for TPUs.
- `cudnn`: cuDNN's flash attention, for NVIDIA GPUs.
- `triangle`: row by row in growing blocks, for CPUs where no gradient is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from gpt3_jax.model import cpu
from gpt3_jax.model.attention.blockwise import blockwise
from gpt3_jax.model.attention.by_head import by_head
from gpt3_jax.model.attention.cudnn import cudnn
from gpt3_jax.model.attention.cudnn import supports as cudnn_supports
from gpt3_jax.model.attention.plain import plain, score_bytes
from gpt3_jax.model.attention.splash import splash
from gpt3_jax.model.attention.splash import supports as splash_supports
from gpt3_jax.model.attention.triangle import triangle

Implementation = Literal["plain", "blockwise", "by_head", "splash", "cudnn"]


def attention(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None, platform: str, name: str | None = None
) -> jax.Array:
    """Each position attends to itself and the positions before it: all of them, or `band` in total.

    Scores are scaled by 1/√K; scores and softmax are fp32. Returns [B, T, H, K] in the dtype of `q`.

    Args:
        platform: the platform that the program is compiled for: cpu, gpu, rocm or tpu (`mesh.mesh_platform`).
        name: for a policy of `jax.checkpoint` that keeps what the derivative needs of the forward pass, so that the
            kernel does not run again (`model.remat`). cuDNN's takes no name; `plain` keeps its result alone.
    """
    length = q_BTHK.shape[1]
    band = None if band is None or band >= length else band
    implementation = _IMPLEMENTATIONS[choose(q_BTHK.shape, q_BTHK.dtype, band, platform)]
    with jax.named_scope("attention"):
        return implementation(q_BTHK, k_BTHK, v_BTHK, band, name)


def attention_without_gradients(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None, platform: str
) -> jax.Array:
    """As `attention`, by an implementation whose derivative would be slow or large where that is the faster."""
    if not cpu.takes_triangle(q_BTHK.shape[1], platform):
        return attention(q_BTHK, k_BTHK, v_BTHK, band, platform)
    with jax.named_scope("attention"):
        return triangle(q_BTHK, k_BTHK, v_BTHK, band)


def choose(shape_BTHK: tuple[int, ...], dtype: jnp.dtype, band: int | None, platform: str) -> Implementation:
    """Which implementation `attention` takes for queries of this shape and dtype on this platform."""
    if platform == "tpu" and splash_supports(shape_BTHK, dtype):
        return "splash"
    if platform == "gpu" and cudnn_supports(shape_BTHK, dtype):
        return "cudnn"
    if platform == "cpu" and score_bytes(shape_BTHK, band) <= cpu.PLAIN_SCORE_BYTES:
        return "plain"
    return "by_head" if cpu.attends_by_head(dtype, platform) else "blockwise"


_IMPLEMENTATIONS: dict[
    Implementation, Callable[[jax.Array, jax.Array, jax.Array, int | None, str | None], jax.Array]
] = {
    "plain": plain,
    "blockwise": blockwise,
    "by_head": by_head,
    "splash": splash,
    "cudnn": cudnn,
}
