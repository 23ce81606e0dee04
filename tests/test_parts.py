"""What is done to large models only, or on a TPU's torus only, done to the tiny one here: nothing changes."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from step_cells import CONTEXT, PARAMS, Cell, batch, compiled, config, mesh_of, on_mesh, place
from step_traffic import KERNELS, of_step, parameters, sent, tally

from gpt3_jax.model import matmul, transformer
from gpt3_jax.parallel.mesh import data_steps
from gpt3_jax.parallel.zero import transport
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step

CELL = Cell(3, (1, 8, 1), 1, "full")
ROWS = ((0, 1), (2, 3), (4, 5), (6, 7))
COLUMNS = ((0, 2, 4, 6), (1, 3, 5, 7))


def train(cell: Cell) -> Any:
    """One step, compiled anew: `step_cells` keeps what it made before."""
    settings = config(cell)
    mesh = mesh_of(settings)
    state, told = compiled.__wrapped__(cell)(place(settings, mesh), on_mesh(batch(0), mesh))
    return jax.device_get((told.loss, told.grad_norm, state.params))


@functools.cache
def unchanged() -> Any:
    return train(CELL)


def assert_same(got: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=PARAMS), got, unchanged())


def assert_parts_change_nothing() -> None:
    """Stages 2 and 3 make gradients of kernels, and every stage that of the embedding, in parts of this many."""
    unchanged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "GRADIENT_PART", 600)
        patch.setattr(transformer, "TABLE_PART", 3000)
        for stage in (2, 3):
            assert_same(train(CELL._replace(stage=stage)))


def assert_steps_change_nothing() -> None:
    unchanged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "data_steps", lambda mesh: (ROWS, COLUMNS))
        for stage in (1, 2, 3):
            assert_same(train(CELL._replace(stage=stage)))


def assert_scatters_apart_change_nothing() -> None:
    """To the bit: the same sums of the same numbers."""
    for stage, steps in ((1, ()), (2, (ROWS, COLUMNS)), (3, (ROWS, COLUMNS))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "data_steps", lambda mesh, steps=steps: steps)
            want = train(CELL._replace(stage=stage))
            patch.setattr(transport, "pads_scatters", lambda *_, **__: True)
            jax.tree.map(np.testing.assert_array_equal, train(CELL._replace(stage=stage)), want)


def test_parts_change_nothing() -> None:
    assert_parts_change_nothing()


def test_steps_change_nothing() -> None:
    assert_steps_change_nothing()


def test_scatters_apart_change_nothing() -> None:
    assert_scatters_apart_change_nothing()


def assert_parts_of_the_mlp_change_nothing(mesh: tuple[int, int, int] = (1, 8, 1)) -> None:
    """Forward and backward, an MLP's hidden layer in parts."""
    assert_same(train(CELL._replace(mesh=mesh, mlp_parts=8)))


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_parts_of_the_mlp_change_nothing(mesh: tuple[int, int, int]) -> None:
    assert_parts_of_the_mlp_change_nothing(mesh)


def test_parts_of_the_mlp_come_in_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged()
    monkeypatch.setattr(transport, "data_steps", lambda mesh: (ROWS, COLUMNS))
    assert_parts_of_the_mlp_change_nothing()


def test_parts_move_the_same_volume_in_more_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    want = of_step(CELL)
    monkeypatch.setattr(matmul, "GRADIENT_PART", 600)
    monkeypatch.setattr(transformer, "TABLE_PART", 3000)
    found = of_step(CELL)
    for kind in ("all-gather", "reduce-scatter"):
        assert sent(found, kind, axis="data") == sent(want, kind, axis="data")
    assert tally(found, "all-gather", "data") == tally(want, "all-gather", "data")
    expected: Counter[int] = Counter()
    for name, (n, elements) in parameters(CELL).items():
        most = {"token_embedding": 4}.get(name, 8 if name in KERNELS else 1)
        parts = next(p for p in (1, 2, 4, 8) if p == most or elements <= p * (3000 if n == 1 else 600))
        expected[elements // parts] += n * parts
    assert tally(found, "reduce-scatter", "data") == expected


def test_parts_of_the_mlp_move_the_same_volume_in_more_calls() -> None:
    want, found = of_step(CELL), of_step(CELL._replace(mlp_parts=8))
    for kind in ("all-gather", "reduce-scatter"):
        assert sent(found, kind, axis="data") == sent(want, kind, axis="data")
        per_part = Counter(tally(want, kind, "data"))
        for name in ("mlp_up_kernel", "mlp_up_bias", "mlp_down_kernel"):
            n, elements = parameters(CELL)[name]
            calls = n * (2 if kind == "all-gather" else 1)
            per_part[elements] -= calls
            per_part[elements // 8] += 8 * calls
        assert tally(found, kind, "data") == +per_part


def test_parts_of_the_mlp_are_gathered_one_by_one() -> None:
    """In loops, forward and backward, so that no compiler can gather them all ahead; and nowhere whole."""
    settings = config(CELL._replace(mlp_parts=8))
    mesh = mesh_of(settings)
    rows = jax.ShapeDtypeStruct((16, CONTEXT + 1), np.int32)
    jaxpr = make_step(settings, mesh).trace(abstract_state(settings, mesh), rows).jaxpr
    # Two kernels, forward and backward: the first part is gathered in front of the loop over the other seven.
    assert [elements for looped, elements in gathers(jaxpr) if looped and elements > 128] == [32 * 128 // 8] * 4
    assert not [elements for _, elements in gathers(jaxpr) if elements == 32 * 128]


def gathers(jaxpr: Any, looped: bool = False) -> Iterator[tuple[bool, int]]:
    """Of each gather, whether it stands in a scan over seven parts; and its elements."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "all_gather":
            yield looped, eqn.outvars[0].aval.size
        is_loop = eqn.primitive.name == "scan" and (eqn.params["length"], eqn.params["unroll"]) == (7, 1)
        inside = looped or is_loop
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from gathers(inner, inside)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_steps_send_what_one_ring_sends(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """(n - 1) / n of the inner step's share, and of the whole in the outer one, are (N - 1) / N of the whole."""
    cell = CELL._replace(stage=stage)
    want = of_step(cell)
    monkeypatch.setattr(transport, "data_steps", lambda mesh: (ROWS, COLUMNS))
    found = of_step(cell)
    for kind in ("all-gather", "reduce-scatter"):
        assert sent(found, kind, axis="data") == sent(want, kind, axis="data")
        assert sum(c.calls for c in found if c.kind == kind) == 2 * sum(c.calls for c in want if c.kind == kind)


def torus(*shape: int, data: int, tensor: int = 1, platform: str = "tpu") -> Any:
    """What `data_steps` looks at of a mesh, its devices in the order of their coordinates, tensor groups in front."""
    devices = [SimpleNamespace(platform=platform, coords=coords) for coords in np.ndindex(*shape)]
    grid = np.empty(len(devices), object)
    grid[:] = devices
    grid = grid.reshape(tensor, data).T[None]
    return SimpleNamespace(devices=grid, shape={"replica": 1, "data": data, "tensor": tensor})


def test_a_gather_goes_along_the_torus() -> None:
    inner, outer = data_steps(torus(4, 4, 4, data=64))
    assert inner[0] == (0, 1, 2, 3) and len(inner) == 16
    assert outer[0] == tuple(range(0, 64, 4)) and len(outer) == 4
    inner, outer = data_steps(torus(16, 16, 1, data=256))
    assert inner[1] == tuple(range(16, 32)) and outer[1] == tuple(range(1, 256, 16))
    for steps in ((inner, outer), data_steps(torus(8, 8, 8, data=64, tensor=8))):
        for groups in steps:
            assert sorted(i for group in groups for i in group) == list(range(sum(map(len, groups))))


@pytest.mark.parametrize(
    "mesh",
    [
        torus(4, 4, 4, data=64, platform="gpu"),
        torus(1, 16, 1, data=16),  # a ring has its own gather
        torus(2, 2, 1, data=1, tensor=4),
    ],
)
def test_elsewhere_a_gather_is_one_collective(mesh: Any) -> None:
    assert data_steps(mesh) == ()
