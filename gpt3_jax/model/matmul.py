"""Matmuls with operands in the compute dtype and accumulation in fp32, forward and backward.

Autodiff of a bf16 matmul that accumulates in fp32 gives an fp32 cotangent, and with it two matmuls in fp32. Here the
cotangent is first rounded to the operands' dtype, so that all three matmuls run at the speed of bf16.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from gpt3_jax.model import cpu
from gpt3_jax.parallel.zero import Weight


def _accumulate(spec: str, a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
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


def einsum(spec: str, a: jax.Array, b: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """Two-operand einsum with fp32 accumulation; the result in `dtype` (default: that of `a`).

    Every index of `a` and `b` must appear in the other operand or in the result (so that the transposes are einsums).
    """
    return _einsum(spec, a, b, jnp.dtype(dtype or a.dtype))


def linear(x: jax.Array, kernel: Weight, platform: str) -> jax.Array:
    """``x[..., I]`` times ``kernel[I, ...O]``, as one matmul over all rows; the result [..., ...O] in x's dtype.

    The kernel's gradient is reduced while it is made, where ZeRO reduces it in the backward pass
    (`Weight.partitioned`).

    Args:
        platform: the platform that the program is compiled for.
    """
    return _linear(x, kernel, platform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _linear(x: jax.Array, kernel: Weight, platform: str) -> jax.Array:
    return _linear_forward(x, kernel)[0]


# Flattened in here and not by the caller: what the backward pass keeps is then the weight itself, which ZeRO can gather
# again, and not a reshaped copy; and all three matmuls are plain two-dimensional ones (`model.cpu`).
def _linear_forward(x: jax.Array, kernel: Weight) -> tuple[jax.Array, tuple[jax.Array, Weight]]:
    rows = _accumulate("ni,io->no", x.reshape(-1, x.shape[-1]), _flat(kernel.value), x.dtype)
    return rows.reshape(*x.shape[:-1], *kernel.target.shape[1:]), (x, kernel)


def _linear_backward(platform: str, saved: tuple[jax.Array, Weight], ct: jax.Array) -> tuple[jax.Array, Weight]:
    x, kernel = saved
    value = kernel.value
    x_rows = x.reshape(-1, x.shape[-1])
    ct_rows = ct.reshape(x_rows.shape[0], -1)
    gradient = _kernel_gradient(x_rows, ct_rows, kernel, platform)
    x_ct = _accumulate("no,io->ni", ct_rows, _flat(value), x.dtype).reshape(x.shape)
    return x_ct, kernel.cotangent(gradient)


_linear.defvjp(lambda x, kernel, platform: _linear_forward(x, kernel), _linear_backward)

GRADIENT_PART = 2**24
"""Elements of a kernel's gradient above which it is made in parts, where it is reduced as it is made: 64 MB in fp32."""
_MOST_PARTS = 8


def _kernel_gradient(x_NI: jax.Array, ct_NO: jax.Array, kernel: Weight, platform: str) -> jax.Array:
    """The kernel's reduced gradient [I or its shard, O]."""
    n_inputs, n_outputs = x_NI.shape[1], ct_NO.shape[1]
    dtype = kernel.how.compute
    parts = 1
    while (
        kernel.partitioned
        and parts < _MOST_PARTS
        and n_inputs * n_outputs > parts * GRADIENT_PART
        and n_outputs % (2 * parts) == 0
    ):
        parts *= 2
    if parts == 1:
        return kernel.reduce(contract_rows(x_NI, ct_NO, dtype, platform))
    columns = n_outputs // parts

    def part(i: jax.Array | int) -> jax.Array:
        return contract_rows(x_NI, lax.dynamic_slice_in_dim(ct_NO, i * columns, columns, axis=1), dtype, platform)

    # One part is reduced while the next is made: two parts are in memory at a time, and matmuls hide the reductions.
    last, reduced = lax.scan(lambda made, i: (part(i), kernel.reduce(made)), part(0), jnp.arange(1, parts))
    in_front = jnp.moveaxis(reduced, 0, 1).reshape(reduced.shape[1], -1)
    return jnp.concatenate([in_front, kernel.reduce(last)], axis=1)


def linear_backward(x: jax.Array, kernel: Weight, ct: jax.Array, platform: str) -> tuple[jax.Array, Weight]:
    """The cotangents of `linear`'s arguments from that of its result, [..., ...O], without the result."""
    return _linear_backward(platform, (x, kernel), ct)


def contract_rows(a_NI: jax.Array, b_NO: jax.Array, dtype: DTypeLike, platform: str) -> jax.Array:
    """The sum over rows of ``a[n, I] b[n, O]``: [I, O] in `dtype`, accumulated in fp32. A kernel's gradient."""
    if cpu.needs_transpose(a_NI.dtype, platform):
        return _accumulate("in,no->io", cpu.transposed(a_NI), b_NO, dtype)
    return _accumulate("ni,no->io", a_NI, b_NO, dtype)


def _flat(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(kernel.shape[0], -1)
