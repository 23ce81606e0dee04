"""`memory.remat: offload` (ZeRO's P_a+cpu, section 6.1): the inputs of blocks lie in the host's memory between forward
and backward pass. It trains what full remat trains, to the bit; the traced program states each copy; compiled programs
make no others, and hold no input on the device. And what a plan says of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import NEEDS_GPU, NEEDS_TPU
from step_cells import CONTEXT, SEQUENCES, Cell, config, mesh_of, run

from gpt3_jax import devices
from gpt3_jax.config import load_config
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.plan import estimate, placement, roofline
from gpt3_jax.plan.predict import rates
from gpt3_jax.plan.receipt import make_receipt
from gpt3_jax.plan.roofline import Traffic, Work, predict
from gpt3_jax.plan.step import CompiledStep, compile_step
from gpt3_jax.plan.table import render
from gpt3_jax.plan.topologies import open_topology
from gpt3_jax.program.hlo import Program
from gpt3_jax.program.host_copies import HostCopy, host_copies
from gpt3_jax.program.memory_traffic import hbm_bytes
from gpt3_jax.program.schedule import Link, Rates, add_up, read_schedule
from gpt3_jax.program.traffic import HOST, Collective, count
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step

CELLS = [
    Cell(3, (1, 8, 1), 1, "offload"),
    Cell(2, (2, 2, 2), 3, "offload"),
    Cell(0, (1, 1, 8), 1, "offload"),
    Cell(3, (1, 4, 2), 1, "offload", mlp_parts=2),
    Cell(1, (1, 8, 1), 1, "offload", "bfloat16"),
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_it_trains_what_full_remat_trains_to_the_bit(cell: Cell) -> None:
    mine, its = run(cell), run(cell._replace(remat="full"))
    for got, want in zip(jax.tree.leaves(tuple(mine)), jax.tree.leaves(tuple(its)), strict=True):
        np.testing.assert_array_equal(got, want)


def of_step(cell: Cell) -> list[Collective]:
    settings = config(cell)
    mesh = mesh_of(settings)
    rows = jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
    return count(make_step(settings, mesh, cell.microbatches), abstract_state(settings, mesh), rows)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_each_blocks_input_goes_to_the_host_and_comes_back_once(cell: Cell) -> None:
    model = config(cell).model
    replica, data, tensor = cell.mesh
    # The residual stream is sharded over `tensor` too: P_a, which P_a+cpu is built on.
    elements = SEQUENCES // (replica * data * cell.microbatches) * CONTEXT * model.d_model // tensor
    found = [c for c in of_step(cell) if HOST in c.axes]
    for kind in ("to host", "from host"):
        copies = [c for c in found if c.kind == kind]
        assert {c.elements for c in copies} == {elements}
        assert {c.dtype for c in copies} == {model.dtype}
        assert sum(c.calls for c in copies) == model.n_layers * cell.microbatches
        sent = model.n_layers * cell.microbatches * elements * np.dtype(copies[0].dtype).itemsize
        assert sum(c.bytes_sent for c in copies) == sent
    assert {c.kind for c in found} == {"to host", "from host"}


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_nothing_else_moves_than_with_full_remat(cell: Cell) -> None:
    def moved(cell: Cell) -> list[tuple[object, ...]]:
        return [(c.kind, c.axes, c.elements, c.dtype, c.calls) for c in of_step(cell) if HOST not in c.axes]

    assert sorted(moved(cell)) == sorted(moved(cell._replace(remat="full")))


def test_which_way_a_copy_goes() -> None:
    here, there = jax.memory.Space.Device, jax.memory.Space.Host

    def loop(x: jax.Array) -> jax.Array:
        away = jax.lax.scan(lambda _, row: (None, jax.device_put(row, there)), None, x)[1]
        return jax.device_put(away, here)

    (to_host, back) = count(loop, jax.ShapeDtypeStruct((5, 7), jnp.float32))
    assert (to_host.kind, to_host.elements, to_host.calls) == ("to host", 7, 5)
    assert (back.kind, back.elements, back.calls) == ("from host", 35, 1)


def test_a_copy_that_may_not_run_is_not_counted() -> None:
    def maybe(x: jax.Array) -> jax.Array:
        def both_ways(x: jax.Array) -> jax.Array:
            return jax.device_put(jax.device_put(x, jax.memory.Space.Host), jax.memory.Space.Device)

        return jax.lax.cond(x[0] > 0, both_ways, lambda x: x, x)

    with pytest.raises(RunError, match=r"or to the host, at .*test_offload"):
        count(maybe, jax.ShapeDtypeStruct((7,), jnp.float32))


@pytest.mark.parametrize("remat", ["none", "minimal", "save_qkv_proj", "save_attention", "full"])
def test_no_other_remat_goes_to_the_host(remat: str) -> None:
    assert not [c for c in of_step(Cell(3, (1, 8, 1), 1, remat)) if HOST in c.axes]


# ---------------------------------------------------------------------------------------------------------------
# The reader, on texts in the forms of each compiler
# ---------------------------------------------------------------------------------------------------------------

ROW, STACK = 4 * 8 * 128, 6 * 4 * 8 * 128
WRITE = """%write (p0: f32[6,8,128], p1: f32[1,8,128], p2: s32[]) -> f32[6,8,128] {
  %p0 = f32[6,8,128]{2,1,0:T(8,128)S(5)} parameter(0)
  %p1 = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  ROOT %updated = f32[6,8,128]{2,1,0:T(8,128)S(5)} dynamic-update-slice(%p0, %p1, %p2, %p2, %p2)
}

"""
# A GPU puts a fusion around the slice, and an asynchronous start around the fusion.
WRITE_OF_A_GPU = """%inner (q0: f32[6,8,128], q1: f32[1,8,128], q2: s32[]) -> f32[6,8,128] {
  %q0 = f32[6,8,128]{2,1,0:S(5)} parameter(0)
  %q1 = f32[1,8,128]{2,1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %updated = f32[6,8,128]{2,1,0:S(5)} dynamic-update-slice(%q0, %q1, %q2, %q2, %q2)
}

%write (p0: f32[6,8,128], p1: f32[1,8,128], p2: s32[]) -> f32[6,8,128] {
  %p0 = f32[6,8,128]{2,1,0:S(5)} parameter(0)
  %p1 = f32[1,8,128]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %wrapped = f32[6,8,128]{2,1,0:S(5)} fusion(%p0, %p1, %p2), kind=kCustom, calls=%inner
}

"""
READ = """%read (p3: f32[6,8,128], p4: s32[]) -> f32[1,8,128] {
  %p3 = f32[6,8,128]{2,1,0:S(5)} parameter(0)
  %p4 = s32[] parameter(1)
  ROOT %slice = f32[1,8,128]{2,1,0} dynamic-slice(%p3, %p4, %p4, %p4), dynamic_slice_sizes={1,8,128}
}

"""
MATMUL = 2 * 128**3


def program(write: str, *between: str) -> Program:
    lines = [
        "%x = f32[1,8,128]{2,1,0} parameter(0)",
        "%m = f32[128,128]{1,0} parameter(1)",
        "%at = s32[] parameter(2)",
        '%kept = f32[6,8,128]{2,1,0:S(5)} custom-call(), custom_call_target="AllocateBuffer"',
        "%ws = ((f32[6,8,128]{2,1,0:S(5)}, f32[1,8,128]{2,1,0}, s32[]), f32[6,8,128]{2,1,0:S(5)}, u32[]) "
        "async-start(%kept, %x, %at), calls=%write",
        *between,
        "%wd = f32[6,8,128]{2,1,0:S(5)} async-done(%ws)",
        "%rs = ((f32[6,8,128]{2,1,0:S(5)}, s32[]), f32[1,8,128]{2,1,0}, u32[]) async-start(%wd, %at), calls=%read",
        "%rd = f32[1,8,128]{2,1,0} async-done(%rs)",
        "%cs = (f32[8,128]{1,0:S(5)}, f32[8,128]{1,0}, u32[]) copy-start(%flat)",
        "%cd = f32[8,128]{1,0:S(5)} copy-done(%cs)",
        "%back = f32[8,128]{1,0} copy(%cd)",
    ]
    lines.insert(5, "%flat = f32[8,128]{1,0} bitcast(%x)")
    body = "\n".join(f"  {line}" for line in lines)
    return Program(
        "HloModule jit_step, is_scheduled=true, num_partitions=1\n\n"
        f"{write}{READ}ENTRY %main (x: f32[1,8,128], m: f32[128,128], at: s32[]) -> f32[8,128] {{\n{body}\n}}\n"
    )


@pytest.mark.parametrize("write", [WRITE, WRITE_OF_A_GPU], ids=["tpu", "gpu"])
def test_copies_to_the_host_and_back_are_read(write: str) -> None:
    found = host_copies(program(write))
    assert [(c.kind, c.bytes, c.calls, c.asynchronous) for c in found] == [
        ("to host", ROW, 1, True),
        ("from host", ROW, 1, True),
        ("to host", ROW, 1, True),
        ("from host", ROW, 1, False),
    ]
    assert {c.axes({"data": 8}) for c in found} == {(HOST,)}
    assert hbm_bytes(program(write)) == 0, "what crosses to the host is no traffic between the matmuls"


AROUND = """%reduced (p5: f32[6,8,128], p6: s32[]) -> f32[8] {
  %p5 = f32[6,8,128]{2,1,0:S(5)} parameter(0)
  %p6 = s32[] parameter(1)
  %row = f32[1,8,128]{2,1,0} dynamic-slice(%p5, %p6, %p6, %p6), dynamic_slice_sizes={1,8,128}
  ROOT %sum = f32[8]{0} reduce(%row, %p6), dimensions={0,2}, to_apply=%add
}

%added (p7: f32[6,8,128], p8: f32[1,8,128], p9: f32[1,8,128], p10: s32[]) -> (f32[6,8,128], f32[1,8,128]) {
  %p7 = f32[6,8,128]{2,1,0:S(5)} parameter(0)
  %p8 = f32[1,8,128]{2,1,0} parameter(1)
  %p9 = f32[1,8,128]{2,1,0} parameter(2)
  %p10 = s32[] parameter(3)
  %both = f32[1,8,128]{2,1,0} add(%p8, %p9)
  %put = f32[6,8,128]{2,1,0:S(5)} dynamic-update-slice(%p7, %both, %p10, %p10, %p10)
  ROOT %pair = (f32[6,8,128]{2,1,0:S(5)}, f32[1,8,128]{2,1,0}) tuple(%put, %both)
}

%called (p11: f32[6,8,128], p12: s32[]) -> f32[1,8,128] {
  %p11 = f32[6,8,128]{2,1,0:S(5)} parameter(0)
  %p12 = s32[] parameter(1)
  ROOT %inner = f32[1,8,128]{2,1,0} call(%p11, %p12), to_apply=%read
}

"""
FORMS = [
    ("%f = f32[8]{0} fusion(%kept, %at), kind=kInput, calls=%reduced", [("from host", ROW)], ROW // 128),
    (
        "%f = (f32[6,8,128]{2,1,0:S(5)}, f32[1,8,128]{2,1,0}) fusion(%kept, %x, %x, %at), kind=kLoop, calls=%added",
        [("to host", ROW)],
        3 * ROW,
    ),
    ("%f = f32[2,8,128]{2,1,0} slice(%kept), slice={[0:2], [0:8], [0:128]}", [("from host", 2 * ROW)], 0),
    ("%f = f32[6,8,128]{2,1,0:S(5)} copy(%kept)", [], 0),
    ("%f = f32[6,8,128]{2,1,0} copy(%kept)", [("from host", STACK)], 0),
    ("%f = (f32[1,8,128]{2,1,0}, u32[]) async-start(%kept, %at), calls=%called", [("from host", ROW)], 0),
    ("%f = f32[6,8,128]{2,1,0:S(5)} get-tuple-element(%kept), index=0", [], 0),
    ("%f = f32[6,8,128]{2,1,0:S(5)} bitcast(%kept)", [], 0),
]


@pytest.mark.parametrize(("line", "copies", "between"), FORMS, ids=range(len(FORMS)))
def test_what_a_copy_may_stand_in(line: str, copies: list[tuple[str, int]], between: int) -> None:
    """And what a fusion moves beside it in the device's own memory."""
    text = (
        f"HloModule jit_step, is_scheduled=true, num_partitions=1\n\n{READ}{AROUND}"
        "ENTRY %main (x: f32[1,8,128], at: s32[]) -> f32[8] {\n"
        "  %x = f32[1,8,128]{2,1,0} parameter(0)\n  %at = s32[] parameter(1)\n"
        f"  %kept = f32[6,8,128]{{2,1,0:S(5)}} parameter(2)\n  {line}\n}}\n"
    )
    read = Program(text)
    assert [(c.kind, c.bytes) for c in host_copies(read)] == copies
    scheduled = read_schedule(read, by_hand(2.0))[1]
    # A start without a done is not through; all others are.
    assert [(one.collective.kind, one.collective.bytes_sent) for one in scheduled] == (
        [] if "async" in line else copies
    )
    assert hbm_bytes(read) == pytest.approx(between, abs=64)


def by_hand(seconds: float | None) -> Rates:
    """A matmul of 128 × 128 takes a second."""
    return Rates(MATMUL, 1e15, lambda c: (Link(HOST), seconds))


@pytest.mark.parametrize("write", [WRITE, WRITE_OF_A_GPU], ids=["tpu", "gpu"])
def test_what_stands_between_its_start_and_its_done_hides_a_copy(write: str) -> None:
    dot = "%{} = f32[128,128]{{1,0}} dot(%m, %m), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
    seconds, found = read_schedule(program(write, dot.format("one")), by_hand(2.0))
    # One of the write's two seconds is hidden; the other copies follow each other, and nothing stands between.
    assert [one.waited for one in found] == [1, 2, 2, 2]
    assert seconds == 1 + 1 + 2 + 2 + 2
    rows = {row.kind: row for row in add_up(found, {"data": 8})}
    assert rows["to host"].hidden == ROW / 2 and rows["to host"].seconds == 4
    assert rows["from host"].asynchronous == ROW


def test_of_a_way_without_a_figure_nothing_is_said() -> None:
    seconds, found = read_schedule(program(WRITE), by_hand(None))
    assert seconds == 0
    assert {(row.hidden, row.seconds, row.waited) for row in add_up(found, {"data": 8})} == {(None, None, 0.0)}


def test_rates_are_the_device_tables() -> None:
    copy = HostCopy("to host", 64e9, 2, True, "")
    h100, unknown = devices.lookup("NVIDIA H100 80GB HBM3"), devices.lookup("TPU7x")
    assert h100 is not None and unknown is not None
    share = roofline.LINK["PCIe"].share
    over, seconds = rates(h100, placement.host(h100), {"data": 8}).link(copy)
    assert over == Link(HOST) and seconds == pytest.approx(1 / share)
    assert rates(unknown, placement.host(unknown), {"data": 8}).link(copy) == (Link(HOST), None)


def test_a_prediction_counts_the_way_to_the_host_or_says_that_it_does_not() -> None:
    h100, tpu7x = devices.lookup("NVIDIA H100 80GB HBM3"), devices.lookup("TPU7x")
    assert h100 is not None and tpu7x is not None
    one_way = 1 / roofline.LINK["PCIe"].share  # seconds for 64 GB

    def predicted(flops: float, to_host: float, back: float, device: devices.Device) -> roofline.Prediction:
        traffic = (Traffic((HOST,), "to host", 64e9 * to_host, 10), Traffic((HOST,), "from host", 64e9 * back, 10))
        return predict(Work(1000, 1, flops, flops, 0.0, 0.0, traffic), device, placement.host(device))

    found = predicted(1e17, 1, 1, h100)
    (link,) = found.links
    assert link.medium == "PCIe" and link.seconds == pytest.approx(2 * one_way)
    assert link.exposed == pytest.approx(2 * one_way / 10), "one block's of ten"
    assert found.step_seconds == pytest.approx(found.compute_seconds + link.exposed)
    # On the way out only the forward pass hides it, on the way back only the rest.
    quarter = found.compute_seconds / 4
    for there, back, beside in ((1000, 1, quarter), (1, 1000, 3 * quarter)):
        slow = predicted(1e17, there, back, h100)
        waited = (1 + 1000) * one_way / 10 + (0.9 * 1000 * one_way - beside)
        assert slow.step_seconds == pytest.approx(slow.compute_seconds + waited)
        assert slow.bound == "PCIe of host"

    for there, back, bytes_a_second in ((2, 1, 4 * 128e9), (1, 9, 4 / 3 * 9 * 64e9)):
        unknown = predicted(1e17, there, back, tpu7x)
        assert not unknown.links and unknown.step_seconds == unknown.compute_seconds
        rate = bytes_a_second / unknown.step_seconds / 1e9
        assert any(f"keeps up: {rate:.3g} GB/s;" in line and "TPU7x" in line for line in unknown.assumptions)
    assert not any("keeps up" in line for line in found.assumptions)


def test_a_loops_copies_are_one_for_each_block() -> None:
    copies = [Collective(kind, (HOST,), 1, 64, "float32", 4, "") for kind in ("to host", "from host") * 2]
    assert set(roofline.traffic_of(copies)) == {
        Traffic((HOST,), "to host", 2 * 4 * 64 * 4, 8),
        Traffic((HOST,), "from host", 2 * 4 * 64 * 4, 8),
    }


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_estimate_knows_its_copies_and_its_work(cell: Cell) -> None:
    settings = config(cell)
    ours, full = (
        estimate.work(c, MeshShape(*cell.mesh), cell.microbatches, "tpu", overlaps_scatters=True)
        for c in (settings, config(cell._replace(remat="full")))
    )
    assert ours.matmul_flops == full.matmul_flops and ours.hbm_bytes == full.hbm_bytes
    found = {part.kind: part for part in ours.traffic if part.axes == (HOST,)}
    traced = {part.kind: part for part in roofline.traffic_of(of_step(cell)) if part.axes == (HOST,)}
    assert found == traced
    assert [part for part in ours.traffic if part.axes != (HOST,)] == list(full.traffic)


@pytest.mark.parametrize(
    ("layers", "unroll", "line"),
    [(4, 2, "set memory.unroll to 1"), (8, 2, "set memory.unroll to 1"), (2, 1, "set memory.remat to full")],
)
def test_without_a_plain_loop_over_depth_it_is_refused(layers: int, unroll: int, line: str) -> None:
    """Compilers would keep the inputs on the device all through the forward pass, or fail."""
    asked = ["--model.n_layers", str(layers), "--memory.unroll", str(unroll), "--memory.remat"]
    with pytest.raises(UserError, match=line):
        load_config(["gpt3-small"], [*asked, "offload"])
    load_config(["gpt3-small"], [*asked, "full"])


def test_parts_of_an_mlp_go_with_it_and_with_nothing_less() -> None:
    asked = ["--parallel.stage", "3", "--memory.mlp_parts", "4", "--memory.remat"]
    assert load_config(["gpt3-small"], [*asked, "offload"]).memory.mlp_parts == 4
    with pytest.raises(UserError, match="only stage 3 with remat full or offload"):
        load_config(["gpt3-small"], [*asked, "minimal"])


# ---------------------------------------------------------------------------------------------------------------
# Compiled for hardware that is not there
# ---------------------------------------------------------------------------------------------------------------

LAYERS, WIDTH, TOKENS = 8, 1024, 4 * 1024


@functools.cache
def compiled(topology: str, remat: str, stage: int) -> CompiledStep:
    """4 sequences of 1,024 on each device: 8 MiB for each block's input."""
    shape = ["--model.n_layers", str(LAYERS), "--model.d_model", str(WIDTH), "--model.n_heads", "8"]
    shape += ["--model.n_ctx", "1024", "--train.batch_tokens", str(8 * TOKENS), "--train.ramp_tokens", "0"]
    shape += ["--parallel.stage", str(stage), "--parallel.data", "8", "--memory.remat", remat]
    return compile_step(load_config(["gpt3-small"], shape), open_topology(topology))


def stacks_of_inputs(program: Program) -> set[bool]:
    """Of each stack of blocks' inputs in a program, of all layers or of every second, whether it lies on the host."""
    stack = re.compile(rf"bf16\[[248],4,1024,{WIDTH}\]\{{([^}}]*)\}}")
    return {"S(5)" in layout for i in program.instructions.values() for layout in stack.findall(i.shape)}


@pytest.mark.parametrize(
    ("topology", "stage"),
    [
        pytest.param("v5p:2x2x2", 3, marks=NEEDS_TPU),
        pytest.param("h100:1x8", 3, marks=NEEDS_GPU),
        pytest.param("h100:1x8", 1, marks=NEEDS_GPU),
    ],
)
def test_a_compiled_program_keeps_no_blocks_input_on_the_device(topology: str, stage: int) -> None:
    step, full = compiled(topology, "offload", stage), compiled(topology, "full", stage)
    inputs = LAYERS * TOKENS * WIDTH * 2
    assert step.peak.host == inputs and full.peak.host == 0
    assert stacks_of_inputs(step.program) == {True} and stacks_of_inputs(full.program) == {False}
    copies = host_copies(step.program)
    assert all(copy.asynchronous for copy in copies)
    back, there = (sum(c.bytes_sent for c in copies if c.kind == kind) for kind in ("from host", "to host"))
    # A TPU's compiler puts each write off by one turn of the loop, and makes one more for that.
    assert back == inputs and there in (inputs, inputs * (LAYERS + 1) // LAYERS)
    assert not host_copies(full.program)

    receipt = make_receipt(step)
    assert receipt.memory.host == inputs
    for rows in (receipt.traced, receipt.compiled):
        assert {row.kind for row in rows if row.axes == HOST} == {"to host", "from host"}
    text = render(receipt)
    assert f"in the host's memory, for each device: {inputs / 2**20:.1f} MiB" in text
    gpu = topology.startswith("h100")
    assert (f"; for the 8 of a node {8 * inputs / 2**20:.1f} MiB, of 64 GiB" in text) == gpu
    assert receipt.prediction is not None and math.isfinite(receipt.prediction.step_seconds)
    if gpu and stage == 3:
        hidden = [row for row in receipt.overlap if row.axes == HOST]
        assert all(row.hidden is not None and row.hidden > 0.5 * row.bytes for row in hidden)
    if gpu:
        topology_of = receipt.topology | {"devices_of_a_host": 2000}
        text = render(dataclasses.replace(receipt, topology=topology_of))
        assert "above the 64 GiB that XLA takes there for a process: set " in text
        assert "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB=138, if the host has it" in text
