"""Token ids that the model does not have: refused where they are known, NaN where they are traced."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax import model
from gpt3_jax.config import ModelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.model import decode, transformer
from gpt3_jax.parallel.collectives import Local

CONFIG = ModelConfig(
    n_layers=2, d_model=16, n_heads=2, n_ctx=8, n_vocab=257, vocab_multiple=128, band_width=4, dtype="float32"
)  # fmt: skip
assert CONFIG.n_vocab_padded == 384


@functools.cache
def params() -> model.Params:
    return model.init(CONFIG, jax.random.key(0))


@functools.cache
def weights() -> decode.DecodeWeights:
    return model.decode_weights(params(), CONFIG)


WRONG_IDS = [999, -1, 257, 383, 384, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 5, -(2**31), 2**63 - 1]
"""Just outside, the vocabulary's padding, outside the table, and what a cast to 32 bits would wrap into it."""


@pytest.mark.parametrize("wrong", WRONG_IDS)
def test_a_known_id_outside_the_vocabulary_is_named(wrong: int) -> None:
    for tokens in ([[1, 2], [3, wrong]], np.array([[1, 2], [3, wrong]])):
        with pytest.raises(UserError, match=rf"token id {wrong} at \[1, 1\] is outside the vocabulary .*0 to 256"):
            model.forward(params(), tokens, CONFIG)
        with pytest.raises(UserError, match=rf"token id {wrong} at \[1, 1\]"):
            model.prefill(weights(), tokens, [2, 2], CONFIG)
    _, cache = model.prefill(weights(), [[1, 2], [3, 4]], [2, 2], CONFIG)
    with pytest.raises(UserError, match=rf"token id {wrong} at \[1\]"):
        model.decode_step(weights(), cache, [0, wrong], CONFIG)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_integers_of_any_width_are_ids(dtype: Any) -> None:
    """As numpy, as JAX's arrays and as lists, they are the same ids, and the inner function's logits to the bit."""
    tokens = np.array([[1, 2, 100], [0, 127, 3]], dtype)
    expected = transformer.forward(params(), jnp.asarray(tokens, jnp.int32), CONFIG)
    for given in (tokens, jnp.asarray(tokens), tokens.tolist()):
        np.testing.assert_array_equal(model.forward(params(), given, CONFIG), expected)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([[1.0, 2.0]], "type float64; expected integers"),
        (jnp.ones((1, 2)), "type float32; expected integers"),
        ([[True]], "type bool; expected integers"),
        ([["a"]], "type <U1; expected integers"),
        ([[2**70]], "type object; expected integers"),
        ([1, 2], r"shape \[2\]; expected \[batch, length\]"),
        (5, r"shape \[\]; expected \[batch, length\]"),
        (np.zeros((1, 2, 3), int), r"shape \[1, 2, 3\]; expected \[batch, length\]"),
        ([[1, 2], [3]], "rows of different lengths"),
        ([], r"empty \(shape \[0\]\)"),
        ([[], []], r"empty \(shape \[2, 0\]\)"),
        (np.zeros((0, 4), np.int32), r"empty \(shape \[0, 4\]\)"),
        ([[1] * 9], "9 long; the model's context, model.n_ctx, is 8"),
    ],
)
def test_what_are_not_sequences_of_ids_is_refused_in_one_line(tokens: Any, said: str) -> None:
    for call in (
        lambda: model.forward(params(), tokens, CONFIG),
        lambda: model.prefill(weights(), tokens, [1], CONFIG),
    ):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [999, -1, 257, 2**31 - 1, -(2**31)])
def test_a_traced_id_outside_the_vocabulary_gives_nan_in_its_row(wrong: int) -> None:
    tokens = jnp.array([[1, 2, 3], [4, wrong, 5]], jnp.int32)
    logits = jax.jit(model.forward, static_argnums=2)(params(), tokens, CONFIG)
    assert jnp.isfinite(logits[0]).all() and jnp.isnan(logits[1]).all()
    by_row = jax.vmap(lambda row: model.forward(params(), row[None], CONFIG)[0])(tokens)
    assert jnp.isfinite(by_row[0]).all() and jnp.isnan(by_row[1]).all()


@pytest.mark.parametrize(("dtype", "wrong"), [(jnp.uint32, 2**32 - 1), (jnp.uint32, 2**31), (jnp.int8, -1)])
def test_a_traced_id_of_another_width_does_not_wrap_into_the_vocabulary(dtype: Any, wrong: int) -> None:
    tokens = jnp.array([[1, 2], [4, wrong]], dtype)
    logits = jax.jit(model.forward, static_argnums=2)(params(), tokens, CONFIG)
    assert jnp.isfinite(logits[0]).all() and jnp.isnan(logits[1]).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((1, 9), jnp.int32, "9 long"),
        ((1, 2), jnp.float32, "float32"),
        ((3,), jnp.int32, "shape"),
        ((0, 3), int, "empty"),
    ],
)
def test_shapes_and_types_are_checked_where_ids_are_traced_too(shape: Any, dtype: Any, said: str) -> None:
    forward = functools.partial(model.forward, config=CONFIG)
    with pytest.raises(UserError, match=said):
        jax.eval_shape(forward, params(), jax.ShapeDtypeStruct(shape, dtype))


def test_decoding_after_a_traced_wrong_id_stays_nan() -> None:
    """From the prompt or from a token on, for as long as the row goes on; the other rows are as they would be."""
    read = jax.jit(model.prefill, static_argnames=("config", "capacity"))
    step = jax.jit(model.decode_step, static_argnames="config")
    good, good_cache = model.prefill(weights(), [[1, 2], [3, 4], [5, 0]], [2, 2, 1], CONFIG)
    # What follows a prompt is not looked at; a length of 3 is outside.
    for tokens, lengths, wrong in (
        ([[1, 2], [3, 999], [5, 999]], [2, 2, 1], 1),
        ([[1, 2], [3, 4], [5, -7]], [2, 3, 1], 1),
        ([[1, 2], [3, 4], [5, -7]], [2, 0, 1], 1),
    ):
        logits, cache = read(weights(), jnp.array(tokens), jnp.array(lengths), config=CONFIG)
        for _ in range(3):
            assert jnp.isnan(logits[wrong]).all() and jnp.isfinite(jnp.delete(logits, wrong, 0)).all()
            logits, cache = step(weights(), cache, jnp.zeros(3, jnp.int32), config=CONFIG)
        with pytest.raises(UserError, match="tokens in a row"):
            model.decode_step(weights(), cache, [0, 0, 0], CONFIG)
    logits, cache = step(weights(), good_cache, jnp.array([7, 257, 7]), config=CONFIG)
    after, _ = step(weights(), cache, jnp.array([7, 7, 7]), config=CONFIG)
    for found in (logits, after):
        assert jnp.isnan(found[1]).all() and jnp.isfinite(found[0]).all() and jnp.isfinite(found[2]).all()
    assert jnp.isfinite(good).all()


def test_the_checked_functions_compute_what_the_inner_ones_do() -> None:
    tokens, lengths = jnp.array([[1, 2, 3], [4, 5, 0]]), jnp.array([3, 2])
    logits, cache = model.prefill(weights(), tokens, lengths, CONFIG, 8)
    inner, inner_cache = decode.prefill(weights(), tokens, lengths, CONFIG, Local("cpu"), 8)
    for _ in range(3):
        np.testing.assert_array_equal(logits, inner)
        jax.tree.map(np.testing.assert_array_equal, cache, inner_cache)
        logits, cache = model.decode_step(weights(), cache, [8, 9], CONFIG)
        inner, inner_cache = decode.decode_step(weights(), inner_cache, jnp.array([8, 9]), CONFIG, Local("cpu"))


def test_a_full_row_is_refused() -> None:
    for capacity in (3, 8):
        _, cache = model.prefill(weights(), [[1, 2]], [2], CONFIG, capacity)
        for _ in range(capacity - 2):
            _, cache = model.decode_step(weights(), cache, [1], CONFIG)
        with pytest.raises(UserError, match=f"tokens in a row {capacity} .* room for {capacity}"):
            model.decode_step(weights(), cache, [1], CONFIG)


@pytest.mark.parametrize(
    ("lengths", "capacity", "said"),
    [
        ([0, 1], None, r"length 0 at \[0\] .* expected 1 to 2"),
        ([1, 3], None, r"length 3 at \[1\] .* expected 1 to 2"),
        ([1], None, "lengths are for 1 rows; expected 2"),
        ([1.0, 2.0], None, "expected integers"),
        ([1, 2], 1, "capacity is 1; expected at least the prompts' 2"),
        ([1, 2], 9, "at most model.n_ctx 8"),
    ],
)
def test_lengths_and_capacity_of_a_prompt_are_checked(lengths: Any, capacity: int | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        model.prefill(weights(), [[1, 2], [3, 4]], lengths, CONFIG, capacity)
