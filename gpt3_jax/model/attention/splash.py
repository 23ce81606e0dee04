"""Splash attention, JAX's Pallas kernel for TPUs, wrapped for a `shard_map` that checks its types.

The kernel's outputs declare no type over the mesh, which `shard_map` refuses unless ``check_vma=False``. So the kernel
runs in a `shard_map` of its own with that setting, over axes that are manual already: it maps nothing, and its outputs
get their types here. The derivative is the kernel's own, computed inside as well.

Shapes: B batch, T positions, H heads, K head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jax.sharding import PartitionSpec

from gpt3_jax.parallel.collectives import vary

_BLOCKS = (512, 256, 128)
"""Lengths of a block, longest first. The kernel wants multiples of the 128 lanes, and blocks that divide T."""


def supports(shape_BTHK: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether the kernel takes queries of this shape and dtype. In fp32 its matmuls would take the operands as bf16."""
    return dtype == jnp.bfloat16 and shape_BTHK[1] % _BLOCKS[-1] == 0


def splash(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHK: jax.Array,
    band: int | None,
    name: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As `plain.plain`.

    Args:
        interpret: run the kernel's program without a TPU, slowly.
    """
    return _attention(q_BTHK, k_BTHK, v_BTHK, band, name, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attention(
    q: jax.Array, k: jax.Array, v: jax.Array, band: int | None, name: str | None, interpret: bool
) -> jax.Array:
    return _untyped(functools.partial(_kernel, band=band, name=name, interpret=interpret), q, k, v)


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, band: int | None, name: str | None, interpret: bool
) -> tuple[jax.Array, Any]:
    kernel = functools.partial(_kernel, band=band, name=name, interpret=interpret)
    return _untyped(lambda *qkv: jax.vjp(kernel, *qkv), q, k, v)


def _backward(
    band: int | None, name: str | None, interpret: bool, pull: Any, ct: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _untyped(lambda pull, ct: pull(ct), pull, ct)


_attention.defvjp(_forward, _backward)


def _kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, *, band: int | None, name: str | None, interpret: bool
) -> jax.Array:
    # Here, so that an experimental module of JAX's is imported only where it is used.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    _, length, heads, width = q.shape
    # The kernel leaves scaling to its caller. In fp32: a scale rounded to bf16 would be off for all scores.
    q = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)
    mask = (
        kernels.CausalMask((length, length)) if band is None else kernels.LocalMask((length, length), (band - 1, 0), 0)
    )
    block = _block_size(length, band)
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        interpret=interpret,
    )
    out_BHTK = jax.vmap(kernel)(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)))
    return jnp.swapaxes(out_BHTK, 1, 2)


def _block_size(length: int, band: int | None) -> int:
    fitting = [block for block in _BLOCKS if length % block == 0]
    # Of a block longer than the band, most would be computed in vain.
    return next((block for block in fitting if block <= (band or length)), fitting[-1])


def _untyped(f: Callable[..., Any], *args: Any) -> Any:
    """Runs `f` without types over the mesh; its results vary over the axes that any of its arguments varies over."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return f(*args)
    leaves = jax.tree.leaves(args)

    def untyped(*leaves: jax.Array) -> Any:
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        program, results = jax.make_jaxpr(f, return_shape=True)(*jax.tree.unflatten(jax.tree.structure(args), shapes))
        return jax.tree.unflatten(jax.tree.structure(results), jaxpr_as_fun(program)(*leaves))

    same = PartitionSpec()
    results = jax.shard_map(untyped, in_specs=same, out_specs=same, axis_names=set(), check_vma=False)(*leaves)
    varying = set().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))
    return jax.tree.map(lambda leaf: vary(leaf, tuple(varying)), results)
