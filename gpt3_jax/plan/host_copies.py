"""What a compiled program moves between a device's memory and its host's (`train.remat: offload`): copies, and slices
written into an array that lies there or read out of it.

Compilers mark what lies in the host's memory by a memory space in its layout, and split what moves there into a start
and a done as they do with collectives.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from gpt3_jax.plan.hlo import Instruction, Program, shape_bytes
from gpt3_jax.plan.traffic import HOST, Kind

HOST_MEMORY = 5
"""XLA's memory space of the host."""
_ON_HOST = re.compile(rf"S\({HOST_MEMORY}\)")
_COPIES = frozenset({"copy", "copy-start", "dynamic-slice", "dynamic-update-slice", "fusion"})


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
    found = ((_copy(program, i, wrapped), calls) for i, calls, wrapped in program.running())
    return [dataclasses.replace(copy, calls=calls) for copy, calls in found if copy is not None]


def host_copies_of(program: Program, instruction: Instruction) -> list[HostCopy]:
    """What one run of an instruction that is scheduled on its own does or starts."""
    inside: Iterator[tuple[Instruction, bool]] = iter([(instruction, False)])
    if instruction.opcode == "async-start":
        inside = ((i, True) for name in instruction.called("calls") for i in program.computation(name).values())
    copies = (_copy(program, i, wrapped) for i, wrapped in inside)
    return [copy for copy in copies if copy is not None]


def _copy(program: Program, i: Instruction, wrapped: bool) -> HostCopy | None:
    if i.opcode not in _COPIES:
        return None
    operands = [found.shape for name in i.operands if (found := program.instructions.get(name))]
    result = _copied(i)
    to_host, from_host = bool(_ON_HOST.search(result)), any(_ON_HOST.search(shape) for shape in operands)
    if not (to_host or from_host):
        return None
    kind: Kind = "to host" if to_host else "from host"
    moved = shape_bytes(result)
    if to_host and from_host:
        # An array there of which a part is written: as much as there is of it on the device's side.
        moved = sum(shape_bytes(shape) for shape in operands if not _ON_HOST.search(shape) and "[]" not in shape)
    return HostCopy(kind, moved, 1, wrapped or i.opcode == "copy-start", i.op_name)


def _copied(i: Instruction) -> str:
    """The shape of what is made: of a ``copy-start``, whose result is a tuple, its first part."""
    if i.opcode != "copy-start":
        return i.shape
    first = re.match(r"\(?([^,\s]*\[[\d,]*\](?:\{[^}]*\})?)", i.shape)
    return first[1] if first else ""
