"""cuDNN's flash attention, through `jax.nn`, for NVIDIA GPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def supports(shape_BTHK: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether cuDNN takes queries of this shape and dtype: half precision, heads of multiples of 8 up to 128 wide."""
    return dtype in (jnp.bfloat16, jnp.float16) and shape_BTHK[-1] % 8 == 0 and shape_BTHK[-1] <= 128


def cudnn(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None, name: str | None = None
) -> jax.Array:
    """As `plain.plain`. Under `shard_map`, all mesh axes must be manual: cuDNN's partitioner fails under others."""
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTHK,
        v_BTHK,
        is_causal=True,
        local_window_size=None if band is None else (band - 1, 0),
        implementation="cudnn",
    )
