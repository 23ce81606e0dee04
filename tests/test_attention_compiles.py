"""Kernels of TPUs and GPUs compile for hardware that is not there, forward and backward, as the step calls them; and
`forward` and the prefill of generation run in them.

Each test needs its platform's compiler, which comes with the extra `plan` or `cuda`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import NEEDS_GPU, NEEDS_TPU, needs_compiler_of
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from gpt3_jax.config import ModelConfig
from gpt3_jax.model import forward
from gpt3_jax.model import params as model_params
from gpt3_jax.model.attention import attention, choose
from gpt3_jax.model.decode import decode_weights, prefill
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.plan.topologies import open_topology

pytestmark = pytest.mark.slow  # a compiler to start and eight programs

HEADS = (64, 80, 96, 128)
"""Head widths of the paper's eight models."""
LENGTH = 2048
PLATFORMS = {"tpu": "v5p:2x2x1", "gpu": "h100:1x4"}
"""Four devices of each."""


def lowered(platform: str, width: int, band: int | None, dtype: Any = jnp.bfloat16) -> Any:
    """Output and gradients, batch over one axis and heads over another, in a `shard_map` that checks its types."""
    devices = np.array(open_topology(PLATFORMS[platform]).devices).reshape(2, 2)
    mesh = Mesh(devices, ("batch", "heads"), axis_types=(AxisType.Auto,) * 2)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, ct: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, band, platform), q, k, v)
        return out, *pull(ct)

    partition = PartitionSpec("batch", None, "heads")
    inputs = jax.ShapeDtypeStruct((4, LENGTH, 4, width), dtype, sharding=NamedSharding(mesh, partition))
    sharded = jax.shard_map(local, mesh=mesh, in_specs=partition, out_specs=partition)
    return jax.jit(sharded).lower(*[inputs] * 4)


def held_bytes(compiled: Any) -> int:
    return int(compiled.memory_analysis().temp_size_in_bytes)


def scores_bytes(dtype: Any) -> int:
    """A device's scores, all at once."""
    return 2 * 2 * LENGTH**2 * jnp.dtype(dtype).itemsize


@NEEDS_TPU
@pytest.mark.parametrize("band", [None, 256])
@pytest.mark.parametrize("width", HEADS)
def test_splash_compiles_for_tpu(width: int, band: int | None) -> None:
    program = lowered("tpu", width, band)
    # Forward, and backward one for queries and one for keys and values.
    assert program.as_text().count("@tpu_custom_call") == 3
    assert held_bytes(program.compile()) < scores_bytes(jnp.float32)


@NEEDS_GPU
@pytest.mark.parametrize("band", [None, 256])
@pytest.mark.parametrize("width", HEADS)
def test_cudnn_compiles_for_gpu(width: int, band: int | None) -> None:
    compiled = lowered("gpu", width, band).compile()
    calls = compiled.as_text()
    assert calls.count('custom_call_target="__cudnn$fmhaSoftmax"') == 1
    assert calls.count('custom_call_target="__cudnn$fmhaSoftmaxBackward"') == 1
    assert held_bytes(compiled) < scores_bytes(jnp.float32)


@pytest.mark.parametrize("platform", [pytest.param(p, marks=needs_compiler_of(name)) for p, name in PLATFORMS.items()])
@pytest.mark.parametrize("band", [None, 256])
def test_blockwise_compiles_in_fp32(platform: str, band: int | None) -> None:
    assert choose((2, LENGTH, 2, 64), jnp.dtype("float32"), band, platform) == "blockwise"
    compiled = lowered(platform, 64, band, jnp.float32).compile()
    assert held_bytes(compiled) < scores_bytes(jnp.float32)


MODEL = ModelConfig(n_layers=2, d_model=256, n_heads=2, n_ctx=256, n_vocab=512, band_width=64)
KERNEL = {"tpu": "tpu_custom_call", "gpu": "__cudnn$fmhaSoftmax"}
CALLS = {
    "forward": lambda params, tokens, lengths, platform: forward(params, tokens, MODEL, platform),
    "prefill": lambda params, tokens, lengths, platform: prefill(
        decode_weights(params, MODEL), tokens, lengths, MODEL, Local(platform)
    ),
}


@pytest.mark.parametrize("platform", [pytest.param(p, marks=needs_compiler_of(name)) for p, name in PLATFORMS.items()])
@pytest.mark.parametrize("call", CALLS)
def test_without_a_mesh_attention_runs_in_the_platforms_kernel_too(call: str, platform: str) -> None:
    """Both kinds of layer, and nothing else is such a call."""
    sharding = SingleDeviceSharding(open_topology(PLATFORMS[platform]).devices[0])

    def abstract(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = jax.tree.map(lambda leaf: abstract(leaf.shape, leaf.dtype), model_params.abstract(MODEL))
    inputs = params, abstract((2, 256), jnp.int32), abstract((2,), jnp.int32)
    compiled = jax.jit(functools.partial(CALLS[call], platform=platform)).lower(*inputs).compile()
    text = compiled.as_text()
    assert text is not None and text.count(f'custom_call_target="{KERNEL[platform]}"') == MODEL.n_layers
