"""What `memory.unroll` 0 stands for; on one CPU, the unrolled loop and the update in place beside what they replace."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations, flops_of
from step_cells import CONTEXT, ONE, SEQUENCES, Cell, config, first_state, mesh_of, run
from xla_flags import user_fusions

from gpt3_jax.config import Config, preset, replace
from gpt3_jax.model import cpu
from gpt3_jax.model.params import decay_mask, names
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.parallel.zero import Weight
from gpt3_jax.train import optimizer
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step
from gpt3_jax.train.step import unroll as unroll_of


def periods(config: Config, devices: int = 1, begun: int = 0) -> int:
    config = replace(config, parallel={"data": devices})
    return unroll_of(config, make_mesh(config.parallel, jax.devices()[:devices]), begun)


def test_a_long_run_on_one_cpu_has_no_loop() -> None:
    small = preset("gpt3-small")
    assert small.memory.unroll == 0
    assert periods(small) == 6  # of a dense and a banded layer: all twelve
    assert periods(replace(small, model={"attention_pattern": ("dense",)})) == 12


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({}, 8),
        ({"memory": {"remat": "offload"}}, 1),
        ({"train": {"tokens": 100_000}}, 1),  # over before the compile time is repaid
        ({"model": {"d_model": 96, "n_heads": 2}}, 1),
    ],
)
def test_others_have_one(change: dict[str, dict[str, object]], devices: int) -> None:
    assert periods(replace(preset("gpt3-small"), **change), devices) == 1


def test_a_resumed_run_keeps_its_number_on_one_cpu() -> None:
    short = replace(preset("gpt3-small"), train={"tokens": 100_000})
    assert periods(short, begun=6) == 6
    assert periods(preset("gpt3-small"), begun=1) == 1


def test_what_a_run_began_with_does_not_count_where_there_is_one() -> None:
    small = preset("gpt3-small")
    assert periods(small, 8, begun=6) == 1
    assert periods(replace(small, memory={"remat": "offload"}), begun=6) == 1


def test_a_number_is_taken_as_it_is() -> None:
    assert periods(replace(preset("gpt3-small"), memory={"unroll": 3}), 8) == 3


# -- one CPU -------------------------------------------------------------------------------------------------------

LOOP, LAYERS = Cell(1, ONE, 3), Cell(1, ONE, 3, unroll=2)


def test_layers_cast_one_by_one_train_as_the_loop_over_depth() -> None:
    """Measured 5e-7 of losses, norms and parameters."""
    loop, layers = run(LOOP), run(LAYERS)
    np.testing.assert_allclose(layers.losses, loop.losses, rtol=0, atol=2e-6)
    np.testing.assert_allclose(layers.grad_norms, loop.grad_norms, rtol=0, atol=2e-6)
    for one, other in zip(*map(jax.tree.leaves, (layers.params, loop.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


def test_layers_get_the_rounded_weight_and_give_the_rounded_gradient() -> None:
    """In bf16, to the bit as a cast of the whole stack and slices of it."""
    stack = jax.random.normal(jax.random.key(0), (3, 5, 7))
    cts = [jax.random.normal(jax.random.key(i), (5, 7)).astype(jnp.bfloat16) for i in (1, 2, 3)]
    rows, pull = jax.vjp(lambda stack: cpu.cast_rows(stack, 3, jnp.dtype(jnp.bfloat16)), stack)
    plain, plain_pull = jax.vjp(lambda stack: list(stack.astype(jnp.bfloat16)), stack)
    np.testing.assert_array_equal(np.array(rows), np.array(plain))
    np.testing.assert_array_equal(np.array(pull(cts)[0]), np.array(plain_pull(cts)[0]))


def test_parts_of_a_projection_and_their_gradients_are_those_of_slices() -> None:
    qkv = jax.random.normal(jax.random.key(0), (2, 5, 3, 4, 6)).astype(jnp.bfloat16)

    def slices(qkv: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(qkv[:, :, i] for i in range(3))

    parts, pull = jax.vjp(cpu.queries_keys_values, qkv)
    sliced, slices_pull = jax.vjp(slices, qkv)
    for one, other in zip((*parts, *pull(sliced)), (*sliced, *slices_pull(sliced)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_layers_recompute_what_the_loop_recomputes(remat: str) -> None:
    """In the traced step: the same matmuls, and each layer's recomputation behind a barrier."""
    work, barriers = [], []
    for unroll in (1, 4):
        # Of one kind of attention: of the two branches of a switch, both would be counted.
        settings = replace(config(Cell(1, ONE, 1, remat, unroll=unroll)), model={"attention_pattern": ("dense",)})
        step = make_step(settings, mesh_of(settings))
        rows = jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
        given = abstract_state(settings, mesh_of(settings)), rows
        program = jax.make_jaxpr(step)(*given).jaxpr
        work.append(flops_of(program))
        barriers.append(sum(bool(e.params.get("prevent_cse")) for e, _ in equations(program)))
    assert work[0] == work[1]
    assert barriers == [0, settings.model.n_layers]


def test_masters_that_are_cast_layer_by_layer_are_not_taken_for_weights() -> None:
    masters = Weight.plain(jnp.ones((2, 3, 5))).replace(kind="layers")  # type: ignore[attr-defined]
    for read in (lambda: masters.value, masters.as_array):
        with pytest.raises(ValueError, match=r"model\.cpu\.layers"):
            read()


def updates(finite: bool, **of_optimizer: Any) -> tuple[Any, Any, Any]:
    """Parameters and moments before an update, after `update`, and after `update_in_place`."""
    settings = config(Cell(0, ONE), **of_optimizer)
    state, mask = first_state(), decay_mask(settings.model, settings.optimizer.weight_decay_on)
    opt_state = jax.tree.map(lambda m: np.abs(m + np.float32(0.01)) if m.ndim else m + 3, state.opt_state)
    gradients = jax.tree.map(lambda p: np.cos(40 * p), state.params)
    given = gradients, opt_state, state.params, jnp.float32(0.1)
    after = jax.jit(functools.partial(optimizer.update, settings.optimizer, mask))(*given)
    in_place = jax.jit(functools.partial(optimizer.update_in_place, settings.optimizer, mask))(*given, finite)
    return (state.params, opt_state), after, in_place


OTHER_SETTINGS = (("eps", 1e-2), ("beta1", 0.5), ("weight_decay_on", "all"))


@pytest.mark.parametrize("of_optimizer", [(), OTHER_SETTINGS], ids=["the cells'", "others"])
def test_the_update_in_place_is_the_update(of_optimizer: tuple[tuple[str, Any], ...]) -> None:
    before, wanted, got = updates(finite=True, **dict(of_optimizer))
    for name, old, one, other in zip(names(before), *map(jax.tree.leaves, (before, wanted, got)), strict=True):
        assert old.size == 1 or np.any(old != one), name
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-8, err_msg=name)


def test_no_update_is_made_from_a_loss_that_is_not_finite() -> None:
    before, _, got = updates(finite=False)
    jax.tree.map(np.testing.assert_array_equal, got, before)


def test_the_update_in_place_copies_no_moments() -> None:
    settings = config(Cell(0, ONE))
    state, mask = first_state(), decay_mask(settings.model, settings.optimizer.weight_decay_on)
    update = functools.partial(optimizer.update_in_place, settings.optimizer, mask)
    in_place = jax.jit(lambda p, s, g, rate, finite: update(g, s, p, rate, finite), donate_argnums=(0, 1))
    program = in_place.lower(state.params, state.opt_state, state.params, 0.1, True).compile(user_fusions())
    moments = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state))
    found = program.memory_analysis()
    assert found is not None and found.temp_size_in_bytes < 0.05 * moments
