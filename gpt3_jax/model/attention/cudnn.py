"""cuDNN's flash attention, through `jax.nn`, for NVIDIA GPUs."""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp

from gpt3_jax.model.remat import CUDNN_FORWARD

_log = logging.getLogger(__name__)


def supports(shape_BTHK: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether cuDNN takes queries of this shape and dtype: half precision, heads of multiples of 8 up to 128 wide."""
    return dtype in (jnp.bfloat16, jnp.float16) and shape_BTHK[-1] % 8 == 0 and shape_BTHK[-1] <= 128


def cudnn(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None, name: str | None = None
) -> jax.Array:
    """As `plain.plain`. Under `shard_map`, all mesh axes must be manual: cuDNN's partitioner fails under others."""
    if name is not None:
        _tell_if_renamed()
    return _cudnn(q_BTHK, k_BTHK, v_BTHK, band)


def _cudnn(q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, band: int | None) -> jax.Array:
    return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTHK,
        v_BTHK,
        is_causal=True,
        local_window_size=None if band is None else (band - 1, 0),
        implementation="cudnn",
    )


@functools.cache
def _tell_if_renamed() -> None:
    """Warns if the policies of `memory.remat` that keep attention do not find this kernel among a program's primitives:
    it would run again, and only a profile would show it."""
    some = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    forward = jax.make_jaxpr(lambda *qkv: jax.vjp(functools.partial(_cudnn, band=None), *qkv)[0])(some, some, some)
    if CUDNN_FORWARD not in str(forward):
        _log.warning(
            "JAX %s has no primitive %s; with memory.remat minimal, save_qkv_proj or save_attention cuDNN's attention "
            "runs again in the backward pass: slower, with the same results",
            jax.__version__,
            CUDNN_FORWARD,
        )
