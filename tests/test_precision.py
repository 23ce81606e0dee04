"""Precision and kernels of the step as it is traced for TPUs and GPUs: no matmul of the eight models takes fp32
operands but those that are meant, and attention runs in the platform's kernel, forward and backward."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from compilers import NEEDS_TPU, needs_compiler_of

from gpt3_jax.config import load_config, presets
from gpt3_jax.model.transformer import band_shares
from gpt3_jax.parallel.mesh import batch_shards, make_mesh
from gpt3_jax.parallel.rules import batch_partition, shardings
from gpt3_jax.plan.topologies import open_topology
from gpt3_jax.program.flops import Matmul, matmuls
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step

KERNELS = {
    "tpu": {"splash_mha_fwd_residuals", "splash_mha_dq_no_residuals", "splash_mha_dkv_no_residuals"},
    "gpu": {"dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper"},
}
MEANT = 1e-4
"""Of a step's matmul work: the splash kernel's derivative sums products of rows in fp32."""
MESHES = {"v5p:2x2x2": (3, 4, 2), "v6e:2x4": (3, 4, 2), "h100:1x8": (2, 8, 1)}
"""ZeRO stage, data, tensor."""
QUICK = ("gpt3-175b", "v5p:2x2x2")


def _cases() -> list[Any]:
    cases = []
    for topology in MESHES:
        for model in presets():
            marks = [needs_compiler_of(topology), *([] if (model, topology) == QUICK else [pytest.mark.slow])]
            cases.append(pytest.param(model, topology, marks=marks, id=f"{model}-{topology}"))
    return cases


@functools.cache
def traced(model: str, topology: str, *overrides: str) -> list[Matmul]:
    stage, data, tensor = MESHES[topology]
    parallel = ["--parallel.stage", str(stage), "--parallel.data", str(data), "--parallel.tensor", str(tensor)]
    config = load_config([model], [*parallel, *overrides])
    mesh = make_mesh(config.parallel, open_topology(topology).devices)
    sharding = shardings(batch_partition(mesh), mesh)
    rows = jax.ShapeDtypeStruct((batch_shards(mesh), config.model.n_ctx + 1), jnp.int32, sharding=sharding)
    shares = tuple(band_shares(config.model).values())
    return matmuls(make_step(config, mesh).trace(abstract_state(config, mesh), rows).jaxpr, shares)


def fp32(found: list[Matmul]) -> list[Matmul]:
    """Matmuls of the program itself, not of a kernel's inside."""
    return [matmul for matmul in found if "float32" in matmul.operands and not matmul.kernel]


@pytest.mark.parametrize(("model", "topology"), _cases())
def test_no_matmul_takes_fp32_operands_but_those_meant(model: str, topology: str) -> None:
    found = traced(model, topology)
    stray = [matmul.source for matmul in fp32(found) if "splash_attention" not in matmul.source]
    assert not stray
    assert sum(m.flops for m in fp32(found)) <= MEANT * sum(m.flops for m in found)


@pytest.mark.parametrize(("model", "topology"), _cases())
def test_attention_runs_in_the_platforms_kernel(model: str, topology: str) -> None:
    found = traced(model, topology)
    platform = "gpu" if topology.startswith("h100") else "tpu"
    assert {matmul.kernel for matmul in found if matmul.kernel} == KERNELS[platform]
    # And nowhere else: no scores outside, in what the attention of the model computes.
    outside = [m.source for m in found if not m.kernel and "model/attention" in m.source]
    assert not outside


@NEEDS_TPU
def test_a_model_in_fp32_is_seen() -> None:
    found = traced(*QUICK, "--model.dtype", "float32")
    assert sum(m.flops for m in fp32(found)) > 0.9 * sum(m.flops for m in found if not m.kernel)
    assert not any(m.kernel for m in found)
