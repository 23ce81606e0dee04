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
from jax.experimental.layout import Layout, with_layout_constraint

from gpt3_jax.parallel.gather import Gathered


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


def linear(x: jax.Array, kernel: jax.Array | Gathered, platform: str = "") -> jax.Array:
    """``x[..., I]`` times ``kernel[I, ...O]``, as one matmul over all rows; the result [..., ...O] in x's dtype.

    The gradient of a `Gathered` kernel goes to its shard, reduced while it is made.

    Args:
        platform: the platform that the program is compiled for, where it is differentiated.
    """
    if isinstance(kernel, Gathered):
        return _linear_gathered(x, kernel, platform)
    return _linear(x, kernel, platform)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _linear(x: jax.Array, kernel: jax.Array, platform: str) -> jax.Array:
    return _linear_forward(x, kernel)[0]


# Flattened in here and not by the caller: what the backward pass keeps is then the kernel itself, which ZeRO can
# gather again, and not a reshaped copy; and all three matmuls are plain two-dimensional ones, the only form of
# bf16 x bf16 -> fp32 that the CPU backend runs in every shape.
def _linear_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows = _accumulate("ni,io->no", x.reshape(-1, x.shape[-1]), _flat(kernel), x.dtype)
    return rows.reshape(*x.shape[:-1], *kernel.shape[1:]), (x, kernel)


def _linear_backward(platform: str, saved: tuple[jax.Array, jax.Array], ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    x_rows, ct_rows = _rows(x, ct)
    kernel_ct = contract_rows(x_rows, ct_rows, kernel.dtype, platform)
    return _input_ct(x, kernel, ct_rows), kernel_ct.reshape(kernel.shape)


_linear.defvjp(lambda x, kernel, platform: _linear_forward(x, kernel), _linear_backward)


def default_is_cpu() -> bool:
    """Whether what runs where nobody has said so runs on a CPU."""
    return jax.default_backend() == "cpu"


def linear_backward(x: jax.Array, kernel: Gathered, ct: jax.Array, platform: str) -> tuple[jax.Array, Gathered]:
    """The cotangents of `linear`'s arguments from that of its result, [..., ...O], without the result."""
    return _linear_gathered_backward(platform, (x, kernel), ct)


def contract_rows(a_NI: jax.Array, b_NO: jax.Array, dtype: Any, platform: str) -> jax.Array:
    """The sum over rows of ``a[n, I] b[n, O]``: [I, O] in `dtype`, accumulated in fp32. A kernel's gradient."""
    # Asked of both: `forward`, which is differentiated from Python, is told of no platform.
    if platform == "cpu" and default_is_cpu() and a_NI.dtype == jnp.bfloat16:
        return _accumulate("in,no->io", _transposed(a_NI), b_NO, dtype)
    return _accumulate("ni,no->io", a_NI, b_NO, dtype)


def _transposed(a_NI: jax.Array) -> jax.Array:
    """A transpose that XLA's CPU backend does not fold into the matmul: it has no bf16 matmul with the contracted
    dimension in front on the left, and would take one in fp32, at half the speed, from copies in fp32.

    What stands behind a branch is not folded. The other branch is taken only where the gradient has a NaN already, and
    makes more of them: the norm is NaN either way.
    """

    def rows_first(a_IN: jax.Array) -> jax.Array:
        # Free to choose, the compiler would let the branch transpose nothing, and copy behind it.
        pinned: jax.Array = with_layout_constraint(a_IN, Layout((0, 1)))
        return pinned

    return lax.cond(  # type: ignore[no-any-return]
        jnp.isnan(a_NI[0, 0]),
        lambda a_NI: rows_first(jnp.full_like(a_NI, jnp.nan).reshape(a_NI.shape[::-1])),
        lambda a_NI: rows_first(a_NI.T),
        a_NI,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _linear_gathered(x: jax.Array, kernel: Gathered, platform: str) -> jax.Array:
    return _linear_gathered_forward(x, kernel, platform)[0]


# Not by way of `_linear_gathered`: `jax.checkpoint` does not look into a custom derivative for matmuls to keep.
def _linear_gathered_forward(
    x: jax.Array, kernel: Gathered, platform: str
) -> tuple[jax.Array, tuple[jax.Array, Gathered]]:
    rows = _linear_forward(x, _flat(kernel.value))[0]
    return rows.reshape(*x.shape[:-1], *kernel.target.shape[1:]), (x, kernel)


def _linear_gathered_backward(
    platform: str, saved: tuple[jax.Array, Gathered], ct: jax.Array
) -> tuple[jax.Array, Gathered]:
    x, kernel = saved
    x_rows, ct_rows = _rows(x, ct)
    n_inputs, n_outputs = x_rows.shape[1], ct_rows.shape[1]
    parts = 1
    while parts < _MOST_PARTS and n_inputs * n_outputs > parts * _PART and n_outputs % (2 * parts) == 0:
        parts *= 2
    columns = n_outputs // parts

    def part(i: Any) -> jax.Array:
        ct_part = lax.dynamic_slice_in_dim(ct_rows, i * columns, columns, axis=1)
        return contract_rows(x_rows, ct_part, kernel.value.dtype, platform)

    # While one part is reduced, the next is made: no more than two are there at a time, and the matmuls still have
    # the reductions of others to hide.
    last = part(0) if parts > 1 else contract_rows(x_rows, ct_rows, kernel.value.dtype, platform)
    reduced = []
    if parts > 1:
        last, done = lax.scan(lambda made, i: (part(i), kernel.reduce(made)), last, jnp.arange(1, parts))
        reduced = [jnp.moveaxis(done, 0, 1).reshape(done.shape[1], -1)]
    gradient = jnp.concatenate([*reduced, kernel.reduce(last)], axis=1)
    # The value passes nothing on: it has been cut off, and its zeros are never made.
    nothing = jnp.zeros_like(kernel.value)
    return _input_ct(x, kernel.value, ct_rows), Gathered(nothing, kernel.shaped(gradient), kernel.how)


_linear_gathered.defvjp(_linear_gathered_forward, _linear_gathered_backward)

_PART = 2**24
"""Elements of a kernel's gradient above which it is made in parts: 64 MB in fp32."""
_MOST_PARTS = 8


def _rows(x: jax.Array, ct: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_rows = x.reshape(-1, x.shape[-1])
    return x_rows, ct.reshape(x_rows.shape[0], -1)


def _input_ct(x: jax.Array, kernel: jax.Array, ct_rows: jax.Array) -> jax.Array:
    return _accumulate("no,io->ni", ct_rows, _flat(kernel), x.dtype).reshape(x.shape)


def _flat(kernel: jax.Array) -> jax.Array:
    return kernel.reshape(kernel.shape[0], -1)
