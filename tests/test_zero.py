"""The step on eight devices is the step on one: every stage × mesh × accumulation × remat, losses and parameters.

By default a covering part of the matrix: every stage on data alone and on all three axes at once, every other mesh, and
every stage with every accumulation and remat. ``pytest -m matrix`` runs all of it.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from step_cells import LOSS, MESHES, NORM, ONE, PARAMS, STAGES, VOCAB, Cell, Trajectory, config, matrix, mesh_of, run

from gpt3_jax.model.params import names, param_table
from gpt3_jax.parallel.zero.transport import choose

SETTINGS = dict(
    zip(MESHES, [(1, "none"), (3, "full"), (3, "none"), (1, "full"), (3, "full"), (1, "none")], strict=True)
)
"""The accumulation and remat that the default part takes on each mesh."""


WHOLE = ((1, 8, 1), (2, 2, 2))
"""Meshes that the default part takes every stage on."""
SOME = {(8, 1, 1): (0,), (2, 4, 1): (1,), (1, 4, 2): (2,), (1, 1, 8): (3,)}
"""Its stage on each of the others, whose axes are all in those."""
DEFAULT = [(mesh, stage) for mesh in MESHES for stage in SOME.get(mesh, STAGES)]


def reference() -> Trajectory:
    return run(Cell(0, ONE))


def bits(trajectory: Trajectory) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tuple(trajectory))]


def assert_like_one_device(cell: Cell) -> None:
    got, want = run(cell), reference()
    np.testing.assert_allclose(got.losses, want.losses, rtol=0, atol=LOSS, err_msg=f"losses of {cell}")
    np.testing.assert_allclose(got.grad_norms, want.grad_norms, rtol=0, atol=NORM, err_msg=f"gradient norms of {cell}")
    leaves = zip(names(want.params), jax.tree.leaves(got.params), jax.tree.leaves(want.params), strict=True)
    for name, mine, its in leaves:
        np.testing.assert_allclose(mine, its, rtol=0, atol=PARAMS, err_msg=f"{name} of {cell}")
    assert not got.params.token_embedding[VOCAB:].any(), f"padding of the vocabulary was trained in {cell}"


@pytest.mark.parametrize(("mesh", "stage"), DEFAULT, ids=str)
def test_losses_and_parameters_are_those_of_one_device(mesh: tuple[int, int, int], stage: int) -> None:
    assert_like_one_device(Cell(stage, mesh, *SETTINGS[mesh]))


def test_unrolling_the_depth_changes_nothing() -> None:
    assert_like_one_device(Cell(3, (1, 8, 1), 1, "full", unroll=2))


def test_elsewhere_than_on_a_torus_weights_travel_along_one_ring() -> None:
    kernel = param_table(config(Cell(2, ONE)).model).blocks.mlp_up_kernel
    names = {
        mesh: choose(kernel, mesh_of(config(Cell(2, mesh))), sharded=True, overlap=True).name
        for mesh in ((1, 8, 1), (2, 2, 2), (8, 1, 1))
    }
    assert names == {(1, 8, 1): "ring", (2, 2, 2): "ring", (8, 1, 1): "none"}


def test_the_reference_trains() -> None:
    """Else equality would say little: the clip is at work, and every parameter moves by more than the tolerance."""
    trained, started = reference(), run(Cell(0, ONE), steps=0)
    assert (trained.grad_norms > 0.5).all(), "nothing is clipped"
    assert trained.losses[-1] < trained.losses[0] - 0.2
    leaves = zip(names(started.params), jax.tree.leaves(trained.params), jax.tree.leaves(started.params), strict=True)
    for name, after, before in leaves:
        assert np.abs(after - before).max() > 1000 * PARAMS, name


def assert_stages_agree(mesh: tuple[int, int, int], microbatches: int, remat: str, dtype: str) -> None:
    """Stages 2 and 3 always; stage 1 without accumulation: with it, it sums over microbatches before devices."""
    one, two, three = (run(Cell(stage, mesh, microbatches, remat, dtype)) for stage in (1, 2, 3))
    assert bits(two) == bits(three), "stages 2 and 3 differ"
    if microbatches == 1:
        assert bits(one) == bits(two), "stages 1 and 2 differ"


@pytest.mark.parametrize("mesh", WHOLE, ids=str)
def test_stages_agree_bit_for_bit(mesh: tuple[int, int, int]) -> None:
    assert_stages_agree(mesh, *SETTINGS[mesh], "float32")


def test_stages_agree_bit_for_bit_in_bf16() -> None:
    assert_stages_agree((2, 2, 2), 1, "full", "bfloat16")


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize("cell", matrix(), ids=str)
def test_matrix(cell: Cell) -> None:
    """All 96 cells."""
    assert_like_one_device(cell)


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "remat"), [("float32", "none"), ("float32", "full"), ("bfloat16", "minimal")])
@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_matrix_bit_for_bit(mesh: tuple[int, int, int], microbatches: int, remat: str, dtype: str) -> None:
    assert_stages_agree(mesh, microbatches, remat, dtype)
