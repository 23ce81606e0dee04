"""Bytes that a compiled program moves through a device's main memory outside its matmuls, counted from its scheduled
instructions. What a matmul reads and writes itself is part of its efficiency (see `plan.roofline`)."""

from __future__ import annotations

import re

from gpt3_jax.program.hlo import COLLECTIVES, Instruction, Program, shape_bytes
from gpt3_jax.program.host_copies import only_copies

_MOVE_NOTHING = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
        "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "copy-done",
        "all-gather-done", "all-reduce-done", "collective-permute-done", "send", "send-done", "recv", "recv-done",
    }
)  # fmt: skip
_MATMULS = frozenset({"dot", "convolution", "custom-call", "ragged-dot", "scaled-dot"})
"""cuBLAS, cuDNN and Pallas kernels are custom calls."""
_SLICES = frozenset({"dynamic-slice", "slice", "gather"})
_ON_CHIP = re.compile(r"[a-z]\w*\[[\d,]*\]\{[^{}]*S\([1-9]\d*\)[^{}]*\}")


def hbm_bytes(program: Program) -> float:
    """Bytes read and written in one call by whatever is neither a matmul, nor a kernel of its own, nor a collective:
    the operands and results of every other fusion and copy, as often as it runs. Of an array that is only sliced, the
    slice; what a compiler keeps on the chip between two instructions is left out.

    Raises:
        RunError: a loop whose trip count does not stand in the program.
    """
    return sum(calls * instruction_bytes(program, i) for i, calls, _ in program.running())


def instruction_bytes(program: Program, instruction: Instruction) -> float:
    """The share in `hbm_bytes` of one run of an instruction that is scheduled on its own."""
    return 0.0 if _elsewhere(program, instruction) else _bytes(program, instruction)


def _elsewhere(program: Program, instruction: Instruction) -> bool:
    """Whether it moves nothing itself, or is accounted for as a matmul, a collective or a copy of the host's."""
    opcode = instruction.opcode
    if opcode in _MOVE_NOTHING or opcode in _MATMULS or opcode.removesuffix("-start") in COLLECTIVES:
        return True
    if only_copies(program, instruction):
        return True
    bodies = (program.computation(name) for name in instruction.called("calls")) if opcode == "fusion" else ()
    return any(i.opcode in _MATMULS or i.opcode in COLLECTIVES for body in bodies for i in body.values())


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
    (callee,) = instruction.called("calls")
    body = program.computation(callee)
    parameters = {int(i.operands[0]): i for i in body.values() if i.opcode == "parameter"}
    total = 0.0
    for place, operand in enumerate(operands):
        if operand is not None:
            total += min(_in_hbm(operand.shape), _read(body, parameters.get(place)))
    return total + _written(program, body, callee, instruction)


def _read(body: dict[str, Instruction], parameter: Instruction | None) -> float:
    """Bytes of a fusion's parameter that it looks at: all, unless every use is a slice or an update in place."""
    if parameter is None:
        return float("inf")
    total = 0.0
    for user in (i for i in body.values() if parameter.name in i.operands):
        if user.opcode in _SLICES and user.operands[0] == parameter.name:
            total += shape_bytes(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            pass
        elif user.opcode == "bitcast":
            total += _read(body, user)
        else:
            return float("inf")
    return total


def _written(program: Program, body: dict[str, Instruction], callee: str, fusion: Instruction) -> float:
    root = program.roots[callee]
    results = [body[name] for name in root.operands if name in body] if root.opcode == "tuple" else [root]
    updates = [i for i in results if _unwrapped(body, i).opcode == "dynamic-update-slice"]
    whole = _in_hbm(fusion.shape)
    for update in updates:
        inner = _unwrapped(body, update)
        piece = body.get(inner.operands[1])
        whole -= max(0.0, _in_hbm(inner.shape) - (shape_bytes(piece.shape) if piece else 0.0))
    return max(whole, 0.0)


def _unwrapped(body: dict[str, Instruction], i: Instruction) -> Instruction:
    while i.opcode == "bitcast" and i.operands and i.operands[0] in body:
        i = body[i.operands[0]]
    return i


def _in_hbm(shape: str) -> float:
    return shape_bytes(_ON_CHIP.sub("", shape))
