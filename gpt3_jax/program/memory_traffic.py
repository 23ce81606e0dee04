"""Bytes that a compiled program moves through a device's main memory outside its matmuls, counted from its scheduled
instructions. What a matmul reads and writes itself is part of its efficiency (see `plan.roofline`)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from gpt3_jax.program.accesses import SLICES, bytes_written, results, uses
from gpt3_jax.program.hlo import COLLECTIVES, Instruction, Program
from gpt3_jax.program.host_copies import only_copies
from gpt3_jax.program.shapes import shape_bytes

_MOVE_NOTHING = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
        "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done",
        "all-gather-done", "all-reduce-done", "collective-permute-done", "send", "send-done", "recv", "recv-done",
    }
)  # fmt: skip
_MATMULS = frozenset({"dot", "convolution", "custom-call", "ragged-dot", "scaled-dot"})
"""cuBLAS, cuDNN and Pallas kernels are custom calls."""
_SLICES = SLICES - {"slice-start"}  # whose result, a tuple, is counted like any other
_ON_CHIP = re.compile(r"[a-z]\w*\[[\d,]*\]\{[^{}]*S\([1-9]\d*\)[^{}]*\}")


def hbm_bytes(program: Program) -> float:
    """Bytes read and written in one call by whatever is neither a matmul, nor a kernel of its own, nor a collective:
    the operands and results of every other fusion and copy, as often as it runs. Of an array that is only
    sliced, the slice counts. What the compiler keeps on the chip between two instructions is left out.

    Raises:
        RunError: a loop whose trip count does not stand in the program.
    """
    return sum(calls * instruction_bytes(program, i) for i, calls, _ in program.running())


def instruction_bytes(program: Program, instruction: Instruction) -> float:
    """What one run of a scheduled instruction adds to `hbm_bytes`."""
    return 0.0 if _elsewhere(program, instruction) else _bytes(program, instruction)


def _elsewhere(program: Program, instruction: Instruction) -> bool:
    """Whether an instruction moves nothing, or is counted as a matmul, a collective or a copy to the host."""
    opcode = instruction.opcode
    if opcode in _MOVE_NOTHING or opcode in _MATMULS or opcode.removesuffix("-start") in COLLECTIVES:
        return True
    if only_copies(program, instruction):
        return True
    inside = program.fused(instruction) if opcode == "fusion" else []
    return any(i.opcode in _MATMULS or i.opcode in COLLECTIVES for i in inside)


def _bytes(program: Program, instruction: Instruction) -> float:
    operands = [program.instructions.get(name) for name in instruction.operands]
    if instruction.opcode in _SLICES:
        return 2 * _in_hbm(instruction.shape)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1].shape) if operands[1] else 0.0
    if instruction.opcode == "copy-start":  # its result: the copy, the source once more, and a context
        first = re.match(r"\(?([^,\s]*\[[\d,]*\](?:\{[^}]*\})?)", instruction.shape)
        return (_in_hbm(first[1]) if first else 0.0) + sum(_in_hbm(o.shape) for o in operands if o)
    if instruction.opcode != "fusion":
        return _in_hbm(instruction.shape) + sum(_in_hbm(o.shape) for o in operands if o)
    return _read(program, instruction, operands) + _written(program, instruction)


def _read(program: Program, fusion: Instruction, operands: Sequence[Instruction | None]) -> float:
    """Bytes that a fusion reads of its operands."""
    (callee,) = fusion.called("calls")
    body = program.computation(callee)
    parameters = {int(i.operands[0]): i for i in body.values() if i.opcode == "parameter"}
    total = 0.0
    for place, operand in enumerate(operands):
        if operand is not None:
            read = sum(size for _, size in uses(body, parameters[place])) if place in parameters else math.inf
            total += min(_in_hbm(operand.shape), read)
    return total


def _written(program: Program, fusion: Instruction) -> float:
    """Bytes of a fusion's results, less what an update in place leaves as it was."""
    kept = (
        max(0.0, _in_hbm(result.shape) - bytes_written(program, result))
        for result in results(program, fusion)
        if result.opcode == "dynamic-update-slice"
    )
    return max(0.0, _in_hbm(fusion.shape) - sum(kept))


def _in_hbm(shape: str) -> float:
    return shape_bytes(_ON_CHIP.sub("", shape))
