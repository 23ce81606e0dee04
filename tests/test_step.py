"""One device's step against a reference in plain JAX and numpy: losses, clip, AdamW, schedule, accumulation, guard.

The reference takes from the project only `forward`, the logits; the recipe is written out here a second time.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_cells import CONTEXT, ONE, SEQUENCES, VOCAB, Cell, batch, compiled, config, mesh_of, on_mesh, place, run

from gpt3_jax.config import Config, OptimizerConfig
from gpt3_jax.model import forward
from gpt3_jax.model.params import decay_mask, names, param_table
from gpt3_jax.train import optimizer
from gpt3_jax.train.optimizer import clip_factor
from gpt3_jax.train.step import make_eval_step

SHARDED = Cell(3, (2, 2, 2), 3, "full")
BATCH_TOKENS = SEQUENCES * CONTEXT
DECAYED = {"token_embedding", "position_embedding"} | {
    f"blocks.{kernel}_kernel" for kernel in ("qkv", "attn_out", "mlp_up", "mlp_down")
}
"""Embeddings and matrices; no bias and no LayerNorm (the project's reading of GPT-3 appendix B)."""


def train(cell: Cell, steps: int) -> tuple[list[Any], Any]:
    """Metrics of each step, and the state behind the last."""
    settings = config(cell)
    mesh = mesh_of(settings)
    state, told = place(settings, mesh), []
    for i in range(steps):
        state, metrics = compiled(cell)(state, on_mesh(batch(i), mesh))
        told.append(jax.device_get(metrics))
    return told, jax.device_get(state)


@functools.cache
def gradient() -> Any:
    model = config(Cell(0, ONE)).model

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        logits = forward(params, rows[:, :-1], model)
        return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()

    return jax.jit(jax.value_and_grad(loss))


def rate_at(tokens: int, peak: float, warmup: int, end: int) -> float:
    """Linear warm-up, cosine to a tenth at `end` tokens, constant after it (GPT-3 appendix B)."""
    if tokens < warmup:
        return peak * tokens / warmup
    done = min(1.0, (tokens - warmup) / (end - warmup))
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def reference(config: Config, steps: int) -> tuple[list[tuple[float, float, float]], Any]:
    """(loss, gradient norm, learning rate) of each step, and the last parameters; float64 but for the gradients."""
    o = config.optimizer
    state = place(config, mesh_of(config))
    leaf_names, structure = names(state.params), jax.tree.structure(state.params)
    p = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(jax.device_get(state.params))]
    m, v = [np.zeros_like(leaf) for leaf in p], [np.zeros_like(leaf) for leaf in p]
    told = []
    for t in range(1, steps + 1):
        params = jax.tree.unflatten(structure, [np.float32(leaf) for leaf in p])
        loss, gradients = gradient()(params, batch(t - 1))
        g = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients)]
        norm = math.sqrt(sum((leaf**2).sum() for leaf in g))
        scale = min(1.0, o.clip_norm / norm) if o.clip_norm else 1.0
        rate = rate_at(t * BATCH_TOKENS, o.peak_lr, o.warmup_tokens, o.decay_tokens)
        for i, name in enumerate(leaf_names):
            m[i] = o.beta1 * m[i] + (1 - o.beta1) * scale * g[i]
            v[i] = o.beta2 * v[i] + (1 - o.beta2) * (scale * g[i]) ** 2
            direction = m[i] / (1 - o.beta1**t) / (np.sqrt(v[i] / (1 - o.beta2**t)) + o.eps)
            p[i] = p[i] - rate * (direction + (o.weight_decay * p[i] if name in DECAYED else 0))
        told.append((float(loss), norm, rate))
    return told, jax.tree.unflatten(structure, p)


def test_training_is_the_recipe() -> None:
    """Loss, norm before the clip, learning rate by tokens, AdamW with decay on the matrices: six steps, past the decay.

    Measured: losses and norms to 3e-7 of their size, parameters within 2e-7 after six updates of up to 1e-2.
    """
    cell = Cell(0, ONE)
    told, state = train(cell, 6)
    wanted, params = reference(config(cell), 6)
    got = [(float(t.loss), float(t.grad_norm), float(t.learning_rate)) for t in told]
    np.testing.assert_allclose(got, wanted, rtol=2e-6)
    for name, mine, its in zip(names(params), jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=2e-6, err_msg=name)
    assert (state.step, state.sequences, state.skipped) == (6, 6 * SEQUENCES, 0)


@pytest.mark.parametrize(
    ("on", "decayed"),
    [("matrices", ("_kernel",)), ("matrices_and_embeddings", ("_kernel", "_embedding")), ("all", ("",))],
)
def test_what_decays_is_a_setting(on: str, decayed: tuple[str, ...]) -> None:
    """With gradients of zero, a parameter that decays shrinks by rate × decay; others stay."""
    settings = config(Cell(0, ONE), weight_decay_on=on)
    mask = decay_mask(settings.model, settings.optimizer.weight_decay_on)
    params = jax.tree.map(lambda spec: jnp.full(spec.shape, 2.0), param_table(settings.model))
    state, zeros = optimizer.init(settings.optimizer, mask, params), jax.tree.map(jnp.zeros_like, params)
    after, _ = optimizer.update(settings.optimizer, mask, zeros, state, params, jnp.float32(0.5))
    for name, leaf in zip(names(after), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(
            leaf, 2.0 * (1 - 0.5 * 0.1 if name.endswith(decayed) else 1), rtol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("changed", [{"clip_norm": 0.0}, {"weight_decay": 0.0}, {"peak_lr": 1.01e-2}], ids=str)
def test_the_reference_tells_recipes_apart(changed: dict[str, float]) -> None:
    """The comparison above says something only if clip, decay and rate are at work."""
    (_, it), (_, other) = reference(config(Cell(0, ONE)), 2), reference(config(Cell(0, ONE), **changed), 2)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (it, other)), strict=True)) > 1e-5


def test_accumulation_changes_nothing() -> None:
    """The mean over all tokens, however the rows are parted; measured 2e-7 of losses, norms and parameters."""
    (whole, state), (parts, other) = train(Cell(0, ONE), 2), train(Cell(0, ONE, 24), 2)
    np.testing.assert_allclose([t.loss for t in parts], [t.loss for t in whole], rtol=2e-6)
    np.testing.assert_allclose([t.grad_norm for t in parts], [t.grad_norm for t in whole], rtol=2e-6)
    for mine, its in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=1e-6)


def test_stage_1_reduces_the_sum_over_microbatches_unrounded() -> None:
    # On one device nothing is reduced: what is left of stage 1 must be stage 0, to the bit, in bf16 too.
    zero, one = (run(Cell(stage, ONE, 3, dtype="bfloat16")) for stage in (0, 1))
    np.testing.assert_array_equal(zero.grad_norms, one.grad_norms)
    for plain, sharded in zip(jax.tree.leaves(zero.params), jax.tree.leaves(one.params), strict=True):
        np.testing.assert_array_equal(plain, sharded)


def test_the_padding_of_the_vocabulary_never_trains() -> None:
    """It gets no probability, so no gradient; it is zero, so no decay: it stays as it is, moments included."""
    _, state = train(Cell(0, ONE), 3)
    tables = [leaf for name, leaf in zip(names(state), jax.tree.leaves(state), strict=True) if "token_emb" in name]
    assert len(tables) == 3, "the parameters and two moments"
    for table in tables:
        assert table[:VOCAB].any() and not table[VOCAB:].any()


def test_an_update_that_is_not_finite_is_left_out() -> None:
    """Parameters and moments stay bit for bit; the batch counts as consumed, and the next one trains as ever."""
    mesh = mesh_of(config(SHARDED))
    step, state = compiled(SHARDED), place(config(SHARDED), mesh)
    state, _ = step(state, on_mesh(batch(0), mesh))
    before = jax.device_get(state)
    poison = np.array(before.params.token_embedding)
    poison[5, 3] = np.inf
    sick = jax.device_put(poison, state.params.token_embedding.sharding)
    after, told = step(state.replace(params=state.params.replace(token_embedding=sick)), on_mesh(batch(1), mesh))
    assert not np.isfinite(float(told.loss)) or not np.isfinite(float(told.grad_norm))
    assert float(told.finite) == 0
    got = jax.device_get(after)
    assert (got.step, got.sequences, got.skipped) == (2, 2 * SEQUENCES, 1)
    wanted = before.replace(params=before.params.replace(token_embedding=poison))
    for mine, its in zip(*(jax.tree.leaves((s.params, s.opt_state)) for s in (got, wanted)), strict=True):
        assert mine.tobytes() == its.tobytes()
    healed = jax.device_put(before.params.token_embedding, state.params.token_embedding.sharding)
    last, told = step(after.replace(params=after.params.replace(token_embedding=healed)), on_mesh(batch(2), mesh))
    assert float(told.finite) == 1 and int(last.skipped) == 1 and int(last.step) == 3


@pytest.mark.parametrize("norm", [0.0, 1e-35, 0.5, 1.0, 3.0, 1e30])
def test_the_clip_bounds_the_norm_and_leaves_smaller_ones_alone(norm: float) -> None:
    factor = float(clip_factor(OptimizerConfig(clip_norm=1.0), jnp.float32(norm)))
    assert factor == pytest.approx(min(1.0, 1.0 / norm) if norm else 1.0, rel=1e-6)
    assert float(clip_factor(OptimizerConfig(clip_norm=0.0), jnp.float32(norm))) == 1.0


def test_the_state_is_donated_and_nothing_crosses_to_the_host() -> None:
    mesh = mesh_of(config(SHARDED))
    program, state, rows = compiled(SHARDED), place(config(SHARDED), mesh), on_mesh(batch(0), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes == held, "not every buffer of the state is taken over"
    with jax.transfer_guard("disallow"):
        after, told = program(state, rows)
        after, told = program(after, rows)
        jax.block_until_ready((after, told))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    equivalent = jax.tree.map(lambda leaf, s: leaf.sharding.is_equivalent_to(s, leaf.ndim), after, shardings)
    assert all(jax.tree.leaves(equivalent)), "a second call would compile again"


@pytest.mark.parametrize("cell", [Cell(0, ONE), Cell(3, (2, 2, 2))], ids=str)
def test_evaluation_sums_the_loss_of_the_targets_that_count(cell: Cell) -> None:
    settings = config(cell)
    mesh = mesh_of(settings)
    rows = batch(9)
    rows[17:, 5:] = -1  # the end of a last batch
    rows[20:] = -1
    params = place(settings, mesh).params
    inputs, labels = np.maximum(rows[:, :-1], 0), rows[:, 1:]
    logits = forward(jax.device_get(params), inputs, settings.model)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(labels, 0))
    wanted = float(jnp.where(labels >= 0, losses, 0).sum())
    assert float(make_eval_step(settings, mesh)(params, on_mesh(rows, mesh))) == pytest.approx(wanted, rel=1e-6)
