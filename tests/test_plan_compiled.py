"""What a plan reads off a compiled step is what the step is: on fake CPU devices, where both can be looked at."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import pytest
from fake_topologies import fake_topology, small_node
from step_cells import CONTEXT, SEQUENCES, Cell, config

from gpt3_jax.config import Config
from gpt3_jax.errors import UserError
from gpt3_jax.model.params import names, param_table, train_flops_per_token
from gpt3_jax.model.transformer import band_shares
from gpt3_jax.plan.receipt import Receipt, make_receipt, receipt_from_json, receipt_to_json
from gpt3_jax.plan.step import CompiledStep, compile_lowered, compile_step
from gpt3_jax.plan.table import render
from gpt3_jax.program.buffers import Shapes
from gpt3_jax.program.flops import matmul_flops

CELLS = [
    Cell(0, (1, 8, 1)),
    Cell(1, (2, 4, 1)),
    Cell(2, (1, 4, 2), 3),
    Cell(3, (2, 2, 2), 1, "full"),
    Cell(3, (1, 8, 1), 3, "full"),
]


def settings(cell: Cell) -> Config:
    base = config(cell)
    shards = cell.mesh[0] * cell.mesh[1]
    memory = dataclasses.replace(base.memory, microbatch=SEQUENCES // shards // cell.microbatches)
    return dataclasses.replace(base, memory=memory)


@functools.cache
def step(cell: Cell) -> CompiledStep:
    return compile_step(settings(cell), fake_topology())


@functools.cache
def receipt(cell: Cell) -> Receipt:
    return make_receipt(step(cell))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_compiled_program_moves_what_the_traced_program_states(cell: Cell) -> None:
    traced = {(row.axes, row.kind): row.bytes for row in receipt(cell).traced}
    compiled = {(row.axes, row.kind): row.bytes for row in receipt(cell).compiled}
    assert set(compiled) == set(traced)
    for key, value in traced.items():
        if key == ("data", "all-gather") and cell.stage == 3:
            # XLA may gather the embeddings once for all microbatches, or for both their uses; never more than told.
            assert 0.9 * value <= compiled[key] <= value, key
        else:
            assert compiled[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_arguments_are_the_state_and_the_batch(cell: Cell) -> None:
    found = step(cell)
    state = sum(
        functools.reduce(lambda a, b: a * b, leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(abstract_arguments(cell))
    )
    rows = SEQUENCES // (cell.mesh[0] * cell.mesh[1]) * (CONTEXT + 1) * 4
    assert found.peak.arguments == state + rows
    purposes = found.peak.by_purpose()
    assert purposes["master weights"] * 2 == purposes["moments"]
    assert purposes["master weights"] + purposes["moments"] + purposes["batch"] == found.peak.arguments


def abstract_arguments(cell: Cell) -> object:
    from gpt3_jax.train.state import abstract_state

    return abstract_state(settings(cell), step(cell).mesh)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_peak_is_the_compilers(cell: Cell) -> None:
    peak = step(cell).peak
    assert 0 <= peak.gaps <= 0.2 * peak.temporaries
    assert [b.size for b in peak.buffers] == sorted((b.size for b in peak.buffers), reverse=True)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_zero_elements_are_the_papers(cell: Cell) -> None:
    found = receipt(cell).zero_elements
    # At stage 3 the position table and the last LayerNorm are not gathered again; scalars of loss and norm come on top.
    assert 0.95 * found["paper"] <= found["program"] <= 1.001 * found["paper"]


def test_matmul_work_is_six_per_parameter_and_token_and_the_attention() -> None:
    cell = Cell(0, (1, 1, 1))
    model = settings(cell).model
    shares = tuple(band_shares(model).values())
    found = matmul_flops(compile_step(settings(cell), fake_topology(1)).jaxpr, shares)
    # Only matrices multiply: no LayerNorm, bias or position table, but the output matrix does, padding included.
    table = param_table(model)
    matrices = sum(
        spec.size
        for name, spec in zip(names(table), jax.tree.leaves(table), strict=True)
        if name.endswith("kernel") or name == "token_embedding"
    )
    tokens = SEQUENCES * CONTEXT
    attention = 12 * model.n_layers * model.d_model * CONTEXT  # the full square of scores, forward and backward
    assert found <= (6 * matrices + attention) * tokens
    visible = train_flops_per_token(model, attention=True) - train_flops_per_token(model)
    assert found >= (6 * matrices + visible) * tokens


def test_full_remat_computes_the_blocks_once_more() -> None:
    plain, again = (matmul_flops(step(Cell(3, (1, 8, 1), 3, remat)).jaxpr) for remat in ("none", "full"))
    assert 1.15 * plain < again < 4 / 3 * plain


def test_a_receipt_survives_json() -> None:
    made = receipt(CELLS[3])
    assert receipt_from_json(json.loads(json.dumps(receipt_to_json(made)))) == made


def test_a_receipt_for_people_names_everything() -> None:
    text = render(receipt(CELLS[3]))
    for word in ("ZeRO stage 3", "master weights", "moments", "all-gather", "reduce-scatter", "tensor",
                 "capacity not known", "no prediction", "6 per parameter and token", "compile"):  # fmt: skip
        assert word in text, word
    assert max(map(len, text.splitlines())) < 160


@pytest.mark.parametrize(("ahead", "words"), [(True, "the next one's weights"), (False, "its own weights"), (None, "")])
def test_a_receipt_says_which_loop_over_depth_runs(ahead: bool | None, words: str) -> None:
    made = receipt(CELLS[3])
    assert made.settings["stage"] == 3 and made.gathers_ahead is False, "on CPUs it does not run ahead"
    text = render(dataclasses.replace(made, gathers_ahead=ahead))
    found = [line for line in text.splitlines() if "over depth" in line]
    assert len(found) == (ahead is not None) and all(words in line for line in found)
    # Earlier receipts have it among the settings, or do not say.
    earlier = receipt_to_json(made) | {"settings": made.settings | ({} if ahead is None else {"gathers_ahead": ahead})}
    del earlier["gathers_ahead"]
    assert receipt_from_json(json.loads(json.dumps(earlier))) == dataclasses.replace(made, gathers_ahead=ahead)


def test_a_batch_that_the_mesh_does_not_divide_is_refused() -> None:
    cell = Cell(1, (1, 8, 1))
    odd = dataclasses.replace(settings(cell).train, batch_tokens=12 * CONTEXT)
    with pytest.raises(UserError, match="8 data shards"):
        compile_step(dataclasses.replace(settings(cell), train=odd), fake_topology())


def test_a_mesh_that_the_devices_do_not_make_is_refused() -> None:
    with pytest.raises(UserError, match="8 devices, but 4 are at hand"):
        compile_step(settings(Cell(1, (1, 8, 1))), fake_topology(4))


def test_results_that_take_no_arguments_place_are_counted() -> None:
    found = step(CELLS[0])
    # The metrics: a scalar each, and the table of the tuple of all results.
    scalars = 4 * (len(jax.tree.leaves(found.jaxpr.out_avals)) - len(jax.tree.leaves(abstract_arguments(CELLS[0]))))
    assert found.results >= scalars > 0
    assert found.total_bytes == found.peak.arguments + found.peak.temporaries + found.results + found.code
    assert receipt(CELLS[0]).memory.results == found.results

    def doubled(x: jax.Array) -> jax.Array:
        return x * 2

    for donated in (False, True):
        lowered = jax.jit(doubled, donate_argnums=0 if donated else ()).lower(jax.ShapeDtypeStruct((64, 64), "float32"))
        shapes = Shapes(frozenset(), frozenset(), frozenset(), vocab=1, gathered_inside=False, stacks=frozenset())
        assert compile_lowered(lowered, shapes).results == (0 if donated else 64 * 64 * 4)


def test_what_does_not_fit_gets_no_forecast() -> None:
    found = step(CELLS[1])
    fits, too_small = (
        make_receipt(dataclasses.replace(found, topology=small_node(found.total_bytes + more))) for more in (0, -1)
    )
    assert fits.memory.fits and fits.prediction is not None
    assert too_small.memory.fits is False and too_small.prediction is None
    text = render(too_small)
    assert "DOES NOT FIT" in text and "no prediction, because it does not fit" in text
    for word in ("if all overlapped", "tokens/s", "MFU", "device-hours"):
        assert word in render(fits) and word not in text


def test_a_receipt_for_gpus_says_how_xla_gets_the_memory() -> None:
    found = make_receipt(dataclasses.replace(step(CELLS[1]), topology=small_node(92 * 2**20)))
    text = render(dataclasses.replace(found, topology=found.topology | {"platform": "gpu"}))
    assert "of 92.0 MiB" in text
    assert "92% with XLA_CLIENT_MEM_FRACTION=0.92, as launch/ sets it; without it 75%, 75.0 MiB" in text
    assert "MEM_FRACTION" not in render(dataclasses.replace(found, topology=found.topology | {"platform": "tpu"}))
