"""The reader of compiled programs and of the compiler's buffer assignment, on texts small enough to check by hand."""

from __future__ import annotations

# ruff: noqa: E501 (XLA's lines are as long as they are)
from pathlib import Path

import pytest

from gpt3_jax.errors import RunError
from gpt3_jax.program.buffers import Shapes, read_peak
from gpt3_jax.program.hlo import Program
from gpt3_jax.program.memory_traffic import hbm_bytes
from gpt3_jax.program.shapes import shape_bytes

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/someone/gpt3_jax/model/loss.py"
2 "/venv/lib/python3.11/site-packages/optax/transforms/_adding.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=71 end_line=71 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=5 end_line=5 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p0: f32[10,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,64}
}

%scattering (p2: bf16[64,32]) -> bf16[16,32] {
  %p2 = bf16[64,32]{1,0} parameter(0)
  %all = bf16[64,32]{1,0} all-reduce(%p2), replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  ROOT %mine = bf16[16,32]{1,0} slice(%all), slice={[0:16], [0:32]}
}

%body (state: (s32[], f32[10,64], f32[1,64])) -> (s32[], f32[10,64], f32[1,64]) {
  %state = (s32[], f32[10,64]{1,0}, f32[1,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %table = f32[10,64]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,64]{1,0} fusion(%table, %i), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/loop/row" stack_frame_id=2}
  %whole = f32[8,64]{1,0} all-gather(%row), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %next = (s32[], f32[10,64]{1,0}, f32[1,64]{1,0}) tuple(%i, %table, %row)
}

%condition (state.1: (s32[], f32[10,64], f32[1,64])) -> pred[] {
  %state.1 = (s32[], f32[10,64]{1,0}, f32[1,64]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: f32[10,64], b: bf16[64,32]) -> f32[1,64] {
  %a = f32[10,64]{1,0} parameter(0), metadata={op_name="state.params.token_embedding"}
  %b = bf16[64,32]{1,0} parameter(1), metadata={op_name="rows"}
  %zero = s32[] constant(0)
  %first = f32[1,64]{1,0} constant({...})
  %init = (s32[], f32[10,64]{1,0}, /*index=2*/f32[1,64]{1,0}) tuple(%zero, %a, %first)
  %loop = (s32[], f32[10,64]{1,0}, f32[1,64]{1,0}) while(%init), condition=%condition, body=%body
  %mine.1 = bf16[16,32]{1,0} fusion(%b), kind=kCustom, calls=%scattering, metadata={op_name="jit(step)/head" stack_frame_id=1}
  %start = (f32[4]{0}, f32[4]{0}) collective-permute-start(%first), source_target_pairs={{0,1},{1,0}}
  ROOT %result = f32[1,64]{1,0} get-tuple-element(%loop), index=2
}
"""

ASSIGNMENT = """BufferAssignment:
allocation 0: size 2560, parameter 0, shape |f32[10,64]| at ShapeIndex {}, maybe-live-out:
 value: <1 a @0> (size=2560,offset=0): f32[10,64]{1,0}
 value: <9 written @0> (size=2560,offset=0): f32[10,64]{1,0}
allocation 1: size 4096, parameter 1, shape |bf16[64,32]| at ShapeIndex {}:
 value: <2 b @0> (size=4096,offset=0): bf16[64,32]{1,0}
allocation 2: size 3000, preallocated-temp:
 value: <3 row @0> (size=256,offset=0): f32[1,64]{1,0}
 value: <4 whole @0> (size=2048,offset=512): f32[8,64]{1,0}
 value: <5 mine.1 @0> (size=1024,offset=1024): bf16[16,32]{1,0}
 value: <6 loop{2} @0> (size=256,offset=256): f32[1,64]{1,0}
allocation 3: size 9999, color 1, preallocated-temp:
 value: <7 on_chip @1> (size=9999,offset=0): f32[1,64]{1,0}
"""

RANGES = """HloLiveRange (max 30):
  InstructionSequence:
    0:a
  BufferLiveRange:
    row{}:3-6
    whole{}:5-7
    mine.1{}:9-10
    loop{2}:2-12
    on_chip{}:0-30
  Live ranges at 6 (peak):
    whole{}: 2048 bytes
"""


def write(folder: Path, assignment: str = ASSIGNMENT) -> Path:
    (folder / "m.after_optimizations-buffer-assignment.txt").write_text(assignment)
    (folder / "m.after_optimizations-live-range.txt").write_text(RANGES)
    return folder


SHAPES = Shapes(
    frozenset(),
    frozenset({(10, 64)}),
    frozenset(),
    vocab=100,
    gathered_inside=False,
    stacks=frozenset({2, 4}),
)


def test_collectives_with_trip_counts_groups_and_kinds() -> None:
    gather, scatter, permute = Program(PROGRAM).collectives()
    assert (gather.kind, gather.devices, gather.calls, gather.bytes) == ("all-gather", 8, 5, 8 * 256)
    assert gather.bytes_sent == 5 * 7 / 8 * 2048
    # An all-reduce of which a fusion keeps its own slice.
    assert (scatter.kind, scatter.devices, scatter.groups[1]) == ("reduce-scatter", 4, (1, 3, 5, 7))
    assert scatter.bytes_sent == 3 / 4 * 4096
    assert (permute.kind, permute.asynchronous, permute.calls) == ("permute", True, 1)


def test_newer_texts_name_elements_of_tuples_and_axes_of_meshes() -> None:
    newer = PROGRAM.replace(
        "replica_groups={{0,2,4,6},{1,3,5,7}}", "replica_groups=mesh['data'=4,'tensor'=2] {'data'}"
    ).replace("replica_groups=[1,8]<=[8]", "replica_groups=mesh['data'=4,'tensor'=2] {'data','tensor'}")
    older = Program(PROGRAM).collectives()
    assert Program(newer).collectives() == older
    part = PROGRAM.replace("replica_groups={{0,2,4,6},{1,3,5,7}}", "replica_groups=mesh['data'=8] {'data':(2)4}")
    assert Program(part).collectives()[1].groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    element = PROGRAM.replace("all-gather(%row)", "all-gather(%state#2)")
    assert Program(element).collectives()[0].bytes == older[0].bytes
    with pytest.raises(RunError, match="devices of the collective whole"):
        Program(PROGRAM.replace("replica_groups=[1,8]<=[8]", "replica_groups=somehow")).collectives()


def test_the_line_of_source() -> None:
    program = Program(PROGRAM)
    assert program.source(program.instructions["mine.1"]) == "gpt3_jax/model/loss.py:71"
    # The innermost frame is another's; the one that called it is ours.
    assert program.source(program.instructions["row"]) == "gpt3_jax/model/loss.py:71"
    assert program.source(program.instructions["zero"]) == ""


def test_trip_counts_that_the_compiler_states_or_that_stand_in_the_condition() -> None:
    program = Program(PROGRAM)
    assert program.trip_count(program.instructions["loop"]) == 5
    stated = PROGRAM.replace("body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}\n')
    assert Program(stated).trip_count(Program(stated).instructions["loop"]) == 7
    step = PROGRAM.replace("tuple(%i, %table, %row)", "tuple(%after, %table, %row)").replace(
        "  %table =", "  %two = s32[] constant(2)\n  %after = s32[] add(%i, %two)\n  %table ="
    )
    assert Program(step).trip_count(Program(step).instructions["loop"]) == 3, "0, 2 and 4 of 5"
    unknown = PROGRAM.replace("%limit = s32[] constant(5)", "%limit = s32[] get-tuple-element(%state.1), index=0")
    with pytest.raises(RunError, match="trip count of the loop loop"):
        Program(unknown).collectives()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[3,4]{1,0:T(8,128)(2,1)}", 24),
        ("(f32[2]{0}, s32[], pred[8]{0})", 20),
        ("f8e4m3fn[16]", 16),
        ("s4[16]", 8),
        ("token[]", 0),
    ],
)
def test_sizes_of_shapes(shape: str, size: float) -> None:
    assert shape_bytes(shape) == size


def test_a_type_of_unknown_size_is_refused() -> None:
    with pytest.raises(RunError, match="type wide"):
        shape_bytes("wide[3]")


def test_memory_traffic_counts_slices_and_leaves_out_collectives() -> None:
    # Five times a row of 64 out of the table: read, written, and the index.
    assert hbm_bytes(Program(PROGRAM)) == 5 * (256 + 256 + 4)


def test_the_fullest_moment(tmp_path: Path) -> None:
    peak = read_peak(write(tmp_path), Program(PROGRAM), SHAPES)
    assert peak.arguments == 2560 + 4096
    assert peak.temporaries == 3000, "what is on the chip does not count"
    # At 5 and 6: row, whole, loop; not mine.1, which comes later.
    assert [(b.instruction, b.size) for b in peak.buffers] == [
        ("b", 4096), ("a", 2560), ("whole", 2048), ("loop", 256), ("row", 256)
    ]  # fmt: skip
    assert peak.gaps == 3000 - 2048 - 2 * 256
    purposes = peak.by_purpose()
    assert purposes["master weights"] == 2560 and purposes["batch"] == 4096
    loop = next(b for b in peak.buffers if b.instruction == "loop")
    assert (loop.op_name, loop.source) == ("jit(step)/loop/row", "gpt3_jax/model/loss.py:71"), "what the body makes it"


def test_a_dump_in_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="0 files"):
        read_peak(tmp_path, Program(PROGRAM), SHAPES)
    with pytest.raises(RunError, match="form that this reader does not know"):
        read_peak(write(tmp_path, "Something else\n"), Program(PROGRAM), SHAPES)
    with pytest.raises(RunError, match="no ENTRY"):
        Program("")


def module(*lines: str, computations: str = "") -> Program:
    """A module whose entry has these lines, on eight devices."""
    body = "\n".join(f"  {line}" for line in lines)
    return Program(
        f"HloModule m, num_partitions=8\n\n{ADD}\n{computations}\nENTRY %main (a: f32[64]) -> f32[64] {{\n"
        f"  %a = f32[64]{{0}} parameter(0)\n{body}\n}}\n"
    )


ADD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("{{0,3},{1,2}}", ((0, 3), (1, 2))),
        ("mesh['data'=2,'tensor'=2], device_ids=(3,2,1,0) {'data'}", ((3, 1), (2, 0))),
    ],
)
def test_groups_in_every_notation(groups: str, expected: tuple[tuple[int, ...], ...]) -> None:
    (found,) = module(f"ROOT %r = f32[64]{{0}} all-reduce(%a), replica_groups={groups}, to_apply=%add").collectives()
    assert found.groups == expected
    n = len(expected[0])
    assert (found.devices, found.bytes, found.bytes_sent) == (n, 256, 2 * (n - 1) / n * 256)
    assert not found.asynchronous


def test_collectives_over_one_device_are_left_out() -> None:
    text = "ROOT %r = f32[64]{0} all-reduce(%a), replica_groups={{0},{1}}, to_apply=%add"
    assert module(text).collectives() == []


@pytest.mark.parametrize(("kept", "kind"), [(16, "reduce-scatter"), (64, "all-reduce")])
def test_an_all_reduce_of_which_a_fusion_keeps_everything_is_one(kept: int, kind: str) -> None:
    fused = f"""%fused (p: f32[64]) -> f32[{kept}] {{
  %p = f32[64]{{0}} parameter(0)
  %all = f32[64]{{0}} all-reduce(%p), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, to_apply=%add
  ROOT %mine = f32[{kept}]{{0}} slice(%all), slice={{[0:{kept}]}}
}}
"""
    (found,) = module(
        f"ROOT %r = f32[{kept}]{{0}} fusion(%a), kind=kLoop, calls=%fused", computations=fused
    ).collectives()
    assert (found.kind, found.devices, found.bytes) == (kind, 4, 256)


def all_reduces(*channels: int) -> str:
    """Computations that are one all-reduce each, of the given channels; 0 for none."""
    return "".join(
        f"""%part.{i} (p.{i}: f32[64]) -> f32[64] {{
  %p.{i} = f32[64]{{0}} parameter(0)
  ROOT %all.{i} = f32[64]{{0}} all-reduce(%p.{i}),{f" channel_id={channel}," * bool(channel)} """
        """replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}
"""
        for i, channel in enumerate(channels)
    )


@pytest.mark.parametrize("channel", [0, 7])
def test_a_collective_that_a_tpu_splits_over_fusions_counts_once(channel: int) -> None:
    found = module(
        "%async-collective-start.1 = (f32[64]{0}, f32[64]{0}) fusion(%a), kind=kCustom, calls=%part.0",
        "%element = f32[64]{0} get-tuple-element(%async-collective-start.1), index=1",
        "%between = f32[64]{0} fusion(%element), kind=kOutput, calls=%part.1",
        "ROOT %async-collective-done.1 = f32[64]{0} fusion(%between), kind=kCustom, calls=%part.2",
        computations=all_reduces(channel, channel, channel),
    ).collectives()
    assert [(one.calls, one.asynchronous) for one in found] == [(1, True)]


def test_collectives_that_are_carried_along_are_told_apart_by_their_channels() -> None:
    """Of the same shape, in a row: one goes through two fusions, another starts from a result of theirs, a third waits
    for that."""
    found = module(
        "%async-collective-start.1 = (f32[64]{0}, f32[64]{0}) fusion(%a), kind=kCustom, calls=%part.0",
        "%element = f32[64]{0} get-tuple-element(%async-collective-start.1), index=1",
        "%between = f32[64]{0} fusion(%element), kind=kOutput, calls=%part.1",
        "%behind = f32[64]{0} fusion(%between), kind=kOutput, calls=%part.2",
        "%async-collective-start.2 = f32[64]{0} fusion(%behind), kind=kCustom, calls=%part.3",
        "%waits = f32[64]{0} fusion(%behind), kind=kOutput, calls=%part.4",
        "%async-collective-done.1 = f32[64]{0} fusion(%behind), kind=kCustom, calls=%part.5",
        "ROOT %async-collective-done.2 = f32[64]{0} fusion(%async-collective-start.2), kind=kCustom, calls=%part.6",
        computations=all_reduces(7, 7, 7, 8, 9, 7, 8),
    ).collectives()
    assert [one.asynchronous for one in found] == [True, True, False]


def test_each_branch_of_a_condition_runs_its_share() -> None:
    branch = """%branch.{i} (p.{i}: f32[64]) -> f32[64] {{
  %p.{i} = f32[64]{{0}} parameter(0)
  ROOT %all.{i} = f32[64]{{0}} all-reduce(%p.{i}), replica_groups=[1,8]<=[8], to_apply=%add
}}
"""
    found = module(
        "%i = s32[] constant(0)",
        "ROOT %r = f32[64]{0} conditional(%i, %a, %a), branch_computations={%branch.0, %branch.1}",
        computations=branch.format(i=0) + branch.format(i=1),
    ).collectives()
    assert [one.calls for one in found] == [0.5, 0.5]


def purpose(tmp_path: Path, op_name: str, shape: str, argument: bool = False, gathered_inside: bool = False) -> str:
    """What a buffer of this shape is for, whose instruction came from there."""
    opcode = "parameter(1)" if argument else "negate(%a)"
    program = module(f'ROOT %value = {shape} {opcode}, metadata={{op_name="{op_name}"}}')
    kind = "parameter 1, maybe-live-out" if argument else "preallocated-temp"
    write(tmp_path, f"allocation 0: size 64, {kind}:\n value: <1 value @0> (size=64,offset=0): {shape}\n")
    (tmp_path / "m.after_optimizations-live-range.txt").write_text("    value{}:0-2\n")
    block, top = frozenset({(8, 24), (8, 32)}), frozenset({(8, 100)})
    shapes = Shapes(block, top, frozenset({(2, 24), (2, 32)}), 50, gathered_inside, stacks=frozenset({2, 4}))
    (buffer,) = read_peak(tmp_path, program, shapes).buffers
    return buffer.purpose


STEP = "jit(step)/shard_map/"


@pytest.mark.parametrize(
    ("op_name", "shape", "expected"),
    [
        ("state.params.blocks.qkv_kernel", "f32[4,2,24]{2,1,0}", "temporary"),  # a copy in another layout
        (STEP + "optimizer/mul", "f32[4,2,24]{2,1,0}", "temporary"),
        (STEP + "clip/mul", "f32[4,2,24]{2,1,0}", "temporary"),
        (STEP + "transpose(jvp(reduce_gradients))/psum_scatter", "bf16[7]{0}", "gradients"),
        (STEP + "transpose(jvp(mlp))/ni,no->io/dot_general", "f32[7]{0}", "gradients"),
        (STEP + "gather_weights/all_gather", "bf16[7]{0}", "gathered weights"),
        (STEP + "while", "f32[4,24,2]{2,1,0}", "gradients"),  # a stack of shards, however it lies
        (STEP + "while", "f32[2,2,2,24]{3,2,1,0}", "gradients"),  # periods and their blocks
        (STEP + "while", "bf16[4,24,8]{2,1,0}", "gathered weights"),
        (STEP + "transpose(jvp(while))", "bf16[4,24,8]{2,1,0}", "gradients"),
        (STEP + "while", "f32[4,24,8]{2,1,0}", "gradients"),
        (STEP + "head_loss/copy", "bf16[100,8]{1,0}", "gathered weights"),
        (STEP + "head_loss/dot_general", "f32[16,50]{1,0}", "logits"),
        (STEP + "while", "bf16[4,3,1,5]{3,2,1,0}", "activations"),
        (STEP + "while", "bf16[4,1,5]{2,1,0}", "temporary"),  # nothing but a matrix
        (STEP + "while", "bf16[3,3,5]{2,1,0}", "temporary"),
    ],
)
def test_what_a_buffer_is_for(op_name: str, shape: str, expected: str, tmp_path: Path) -> None:
    assert purpose(tmp_path, op_name, shape) == expected


def test_where_blocks_are_gathered_one_by_one_no_stack_of_them_is_there(tmp_path: Path) -> None:
    assert purpose(tmp_path, STEP + "while", "bf16[4,24,8]{2,1,0}", gathered_inside=True) == "activations"


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("state.params.blocks.ln_1_scale", "master weights"),
        ("state.opt_state[1].mu.blocks.ln_1_scale", "moments"),
        ("state.opt_state[1].nu.blocks.ln_1_scale", "moments"),
        ("rows", "batch"),
        ("state.tokens", "batch"),
    ],
)
def test_what_an_argument_is_for(op_name: str, expected: str, tmp_path: Path) -> None:
    assert purpose(tmp_path, op_name, "f32[16]{0}", argument=True) == expected


def test_what_only_passes_through_a_loop_is_what_stood_before_it(tmp_path: Path) -> None:
    """And of what overlaps in the heap at the fullest moment, the largest is told; the last moment of a range counts."""
    loop = """%body (s: (f32[64], f32[64])) -> (f32[64], f32[64]) {
  %s = (f32[64]{0}, f32[64]{0}) parameter(0)
  %kept = f32[64]{0} get-tuple-element(%s), index=0
  %old = f32[64]{0} get-tuple-element(%s), index=1
  %made = f32[64]{0} negate(%old), metadata={op_name="jit(step)/made"}
  ROOT %next = (f32[64]{0}, f32[64]{0}) tuple(%kept, %made)
}

%condition (c: (f32[64], f32[64])) -> pred[] {
  %c = (f32[64]{0}, f32[64]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}
"""
    program = module(
        '%before = f32[64]{0} negate(%a), metadata={op_name="jit(step)/before"}',
        "%both = (f32[64]{0}, f32[64]{0}) tuple(%before, %a)",
        "%loop = (f32[64]{0}, f32[64]{0}) while(%both), condition=%condition, body=%body, "
        'backend_config={"known_trip_count":{"n":"3"}}',
        "ROOT %r = f32[64]{0} get-tuple-element(%loop), index=1",
        computations=loop,
    )
    write(
        tmp_path,
        "allocation 0: size 1024, preallocated-temp:\n"
        " value: <1 loop{0} @0> (size=256,offset=0): f32[64]{0}\n"
        " value: <2 loop{1} @0> (size=256,offset=256): f32[64]{0}\n"
        " value: <3 old @0> (size=128,offset=256): f32[32]{0}\n",
    )
    (tmp_path / "m.after_optimizations-live-range.txt").write_text("    loop{0}:1-5\n    loop{1}:5-9\n    old{}:4-6\n")
    peak = read_peak(tmp_path, program, SHAPES)
    assert [(b.size, b.op_name) for b in peak.buffers] == [(256, "jit(step)/before"), (256, "jit(step)/made")]


def moved(*lines: str, computations: str = "") -> float:
    return hbm_bytes(module(*lines, computations=computations))


def test_memory_traffic_of_each_kind_of_instruction() -> None:
    assert moved("ROOT %r = f32[64]{0} negate(%a)") == 512
    # What stays on the chip is not read from memory; a matmul's own operands are in its efficiency.
    assert moved("ROOT %r = f32[64]{0:T(128)S(1)} negate(%a)") == 256
    assert moved("ROOT %r = f32[8,8]{1,0} dot(%a, %a)") == 0
    assert moved("ROOT %r = f32[64]{0} custom-call(%a)") == 0
    assert moved("%c = (f32[64]{0}, f32[64]{0}, u32[]) copy-start(%a)", "ROOT %r = f32[64]{0} copy-done(%c)") == 512
    piece = ["%i = s32[] constant(0)", "%piece = f32[4]{0} constant({...})"]
    assert moved(*piece, "ROOT %r = f32[64]{0} dynamic-update-slice(%a, %piece, %i)") == 2 * 16
    matmul = """%fused (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  ROOT %d = f32[64]{0} convolution(%p, %p)
}
"""
    assert moved("ROOT %r = f32[64]{0} fusion(%a), kind=kOutput, calls=%fused", computations=matmul) == 0
    update = """%fused (p: f32[64], q: f32[4], j: s32[]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %d = f32[64]{0} dynamic-update-slice(%p, %q, %j)
}
"""
    fused = "ROOT %r = f32[64]{0} fusion(%a, %piece, %i), kind=kLoop, calls=%fused"
    # Into its place: the piece and its number are read, the piece is written.
    assert moved(*piece, fused, computations=update) == 16 + 4 + 16
