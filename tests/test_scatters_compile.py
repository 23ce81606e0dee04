"""A gradient's reduce-scatter as TPU compilers make it: it sends what the traced program states, and no padding."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from compilers import NEEDS_TPU
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3_jax.config import load_config
from gpt3_jax.model.params import param_table
from gpt3_jax.parallel.compiler_options import compiler_options, pads_scatters
from gpt3_jax.parallel.mesh import DATA, data_steps, make_mesh
from gpt3_jax.parallel.zero.transport import Transport, choose
from gpt3_jax.parallel.zero.weight import Gather
from gpt3_jax.plan.topologies import open_topology
from gpt3_jax.program.compiled import without_cache
from gpt3_jax.program.hlo import Program
from gpt3_jax.program.traffic import count
from gpt3_jax.spec import ParamSpec

GRADIENTS = {
    "mlp_up": ((2048, 4096), 0),
    "mlp_down": ((8192, 1024), 0),
    "qkv": ((1536, 3, 1536), 0),
    "tokens, few columns": ((50304, 768), 1),
    "tokens, whole tiles": ((50304, 1024), 1),
}
"""Shape, and the dimension that is scattered."""
KERNELS = ("mlp_up", "mlp_down", "qkv")
NEAR = 0.01


@functools.cache
def mesh_of(topology: str) -> Mesh:
    return make_mesh(load_config(["gpt3-small"], []).parallel, open_topology(topology).devices)


def surplus(topology: str, gradient: str, overlap: bool, apart: bool) -> float:
    """Bytes that the compiled scatter sends beyond those of the traced one, as a share of these."""
    mesh, (shape, dim) = mesh_of(topology), GRADIENTS[gradient]
    transport = Transport(DATA, data_steps(mesh), by_device=apart, tpu=True)
    how = Gather(dim, jnp.dtype("bfloat16"), jnp.dtype("float32"), transport)
    spec = PartitionSpec(*[None] * dim, DATA)
    mapped = jax.shard_map(how.reduce_scatter, mesh=mesh, in_specs=PartitionSpec(), out_specs=spec, check_vma=False)
    whole = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    with tempfile.TemporaryDirectory() as folder, without_cache():
        options: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        jax.jit(mapped).lower(whole).compile(options | (compiler_options(mesh) if overlap else {}))
        (text,) = Path(folder).glob("*after_optimizations.txt")
        program = Program(text.read_text())
    traced = sum(c.bytes_sent for c in count(mapped, whole))
    assert traced > 0
    return sum(c.bytes_sent for c in program.collectives()) / traced - 1


@NEEDS_TPU
@pytest.mark.parametrize(
    ("topology", "overlap", "gradient"),
    [
        *(("v5e:16x16", True, gradient) for gradient in KERNELS),
        *(("v5e:4x4", True, gradient) for gradient in GRADIENTS),
        *(("v6e:4x4", overlap, gradient) for overlap in (True, False) for gradient in GRADIENTS),
        *(("v5p:4x4x4", True, gradient) for gradient in GRADIENTS if gradient not in KERNELS),
    ],
)
def test_a_scatter_sends_what_is_traced(topology: str, overlap: bool, gradient: str) -> None:
    apart = pads_scatters(mesh_of(topology), overlap, columns=gradient not in KERNELS)
    assert abs(surplus(topology, gradient, overlap, apart)) < NEAR


@NEEDS_TPU
def test_rows_are_padded_where_the_devices_are_not_apart() -> None:
    assert surplus("v5e:16x16", "mlp_down", overlap=True, apart=False) > NEAR
    assert surplus("v6e:4x4", "mlp_up", overlap=True, apart=False) < NEAR
    assert surplus("v5p:4x4x4", "tokens, whole tiles", overlap=True, apart=False) > NEAR
    assert not pads_scatters(mesh_of("v6e:4x4"), overlap=True)
    assert pads_scatters(mesh_of("v5e:16x16"), overlap=True)


@NEEDS_TPU
def test_each_weight_has_the_transport_that_its_compiler_runs_well() -> None:
    table = param_table(load_config(["gpt3-small"], []).model)

    def name(topology: str, spec: ParamSpec, sharded: bool = True) -> str:
        return choose(spec, mesh_of(topology), sharded=sharded, overlap=True).name

    assert name("v5e:16x16", table.blocks.mlp_up_kernel) == "torus by device"
    assert name("v6e:4x4", table.blocks.mlp_up_kernel) == "torus"
    assert name("v6e:4x4", table.token_embedding) == "torus by device"
    assert name("v6e:4x4", table.token_embedding, sharded=False) == "none"
