"""Plans of generation and evaluation: on fake CPU devices, where what they say can be counted."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import needs_compiler_of
from fake_topologies import fake_topology, small_node
from jax.sharding import NamedSharding, PartitionSpec

from gpt3_jax.cli import main as front
from gpt3_jax.config import Config, ModelConfig, ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.inference import generate, placed
from gpt3_jax.model.params import param_table
from gpt3_jax.model.stored import contracted, stores
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.parallel.rules import TENSOR_RULES
from gpt3_jax.plan import topologies
from gpt3_jax.plan.inference import InferenceReceipt, inference_from_json, inference_to_json, plan_inference
from gpt3_jax.plan.inference_batch import Batch, Use, batch_of
from gpt3_jax.plan.inference_table import render_inference
from gpt3_jax.train.state import state_shardings

MODEL = ModelConfig(
    n_layers=2,
    d_model=64,
    n_heads=8,
    n_ctx=64,
    n_vocab=257,
    vocab_multiple=64,
    band_width=8,
    dtype="float32",
)
CONFIG = Config(model=MODEL, parallel=ParallelConfig(replica=1, data=2, tensor=4, stage=3))
BATCH = Batch(rows=8, prompt_tokens=32, new_tokens=16)


BEAMS = dataclasses.replace(BATCH, beams=2)


@functools.cache
def receipt(use: Use, beams: bool = False) -> InferenceReceipt:
    batch = BEAMS if beams else BATCH if use == "generate" else Batch(rows=8, prompt_tokens=64, new_tokens=0)
    return plan_inference(CONFIG, small_node(2**30), use, batch)


def weight_bytes(parts: int = 1) -> int:
    """Of one device: split over tensor where an axis is, and in so many parts over data."""
    return sum(
        4 * spec.size // (4 if any(TENSOR_RULES[axis] for axis in spec.axes) else 1) // parts
        for spec in param_table(MODEL).leaves()
    )


def test_generation_needs_its_weights_its_cache_and_what_is_made_in_between() -> None:
    prefill, decode = receipt("generate").programs
    # Rows 4 of a shard, heads 2, head width 8, keys and values: 48 positions of the dense layer, 8 of the band.
    # Beside them each row's length.
    cache = 4 * 2 * 8 * 2 * 4 * (48 + 8) + 4 * 4
    for program in (prefill, decode):
        assert program.memory.weights == weight_bytes()
        assert program.memory.cache == cache
        assert 0 < program.memory.other < 4096 and program.memory.temporaries > 0
    assert (prefill.tokens, decode.tokens) == (8 * 32, 8)
    assert receipt("generate").fits is True


def test_beam_search_is_planned_with_its_own_programs() -> None:
    plain, (prefill, decode) = receipt("generate").programs, receipt("generate", beams=True).programs
    cache = plain[1].memory.cache
    assert [p.name for p in (prefill, decode)] == ["beam prefill", "beam decode"]
    assert (prefill.tokens, decode.tokens) == (4 * 32, 8)
    for program in (prefill, decode):
        assert (program.memory.weights, program.memory.cache) == (weight_bytes(), cache)
    gathered = [
        next(row for row in p.traced if (row.axes, row.kind) == ("data", "all-gather")) for p in (*plain, decode)
    ]
    assert [row.calls for row in gathered] == [2, 2, 3], "candidates: their scores, parents and tokens"
    assert decode.time is not None and plain[1].time is not None
    assert decode.time.parts["reading weights, reordering and reading the cache"] == pytest.approx(
        (weight_bytes() + 3 * cache) / (0.8 * 3350e9)
    )
    text = render_inference(receipt("generate", beams=True))
    for words in (
        "8 rows at once, beam search: 4 prompts × 2 hypotheses, prompts of 32 tokens",
        "beam decode, which reorders the cache",
        "the cache is copied in the order of the hypotheses",
        "4 completions of 16 tokens",
    ):
        assert words in text
    assert "beam" not in render_inference(receipt("generate"))


def test_a_tokens_traffic_is_that_of_its_program() -> None:
    prefill, decode = ({(row.axes, row.kind): row for row in p.traced} for p in receipt("generate").programs)
    ring, sums = 2 * 3 / 4, 2 * MODEL.n_layers + 1
    assert decode["tensor", "all-reduce"].calls == prefill["tensor", "all-reduce"].calls == sums
    assert decode["tensor", "all-reduce"].bytes == sums * ring * 4 * 4 * 64
    assert prefill["tensor", "all-reduce"].bytes == 32 * decode["tensor", "all-reduce"].bytes
    assert decode["tensor", "all-gather"].bytes == 3 / 4 * 4 * 4 * MODEL.n_vocab_padded


def test_a_token_takes_as_long_as_its_weights_and_cache_take_to_read_and_its_sums_to_pass() -> None:
    _, decode = receipt("generate").programs
    assert decode.time is not None
    read = (decode.memory.weights + decode.memory.cache) / (0.8 * 3350e9)
    links = sum(seconds for name, seconds in decode.time.parts.items() if "NVLink" in name)
    assert decode.time.parts["reading weights and cache"] == pytest.approx(read)
    assert decode.time.seconds == pytest.approx(read + links) and links > 0
    assert decode.time.tokens_per_second == pytest.approx(8 / decode.time.seconds)
    assert any("latency" in line for line in decode.time.assumptions)


def test_evaluation_keeps_its_parameters_as_training_does() -> None:
    program, *_ = receipt("evaluate").programs
    assert program.memory.weights == weight_bytes(parts=2)
    assert program.memory.cache == 0 and program.tokens == 8 * 64
    gathered = next(row for row in program.traced if (row.axes, row.kind) == ("data", "all-gather"))
    table = 4 * MODEL.n_vocab_padded * MODEL.d_model // 4
    # Stage 3 gathers every weight, the token table twice.
    assert gathered.bytes == pytest.approx((weight_bytes() + table) / 2)
    assert program.time is not None and program.time.seconds > 0
    assert not any("checkpoints" in line for line in program.time.assumptions)


def test_evaluation_generates_with_its_weights_moved_over_tensor() -> None:
    found = receipt("evaluate")
    scoring, *generating = found.programs
    assert [p.name for p in generating] == ["beam prefill", "beam decode"]
    for program in generating:
        assert (program.memory.weights, program.memory.beside) == (weight_bytes(), 0)
        # 16 rows of a shard, heads 2, head width 8: 64 positions of the dense layer, 8 of the band.
        assert program.memory.cache == 16 * 2 * 8 * 2 * 4 * (64 + 8) + 16 * 4
    # While they are moved: all of the generator's, and of scoring's what is not of the blocks and one parameter.
    assert found.moving is not None and scoring.memory.weights + weight_bytes() > found.moving > weight_bytes()
    tight = dataclasses.replace(found, usable=max(p.memory.total for p in found.programs))
    assert tight.fits is True and dataclasses.replace(tight, moving=10 * found.moving).fits is False
    assert "DOES NOT FIT" in render_inference(dataclasses.replace(tight, moving=10 * found.moving))
    in_bf16 = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, dtype="bfloat16"))
    fp32 = plan_inference(in_bf16, small_node(2**30), "evaluate", Batch(8, 64, 0), "float32")
    assert fp32.moving is None and [p.memory.beside for p in fp32.programs] == [0, *[weight_bytes(parts=2)] * 2]
    assert "parameters of scoring" in render_inference(fp32)


@pytest.mark.parametrize("name", ["qkv_kernel", "mlp_up_kernel", "mlp_down_kernel"])
def test_a_parameter_that_is_moved_back_has_no_other_form_beside_its_two(name: str) -> None:
    """`moving` counts no temporaries of a move: the program that stacks a parameter's layers has none."""
    mesh = make_mesh(CONFIG.parallel, jax.devices())
    spec, where = getattr(param_table(MODEL).blocks, name), getattr(state_shardings(CONFIG, mesh).params.blocks, name)
    layers = tuple(getattr(block, name) for block in placed.abstract_weights(MODEL, mesh).blocks)
    used: Any = placed._stack.lower(layers, spec, where).compile().memory_analysis()
    assert used.output_size_in_bytes == 4 * spec.size // 8 and used.temp_size_in_bytes < 64


@pytest.mark.parametrize(("use", "beams"), [("generate", False), ("generate", True), ("evaluate", False)])
def test_a_receipt_is_printed_whole_and_comes_back_from_json(use: Use, beams: bool) -> None:
    found = receipt(use, beams)
    data = json.loads(json.dumps(inference_to_json(found)))
    assert data["fits"] is True and inference_from_json(data) == found
    text = render_inference(found)
    for word in ("fits", "weights", "temporaries", "tokens/s", "assumed", *(p.name for p in found.programs)):
        assert word in text
    assert ("completions of 16 tokens" in text) == (use == "generate")


def test_int8_weights_take_a_quarter_of_fp32s_and_scales() -> None:
    found = plan_inference(CONFIG, small_node(2**30), "generate", BATCH, "int8")
    expected = 0
    for spec in param_table(MODEL).leaves():
        inputs = spec.axes[contracted(spec) + spec.stacked] if stores(spec) else None
        outputs = [axis for axis in spec.axes if axis != inputs]
        parts = 4 if any(TENSOR_RULES[axis] for axis in spec.axes) else 1
        if inputs is None:
            expected += 4 * spec.size // parts
            continue
        scales = spec.size // spec.shape[spec.axes.index(inputs)]
        expected += spec.size // parts + 4 * scales // (4 if any(TENSOR_RULES[axis] for axis in outputs) else 1)
    for program in found.programs:
        assert program.memory.weights == expected < 0.4 * weight_bytes()
    assert found.model["weights"] == "int8" and "weights in int8 over tensor" in render_inference(found)


def test_a_device_without_figures_has_memory_and_no_time() -> None:
    one = dataclasses.replace(CONFIG, parallel=ParallelConfig(data=1))
    found = plan_inference(one, fake_topology(1), "evaluate", Batch(2, 32, 0))
    assert found.fits is None and [p.traced for p in found.programs] == [()] * 3
    assert "capacity not known" in render_inference(found)


def test_a_batchs_defaults_fill_the_context() -> None:
    mesh = make_mesh(CONFIG.parallel, fake_topology().devices)
    assert batch_of(CONFIG, mesh, "generate", None, None, None) == Batch(32, 32, 32)
    assert batch_of(CONFIG, mesh, "generate", 3, 10, None) == Batch(6, 10, 54)
    assert batch_of(CONFIG, mesh, "generate", None, None, None, 4) == Batch(32, 32, 32, 4)
    assert batch_of(CONFIG, mesh, "generate", None, None, None, 5).rows == 2 * 15
    assert batch_of(CONFIG, mesh, "generate", None, None, None, 20).rows == 2 * 20
    assert batch_of(CONFIG, mesh, "evaluate", None, None, None) == Batch(2 * 256, 64, 0)
    for arguments, message in (
        (("generate", None, 60, 5), "their sum may be at most 64"),
        (("generate", None, 64, None), "at least one new token"),
        (("generate", 0, None, None), "--rows is 0"),
        (("evaluate", None, 65, None), "--prompt-tokens is 65"),
        (("evaluate", None, None, 3), "--new-tokens 3 is for --for generate"),
        (("evaluate", None, None, None, 4), "--beams 4 is for --for generate"),
        (("generate", None, None, None, 0), "--beams is 0"),
        (("generate", 6, None, None, 4), "--rows 6 is not divisible by --beams 4"),
    ):
        with pytest.raises(UserError, match=message):
            batch_of(CONFIG, mesh, *arguments)  # type: ignore[arg-type]


TINY = ["plan", "--config", "gpt3-small", "--topology", "v5p:2x2x2", "--model.n_layers", "2", "--model.d_model", "64",
        "--model.n_heads", "4", "--model.n_ctx", "32", "--model.n_vocab", "300", "--model.band_width", "8",
        "--model.dtype", "float32", "--parallel.tensor", "4"]  # fmt: skip


def test_the_command_prints_keeps_and_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(topologies, "open_topology", lambda name, slices=1: small_node(2**30))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = [*TINY, "--for", "generate", "--rows", "2"]
    assert front.main(asked) == 0
    assert "4 rows at once, prompts of 16 tokens" in capsys.readouterr().out
    assert front.main([*asked, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "using the cached plan" in err and json.loads(out)["batch"]["rows"] == 4
    assert front.main([*asked, "--new-tokens", "40"]) == 2
    assert "their sum may be at most 32" in capsys.readouterr().err
    assert front.main([*asked, "--beams", "2"]) == 0
    assert "4 rows at once, beam search: 2 prompts × 2 hypotheses" in capsys.readouterr().out
    monkeypatch.setattr(topologies, "open_topology", lambda name, slices=1: small_node(2**10))
    assert front.main([*asked, "--no-cache"]) == 1
    out = capsys.readouterr().out
    assert out.count("DOES NOT FIT") == 2 and out.count("no prediction, because it does not fit") == 2
    for arguments, message in (
        ([*TINY, "--rows", "2"], "--rows 2 is for --for generate or --for evaluate"),
        ([*TINY, "--beams", "2"], "--beams 2 is for --for generate or --for evaluate"),
        ([*TINY, "--for", "generate", "--weights", "float32"], "--weights float32 is for --for evaluate"),
        ([*TINY, "--for", "evaluate", "--weights", "int8"], "--weights int8 is for --for generate"),
        ([*TINY, "--for", "evaluate", "--search"], "--search is for training"),
    ):
        assert front.main(arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("topology", "kernel"),
    [
        pytest.param(name, kernel, marks=needs_compiler_of(name))
        for name, kernel in (("v5p:2x2x2", "tpu_custom_call"), ("h100:1x8", "__cudnn$fmhaSoftmax"))
    ],
)
def test_over_a_mesh_prompts_are_read_by_the_platforms_kernel(topology: str, kernel: str) -> None:
    """A kernel for each layer, dense or banded, and no other one."""
    model = dataclasses.replace(MODEL, d_model=1024, n_ctx=512, n_vocab=5000, band_width=128, dtype="bfloat16")
    mesh = make_mesh(ParallelConfig(replica=1, data=1, tensor=8), topologies.open_topology(topology).devices)
    place = generate.make_place(model, model.n_vocab, mesh)
    ints = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    draw = generate.Draw(np.uint32(0), ints((2,)), np.float32(1), np.int32(0), np.float32(1))  # type: ignore[arg-type]
    weights = placed.abstract_weights(model, mesh)
    text = generate.begin.lower(weights, ints((2, 256)), ints((2,)), draw, place, 512).compile().as_text()
    assert text is not None and text.count(f'custom_call_target="{kernel}"') == model.n_layers


@pytest.mark.parametrize(
    ("topology", "use", "beams"),
    [
        pytest.param(name, use, None, marks=needs_compiler_of(name))
        for name, use in (("v5p:2x2x2", "generate"), ("h100:1x8", "generate"), ("h100:1x8", "evaluate"))
    ]
    + [pytest.param("h100:1x8", "generate", 4, marks=[pytest.mark.slow, needs_compiler_of("h100:1x8")])],
)
def test_compilers_of_accelerators_take_the_programs(topology: str, use: Use, beams: int | None) -> None:
    model = dataclasses.replace(MODEL, d_model=1024, n_ctx=512, n_vocab=5000, band_width=128, dtype="bfloat16")
    config = Config(model=model, parallel=ParallelConfig(replica=1, data=1, tensor=8, stage=3))
    machine = topologies.open_topology(topology)
    batch = Batch(2 * (beams or 1), 256, 256 if use == "generate" else 0, beams)
    found = plan_inference(config, machine, use, batch, "compute")
    for program in found.programs:
        expected = sum(
            2 * spec.size // (8 if any(TENSOR_RULES[axis] for axis in spec.axes) else 1)
            for spec in param_table(config.model).leaves()
        )
        # Layouts may pad a little.
        assert expected <= program.memory.weights < 1.01 * expected
        assert (program.memory.cache > 0) == (program.name != "evaluate")
        assert program.time is not None and program.time.seconds > 0
    if use == "generate":
        decode = found.programs[1].memory
        assert decode.temporaries < decode.weights
        if topology.startswith("h100"):  # the hypotheses' cache is gathered into a second one
            assert (decode.temporaries > decode.cache) == (beams is not None)
