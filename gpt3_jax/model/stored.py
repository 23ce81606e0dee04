"""Matrices as generation keeps them: in the compute dtype, or in int8 with a scale for each output channel.

In int8 a weight is its value times its channel's scale, symmetric around zero; the scale maps the channel's largest
weight to 127. Arithmetic stays in the compute dtype: the matmul's result is scaled, once for each output. Biases,
LayerNorms and positions, a thousandth of the weights, stay in the compute dtype.

Shapes: I inputs, O outputs (one dimension or several).
"""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from gpt3_jax.model import cpu
from gpt3_jax.model.matmul import einsum
from gpt3_jax.spec import ParamSpec

Form = Literal["compute", "int8"]
SEVERAL = 2
"""Rows at once, where nothing more is known."""
LARGEST = 127
"""The largest int8 value used: -128 has no counterpart."""


@flax.struct.dataclass
class Stored:
    """A matrix with its outputs first, [..., O, I]: each output's weights lie side by side."""

    values: jax.Array
    """int8, or the compute dtype."""
    scales: jax.Array | None
    """[..., O], fp32; None unless the values are int8."""


Matrix = jax.Array | Stored
"""A kernel [I, O], or `Stored`."""


def stores(spec: ParamSpec) -> bool:
    """Whether a parameter is kept in int8, where that is asked for."""
    return spec.kind == "matrix" or "vocab" in spec.axes


def outputs_first(spec: ParamSpec, form: Form, dtype: jnp.dtype, platform: str, rows: int = SEVERAL) -> bool:
    """Whether a parameter becomes a `Stored`.

    Args:
        rows: that are computed at once.
    """
    if form == "int8":
        return stores(spec)
    return spec.kind == "matrix" and cpu.reads_outputs_first(dtype, platform, rows)


def contracted(spec: ParamSpec) -> int:
    """The dimension of the inputs, in one layer's tensor: the last of the token embedding, the first of a kernel."""
    return -1 if "vocab" in spec.axes else 0


def store(leaf: Matrix, spec: ParamSpec, form: Form, dtype: jnp.dtype, platform: str, rows: int = SEVERAL) -> Matrix:
    """One parameter, of one layer, as generation reads it. A `Stored` stays what it is."""
    if isinstance(leaf, Stored):
        return leaf
    if not outputs_first(spec, form, dtype, platform, rows):
        return leaf.astype(dtype)
    if form == "int8":
        return quantise(leaf, contracted(spec))
    return Stored(jnp.moveaxis(leaf.astype(dtype), contracted(spec), -1), None)


def restore(matrix: Matrix, spec: ParamSpec) -> jax.Array:
    """The parameter, of one layer, that `store` was given in the compute dtype. For matrices that are not in int8."""
    if not isinstance(matrix, Stored):
        return matrix
    assert matrix.scales is None
    return jnp.moveaxis(matrix.values, -1, contracted(spec))


def quantise(weights: jax.Array, axis: int) -> Stored:
    """The matrix in int8, a scale for each output channel. A channel with a weight that is not finite is not finite.

    Args:
        axis: the dimension of the inputs, which share a scale.
    """
    channels = jnp.moveaxis(weights.astype(jnp.float32), axis, -1)
    largest = jnp.max(jnp.abs(channels), axis=-1)
    scales = jnp.where(largest == 0, 1.0, largest) / LARGEST  # NaN where a weight of the channel is
    return Stored(jnp.round(channels / scales[..., None]).astype(jnp.int8), scales)


def dequantise(matrix: Stored, axis: int) -> jax.Array:
    """The weights that a matrix in int8 stands for, fp32, the inputs back in dimension `axis`."""
    assert matrix.scales is not None
    return jnp.moveaxis(matrix.values.astype(jnp.float32) * matrix.scales[..., None], -1, axis)


@flax.struct.dataclass
class Rounding:
    """How far matrices are from the fp32 weights that they were made of; sums, to be added up."""

    errors: jax.Array
    """The sum of squared errors."""
    squares: jax.Array
    """The sum of the squared weights."""
    largest: jax.Array
    """The largest error, as a share of the largest weight of its output channel."""

    def __add__(self, other: Rounding) -> Rounding:
        largest = jnp.maximum(self.largest, other.largest)
        return Rounding(self.errors + other.errors, self.squares + other.squares, largest)

    @property
    def finite(self) -> bool:
        """Whether all weights and errors are. Squares that fp32 does not hold are not."""
        return bool(jnp.isfinite(self.errors) & jnp.isfinite(self.squares) & jnp.isfinite(self.largest))

    def __str__(self) -> str:
        rms = float(jnp.sqrt(self.errors / jnp.maximum(self.squares, 1e-30)))
        return (
            f"rms error {rms:.2%} of the rms weight, largest error {float(self.largest):.2%} of the largest weight of "
            "its output channel"
        )


def rounding(weights: jax.Array, rounded: jax.Array, axis: int) -> Rounding:
    """Of one matrix.

    Args:
        rounded: the weights that are used in their place, in any dtype.
        axis: the dimension of the inputs.
    """
    error = jnp.abs(rounded.astype(jnp.float32) - weights)
    top = jnp.max(jnp.abs(weights), axis=axis, keepdims=True)
    share = error / jnp.where(top == 0, 1.0, top)
    return Rounding(jnp.sum(error**2), jnp.sum(weights**2), jnp.max(share))


def product(x: jax.Array, matrix: Matrix, platform: str, dtype: jnp.dtype | None = None) -> jax.Array:
    """``x[..., I]`` times the matrix, accumulated in fp32; the result [..., O] in `dtype` (default: x's)."""
    x_NI = x.reshape(-1, x.shape[-1])
    if not isinstance(matrix, Stored):
        out_NO = einsum("ni,io->no", x_NI, matrix.reshape(x.shape[-1], -1), dtype or x.dtype)
        return out_NO.reshape(*x.shape[:-1], *matrix.shape[1:])
    values_OI = matrix.values.reshape(-1, x.shape[-1])
    if matrix.scales is None:
        out_NO = einsum("ni,oi->no", x_NI, values_OI, jnp.float32)
    else:
        out_NO = cpu.int8_product(x_NI, values_OI) if platform == "cpu" else _int8_product(x_NI, values_OI)
        out_NO = out_NO * matrix.scales.reshape(-1)
    return out_NO.astype(dtype or x.dtype).reshape(*x.shape[:-1], *matrix.values.shape[:-1])


def _int8_product(x_NI: jax.Array, values_OI: jax.Array) -> jax.Array:
    # Eight bits are exact in bf16 and in fp32. The conversion is the compiler's to fuse into the matmul.
    return einsum("ni,oi->no", x_NI, values_OI.astype(x_NI.dtype), jnp.float32)


def rows(table: Matrix, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of a table [V, D] in `dtype`; each id is one of the table's."""
    if not isinstance(table, Stored):
        return table[ids].astype(dtype)
    assert table.scales is not None
    return (table.values[ids] * table.scales[ids][..., None]).astype(dtype)
