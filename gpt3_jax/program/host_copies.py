"""What a compiled program moves between a device's memory and its host's (`memory.remat: offload`): copies, and slices
that are written to or read from an array in the host's memory, alone or inside a fusion.

Compilers mark arrays in the host's memory by the memory space in their layout. Like collectives, copies can be split
into a start and a done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from gpt3_jax.program.accesses import bytes_read, bytes_written, result_shape, results, uses
from gpt3_jax.program.hlo import Instruction, Program
from gpt3_jax.program.shapes import shape_bytes
from gpt3_jax.program.traffic import HOST, Kind

HOST_MEMORY = 5
"""XLA's memory space of the host."""
_MARK = f"S({HOST_MEMORY})"
_MOVE = frozenset({"copy", "copy-start", "slice", "slice-start", "dynamic-slice", "dynamic-update-slice", "fusion"})
_NO_WORK = _MOVE | {"parameter", "constant", "bitcast", "reshape", "tuple", "get-tuple-element"}


@dataclasses.dataclass(frozen=True)
class HostCopy:
    """One copy. The schedule and the traffic tables treat it as one more kind of collective."""

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
        """`HOST`, in place of the mesh axes of a collective."""
        return (HOST,)


def host_copies(program: Program) -> list[HostCopy]:
    """All copies that the program runs, in program order.

    Raises:
        RunError: a loop whose trip count does not stand in the program.
    """
    return _copies(program, program.running())


def host_copies_of(program: Program, instruction: Instruction) -> list[HostCopy]:
    """The copies that one run of a scheduled instruction executes or starts."""
    return _copies(program, program.started(instruction))


def only_copies(program: Program, instruction: Instruction) -> bool:
    """Whether an instruction copies to or from the host and computes nothing."""
    if not _copies(program, [(instruction, 1, False)]):
        return False
    return all(i.opcode in _NO_WORK for i in program.fused(instruction))


def _copies(program: Program, running: Iterable[tuple[Instruction, float, bool]]) -> list[HostCopy]:
    found = []
    for i, calls, wrapped in running:
        if i.opcode in _MOVE:
            split = wrapped or i.opcode.endswith("-start")
            moved: dict[Kind, float] = {"to host": _written(program, i), "from host": _read(program, i)}
            found += [HostCopy(kind, size, calls, split, i.op_name) for kind, size in moved.items() if size]
    return found


def _written(program: Program, i: Instruction) -> float:
    """Bytes that go into the host's memory."""
    return sum(bytes_written(program, made) for made in results(program, i) if _comes_from_the_device(program, made))


def _comes_from_the_device(program: Program, made: Instruction) -> bool:
    if not _on_host(made) or made.opcode in ("parameter", "get-tuple-element"):
        return False
    if made.opcode == "dynamic-update-slice":
        return True
    operands = [found for name in made.operands if (found := program.instructions.get(name))]
    return not made.operands or any(_MARK not in operand.shape for operand in operands)


def _read(program: Program, i: Instruction) -> float:
    """Bytes that come from the host's memory."""
    if i.opcode != "fusion":
        operands = [found for name in i.operands if (found := program.instructions.get(name))]
        return sum(bytes_read(i, there) for there in operands if _MARK in there.shape and _goes_to_the_device(i))
    (callee,) = i.called("calls")
    body = program.computation(callee)
    total = 0.0
    for there in body.values():
        if there.opcode == "parameter" and _MARK in there.shape:
            read = sum(size for user, size in uses(body, there) if _goes_to_the_device(user))
            total += min(shape_bytes(there.shape), read)
    return total


def _goes_to_the_device(user: Instruction) -> bool:
    return user.opcode not in ("tuple", "get-tuple-element") and not _on_host(user)


def _on_host(made: Instruction) -> bool:
    return _MARK in result_shape(made)
