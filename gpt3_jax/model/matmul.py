"""Matmuls that keep their operands in the compute dtype and accumulate in fp32, forward and backward.

Plain autodiff turns the cotangent of an fp32-accumulating bf16 matmul into fp32 and its backward matmuls with it.
Here the cotangent is rounded to the operands' dtype first, so that all three matmuls take the same fast path.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _accumulate(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    # TPUs and GPUs would take fp32 operands as bf16 or TF32 unless told otherwise; fp32 as a setting means fp32.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _einsum(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return _accumulate(spec, a, b, dtype)


def _forward(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _accumulate(spec, a, b, dtype), (a, b)


def _backward(
    spec: str, dtype: jnp.dtype, operands: tuple[jax.Array, jax.Array], ct: jax.Array
) -> tuple[jax.Array, jax.Array]:
    a, b = operands
    inputs, out = spec.split("->")
    a_spec, b_spec = inputs.split(",")
    ct_a, ct_b = ct.astype(b.dtype), ct.astype(a.dtype)
    return (
        _accumulate(f"{out},{b_spec}->{a_spec}", ct_a, b, a.dtype),
        _accumulate(f"{a_spec},{out}->{b_spec}", a, ct_b, b.dtype),
    )


_einsum.defvjp(_forward, _backward)


def einsum(spec: str, a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """Two-operand einsum with fp32 accumulation; the result in `dtype` (default: that of `a`).

    Every index of `a` and `b` must appear in the other operand or in the result (so that the transposes are einsums).
    """
    return _einsum(spec, a, b, jnp.dtype(dtype or a.dtype))


@jax.custom_vjp
def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``x[..., I]`` times ``kernel[I, ...O]``, as one matmul over all rows; the result [..., ...O] in x's dtype."""
    return _linear_forward(x, kernel)[0]


# Flattened in here and not by the caller: what the backward pass keeps is then the kernel itself, which ZeRO can
# gather again, and not a reshaped copy; and all three matmuls are plain two-dimensional ones, the only form of
# bf16 x bf16 -> fp32 that the CPU backend runs in every shape.
def _linear_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows = _accumulate("ni,io->no", x.reshape(-1, x.shape[-1]), _flat(kernel), x.dtype)
    return rows.reshape(*x.shape[:-1], *kernel.shape[1:]), (x, kernel)


def _linear_backward(saved: tuple[jax.Array, jax.Array], ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    x_rows, flat = x.reshape(-1, x.shape[-1]), _flat(kernel)
    ct_rows = ct.reshape(x_rows.shape[0], -1)
    x_ct = _accumulate("no,io->ni", ct_rows, flat, x.dtype)
    kernel_ct = _accumulate("ni,no->io", x_rows, ct_rows, kernel.dtype)
    return x_ct.reshape(x.shape), kernel_ct.reshape(kernel.shape)


linear.defvjp(_linear_forward, _linear_backward)


def _flat(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(kernel.shape[0], -1)
