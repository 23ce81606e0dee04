"""LayerNorm, GELU and biases, with derivatives of their own.

Autodiff would keep every intermediate result for the backward pass, six of them for one GELU, and sum the gradient of a
bias in the compute dtype. Here only the input is kept, the rest is recomputed from it in fp32, and rounding happens
once, at the end.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
@jax.named_scope("norm")
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm over the last dimension; scale and bias have its size and the dtype of `x`, as the result."""
    normal, _ = _standardised(x, eps)
    return (normal * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def _standardised(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """`x` with mean 0 and variance 1, and the inverse of its standard deviation; fp32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return centred * inverse, inverse


@jax.named_scope("norm")
def _layer_norm_backward(
    eps: float, saved: tuple[jax.Array, jax.Array], ct: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale_rows = saved
    normal, inverse = _standardised(x, eps)
    ct32 = ct.astype(jnp.float32)
    normal_ct = ct32 * scale_rows
    along = jnp.mean(normal_ct * normal, axis=-1, keepdims=True)
    x_ct = inverse * (normal_ct - jnp.mean(normal_ct, axis=-1, keepdims=True) - normal * along)
    return x_ct.astype(x.dtype), _column_sums(ct32 * normal, 1, x.dtype), _column_sums(ct32, 1, x.dtype)


def _layer_norm_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not the scale itself, which ZeRO's stage 3 would gather once more for the backward pass.
    scale_rows = jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))
    return layer_norm(x, scale, bias, eps), (x, scale_rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation, as in GPT-2's code; in the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + _tanh(x32))).astype(x.dtype)


def _tanh(x32: jax.Array) -> jax.Array:
    return jnp.tanh(_SLOPE * (x32 + _CUBIC * x32**3))


def _gelu_backward(x: jax.Array, ct: jax.Array) -> tuple[jax.Array]:
    x32 = x.astype(jnp.float32)
    tanh = _tanh(x32)
    slope = 0.5 * (1 + tanh) + 0.5 * x32 * (1 - tanh * tanh) * _SLOPE * (1 + 3 * _CUBIC * x32 * x32)
    return ((ct.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

_SLOPE = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """``x[..., O]`` plus ``bias[O]``, of one dtype; O may be several dimensions. The bias's gradient is summed in fp32.

    In the compute dtype XLA's CPU backend would sum it by halves, at a twentieth of the speed.
    """
    return _add_bias(x, bias, bias.ndim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _add_bias(x: jax.Array, bias: jax.Array, dims: int) -> jax.Array:
    return x + bias


# Nothing is kept: not the bias either, which ZeRO's stage 3 would gather once more.
_add_bias.defvjp(lambda x, bias, dims: (x + bias, None), lambda dims, _, ct: (ct, _column_sums(ct, dims, ct.dtype)))


def _column_sums(ct: jax.Array, dims: int, dtype: jnp.dtype) -> jax.Array:
    """The sum over all but the last `dims` dimensions, taken in fp32."""
    leading = tuple(range(ct.ndim - dims))
    return jnp.sum(ct.astype(jnp.float32), axis=leading).astype(dtype)
