"""What a program's schedule hides of its traffic: on texts small enough to reckon by hand, and on programs compiled for
TPUs and GPUs, whose matmul work must be found in full where the schedule is read."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from compilers import NEEDS_GPU, NEEDS_TPU

from gpt3_jax.config import load_config
from gpt3_jax.devices import lookup
from gpt3_jax.model.transformer import band_shares
from gpt3_jax.parallel.mesh import shape_of
from gpt3_jax.plan.placement import Interconnect
from gpt3_jax.plan.predict import place, rates
from gpt3_jax.plan.receipt import make_receipt
from gpt3_jax.plan.roofline import LINK
from gpt3_jax.plan.step import CompiledStep, compile_step
from gpt3_jax.plan.topologies import open_topology
from gpt3_jax.program.flops import matmul_flops
from gpt3_jax.program.hlo import Program
from gpt3_jax.program.kernels import attention_kernel, instruction_flops
from gpt3_jax.program.schedule import Link, Rates, Scheduled, add_up, read_schedule

V5P: Any = lookup("TPU v5")
MATMUL = 2 * 8 * 8 * 8
SHAPE = {"data": 8}
RATES = Rates(flops=MATMUL, hbm=1e12, link=lambda c: (Link("+".join(c.axes(SHAPE))), c.bytes_sent / c.calls / 224))
"""A matmul takes a second. The memory is too fast to matter. A gather of [64] f32 from 8 devices takes a second."""

HEAD = """HloModule jit_step, is_scheduled=true, num_partitions=8

%matmul (p0: f32[8,8], p1: f32[8,8]) -> f32[8,8] {
  %p0 = f32[8,8]{1,0} parameter(0)
  %p1 = f32[8,8]{1,0} parameter(1)
  ROOT %product = f32[8,8]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

"""


def program(*lines: str, before: str = "") -> Program:
    body = "\n".join(f"  {line}" for line in lines)
    return Program(
        f"{HEAD}{before}ENTRY %main (a: f32[8,8], s: f32[8]) -> f32[8,8] {{\n  %a = f32[8,8]{{1,0}} parameter(0)\n"
        f"  %s = f32[8]{{0}} parameter(1)\n{body}\n}}\n"
    )


def matmul(name: str) -> str:
    return f"%{name} = f32[8,8]{{1,0}} fusion(%a, %a), kind=kOutput, calls=%matmul"


GROUPS = "replica_groups=[1,8]<=[8], dimensions={0}"


def gather_start(name: str) -> str:
    return f"%{name} = (f32[8]{{0}}, f32[64]{{0}}) all-gather-start(%s), {GROUPS}"


def gather_done(name: str, start: str) -> str:
    return f"%{name} = f32[64]{{0}} all-gather-done(%{start})"


def only(found: tuple[float, list[Scheduled]]) -> tuple[float, Scheduled]:
    seconds, (one,) = found
    return seconds, one


def test_what_is_not_split_is_waited_for() -> None:
    seconds, one = only(
        read_schedule(program(matmul("m"), f"%g = f32[64]{{0}} all-gather(%s), {GROUPS}", matmul("n")), RATES)
    )
    assert (seconds, one.seconds, one.waited, one.flops, one.hidden) == (3, 1, 1, 0, 0)
    assert not one.collective.asynchronous


@pytest.mark.parametrize(("before", "between", "waited"), [(1, 0, 1), (0, 1, 0), (2, 3, 0)])
def test_what_stands_between_start_and_done_hides_it(before: int, between: int, waited: float) -> None:
    lines = [matmul(f"b{i}") for i in range(before)]
    lines += [gather_start("g"), *(matmul(f"m{i}") for i in range(between)), gather_done("d", "g")]
    seconds, one = only(read_schedule(program(*lines), RATES))
    assert (one.waited, one.flops, one.collective.asynchronous) == (waited, between * MATMUL, True)
    assert seconds == before + between + waited


def test_half_of_it_is_hidden_where_the_compute_lasts_half_as_long() -> None:
    half = program(gather_start("g"), matmul("m"), gather_done("d", "g"))
    slow = Rates(RATES.flops, RATES.hbm, lambda c: (Link("data"), 2.0))
    seconds, one = only(read_schedule(half, slow))
    assert (seconds, one.waited, one.hidden) == (2, 1, 0.5)
    (row,) = add_up([one], SHAPE)
    assert (row.axes, row.kind, row.hidden, row.asynchronous, row.bytes) == ("data", "all-gather", 112, 224, 224)


def test_collectives_over_one_axis_follow_each_other() -> None:
    both = program(gather_start("g"), gather_start("h"), matmul("m"), gather_done("e", "h"), gather_done("d", "g"))
    seconds, (second, first) = read_schedule(both, RATES)
    # The first has the link to itself while the matmul runs; for the second it is waited.
    assert seconds == 2
    assert (first.waited, second.waited) == (0, 1)
    apart = Rates(RATES.flops, RATES.hbm, lambda c: (Link(str(id(c))), 1.0))
    assert read_schedule(both, apart)[0] == 1


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        (("tensor", "up"), ("tensor", ""), 2),  # which takes both directions
        (("tensor", ""), ("tensor", "down"), 2),
        (("tensor", "up"), ("tensor", "up"), 2),
        (("tensor", "up"), ("tensor", "down"), 1),
        (("data", ""), ("data+tensor", ""), 1),
    ],
)
def test_an_axis_and_its_directions_share_a_link(first: Any, second: Any, want: float) -> None:
    both = program(gather_start("g"), gather_start("h"), matmul("m"), gather_done("d", "g"), gather_done("e", "h"))
    links = iter([Link(*first), Link(*second)])
    assert read_schedule(both, Rates(RATES.flops, RATES.hbm, lambda _: (next(links), 1.0)))[0] == want


def permute_start(name: str, pairs: str) -> str:
    return f"%{name} = (f32[8]{{0}}, f32[8]{{0}}) collective-permute-start(%s), source_target_pairs={{{pairs}}}"


RING = {"tensor": 4}
UP, DOWN = "{0,1},{1,2},{2,3},{3,0}", "{1,0},{2,1},{3,2},{0,3}"


@pytest.mark.parametrize(
    ("placed", "opposite", "alike"),
    [
        (Interconnect("ICI", 2 * V5P.links.bandwidth, "a ring", ring=True), 2, 4),
        (Interconnect("ICI", V5P.links.bandwidth, "a line"), 4, 4),
        (Interconnect("NVLink", V5P.links.bandwidth, "a switch"), 4, 4),
    ],
    ids=lambda value: value.how if isinstance(value, Interconnect) else "",
)
def test_on_a_ring_permutes_in_both_directions_run_at_once(placed: Interconnect, opposite: int, alike: int) -> None:
    """In units of what one takes alone, half of it for what shares the bandwidth with others."""
    real = rates(V5P, {"tensor": placed}, RING)
    (one,) = program(permute_start("p", UP)).collectives()
    alone = real.link(one)[1]
    assert alone is not None
    assert alone == pytest.approx(32 / (V5P.links.bandwidth * LINK[placed.medium].share))
    for second, want in ((DOWN, opposite), (UP, alike)):
        lines = permute_start("p", UP), permute_start("q", second)
        dones = [f"%{name}d = f32[8]{{0}} collective-permute-done(%{name})" for name in "pq"]
        seconds, found = read_schedule(program(*lines, *dones), real)
        assert seconds == pytest.approx(want / 2 * alone)
        assert sum(one.waited for one in found) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("ring", "pairs", "link", "share"),
    [
        (True, UP, Link("tensor", "up"), 1),
        (True, DOWN, Link("tensor", "down"), 1),
        (True, "{0,2},{1,3},{2,0},{3,1}", Link("tensor"), 2),  # two steps
        (False, UP, Link("tensor"), 2),  # two lines
    ],
)
def test_a_permute_to_the_neighbour_on_a_ring_takes_one_link(ring: bool, pairs: str, link: Link, share: int) -> None:
    placed = Interconnect("ICI", 2 * V5P.links.bandwidth, "", ring)
    (one,) = program(permute_start("p", pairs)).collectives()
    seconds = 32 / (share * V5P.links.bandwidth * LINK["ICI"].share)
    found = rates(V5P, {"tensor": placed}, RING).link(one)
    assert found[0] == link and found[1] == pytest.approx(seconds)


def test_a_loop_multiplies() -> None:
    body = f"""%body (state: (s32[], f32[8,8], f32[8])) -> (s32[], f32[8,8], f32[8]) {{
  %state = (s32[], f32[8,8]{{1,0}}, f32[8]{{0}}) parameter(0)
  %a.1 = f32[8,8]{{1,0}} get-tuple-element(%state), index=1
  %s.1 = f32[8]{{0}} get-tuple-element(%state), index=2
  %g = (f32[8]{{0}}, f32[64]{{0}}) all-gather-start(%s.1), {GROUPS}
  %m = f32[8,8]{{1,0}} fusion(%a.1, %a.1), kind=kOutput, calls=%matmul
  %d = f32[64]{{0}} all-gather-done(%g)
  %n = f32[8,8]{{1,0}} fusion(%a.1, %a.1), kind=kOutput, calls=%matmul
  ROOT %next = (s32[], f32[8,8]{{1,0}}, f32[8]{{0}}) tuple(%state)
}}

"""
    loop = '%loop = (s32[]) while(%a), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    seconds, one = only(read_schedule(program(loop, before=body), RATES))
    assert (seconds, one.collective.calls, one.waited, one.flops) == (10, 5, 0, MATMUL)


def test_a_tpu_writes_one_collective_into_fusions_that_start_carry_and_end_it() -> None:
    gather = f"""  %q = f32[8]{{0}} parameter(0)
  %whole = f32[64]{{0}} all-gather(%q), {GROUPS}
"""
    pieces = "".join(
        f"%{name} (q: f32[8]) -> f32[64] {{\n{gather}{more}}}\n\n"
        for name, more in (
            ("starts", ""),
            ("carries", "  %product.1 = f32[8,8]{1,0} dot(%q, %q), lhs_contracting_dims={1}\n"),
            ("ends", ""),
        )
    ).replace("dot(%q, %q)", "fusion(%q, %q), calls=%matmul")
    text = (
        "%async-collective-start = (f32[8]{0}, f32[64]{0}) fusion(%s), kind=kCustom, calls=%starts",
        "%e0 = f32[64]{0} get-tuple-element(%async-collective-start), index=1",
        "%carrier = (f32[8,8]{1,0}, f32[64]{0}) fusion(%e0, %a), kind=kOutput, calls=%carries",
        "%e1 = f32[64]{0} get-tuple-element(%carrier), index=1",
        "%async-collective-done = f32[64]{0} fusion(%e1), kind=kCustom, calls=%ends",
    )
    seconds, one = only(read_schedule(program(*text, before=pieces), RATES))
    assert (seconds, one.waited, one.flops, one.collective.asynchronous) == (1, 0, MATMUL, True)
    seconds, one = only(read_schedule(program(*text[:2], text[4].replace("%e1", "%e0"), before=pieces), RATES))
    assert (seconds, one.waited, one.flops) == (1, 1, 0)


SPARSE_CORE = f"""%inner (q: f32[8]) -> f32[64] {{
  %q = f32[8]{{0}} parameter(0)
  ROOT %whole = f32[64]{{0}} all-gather(%q), {GROUPS}
}}, execution_thread="sparsecore"

%outer (q.1: f32[8]) -> f32[64] {{
  %q.1 = f32[8]{{0}} parameter(0)
  ROOT %call = f32[64]{{0}} custom-call(%q.1), custom_call_target="x", called_computations={{%inner}}
}}, execution_thread="sparsecore"

"""


def test_a_collective_on_the_sparse_core_begins_when_it_gets_its_operand() -> None:
    seconds, one = only(
        read_schedule(
            program(
                '%g = ((), (), s32[]) async-start(), async_execution_thread="sparsecore", calls=%outer',
                matmul("too_early"),
                "%u = ((f32[8]), f32[64], s32[]) async-update(%g, %s)",
                matmul("beside"),
                "%d = f32[64]{0} async-done(%u)",
                before=SPARSE_CORE,
            ),
            RATES,
        )
    )
    assert (one.flops, one.waited, one.collective.kind, one.collective.asynchronous) == (MATMUL, 0, "all-gather", True)
    assert seconds == 2


def test_what_stands_behind_an_attribute_of_several_lines_is_read_too() -> None:
    found = program(
        '%kernel = f32[8,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", metadata={x={\n"y":"{1}"\n}}, '
        'metadata={op_name="splash_mha_fwd/pallas_call"}',
        matmul("m"),
        f"%g = f32[64]{{0}} all-gather(%s), {GROUPS}",
    )
    assert len(found.collectives()) == 1
    assert attention_kernel(found.instructions["kernel"]) == "splash_mha_fwd"


def test_batched_matmuls_are_counted_once_for_each_of_the_batch() -> None:
    found = program(
        "%x = f32[3,8,4]{2,1,0} broadcast(%a)",
        "%y = f32[3,4,16]{2,1,0} broadcast(%a)",
        "%p = f32[3,8,16]{2,1,0} dot(%x, %y), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}",
    )
    assert instruction_flops(found, found.instructions["p"]) == pytest.approx(2 * 3 * 8 * 4 * 16)


@pytest.mark.parametrize(("batch", "rows"), [("", 1), ("2,", 2)])
def test_a_splash_kernel_counts_its_grid_also_for_a_batch_of_one_which_has_no_dimension(batch: str, rows: int) -> None:
    found = program(
        "%blocks = s32[3,4,2]{2,1,0} broadcast(%a)",
        f"%q = bf16[{batch}3,512,64]{{2,1,0}} broadcast(%a)",
        '%kernel = f32[8,8]{1,0} custom-call(%blocks, %q), custom_call_target="tpu_custom_call", '
        'metadata={op_name="splash_mha_fwd/pallas_call"}',
    )
    # Four rows of two blocks of 128 × 128, for three heads; two matmuls.
    expected = 2 * (2 * rows * 3 * 64) * (4 * 2 * 128 * 128)
    assert instruction_flops(found, found.instructions["kernel"]) == pytest.approx(expected)


# -- programs of the real compilers ------------------------------------------------------------------------------------


def settings(stage: int, data: int, tensor: int, microbatch: int) -> tuple[str, ...]:
    mesh = f"--parallel.stage {stage} --parallel.data {data} --parallel.tensor {tensor}"
    return tuple(f"{mesh} --memory.microbatch {microbatch}".split())


SMALL_TPU = (("gpt3-small",), "v5e:4x4", settings(3, 16, 1, 4))
SMALL_GPU = (("gpt3-small",), "h100:1x8", settings(2, 8, 1, 8))
LARGE_TPU = (("gpt3-175b",), "v5p:8x8x8", settings(3, 64, 8, 24))
LARGE_GPU = (("gpt3-175b",), "h100:64x8", settings(3, 64, 8, 24))


@functools.cache
def compiled(configs: tuple[str, ...], topology: str, overrides: tuple[str, ...]) -> CompiledStep:
    return compile_step(load_config(configs, overrides), open_topology(topology))


CASES = [
    pytest.param(SMALL_TPU, marks=NEEDS_TPU, id="small-v5e"),
    pytest.param(LARGE_TPU, marks=[NEEDS_TPU, pytest.mark.slow], id="175b-v5p"),
    pytest.param(SMALL_GPU, marks=[NEEDS_GPU, pytest.mark.slow], id="small-h100"),
    pytest.param(LARGE_GPU, marks=[NEEDS_GPU, pytest.mark.slow], id="175b-h100"),
]


@pytest.mark.parametrize("case", CASES)
def test_the_schedule_holds_all_matmuls_and_all_traffic(case: tuple[tuple[str, ...], str, tuple[str, ...]]) -> None:
    step = compiled(*case)
    shares = tuple(band_shares(step.config.model).values())
    work = sum(calls * instruction_flops(step.program, i) for i, calls, _ in step.program.running())
    assert work == pytest.approx(matmul_flops(step.jaxpr, shares), rel=1e-3)

    shape = shape_of(step.mesh)
    assert step.topology.device is not None
    seconds, found = read_schedule(step.program, rates(step.topology.device, place(step.topology, shape), shape.axes))
    sent = [sum(c.bytes_sent for c in cs) for cs in ([one.collective for one in found], step.program.collectives())]
    assert sent[0] == pytest.approx(sent[1], rel=1e-9)
    receipt = make_receipt(step)
    assert receipt.prediction is not None and receipt.scheduled_seconds == seconds
    # No schedule is faster than its busiest resource alone, nor slower than all one after the other.
    assert receipt.prediction.fastest_seconds * 0.99 <= seconds <= receipt.prediction.slowest_seconds * 1.02
