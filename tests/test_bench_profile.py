"""Where a step's time goes: each moment is given once, to the family of what ran in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from gpt3_jax.bench import profile as profiles
from gpt3_jax.bench import step, trace
from gpt3_jax.bench.families import FAMILIES, family, kernel_family, scope
from gpt3_jax.bench.profile import Share, account, place
from gpt3_jax.bench.trace import Event
from gpt3_jax.config import Config, from_dict, to_dict
from gpt3_jax.errors import RunError
from gpt3_jax.program.compiled import text
from gpt3_jax.program.hlo import Program

PROGRAM = """HloModule jit_step, is_scheduled=true

%inside (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %dot.0 = f32[8,8]{1,0} dot(%p, %p), metadata={op_name="jit(step)/jvp()/mlp/ni,io->no/dot_general"}
}

%body (q: f32[8,8]) -> f32[8,8] {
  %q = f32[8,8]{1,0} parameter(0)
  ROOT %scores.1 = f32[8,8]{1,0} add(%q, %q), metadata={op_name="jit(step)/while/body/attention/attention/add"}
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%half (h: f32[8,8]) -> f32[8] {
  %h = f32[8,8]{1,0} parameter(0)
  ROOT %window = f32[8]{0} reduce-window(%h)
}

%hidden (i: f32[8,8]) -> f32[8,8] {
  %i = f32[8,8]{1,0} parameter(0)
  %d = f32[8,8]{1,0} dot(%i, %i)
  ROOT %permute = f32[8,8]{1,0} collective-permute(%d), source_target_pairs={{0,1},{1,0}}
}

%scatter (e: f32[8,8]) -> f32[4,8] {
  %e = f32[8,8]{1,0} parameter(0)
  ROOT %rs = f32[4,8]{1,0} reduce-scatter(%e), replica_groups={{0,1}}, dimensions={0}, to_apply=%sum
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %mlp.1 = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%inside
  %gelu = f32[8,8]{1,0} tanh(%mlp.1), metadata={op_name="jit(step)/jvp()/mlp/tanh"}
  %qkv = f32[8,8]{1,0} dot(%x, %x), metadata={op_name="jit(step)/jvp()/attention/ni,io->no/dot_general"}
  %bias = f32[8,8]{1,0} add(%qkv, %x), metadata={op_name="jit(step)/jvp()/attention/add;checkpoint/attention/add"}
  %loop = f32[8,8]{1,0} while(%bias), body=%body, condition=%body
  %flash = f32[8,8]{1,0} custom-call(%bias), custom_call_target="__cudnn$fmhaSoftmax"
  %ln = f32[8,8]{1,0} add(%x, %x), metadata={op_name="jit(step)/transpose(jvp())/checkpoint/norm/mul"}
  %norm_half = f32[8]{0} fusion(%ln), kind=kLoop, calls=%half
  %logits = f32[8,8]{1,0} dot(%x, %x), metadata={op_name="jit(step)/jvp(head_loss)/while/body/cd,vd->cv/dot_general"}
  %table = f32[8,8]{1,0} dot(%x, %x), metadata={op_name="jit(step)/transpose(jvp(embed))/nv,nd->vd/dot_general"}
  %cublas = f32[8,8]{1,0} custom-call(%x, %x), custom_call_target="__cublas$gemm", metadata={op_name="jit(step)/mlp/dot_general"}
  %split_k = f32[8,8]{1,0} add(%x, %x), metadata={op_name="jit(step)/mlp/ni,no->io/dot_general"}
  %adam = f32[8,8]{1,0} multiply(%x, %x), metadata={op_name="jit(step)/optimizer/mul"}
  %clipped = f32[8,8]{1,0} multiply(%x, %x), metadata={op_name="jit(step)/clip/mul"}
  %cast = f32[8,8]{1,0} convert(%x), metadata={op_name="jit(step)/jvp(gather_weights)/convert_element_type"}
  %gather = f32[8,8]{1,0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}, metadata={op_name="jit(step)/gather_weights/all_gather"}
  %norm_sum = f32[8,8]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum, metadata={op_name="jit(step)/clip/psum"}
  %start = f32[8,8]{1,0} all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}
  %done = f32[8,8]{1,0} all-gather-done(%start), metadata={op_name="jit(step)/transpose(jvp(embed))/done"}
  %rs_start = f32[4,8]{1,0} async-start(%x), calls=%scatter
  %rs_done = f32[4,8]{1,0} async-done(%rs_start), metadata={op_name="jit(step)/transpose(jvp(embed))/done"}
  %both = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%hidden, metadata={op_name="jit(step)/mlp/ni,io->no/dot_general"}
  %moved = f32[8,8]{1,0} copy(%x)
  ROOT %out = f32[8,8]{1,0} add(%loop, %moved)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def compiled() -> Program:
    return Program(PROGRAM)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp.1", "matmul"),  # its own name stands inside
        ("gelu", "elementwise"),
        ("qkv", "matmul"),  # a projection, in the layer's attention scope
        ("bias", "elementwise"),  # two names joined are not a scope within a scope
        ("loop", "loops"),
        ("scores.1", "attention"),
        ("flash", "attention"),
        ("ln", "norm"),
        ("norm_half", "norm"),  # without a name: where its operand belongs
        ("logits", "loss"),
        ("table", "embedding"),
        ("cublas", "matmul"),
        ("split_k", "matmul"),
        ("adam", "optimizer"),
        ("clipped", "optimizer"),
        ("cast", "weights"),
        ("gather", "collectives"),
        ("norm_sum", "collectives"),
        ("start", "collectives"),
        ("done", "collectives"),
        ("rs_start", "collectives"),
        ("rs_done", "collectives"),
        ("both", "matmul"),
        ("moved", "copies"),
    ],
)
def test_instructions_have_families(compiled: Program, name: str, expected: str) -> None:
    assert family(compiled.instructions[name], compiled) == expected


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "collectives"),
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_NNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize128x128x64", "matmul"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3", "attention"),
        ("MemcpyD2D", "copies"),
        ("input_reduce_fusion_17", "unknown"),
    ],
)
def test_kernels_that_the_program_does_not_name_have_families_by_their_names(kernel: str, expected: str) -> None:
    assert kernel_family(kernel) == expected


def test_each_moment_is_given_once(compiled: Program) -> None:
    events = [
        Event("mlp.1", 0.0, 4.0),
        Event("logits", 2.0, 4.0),  # beside the matmul: half of these two seconds each
        Event("gather", 3.0, 6.0),  # hidden until 4
        Event("loop", 6.0, 9.0),
        Event("scores.1", 7.0, 8.0),  # inside the loop, on another thread
        Event("moved", 10.0, 10.0),
        Event("mlp_1", 10.0, 12.0),  # a GPU's name for it
    ]
    found = account(events, compiled, steps=2)
    assert found.step_seconds == 6.0
    assert found.families == {
        "matmul": Share(2.5, 3.0, 1.0),
        "attention": Share(0.5, 0.5, 0.5),
        "loss": Share(0.5, 1.0, 0.5),
        "collectives": Share(1.0, 1.5, 0.5),
        "copies": Share(0.0, 0.0, 0.5),
        "loops": Share(1.0, 1.5, 0.5),
        "idle": Share(0.5, 0.5, 0.0),
    }
    assert sum(share.seconds for share in found.families.values()) == found.step_seconds
    assert [(o.name, o.family) for o in found.largest][:3] == [
        ("mlp.1", "matmul"), ("gather", "collectives"), ("mlp_1", "matmul")
    ]  # fmt: skip
    assert "loop" not in [o.name for o in found.largest]


def test_places_are_told_in_the_programs_own_words() -> None:
    again = "jit(step)/transpose(jvp())/while/body/closed_call/checkpoint/rematted_computation/norm/mul"
    assert place(again) == "again, norm, mul"
    assert (
        place("jit(step)/shard_map/transpose(jvp())/while/body/mlp/ni,no->io/dot_general") == "backward, mlp, ni,no->io"
    )
    assert place("jit(step)/jvp(head_loss)/while/body/exp") == "head_loss, exp"
    assert place("") == ""


# -- reading traces ------------------------------------------------------------------------------------------------


def _event(name: str, start: float, seconds: float, **stats: Any) -> Any:
    return SimpleNamespace(name=name, start_ns=start * 1e9, duration_ns=seconds * 1e9, stats=list(stats.items()))


def _plane(plane: str, **lines: list[Any]) -> Any:
    found = [SimpleNamespace(name=name.replace("_", " "), events=events) for name, events in lines.items()]
    return SimpleNamespace(name=plane, lines=found)


def test_on_a_cpu_an_operation_ends_where_its_threads_do() -> None:
    python = [_event("PjitFunction(step)", 0, 9)]
    pool = [
        _event("dot.3", 1, 0.5, hlo_op="dot.3", device_ordinal=0, _p=7),
        _event("dot.3", 1, 0.5, hlo_op="dot.3", device_ordinal=1, _p=8),
        _event("add.1", 4, 1, hlo_op="add.1", device_ordinal=0, _p=9),
    ]
    other = [_event("end: dot.3", 3, 0, _c=7), _event("end: dot.3", 5, 0, _c=8), _event("end: add.1", 4.5, 0, _c=9)]
    found = list(trace.read([_plane("/host:CPU", python=python, pool=pool, other=other)]))
    assert found == [Event("dot.3", 1, 3), Event("add.1", 4, 5)]


def test_on_a_gpu_the_streams_of_the_first_device_count() -> None:
    streams = {
        "Stream_#7(Compute)": [_event("loop_add_fusion_2", 1, 1, hlo_op="loop_add_fusion.2"), _event("nvjet_x", 2, 1)],
        "XLA_Modules": [_event("jit_step", 0, 9)],
    }
    planes = [
        _plane("/host:CPU", t=[_event("x", 0, 1, hlo_op="x")]),
        _plane("/device:GPU:1"),
        _plane("/device:GPU:0", **streams),
    ]
    assert list(trace.read(planes)) == [Event("loop_add_fusion.2", 1, 2), Event("nvjet_x", 2, 3)]


def test_on_a_tpu_operations_are_named_by_their_text() -> None:
    ops = [_event("%fusion.12 = bf16[8,128]{1,0} fusion(%copy.1), kind=kLoop", 1, 1)]
    planes = [_plane("/device:TPU:0", Steps=[_event("0", 0, 9)], XLA_Ops=ops)]
    assert list(trace.read(planes)) == [Event("fusion.12", 1, 2)]


def test_a_jax_without_a_reader_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(jax.profiler, "ProfileData")
    with pytest.raises(RunError, match=r"has no jax\.profiler\.ProfileData"):
        trace.record(lambda: None)


def test_a_trace_without_operations_is_told() -> None:
    with pytest.raises(RunError, match="holds no operations"):
        trace.record(lambda: None)


# -- a real step ---------------------------------------------------------------------------------------------------


def _config() -> Config:
    values = to_dict(Config())
    values["model"].update(
        n_layers=4, d_model=64, n_heads=2, n_ctx=128, n_vocab=509, band_width=16, dtype="float32", vocab_multiple=64
    )
    values["train"].update(batch_tokens=8 * 128)
    values["memory"].update(loss_chunk=64, remat="full")
    values["parallel"].update(stage=3, tensor=2)
    return from_dict(values)


def test_a_real_steps_time_is_accounted_for() -> None:
    bench = step.StepBench(_config(), keep_batch=False)
    bench.measure(1, 1)
    program = Program(text(bench.program))
    calls: dict[str, float] = {}
    for instruction, times, _ in program.running():
        calls[instruction.name] = calls.get(instruction.name, 0) + times

    found = profiles.profile(bench, steps=2)
    assert sum(share.seconds for share in found.families.values()) == pytest.approx(found.step_seconds)
    assert "unknown" not in found.families
    assert {"matmul", "attention", "loss", "norm", "optimizer", "collectives"} <= set(found.families)
    assert set(found.families) <= set(FAMILIES)
    for operation in found.largest:
        assert operation.share.calls == calls[operation.name], operation.name  # each time that the program runs it
        assert operation.source.startswith("gpt3_jax/") or operation.family == "copies"

    # Every matmul of the traced program is where the scopes that the model is written with say it is.
    expected = {"ni,io->no": "matmul", "no,io->ni": "matmul", "ni,no->io": "matmul", "cd,vd->cv": "loss"}
    seen = set()
    for instruction in program.instructions.values():
        equation = next((e for e in expected if e in scope(instruction, program)), None)
        if equation and instruction.opcode == "dot":
            seen.add(equation)
            assert family(instruction, program) == expected[equation]
    assert seen == set(expected)
