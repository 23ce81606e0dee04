"""`memory.remat`: a ladder. Each policy keeps what the one before it keeps and more, recomputes less, and trains the
same. What it keeps is bf16, a device's own shard, and never a gathered weight."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import NEEDS_GPU, NEEDS_TPU
from jaxprs import dot_flops, equations, stacked
from receipts_kept import KEPT as KEPT_PLANS
from receipts_kept import Kept
from step_cells import CONTEXT, SEQUENCES, Cell, config, mesh_of, run
from xla_flags import user_fusions

from gpt3_jax import model
from gpt3_jax.config import ModelConfig, load_config, replace
from gpt3_jax.errors import UserError
from gpt3_jax.model.remat import KEPT, Names, Remat, policy
from gpt3_jax.model.transformer import loss_sum, plain_weights
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.plan import estimate
from gpt3_jax.plan.receipt import make_receipt
from gpt3_jax.plan.step import compile_step
from gpt3_jax.plan.topologies import open_topology
from gpt3_jax.program.traffic import count
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step

kernel = importlib.import_module("gpt3_jax.model.attention.cudnn")

NAMED: tuple[Remat, ...] = ("minimal", "save_qkv_proj", "save_attention")
LADDER = ("none", *NAMED, "full")
"""From the most memory to the least."""


def test_the_ladder_is_what_a_configuration_may_say() -> None:
    assert (*LADDER, "offload") == get_args(Remat)
    kept = [set(KEPT[remat]) for remat in NAMED]
    assert all(more > less for more, less in itertools.pairwise(kept))


def test_a_policy_that_does_not_exist_is_refused() -> None:
    for unknown in ("dots", "minimla"):
        for of in (policy, Names.of):
            with pytest.raises(KeyError, match=unknown):
                of(unknown)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"memory.remat is '{unknown}'; expected one of none, minimal, "):
            replace(config(Cell(0, (1, 1, 1))), memory={"remat": unknown})


# -- the same values -------------------------------------------------------------------------------------------------

CELLS = [
    Cell(0, (1, 1, 1)),
    Cell(3, (1, 8, 1), 3),
    Cell(2, (2, 2, 2)),
    Cell(3, (1, 4, 2), dtype="bfloat16"),
    Cell(1, (1, 1, 8), unroll=2),
]


@pytest.mark.parametrize("remat", NAMED)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_it_trains_what_full_remat_trains(cell: Cell, remat: str) -> None:
    mine, its = run(cell._replace(remat=remat)), run(cell._replace(remat="full"))
    if cell.dtype == "bfloat16":
        # Where a value is kept it is rounded; where it is not, a CPU's compiler may fuse the rounding away.
        np.testing.assert_allclose(mine.losses, its.losses, rtol=5e-4)
        np.testing.assert_allclose(mine.grad_norms, its.grad_norms, rtol=2e-2)
        return
    # Unrolled, what a CPU's compiler fuses with the stack of three gradients (`cpu.queries_keys_values`) depends on
    # what is kept: 1.2e-7 in norms and parameters.
    atol = 5e-7 if cell.unroll > 1 else 0
    for got, want in zip(jax.tree.leaves(tuple(mine)), jax.tree.leaves(tuple(its)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)


# -- what is kept ----------------------------------------------------------------------------------------------------


def kept(program: Any, d_model: int) -> list[Any]:
    """What the loop over blocks keeps of each for the backward pass, stacked over all its iterations."""
    (loop,) = [
        e
        for e, _ in equations(program.jaxpr)
        if e.primitive.name == "scan" and not e.params["reverse"] and 0 < len(stacked(e)) == len(e.outvars) - 1
        if e.outvars[0].aval.ndim == 3 and e.outvars[0].aval.shape[-1] == d_model
    ]
    return [var.aval for var in stacked(loop)]


def of_step(cell: Cell) -> list[Any]:
    settings = config(cell)
    mesh = mesh_of(settings)
    rows = jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
    program = jax.make_jaxpr(make_step(settings, mesh, cell.microbatches))(abstract_state(settings, mesh), rows)
    return kept(program, settings.model.d_model)


@pytest.mark.parametrize(
    "cell",
    [
        Cell(3, (1, 8, 1)),
        Cell(3, (1, 4, 2)),
        Cell(3, (1, 4, 2), tensor_overlap="rings"),
        Cell(2, (2, 2, 2), 3),
        Cell(0, (1, 1, 8)),
    ],
    ids=str,
)
def test_a_device_keeps_its_shard_of_each_named_value(cell: Cell) -> None:
    """In the compute dtype; no gathered weight, no gathered input of a matmul, no partial sums."""
    settings = config(cell).model
    replica, data, tensor = cell.mesh
    tokens = SEQUENCES // (replica * data * cell.microbatches) * CONTEXT
    share = tokens * settings.d_model // tensor
    sizes = {"attention": [share], "residual": [share], "qkv_proj": 3 * [share], "mlp_up": [4 * share]}
    for remat in (*NAMED, "full"):
        found = of_step(cell._replace(remat=remat, dtype="bfloat16"))
        assert {aval.dtype.name for aval in found} == {"bfloat16"}
        wanted = [share, *(size for name in KEPT[remat] for size in sizes[name])]  # type: ignore[index]
        assert sorted(math.prod(aval.shape[1:]) for aval in found) == sorted(wanted)
        by_estimate = estimate._kept(config(cell._replace(remat=remat)), gpu=True, pair=False).over(tensor)
        assert by_estimate * tokens * settings.d_model == 2 * sum(wanted)


def loss_program(platform: str, remat: Any) -> Any:
    """The gradient of a model's loss, of a length that each platform has a kernel for."""
    settings = ModelConfig(
        n_layers=4, d_model=128, n_heads=2, n_ctx=1024, n_vocab=61, vocab_multiple=1, band_width=256, dtype="bfloat16"
    )
    params = jax.eval_shape(functools.partial(model.init, settings), jax.random.key(0))

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        return loss_sum(plain_weights(params, "bfloat16"), rows, settings, Local(platform=platform), remat, 256)

    return jax.make_jaxpr(jax.grad(loss))(params, jax.ShapeDtypeStruct((2, 1025), jnp.int32))


KERNELS = {"tpu": "pallas_call", "gpu": "dot_product_attention_fwd_wrapper", "rocm": "exp"}
"""A primitive of the forward pass of each implementation of attention. Splash's backward pass has two kernels more."""


@pytest.mark.parametrize("platform", ["tpu", pytest.param("gpu", marks=NEEDS_GPU), "rocm"])
@pytest.mark.parametrize("remat", NAMED)
def test_the_attention_kernel_does_not_run_again(platform: str, remat: str) -> None:
    def kernels(remat: str) -> int:
        program = loss_program(platform, remat)
        return sum(1 for e, _ in equations(program.jaxpr) if e.primitive.name == KERNELS[platform])

    assert kernels(remat) == kernels("none") < kernels("full")
    # Its statistics alone are in fp32.
    found = kept(loss_program(platform, remat), 128)
    statistics = [aval for aval in found if aval.dtype == jnp.float32]
    assert {math.prod(aval.shape) // aval.shape[0] for aval in statistics} == {2 * 2 * 1024}
    assert {aval.dtype.name for aval in found} == {"float32", "bfloat16"}


def cudnn_attention(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is said when the kernel is traced, twice, for a policy that keeps its result."""
    kernel._tell_if_renamed.cache_clear()
    some = jax.ShapeDtypeStruct((2, 128, 2, 64), jnp.bfloat16)
    for name in (None, "attention", "attention"):
        jax.eval_shape(lambda q, k, v, name=name: kernel.cudnn(q, k, v, None, name), some, some, some)
    return [record.getMessage() for record in caplog.records]


def test_a_kernel_of_cudnn_that_no_policy_would_find_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    xla = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *qkv, **how: xla(*qkv, **how | {"implementation": "xla"})
    )
    (said,) = cudnn_attention(caplog)
    assert "has no primitive dot_product_attention_fwd_wrapper" in said
    kernel._tell_if_renamed.cache_clear()


@NEEDS_GPU
def test_this_jax_has_the_kernel_of_cudnn_that_policies_look_for(caplog: pytest.LogCaptureFixture) -> None:
    assert cudnn_attention(caplog) == []


# -- what is sent again ----------------------------------------------------------------------------------------------


def test_tensor_shards_gather_again_and_scatter_only_with_full_remat() -> None:
    def sent(remat: str) -> dict[str, int]:
        settings = config(Cell(0, (1, 1, 8), remat=remat))
        mesh = mesh_of(settings)
        rows = jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
        found = count(make_step(settings, mesh, 1), abstract_state(settings, mesh), rows)
        kinds = ("all-gather", "reduce-scatter")
        return {kind: sum(c.calls for c in found if c.kind == kind) for kind in kinds}

    none, full, layers = sent("none"), sent("full"), config(Cell(0, (1, 1, 8))).model.n_layers
    for remat in NAMED:
        # The inputs of the two halves of a block are gathered; the residual stream after attention is kept.
        assert sent(remat) == none | {"all-gather": none["all-gather"] + 2 * layers}
    assert full["reduce-scatter"] == none["reduce-scatter"] + layers


# -- memory and time ---------------------------------------------------------------------------------------------------


def test_on_a_cpu_each_step_of_the_ladder_takes_less_memory_and_more_work() -> None:
    """As compiled and as traced. The estimate's extra work is that of the traced program."""
    memory, work, estimated = [], [], []
    for remat in LADDER:
        settings = config(Cell(2, (2, 2, 2), remat=remat, dtype="bfloat16"))
        mesh, shape = mesh_of(settings), MeshShape(2, 2, 2)
        step = make_step(settings, mesh, 1)
        inputs = abstract_state(settings, mesh), jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
        compiled: Any = jax.jit(step).lower(*inputs).compile(user_fusions()).memory_analysis()
        memory.append(compiled.temp_size_in_bytes)
        work.append(dot_flops(step, *inputs))
        settings = replace(settings, train={"batch_tokens": SEQUENCES * CONTEXT})
        estimated.append(estimate.work(settings, shape, 1, "gpu", False).matmul_flops)
    assert all(a > b for a, b in itertools.pairwise(memory)), memory
    assert all(a < b for a, b in itertools.pairwise(work)), work
    # But for attention, which runs again with full.
    named = slice(1, 1 + len(NAMED))
    assert np.diff(estimated[named]).tolist() == np.diff(work[named]).tolist()


@pytest.mark.parametrize("kept", KEPT_PLANS, ids=lambda kept: kept.name)
def test_by_the_estimate_each_step_of_the_ladder_takes_less_memory_and_more_work(kept: Kept) -> None:
    """For every size and machine that has a receipt."""

    def of(remat: Remat) -> tuple[float, float]:
        # Parts, which only `full` and `offload` have, are no step of the ladder.
        ladder = ["--memory.remat", remat, "--memory.mlp_parts", "1"]
        settings = load_config(kept.configs, [*kept.overrides, *ladder])
        parallel, rows = settings.parallel, settings.train.batch_tokens // settings.model.n_ctx
        mesh = MeshShape(parallel.replica, parallel.data, parallel.tensor)
        per_shard = rows // mesh.batch_shards
        microbatches = per_shard // (settings.memory.microbatch or per_shard)
        platform = "gpu" if kept.topology.startswith("h") else "tpu"
        late = not kept.topology.startswith("v5e")  # `compiler_options.overlaps_scatters`
        need = estimate.memory(settings, mesh, microbatches, platform, late)
        return need, -estimate.work(settings, mesh, microbatches, platform, late).matmul_flops

    memory, less_work = zip(*map(of, LADDER), strict=True)
    assert all(a > b for a, b in itertools.pairwise(memory))
    # `none` computes what `minimal` does.
    assert all(a > b for a, b in itertools.pairwise(less_work[1:])) and less_work[0] == less_work[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "stage"),
    [pytest.param("v5e:2x4", 3, marks=NEEDS_TPU), pytest.param("h100:1x8", 2, marks=NEEDS_GPU)],
)
def test_compiled_each_step_of_the_ladder_takes_less_memory_and_more_time(topology: str, stage: int) -> None:
    def of(remat: str) -> tuple[int, float]:
        small = ["--model.n_layers", "8", "--train.batch_tokens", "131072", "--train.ramp_tokens", "0"]
        small += ["--parallel.stage", str(stage), "--parallel.data", "8", "--memory.microbatch", "4"]
        small += ["--memory.remat", remat]
        receipt = make_receipt(compile_step(load_config(["gpt3-xl"], small), open_topology(topology)))
        assert receipt.scheduled_seconds is not None
        return receipt.memory.total, -receipt.scheduled_seconds

    memory, speed = zip(*map(of, LADDER[1:]), strict=True)
    assert all(a > b for a, b in itertools.pairwise(memory)), memory
    assert all(a > b for a, b in itertools.pairwise(speed)), speed
