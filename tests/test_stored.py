"""Matrices in int8: their error by definition, and generation with them against the weights that they stand for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax import model
from gpt3_jax.config import ModelConfig
from gpt3_jax.model import cpu
from gpt3_jax.model.decode import decode_step, decode_weights, prefill
from gpt3_jax.model.params import Params, param_table
from gpt3_jax.model.stored import Stored, contracted, dequantise, product, quantise, rounding, stores
from gpt3_jax.parallel.collectives import Local

CONFIG = ModelConfig(
    n_layers=2, d_model=32, n_heads=4, n_ctx=24, n_vocab=61, vocab_multiple=16, band_width=8, init_std=0.1,
    dtype="float32",
)  # fmt: skip


def matrix() -> jax.Array:
    """Channels of very different size, one of them zero: [I, 3, O]."""
    key = jax.random.key(0)
    sizes = jnp.exp(jnp.linspace(-6, 3, 3 * 8)).reshape(3, 8).at[1, 2].set(0)
    return jax.random.normal(key, (40, 3, 8)) * sizes


def test_each_weight_is_within_half_a_step_of_its_own_channel() -> None:
    weights = matrix()
    stored = quantise(weights, 0)
    assert stored.values.shape == (3, 8, 40) and stored.values.dtype == jnp.int8
    largest = np.abs(weights).max(axis=0)
    error = np.abs(dequantise(stored, 0) - weights).max(axis=0)
    assert (error <= 1.001 * largest / 254).all() and error[1, 2] == 0
    assert (np.abs(stored.values).max(axis=-1) == np.where(largest > 0, 127, 0)).all()
    found = rounding(weights, dequantise(stored, 0), 0)
    assert 0.8 / 254 < found.largest <= 1.001 / 254
    np.testing.assert_allclose(found.errors, np.sum((dequantise(stored, 0) - weights) ** 2), rtol=1e-5)
    assert "rms error" in str(found + found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    """int8 itself has no NaN."""
    weights = matrix().at[3, 0, 1].set(bad)
    stored = quantise(weights, 0)
    assert not rounding(weights, dequantise(stored, 0), 0).finite
    finite = np.ones((3, 8), bool)
    finite[0, 1] = False
    for platform in ("cpu", "gpu"):
        np.testing.assert_array_equal(np.isfinite(product(jnp.ones((2, 40)), stored, platform)), [finite, finite])
        rows = product(jnp.ones((3, 40)).at[1, 7].set(bad), quantise(matrix().at[7].add(1), 0), platform)
        assert not np.isfinite(rows[1]).any() and np.isfinite(rows[np.array([0, 2])]).all()


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-4), ("bfloat16", 2e-2)])
def test_a_product_is_that_with_the_weights_it_stands_for(platform: str, dtype: str, tolerance: float) -> None:
    stored = quantise(matrix(), 0)
    x = jax.random.normal(jax.random.key(1), (5, 40)).astype(dtype) * jnp.array([[1], [100], [0], [1e-3], [1]], dtype)
    expected = np.einsum("ni,ijo->njo", np.float64(x), np.float64(dequantise(stored, 0)))
    found = product(x, stored, platform)
    assert found.dtype == x.dtype
    # Of the size of the terms that are summed, channel by channel.
    size = np.einsum("ni,ijo->njo", np.abs(np.float64(x)), np.abs(np.float64(dequantise(stored, 0))))
    np.testing.assert_array_less(np.abs(np.float64(found) - expected), tolerance * size + 1e-12)


def test_outputs_first_is_the_same_product() -> None:
    kernel, x = matrix(), jax.random.normal(jax.random.key(1), (5, 40))
    turned = Stored(jnp.moveaxis(kernel, 0, -1), None)
    np.testing.assert_allclose(product(x, turned, "cpu"), product(x, kernel, "cpu"), rtol=1e-5, atol=1e-4)
    for matrix_ in (kernel, turned):  # accumulated in fp32, and only then in the dtype that is asked for
        found = product(
            x.astype("bfloat16"),
            jax.tree.map(lambda leaf: leaf.astype("bfloat16"), matrix_),
            "cpu",
            jnp.dtype("float32"),
        )
        expected = np.einsum("ni,ijo->njo", *(np.float32(one.astype("bfloat16")) for one in (x, kernel)))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert cpu.reads_outputs_first(jnp.dtype("bfloat16"), "cpu", 2)
    assert not cpu.reads_outputs_first(jnp.dtype("bfloat16"), "gpu", 1)


@functools.cache
def params() -> Params:
    made = jax.jit(model.init, static_argnums=0)(CONFIG, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(made))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), made)


def rounded() -> Params:
    """The weights that int8 stands for, in fp32."""

    def one(leaf: Any, spec: Any) -> Any:
        if not stores(spec):
            return leaf
        axis = contracted(spec)

        def there_and_back(weights: jax.Array) -> jax.Array:
            return dequantise(quantise(weights, axis), axis)

        return jax.vmap(there_and_back)(leaf) if spec.stacked else there_and_back(leaf)

    return params().map(one, param_table(CONFIG))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_generation_in_int8_is_generation_with_the_rounded_weights(platform: str) -> None:
    """With every position's logits of the whole forward pass; on another platform's form of the product too, which
    this machine can run where attention's kernel does not take the shape."""
    tokens = jax.random.randint(jax.random.key(2), (3, 24), 0, 61)
    expected = model.forward(rounded(), tokens, CONFIG)
    weights = decode_weights(params(), CONFIG, "int8", platform)
    for stored in (weights.token_embedding, weights.blocks[1].qkv_kernel):
        assert isinstance(stored, Stored) and stored.values.dtype == jnp.int8
    lengths = jnp.array([3, 10, 5])
    rows = np.arange(3)
    logits, cache = prefill(weights, tokens[:, :10], lengths, CONFIG, Local(platform))
    scale = float(jnp.abs(expected).max())
    step = jax.jit(functools.partial(decode_step, config=CONFIG, local=Local(platform)))
    for t in range(10):
        np.testing.assert_allclose(logits, expected[rows, lengths + t - 1], atol=1e-3 * scale, err_msg=f"step {t}")
        logits, cache = step(weights, cache, tokens[rows, lengths + t])


def test_bf16_arithmetic_takes_int8_too() -> None:
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens = jax.random.randint(jax.random.key(2), (1, 8), 0, 61)
    expected = model.forward(rounded(), tokens, config)[:, -1]
    found, _ = prefill(decode_weights(params(), config, "int8"), tokens, jnp.array([8]), config, Local("cpu"))
    np.testing.assert_allclose(found, expected, atol=0.05 * float(jnp.abs(expected).max()))
