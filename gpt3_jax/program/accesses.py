"""Which bytes of an array an instruction of a compiled program reads, and which it writes, also inside a fusion.

Of an array that is sliced it reads the slice; of one that is updated in place it writes the update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpt3_jax.program.hlo import Instruction, Program
from gpt3_jax.program.shapes import shape_bytes, shape_parts

SLICES = frozenset({"slice", "slice-start", "dynamic-slice", "gather"})


def result_shape(instruction: Instruction) -> str:
    """The shape of an instruction's result. That of a ``-start`` is the first part of the tuple that it returns."""
    return shape_parts(instruction.shape)[0] if instruction.opcode.endswith("-start") else instruction.shape


def uses(body: Mapping[str, Instruction], array: Instruction) -> Iterator[tuple[Instruction, float]]:
    """The instructions of a computation that use an array, and the bytes of it that each reads. Bitcasts are followed
    to their own users."""
    for user in body.values():
        if array.name not in user.operands:
            continue
        if user.opcode == "bitcast":
            yield from uses(body, user)
        else:
            yield user, bytes_read(user, array)


def bytes_read(user: Instruction, array: Instruction) -> float:
    """Bytes of an array that one instruction reads: nothing of what it updates in place."""
    if user.operands[0] == array.name:
        if user.opcode == "dynamic-update-slice":
            return 0.0
        if user.opcode in SLICES:
            return shape_bytes(result_shape(user))
    return shape_bytes(array.shape)


def results(program: Program, instruction: Instruction) -> list[Instruction]:
    """The instructions that make a result: itself; for a fusion, those inside it, one for each part of a tuple.
    Bitcasts are followed to what they cast."""
    if instruction.opcode != "fusion":
        return [instruction]
    (callee,) = instruction.called("calls")
    body, root = program.computation(callee), program.roots[callee]
    parts = [body[name] for name in root.operands if name in body] if root.opcode == "tuple" else [root]
    return [_source(body, part) for part in parts]


def bytes_written(program: Program, result: Instruction) -> float:
    """Bytes of one of `results` that are written."""
    if result.opcode == "dynamic-update-slice":
        update = program.instructions.get(result.operands[1])
        return shape_bytes(update.shape) if update else 0.0
    return shape_bytes(result_shape(result))


def _source(body: Mapping[str, Instruction], instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast" and instruction.operands and instruction.operands[0] in body:
        instruction = body[instruction.operands[0]]
    return instruction
