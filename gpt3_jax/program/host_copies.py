"""What a compiled program moves between a device's memory and its host's (`memory.remat: offload`): copies, and slices
written into an array that lies there or read out of it, by themselves or in a fusion.

Compilers mark what lies in the host's memory by a memory space in its layout, and split what moves there into a start
and a done as they do with collectives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from gpt3_jax.program.hlo import Instruction, Program, shape_bytes, shape_parts
from gpt3_jax.program.traffic import HOST, Kind

HOST_MEMORY = 5
"""XLA's memory space of the host."""
_MARK = f"S({HOST_MEMORY})"
_MOVE = frozenset({"copy", "copy-start", "slice", "slice-start", "dynamic-slice", "dynamic-update-slice", "fusion"})
_SLICES = frozenset({"slice", "slice-start", "dynamic-slice", "gather"})
_NO_WORK = _MOVE | {"parameter", "constant", "bitcast", "reshape", "tuple", "get-tuple-element"}


@dataclasses.dataclass(frozen=True)
class HostCopy:
    """One of them: to the schedule and the traffic's tables it is one more kind of collective."""

    kind: Kind
    bytes: float
    """Of one call."""
    calls: float
    """Times that the program runs it."""
    asynchronous: bool
    """Whether it is split into a start and a done, so that other work can stand in between."""
    op_name: str

    @property
    def bytes_sent(self) -> float:
        """Bytes that a device sends or gets in all calls."""
        return self.calls * self.bytes

    def axes(self, shape: Mapping[str, int]) -> tuple[str, ...]:
        """What stands for the mesh axes of a collective; no axis of the mesh."""
        return (HOST,)


def host_copies(program: Program) -> list[HostCopy]:
    """All that the program runs, in its order.

    Raises:
        RunError: a loop whose trip count does not stand in the program.
    """
    return _copies(program, program.running())


def host_copies_of(program: Program, instruction: Instruction) -> list[HostCopy]:
    """What one run of an instruction that is scheduled on its own does or starts."""
    return _copies(program, program.started(instruction))


def only_copies(program: Program, instruction: Instruction) -> bool:
    """Whether an instruction moves to or from the host, and computes nothing beside."""
    if not _copies(program, [(instruction, 1, False)]):
        return False
    bodies = [program.computation(name) for name in instruction.called("calls")]
    return all(i.opcode in _NO_WORK for body in bodies for i in body.values())


def _copies(program: Program, running: Iterable[tuple[Instruction, float, bool]]) -> list[HostCopy]:
    found = []
    for i, calls, wrapped in running:
        if i.opcode in _MOVE:
            split = wrapped or i.opcode.endswith("-start")
            moved: dict[Kind, float] = {"to host": _written(program, i), "from host": _read(program, i)}
            found += [HostCopy(kind, size, calls, split, i.op_name) for kind, size in moved.items() if size]
    return found


def _written(program: Program, i: Instruction) -> float:
    """Bytes that go into the host's memory: of what is updated in place there, the update."""
    if i.opcode == "fusion":
        (callee,) = i.called("calls")
        body, root = program.computation(callee), program.roots[callee]
        made = [body[name] for name in root.operands if name in body] if root.opcode == "tuple" else [root]
        return sum(_written_by(body, one) for one in made)
    return _written_by(program.instructions, i)


def _written_by(body: Mapping[str, Instruction], i: Instruction) -> float:
    if i.opcode == "bitcast" and i.operands and i.operands[0] in body:
        return _written_by(body, body[i.operands[0]])
    # Of a start's result, a tuple, the first part is what will be there.
    made = shape_parts(i.shape)[0] if i.opcode.endswith("-start") else i.shape
    if _MARK not in made or i.opcode in ("parameter", "get-tuple-element"):
        return 0.0
    if i.opcode == "dynamic-update-slice":
        made = body[i.operands[1]].shape if i.operands[1] in body else ""
    elif i.operands and all(_MARK in body[name].shape for name in i.operands if name in body):
        return 0.0  # from one place there to another
    return shape_bytes(made)


def _read(program: Program, i: Instruction) -> float:
    """Bytes that come from the host's memory: of what is sliced there, the slice."""
    if i.opcode == "fusion":
        (callee,) = i.called("calls")
        body = program.computation(callee)
        there = [p for p in body.values() if p.opcode == "parameter" and _MARK in p.shape]
        return sum(_read_of(body, one) for one in there)
    operands = [found for name in i.operands if (found := program.instructions.get(name))]
    return sum(_used(i, one) for one in operands if _MARK in one.shape)


def _read_of(body: Mapping[str, Instruction], there: Instruction) -> float:
    """Of a fusion's operand: each slice that it takes, or all of it, once."""
    users = [user for user in body.values() if there.name in user.operands]
    through = [user for user in users if user.opcode == "bitcast"]
    sizes = [_used(user, there) for user in users if user.opcode != "bitcast"]
    return min(shape_bytes(there.shape), sum(sizes) + sum(_read_of(body, user) for user in through))


def _used(user: Instruction, there: Instruction) -> float:
    """Of an array on the host, what one instruction reads."""
    if user.opcode in ("tuple", "get-tuple-element"):
        return 0.0
    made = shape_parts(user.shape)[0] if user.opcode.endswith("-start") else user.shape
    if user.opcode == "dynamic-update-slice" and user.operands[0] == there.name:
        return 0.0
    if user.opcode in _SLICES:
        return 0.0 if _MARK in made else shape_bytes(made)
    return 0.0 if _MARK in made else shape_bytes(there.shape)
