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
from gpt3_jax.parallel import rings
from gpt3_jax.parallel.collectives import Local
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


# -- between shards of the sequence --------------------------------------------------------------------------------
#
# S positions of a shard, N = B × T of all rows, I inputs and O outputs of this tensor shard's part of a kernel.


def gathered_linear(x_BSI: jax.Array, kernel: Weight, length: int, local: Local, keep_rows: bool = True) -> jax.Array:
    """`linear` after `Local.gather_sequence`: from a shard of the residual stream [1, S, I] to [B, T, ...O].

    In a ring (`local.rings`) a piece is multiplied while the next ones are on their way. Backward there is no ring: the
    scatter of the input's gradient runs beside the matmul of the kernel's.

    Args:
        length: T, the positions of a row.
        keep_rows: in a ring, whether the gathered rows are kept for the backward pass. They are made with the result,
            so it costs no traffic; but where the result is kept by name (`model.remat`), the ring would run again only
            for them. If not, the backward pass gathers them.
    """
    if not local.rings:
        return linear(local.gather_sequence(x_BSI, length), kernel, local.platform)
    return _gathered_linear(x_BSI, kernel, length, local, keep_rows)


def scattered_linear(x_BTI: jax.Array, kernel: Weight, local: Local) -> jax.Array:
    """`linear`, and `Local.scatter_sequence` of its result: from [B, T, I] to a shard of the residual stream [1, S, O].

    In a ring (`local.rings`) the pieces' sums travel while others are multiplied.
    """
    if not local.rings:
        return local.scatter_sequence(linear(x_BTI, kernel, local.platform))
    return _scattered_linear(x_BTI, kernel, local)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _gathered_linear(x_BSI: jax.Array, kernel: Weight, length: int, local: Local, keep_rows: bool) -> jax.Array:
    return _gathered_linear_forward(x_BSI, kernel, length, local, keep_rows=False)[0]


def _gathered_linear_forward(
    x_BSI: jax.Array, kernel: Weight, length: int, local: Local, keep_rows: bool
) -> tuple[jax.Array, tuple[jax.Array, Weight]]:
    x_SI, value_IO = x_BSI[0], _flat(kernel.value)
    assert local.tensor is not None
    rows = x_SI.shape[0]

    def empty(columns: int) -> jax.Array:
        # Every row is written, so zeros are left out: 23.33 s for 23.57 s, a step of 175B on 512 v5p, as compiled.
        return local.vary(lax.empty((rows * local.tensor_size, columns), x_SI.dtype))

    whole_NI = empty(x_SI.shape[1]) if keep_rows else None
    out_NO = empty(value_IO.shape[1])
    for shard, piece_SI in rings.pieces(x_SI, local.tensor, local.tensor_size):
        product_SO = _accumulate("si,io->so", piece_SI, value_IO, x_SI.dtype)
        out_NO = lax.dynamic_update_slice_in_dim(out_NO, product_SO, shard * rows, 0)
        if whole_NI is not None:
            whole_NI = lax.dynamic_update_slice_in_dim(whole_NI, piece_SI, shard * rows, 0)
    out = out_NO.reshape(-1, length, *kernel.target.shape[1:])
    return out, (x_BSI if whole_NI is None else whole_NI.reshape(-1, length, x_SI.shape[1]), kernel)


def _gathered_linear_backward(
    length: int, local: Local, keep_rows: bool, saved: tuple[jax.Array, Weight], ct: jax.Array
) -> tuple[jax.Array, Weight]:
    x, kernel = saved
    x_BTI = x if keep_rows else local.gather_sequence(x, length)
    x_ct_BTI, kernel_ct = linear_backward(x_BTI, kernel, ct, local.platform)
    return local.scatter_sequence(x_ct_BTI), kernel_ct


_gathered_linear.defvjp(_gathered_linear_forward, _gathered_linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _scattered_linear(x_BTI: jax.Array, kernel: Weight, local: Local) -> jax.Array:
    return _scattered_linear_forward(x_BTI, kernel, local)[0]


def _scattered_linear_forward(
    x_BTI: jax.Array, kernel: Weight, local: Local
) -> tuple[jax.Array, tuple[jax.Array, Weight]]:
    x_NI, value_IO = x_BTI.reshape(-1, x_BTI.shape[-1]), _flat(kernel.value)
    assert local.tensor is not None
    rows = x_NI.shape[0] // local.tensor_size

    def part(shard: jax.Array) -> jax.Array:
        piece_SI = lax.dynamic_slice_in_dim(x_NI, shard * rows, rows)
        return _accumulate("si,io->so", piece_SI, value_IO, jnp.float32)

    return rings.summed(part, local.tensor, local.tensor_size, x_NI.dtype)[None], (x_BTI, kernel)


def _scattered_linear_backward(
    local: Local, saved: tuple[jax.Array, Weight], ct_BSO: jax.Array
) -> tuple[jax.Array, Weight]:
    x_BTI, kernel = saved
    ct_BTO = local.gather_sequence(ct_BSO, x_BTI.shape[1])
    return linear_backward(x_BTI, kernel, ct_BTO, local.platform)


_scattered_linear.defvjp(_scattered_linear_forward, _scattered_linear_backward)
