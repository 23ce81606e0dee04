"""Cells of the matrix stage × mesh × accumulation × remat × dtype: a few training steps of a tiny model in each.

Every awkward case is in the model: band and loss chunk that divide nothing, a vocabulary whose padding fills a whole
tensor shard, two periods of (dense, banded), gradients that are clipped, a learning rate that changes every step.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from xla_flags import user_fusions

from gpt3_jax.config import Config, MemoryConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from gpt3_jax.model.params import names
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.parallel.rules import batch_partition
from gpt3_jax.train.state import TrainState, create, state_shardings
from gpt3_jax.train.step import make_step

STAGES = (0, 1, 2, 3)
MESHES = ((1, 8, 1), (8, 1, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8))
"""(replica, data, tensor) over eight devices."""
ONE = (1, 1, 1)
SEQUENCES = 24
STEPS = 3
CONTEXT, VOCAB = 16, 203
LOSS, NORM, PARAMS = 2e-6, 2e-6, 1e-6
"""How far from one device: losses (near 5) and norms (near 1) absolute, parameters after updates of up to 1e-2 each.
Measured over the whole matrix: see `test_zero.test_matrix`."""


class Cell(NamedTuple):
    stage: int
    mesh: tuple[int, int, int]
    microbatches: int = 1
    remat: str = "none"
    dtype: str = "float32"
    unroll: int = 1
    mlp_parts: int = 1
    tensor_overlap: str = "none"

    def __str__(self) -> str:
        mesh, unroll = "x".join(map(str, self.mesh)), f"-unroll{self.unroll}" if self.unroll > 1 else ""
        parts = f"-parts{self.mlp_parts}" if self.mlp_parts > 1 else ""
        rings = f"-{self.tensor_overlap}" if self.tensor_overlap != "none" else ""
        return f"stage{self.stage}-{mesh}-acc{self.microbatches}-{self.remat}-{self.dtype}{unroll}{parts}{rings}"


def matrix(dtype: str = "float32") -> list[Cell]:
    """Every cell: 96 of them."""
    return [Cell(*values, dtype) for values in itertools.product(STAGES, MESHES, (1, 3), ("none", "full"))]


class Trajectory(NamedTuple):
    """What training a cell for `STEPS` steps gave."""

    losses: np.ndarray
    grad_norms: np.ndarray
    params: Any


def config(cell: Cell, **optimizer: Any) -> Config:
    replica, data, tensor = cell.mesh
    batch_tokens = SEQUENCES * CONTEXT
    settings = {
        "peak_lr": 1e-2,
        "warmup_tokens": 2 * batch_tokens,
        "decay_tokens": 4 * batch_tokens,
        "clip_norm": 0.5,
        # Far above rounding: at 1e-8, Adam would turn the rounding noise of gradients that are zero (those of the
        # keys' biases) into whole updates, and two correct programs would differ.
        "eps": 1e-4,
    }
    return Config(
        model=ModelConfig(
            n_layers=4,
            d_model=32,
            n_heads=8,
            n_ctx=CONTEXT,
            n_vocab=VOCAB,
            vocab_multiple=64,
            band_width=5,
            init_std=0.1,
            position_init_std=0.1,
            dtype=cell.dtype,  # type: ignore[arg-type]
        ),
        optimizer=OptimizerConfig(**{**settings, **optimizer}),
        train=TrainConfig(
            batch_tokens=batch_tokens,
            seed=7,
        ),
        memory=MemoryConfig(
            remat=cell.remat,  # type: ignore[arg-type]
            unroll=cell.unroll,
            mlp_parts=cell.mlp_parts,
            loss_chunk=37,
        ),
        parallel=ParallelConfig(
            stage=cell.stage,  # type: ignore[arg-type]
            replica=replica,
            data=data,
            tensor=tensor,
            tensor_overlap=cell.tensor_overlap,  # type: ignore[arg-type]
        ),
    )


def mesh_of(config: Config) -> Mesh:
    parallel = config.parallel
    return make_mesh(parallel, jax.devices()[: parallel.replica * parallel.data * parallel.tensor])


@functools.cache
def first_state() -> Any:
    """The state before the first step, in numpy; biases and LayerNorms moved off 0 and 1, where bugs could hide.

    It is the same in every cell, and made on one device: what is laid out is compared, not how it was made.
    """
    state = jax.device_get(jax.jit(create, static_argnums=0)(config(Cell(0, ONE))))
    noise = np.random.default_rng(1)

    def moved(name: str, leaf: np.ndarray) -> np.ndarray:
        off = noise.normal(0, 0.1, leaf.shape) if name.endswith(("_bias", "_scale")) else 0
        return (leaf + off).astype(np.float32)

    leaves, structure = jax.tree.flatten(state.params)
    params = jax.tree.unflatten(structure, map(moved, names(state.params), leaves))
    return state.replace(params=params)


def place(config: Config, mesh: Mesh) -> TrainState:
    """A fresh state on the mesh."""
    placed: TrainState = jax.device_put(first_state(), state_shardings(config, mesh))
    return placed


def batch(step: int) -> np.ndarray:
    """Token rows [SEQUENCES, CONTEXT + 1] of one step, some tokens far more frequent than others."""
    rows = np.random.default_rng(100 + step).integers(0, VOCAB, (SEQUENCES, CONTEXT + 1), np.int32)
    return np.where(rows % 3 == 0, rows % 7, rows).astype(np.int32)


def on_mesh(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    return jax.device_put(rows, NamedSharding(mesh, batch_partition(mesh)))


@functools.lru_cache(maxsize=40)
def compiled(cell: Cell) -> Any:
    """The cell's step. Only with a user's fusions do stages agree to the bit."""
    settings = config(cell)
    mesh = mesh_of(settings)
    lowered = make_step(settings, mesh, cell.microbatches).lower(place(settings, mesh), on_mesh(batch(0), mesh))
    return lowered.compile(user_fusions())


def run(cell: Cell, steps: int = STEPS) -> Trajectory:
    """Trains the cell for some steps. Kept, so that tests can compare the same cells in several ways."""
    return _run(cell, steps)  # a cache takes `f(cell)` and `f(cell, 3)` for two calls


@functools.cache
def _run(cell: Cell, steps: int) -> Trajectory:
    settings = config(cell)
    mesh = mesh_of(settings)
    state = place(settings, mesh)
    metrics: list[tuple[float, float]] = []
    for i in range(steps):
        state, told = compiled(cell)(state, on_mesh(batch(i), mesh))
        metrics.append((float(told.loss), float(told.grad_norm)))
    losses, norms = np.array(metrics).reshape(-1, 2).T
    return Trajectory(losses, norms, jax.device_get(state.params))
