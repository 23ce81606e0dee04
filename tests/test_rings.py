"""Tensor shards that gather and scatter in rings (`parallel.rings`): the results and the traffic of collectives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from step_cells import Cell, config
from step_traffic import of_step, sent
from test_zero import assert_like_one_device

from gpt3_jax.parallel import rings
from gpt3_jax.parallel.mesh import TENSOR, MeshShape
from gpt3_jax.plan import estimate
from gpt3_jax.program.traffic import Collective

ROWS, COLUMNS = 3, 5


def on_shards(shards: int, function: Callable[[jax.Array], jax.Array], x: jax.Array) -> np.ndarray:
    """`function` of each device's part of `x`, and the results side by side."""
    mesh = Mesh(np.array(jax.devices()[:shards]), (TENSOR,))
    side = PartitionSpec(TENSOR)
    return np.asarray(jax.jit(jax.shard_map(function, mesh=mesh, in_specs=side, out_specs=side))(x))


def gathered(x: jax.Array, shards: int) -> jax.Array:
    whole = jnp.zeros_like(x, shape=(shards, *x.shape))
    for shard, piece in rings.pieces(x, TENSOR, shards):
        whole = lax.dynamic_update_slice_in_dim(whole, piece[None], shard, 0)
    return whole


def scattered(x: jax.Array, shards: int, dtype: DTypeLike) -> jax.Array:
    parts = x.reshape(shards, ROWS, COLUMNS)

    def part(shard: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(parts, shard, keepdims=False)

    return rings.summed(part, TENSOR, shards, dtype)


def assert_a_gather(shards: int) -> None:
    x = jnp.arange(shards * ROWS * COLUMNS, dtype=jnp.float32).reshape(-1, COLUMNS)
    found = on_shards(shards, functools.partial(gathered, shards=shards), x)
    np.testing.assert_array_equal(found.reshape(shards, -1, COLUMNS), np.broadcast_to(x, (shards, *x.shape)))


def assert_a_scatter(shards: int, dtype: str = "float32") -> None:
    """The sum, to what rounding allows: each of the `shards` - 1 additions of a sum rounds once, by at most u of a
    partial sum, which no order makes larger than the sum of magnitudes. In bf16 they are made in fp32 and a sum is
    rounded once a hop, and once at the end."""
    x = jax.random.normal(jax.random.key(0), (shards * shards * ROWS, COLUMNS))
    found = on_shards(shards, functools.partial(scattered, shards=shards, dtype=dtype), x)
    assert found.dtype == dtype
    parts = np.asarray(x, np.float64).reshape(shards, -1, COLUMNS)
    u = float(jnp.finfo(dtype).eps) / 2
    roundings = shards - 1 if dtype == "float32" else shards // 2 + 1
    bound = roundings * u * np.abs(parts).sum(0) * (1 + shards * u)
    assert (np.abs(found.astype(np.float64) - parts.sum(0)) <= bound).all()


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_a_ring_is_a_gather_or_a_scatter(shards: int) -> None:
    assert_a_gather(shards)
    assert_a_scatter(shards)


def test_a_scatter_in_bf16_adds_in_fp32() -> None:
    assert_a_scatter(8, "bfloat16")


CELLS = [
    Cell(1, (1, 1, 8), 1, "none", tensor_overlap="rings"),
    Cell(3, (1, 4, 2), 3, "minimal", tensor_overlap="rings"),
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_losses_and_parameters_are_those_of_one_device(cell: Cell) -> None:
    assert_like_one_device(cell)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "minimal", "save_qkv_proj", "save_attention", "full", "offload"])
@pytest.mark.parametrize("mesh", [(1, 1, 8), (2, 2, 2), (1, 4, 2)], ids=str)
@pytest.mark.parametrize("stage", [1, 3])
def test_anywhere(stage: int, mesh: tuple[int, int, int], remat: str) -> None:
    assert_like_one_device(Cell(stage, mesh, 1, remat, tensor_overlap="rings"))


RINGS = {"none": 4, "minimal": 4, "save_qkv_proj": 5, "save_attention": 6, "full": 7, "offload": 7}
"""Gathers and scatters of a block that run in rings, of those that `assert_the_same_traffic` counts."""


def assert_the_same_traffic(cell: Cell) -> None:
    """Every shard sends the bytes that it would send in collectives, and those of the forward matmuls in permutes:
    again in the backward pass only where their result is not kept."""
    plain, ringed = of_step(cell), of_step(cell._replace(tensor_overlap="rings"))
    kinds = ("all-gather", "reduce-scatter", "permute")
    assert sent(ringed, *kinds, axis="tensor") == sent(plain, *kinds, axis="tensor")
    assert sent(plain, "permute", axis="tensor") == 0
    settings = config(cell).model
    shards = cell.mesh[2]
    stream = Fraction(24 // (cell.mesh[0] * cell.mesh[1]) * settings.n_ctx * settings.d_model)
    of_one_ring = stream * Fraction(shards - 1, shards) * settings.n_layers
    assert sent(ringed, "permute", axis="tensor") == RINGS[cell.remat] * of_one_ring
    assert sent(ringed, *kinds, axis="data") == sent(plain, *kinds, axis="data")
    assert_the_estimate_knows(cell._replace(tensor_overlap="rings"), ringed)


def assert_the_estimate_knows(cell: Cell, ringed: list[Collective]) -> None:
    """What the traced step sends over the tensor axis; its permutes are in the compute dtype."""
    work = estimate.work(config(cell), MeshShape(*cell.mesh), 1, "tpu", False)
    estimated = {part.kind: part.bytes for part in work.traffic if part.axes == (TENSOR,)}
    width = jnp.dtype(cell.dtype).itemsize
    assert estimated["permute"] == pytest.approx(width * float(sent(ringed, "permute", axis="tensor")))
    left = sent(ringed, "all-gather", "reduce-scatter", axis="tensor")
    assert estimated["all-gather"] == pytest.approx(width * float(left))
    assert {c.dtype for c in ringed if c.kind == "permute" and c.axes == (TENSOR,)} == {cell.dtype}


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_rings_send_what_the_collectives_would(remat: str) -> None:
    assert_the_same_traffic(Cell(3, (1, 2, 4), 1, remat))


@pytest.mark.slow
@pytest.mark.parametrize("remat", sorted({*RINGS} - {"minimal", "full"}))
def test_so_do_those_of_other_remats(remat: str) -> None:
    assert_the_same_traffic(Cell(3, (1, 2, 4), 1, remat))


def test_rings_in_bf16_send_bf16_and_what_the_estimate_says() -> None:
    cell = Cell(3, (1, 2, 4), 1, "save_qkv_proj", "bfloat16", tensor_overlap="rings")
    assert_the_estimate_knows(cell, of_step(cell))


def test_an_mlp_in_parts_is_gathered_as_before() -> None:
    cell = Cell(3, (1, 2, 4), 1, "full", mlp_parts=2)
    plain, ringed = of_step(cell), of_step(cell._replace(tensor_overlap="rings"))
    assert 0 < sent(ringed, "permute", axis="tensor") < sent(plain, "all-gather", axis="tensor")
    assert_the_estimate_knows(cell._replace(tensor_overlap="rings"), ringed)
