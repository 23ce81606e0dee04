"""The model against plain references: reach, loss, initialisation, counts. Attention has a file of its own."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

from gpt3_jax import model
from gpt3_jax.config import ModelConfig
from gpt3_jax.model.loss import Deferred, token_loss
from gpt3_jax.model.matmul import contract_rows
from gpt3_jax.model.params import names, param_table
from gpt3_jax.model.pointwise import add_bias, gelu, layer_norm
from gpt3_jax.parallel.collectives import Local

BAND = 8
SMALL = ModelConfig(
    n_layers=4,
    d_model=32,
    n_heads=4,
    n_ctx=32,
    n_vocab=61,
    vocab_multiple=16,
    band_width=BAND,
    dtype="float32",
)


@pytest.mark.parametrize(("pattern", "reach"), [(("dense",), 32), (("banded",), 4 * (BAND - 1) + 1)])
def test_the_model_is_causal_and_sees_as_far_as_its_layers_reach(pattern: tuple[Any, ...], reach: int) -> None:
    config = dataclasses.replace(SMALL, attention_pattern=pattern)
    params = model.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (1, 32), 0, 61)

    @jax.jit
    @jax.grad
    def moved_by(position_embedding: jax.Array, t: int) -> jax.Array:
        return model.forward(replace(params, position_embedding=position_embedding), tokens, config)[0, t].sum()

    for t in (0, 5, 31):
        moved = jnp.abs(moved_by(params.position_embedding, t)).sum(-1)
        seen = (np.arange(32) <= t) & (np.arange(32) > t - reach)
        np.testing.assert_array_equal(np.asarray(moved) > 0, seen)


ROWS, WIDTH, VOCAB, PADDED = 37, 16, 61, 64


def loss_inputs(dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
    h = jax.random.normal(jax.random.key(0), (ROWS, WIDTH), dtype)
    embedding = jax.random.normal(jax.random.key(1), (PADDED, WIDTH), dtype)
    labels = jax.random.randint(jax.random.key(2), (ROWS,), 0, VOCAB).at[jnp.array([3, 20, ROWS - 1])].set(-1)
    return h, embedding, labels


def plain_loss(h: jax.Array, embedding: jax.Array, labels: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(h @ embedding[:VOCAB].T, axis=-1)
    return -jnp.where(labels >= 0, jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0], 0).sum()


@pytest.mark.parametrize("chunk", [1, 8, 36, ROWS, 1000])
def test_the_loss_equals_a_plain_cross_entropy(chunk: int) -> None:
    h, embedding, labels = loss_inputs()

    def weighted(h: jax.Array, embedding: jax.Array) -> jax.Array:
        return 3 * token_loss(h, embedding, labels, VOCAB, chunk, Local("cpu"))

    expected, gradients = jax.value_and_grad(lambda h, e: 3 * plain_loss(h, e, labels), argnums=(0, 1))(h, embedding)
    np.testing.assert_allclose(jax.jit(weighted)(h, embedding), expected, rtol=1e-5)
    found, own = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1)))(h, embedding)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for ours, reference in zip(own, gradients, strict=True):
        np.testing.assert_allclose(ours, reference, atol=2e-5)


@pytest.mark.parametrize("rows", [WIDTH, WIDTH + 1])
def test_a_deferred_gradient_is_that_of_the_output_matrix(rows: int) -> None:
    _, embedding, _ = loss_inputs()
    h, labels = jax.random.normal(jax.random.key(5), (rows, WIDTH)), jnp.arange(rows) % VOCAB - 1
    deferred = Deferred.zeros(rows, 5, PADDED, WIDTH, embedding.dtype, Local("cpu"))
    assert (deferred.product_VD is None) == (rows == WIDTH)

    def weighted(deferred: Deferred, embedding: jax.Array) -> jax.Array:
        return 3 * token_loss(h, embedding, labels, VOCAB, 5, Local("cpu"), deferred)

    ours, nothing = jax.grad(weighted, argnums=(0, 1))(deferred, embedding)
    expected = jax.grad(lambda e: 3 * plain_loss(h, e, labels))(embedding)
    np.testing.assert_allclose(ours.product(0, PADDED), expected, atol=2e-5)
    np.testing.assert_allclose(ours.product(8, 5), expected[8:13], atol=2e-5)
    assert not np.any(nothing)


def test_a_cpu_makes_the_product_with_the_vocabulary_behind_and_it_is_the_same() -> None:
    rows = WIDTH + 1
    _, embedding, _ = loss_inputs(jnp.bfloat16)
    h = jax.random.normal(jax.random.key(5), (rows, WIDTH), jnp.bfloat16)
    labels = jnp.arange(rows) % VOCAB - 1

    def found(platform: str) -> tuple[Deferred, jax.Array, tuple[jax.Array, Deferred]]:
        local = Local(platform=platform)
        deferred = Deferred.zeros(rows, 5, PADDED, WIDTH, embedding.dtype, local)

        def weighted(h: jax.Array, deferred: Deferred) -> jax.Array:
            return 3 * token_loss(h, embedding, labels, VOCAB, 5, local, deferred)

        return deferred, *jax.jit(jax.value_and_grad(weighted, argnums=(0, 1)))(h, deferred)

    (zeros, loss, (h_ct, behind)), (others, other_loss, (other_h_ct, in_front)) = found("cpu"), found("tpu")
    assert zeros.product_VD is None and zeros.product_DV is not None and zeros.product_DV.shape == (WIDTH, PADDED)
    assert others.product_DV is None and others.product_VD is not None and others.product_VD.shape == (PADDED, WIDTH)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(h_ct, np.float32), np.asarray(other_h_ct, np.float32))
    # Both round the sum over the chunks once, to bf16; in which order rows are summed may tip it the other way.
    for part in ((0, PADDED), (8, 5)):
        ours, theirs = behind.product(*part), in_front.product(*part)
        assert ours.dtype == theirs.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=1e-5)
    # And that is the gradient, but for what rounding the logits' cotangents loses.
    expected = jax.grad(lambda e: 3 * plain_loss(h.astype(jnp.float32), e, labels))(embedding.astype(jnp.float32))
    np.testing.assert_allclose(behind.product(0, PADDED), expected, rtol=2**-5, atol=2**-5)


def test_rows_left_out_get_no_gradient_and_padding_neither_gradient_nor_probability() -> None:
    h, embedding, labels = loss_inputs()
    # A padding row that would win if it counted.
    embedding = embedding.at[VOCAB:].set(100 * jnp.sign(h[0]))
    loss = lambda h, e: token_loss(h, e, labels, VOCAB, 8, Local("cpu"))  # noqa: E731
    found, (h_ct, embedding_ct) = jax.value_and_grad(loss, argnums=(0, 1))(h, embedding)
    np.testing.assert_allclose(found, plain_loss(h, embedding, labels), rtol=1e-5)
    assert not np.any(h_ct[np.asarray(labels) < 0])
    assert np.all(np.any(h_ct[np.asarray(labels) >= 0], axis=-1))
    assert not np.any(embedding_ct[VOCAB:])
    assert np.all(np.any(embedding_ct[:VOCAB], axis=-1))


@pytest.mark.parametrize("differentiated", [False, True])
def test_never_more_logits_than_a_chunk(differentiated: bool) -> None:
    h, embedding, labels = loss_inputs()
    function: Any = lambda h, e: token_loss(h, e, labels, VOCAB, 8, Local("cpu"))  # noqa: E731
    function = jax.grad(function, argnums=(0, 1)) if differentiated else function
    shapes = {
        out.aval.shape
        for equation, _ in equations(jax.make_jaxpr(function)(h, embedding).jaxpr)
        for out in equation.outvars
    }
    of_vocabulary = {shape for shape in shapes if {VOCAB, PADDED} & set(shape)}
    assert (8, PADDED) in of_vocabulary
    assert of_vocabulary <= {(8, PADDED), (1, PADDED), (PADDED,), (PADDED, WIDTH), (WIDTH, PADDED)}


def test_padding_of_the_vocabulary_never_trains() -> None:
    from gpt3_jax.model.transformer import loss_sum, plain_weights

    params = model.init(SMALL, jax.random.key(0))
    rows = jax.random.randint(jax.random.key(1), (2, 33), 0, 61)

    def loss(params: model.Params) -> jax.Array:
        return loss_sum(plain_weights(params, "float32"), rows, SMALL, Local("cpu"), "none", 16)

    gradients = jax.jit(jax.grad(loss))(params)
    assert not np.any(gradients.token_embedding[61:])
    assert np.all(np.any(gradients.token_embedding[:61], axis=-1))
    assert model.forward(params, rows[:, :-1], SMALL).shape == (2, 32, 61)


STATISTICS = dataclasses.replace(SMALL, n_layers=8, d_model=128, n_ctx=256, n_vocab=1000)


@pytest.mark.parametrize(("residual_init", "scale"), [("2L", 16**-0.5), ("L", 8**-0.5), ("none", 1.0)])
def test_initial_values_have_the_statistics_of_gpt2(residual_init: Any, scale: float) -> None:
    config = dataclasses.replace(STATISTICS, residual_init=residual_init)
    params = model.init(config, jax.random.key(0))
    expected = {
        "token_embedding": 0.02,
        "position_embedding": 0.01,
        "blocks.qkv_kernel": 0.02,
        "blocks.attn_out_kernel": 0.02 * scale,
        "blocks.mlp_up_kernel": 0.02,
        "blocks.mlp_down_kernel": 0.02 * scale,
    }
    for name, leaf in zip(names(params), jax.tree.leaves(params), strict=True):
        values = np.asarray(leaf[: config.n_vocab] if name == "token_embedding" else leaf)
        if name in expected:
            assert values.std() == pytest.approx(expected[name], rel=0.02), name
            assert abs(values.mean()) < 0.05 * expected[name], name
            if name.startswith("blocks"):  # each block draws its own
                assert abs(np.corrcoef(values[0].ravel(), values[1].ravel())[0, 1]) < 0.05, name
        else:
            np.testing.assert_array_equal(values, 1.0 if name.endswith("scale") else 0.0)
    assert not np.any(params.token_embedding[config.n_vocab :])


def test_initial_values_do_not_depend_on_the_padding_of_the_vocabulary() -> None:
    padded = model.init(dataclasses.replace(SMALL, vocab_multiple=128), jax.random.key(3))
    plain = model.init(dataclasses.replace(SMALL, vocab_multiple=1), jax.random.key(3))
    assert padded.token_embedding.shape == (128, 32)
    padded = replace(padded, token_embedding=padded.token_embedding[:61])
    jax.tree.map(np.testing.assert_array_equal, padded, plain)


def test_parameters_are_counted_without_padding() -> None:
    """GPT-2's published 124,439,808 for its shape; for the rest, by hand."""
    gpt2 = ModelConfig(n_ctx=1024, attention_pattern=("dense",))
    assert model.count_params(gpt2) == 124_439_808
    assert model.count_params(ModelConfig()) == 124_439_808 + 1024 * 768
    by_hand = 61 * 32 + 32 * 32 + 4 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert model.count_params(SMALL) == by_hand
    held = sum(leaf.size for leaf in jax.tree.leaves(model.init(SMALL, jax.random.key(0))))
    assert held == by_hand + 3 * 32 == sum(spec.size for spec in jax.tree.leaves(param_table(SMALL)))


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 513])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 3), (8, 1), (96, 32), (33, 130)])
def test_rows_are_contracted_as_in_float64_on_every_path(rows: int, inputs: int, outputs: int) -> None:
    a = jax.random.normal(jax.random.key(1), (rows, inputs)).astype(jnp.bfloat16)
    b = jax.random.normal(jax.random.key(2), (rows, outputs)).astype(jnp.bfloat16)
    expected = np.asarray(a, np.float64).T @ np.asarray(b, np.float64)
    for platform in ("cpu", "tpu"):
        found = jax.jit(contract_rows, static_argnums=(2, 3))(a, b, jnp.dtype("float32"), platform)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def plain_norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * (x[0] + 2) + x[1]


OURS_AND_AUTODIFF = {
    "gelu": (gelu, lambda x: jax.nn.gelu(x, approximate=True)),
    "layer_norm": (lambda x: layer_norm(x, x[0] + 2, x[1], 1e-5), plain_norm),
    "add_bias": (lambda x: add_bias(x.reshape(2, 3, 10), x[0]), lambda x: x.reshape(2, 3, 10) + x[0]),
}


@pytest.mark.parametrize("name", OURS_AND_AUTODIFF)
def test_derivatives_of_our_own_are_those_of_autodiff(name: str) -> None:
    x = jax.random.normal(jax.random.key(3), (6, 10))
    weights = jax.random.normal(jax.random.key(4), (60,))
    ours, theirs = (
        jax.value_and_grad(lambda x, f=f: jnp.sum(weights * f(x).ravel()))(x) for f in OURS_AND_AUTODIFF[name]
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-5)
