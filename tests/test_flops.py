"""Matmuls counted from a step's jaxpr, against what the model's shapes say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl
from step_cells import CONTEXT, SEQUENCES, Cell, config, mesh_of

from gpt3_jax.config import Config
from gpt3_jax.errors import RunError
from gpt3_jax.model.transformer import band_shares
from gpt3_jax.program.flops import matmul_flops
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step


def of(function: Any, *args: Any) -> float:
    return matmul_flops(jax.make_jaxpr(function)(*args))


def of_step(cell: Cell) -> float:
    settings = config(cell)
    mesh = mesh_of(settings)
    rows = jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
    step = make_step(settings, mesh, cell.microbatches)
    shares = tuple(band_shares(settings.model).values())
    return matmul_flops(jax.make_jaxpr(step)(abstract_state(settings, mesh), rows), shares)


def attention_positions(settings: Config) -> int:
    """Key positions that a query's scores are computed for, over all layers: T dense; two blocks of a band, each
    padded up to whole blocks of queries, banded."""
    model = settings.model
    band = model.band_width
    blocks = -(-model.n_ctx // band)
    seen = {"dense": model.n_ctx * model.n_ctx, "banded": blocks * band * 2 * band}
    kinds = [model.attention_pattern[layer % len(model.attention_pattern)] for layer in range(model.n_layers)]
    return sum(seen[kind] for kind in kinds)


def expected(cell: Cell) -> float:
    """On one device."""
    settings = config(cell)
    model = settings.model
    d = model.d_model
    tokens = SEQUENCES * CONTEXT / (cell.mesh[0] * cell.mesh[1] * cell.mesh[2])
    block = 12 * d * d * model.n_layers
    # Recomputed is what the backward pass asks for: not the second matmul of the MLP, which is the block's last.
    weights = {"none": 0, "minimal": 0, "save_qkv_proj": 4, "save_attention": 4 + 3, "full": 4 + 3 + 1}[cell.remat]
    again = 2 * weights * d * d * model.n_layers
    attention = 4 * d * attention_positions(settings) / CONTEXT  # forward, per token
    # A CPU computes scores again where they are not kept; their product with the values is kept.
    scores_again = {"none": 0.0, "full": attention}.get(cell.remat, attention / 2)
    # The loss pads its tokens to whole chunks.
    rows = SEQUENCES * CONTEXT // (cell.mesh[0] * cell.mesh[1]) // cell.microbatches
    chunks = -(-rows // min(settings.memory.loss_chunk, rows))
    padded = chunks * -(-rows // chunks) * cell.microbatches
    loss = 6 * d * model.n_vocab_padded * padded / cell.mesh[2]
    return tokens * (6 * block + again + 3 * attention + scores_again) + loss


@pytest.mark.parametrize(
    "cell",
    [
        Cell(0, (1, 1, 1)),
        Cell(3, (1, 1, 1)),
        Cell(3, (1, 1, 1), remat="full"),
        Cell(3, (1, 4, 2), remat="full"),
        Cell(1, (2, 2, 2), microbatches=3),
        Cell(2, (1, 8, 1), microbatches=3, remat="full"),
        Cell(3, (1, 1, 8), remat="full", unroll=2),
        Cell(3, (1, 4, 2), remat="save_attention"),
        Cell(1, (1, 8, 1), microbatches=3, remat="save_qkv_proj"),
        Cell(2, (2, 2, 2), remat="minimal"),
        Cell(0, (1, 1, 8), remat="minimal"),
    ],
    ids=str,
)
def test_a_step_computes_what_its_shapes_say(cell: Cell) -> None:
    assert of_step(cell) == expected(cell)


def test_one_matmul() -> None:
    a, b = jax.ShapeDtypeStruct((3, 5, 7), jnp.float32), jax.ShapeDtypeStruct((3, 7, 11), jnp.float32)
    assert of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b) == 2 * 3 * 5 * 7 * 11
    assert of(lambda a, b: jnp.einsum("bij,cjk->bcik", a, b), a, b) == 2 * 3 * 3 * 5 * 7 * 11


def test_loops_conditions_and_derivatives() -> None:
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    once = 2 * 4**3

    def chain(x: jax.Array) -> jax.Array:
        return lax.scan(lambda c, _: (c @ x, None), x, length=5)[0]

    assert of(chain, x) == 5 * once
    assert of(jax.jit(chain), x) == 5 * once
    assert of(jax.grad(lambda x: chain(x).sum()), x) == 15 * once
    assert of(jax.grad(lambda x: jax.checkpoint(jnp.sin)(jnp.cos(x @ x)).sum()), x) == 3 * once
    assert of(lambda x: lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: (x + 1) @ x, x), x) == once
    with pytest.raises(RunError, match=r"loop at .* no fixed trip count"):
        of(lambda x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x), x)
    assert of(lambda x: lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x - 1, x), x) == 0


@pytest.mark.parametrize(("scope", "expected"), [("attention", 0.25), ("optimizer", 1)])
def test_shares_are_of_the_choice_of_attention_only(scope: str, expected: float) -> None:
    def chosen(i: jax.Array, x: jax.Array) -> jax.Array:
        with jax.named_scope(scope):
            return lax.switch(i, [lambda x: x, lambda x: x @ x], x)

    def many(i: jax.Array, x: jax.Array) -> jax.Array:
        return lax.scan(jax.checkpoint(lambda c, _: (chosen(i, c), None)), x, length=5)[0].sum()

    x, once = jnp.ones((4, 4)), 2 * 4**3
    assert matmul_flops(jax.make_jaxpr(chosen)(0, x), (0.75, 0.25)) == expected * once
    # Forward, and once for each factor; what is recomputed nobody asks for.
    assert matmul_flops(jax.make_jaxpr(jax.grad(many, 1))(0, x), (0.75, 0.25)) == expected * 5 * 3 * once


def test_a_derivative_of_ones_own_counts_once() -> None:
    @jax.custom_vjp
    def square(x: jax.Array) -> jax.Array:
        return x @ x

    square.defvjp(lambda x: (x @ x, x), lambda x, ct: (ct @ x.T + x.T @ ct,))
    x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    assert of(square, x) == 2 * 4**3
    assert of(jax.grad(lambda x: square(x).sum()), x) == 3 * 2 * 4**3


def test_a_pallas_kernel_counts_with_its_grid() -> None:
    def kernel(x_ref: Any, y_ref: Any) -> None:
        y_ref[...] = jnp.dot(x_ref[...], x_ref[...])

    block = pl.BlockSpec((8, 8), lambda i, j: (i, j))
    x = jax.ShapeDtypeStruct((24, 32), jnp.float32)
    run = pl.pallas_call(kernel, out_shape=x, grid=(3, 4), in_specs=[block], out_specs=block, interpret=True)
    assert of(run, x) == 3 * 4 * 2 * 8**3


@pytest.mark.parametrize(("name", "matmuls"), [("fwd", 2), ("bwd", 5)])
def test_cudnns_attention_counts_the_scores_that_are_visible(name: str, matmuls: int) -> None:
    def flops(length: int, band: int | None) -> float:
        eqn = SimpleNamespace(
            primitive=SimpleNamespace(name=f"dot_product_attention_{name}_wrapper"),
            invars=[SimpleNamespace(aval=SimpleNamespace(shape=(3, length, 2, 16), dtype=jnp.bfloat16))],
            params={"sliding_window_length": band},
        )
        return matmul_flops(SimpleNamespace(eqns=[eqn]))

    for length, band in ((12, None), (12, 5), (12, 12), (5, None)):
        visible = sum(min(query + 1, band or length) for query in range(length))
        assert flops(length, band) == matmuls * 2 * 3 * 2 * 16 * visible
