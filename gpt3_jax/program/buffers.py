"""What is in a device's memory when the compiled program uses most of it: each buffer, its purpose, and the line of
source that made it.

Read from the compiler's own buffer assignment and live ranges, which it writes beside the program (`xla_dump_to`),
also when the program turned out too large for the device. TPU and GPU compilers write them in the same form.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from gpt3_jax.errors import RunError
from gpt3_jax.program.hlo import Instruction, Program
from gpt3_jax.program.host_copies import HOST_MEMORY

Purpose = Literal[
    "master weights", "moments", "batch", "gathered weights", "gradients", "activations", "logits", "temporary"
]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

_ALLOCATION = re.compile(r"allocation (\d+): size (\d+)(.*)")
_VALUE = re.compile(r" value: <\d+ (\S+?)(\{[\d,]*\})?(?: \(phi\))? @(\d+)> \(size=(\d+),offset=(\d+)\): (.*)")
_RANGE = re.compile(r"    (\S+?)(\{[\d,]*\}):(\d+)-(\d+)")
_DEVICE_MEMORY = 0
"""XLA's memory space of HBM; on-chip memories and the host's (`HOST_MEMORY`) have other numbers."""


@dataclasses.dataclass(frozen=True)
class Buffer:
    """One buffer alive at the peak."""

    size: int
    """Bytes, the padding of its layout included."""
    shape: str
    purpose: Purpose
    op_name: str
    """Where in the traced program it comes from."""
    source: str
    """The line of Python that made it; empty where the compiler lost it."""
    instruction: str


Shape: TypeAlias = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes by which weights and logits are recognised: sizes on one device, in elements."""

    block: frozenset[Shape]
    """One block's matrices, whole over `data`: their dimensions sorted, without those of 1."""
    top: frozenset[Shape]
    """The embeddings, whole."""
    shards: frozenset[Shape]
    """The shards of a block's."""
    vocab: int
    """Width of a tensor shard's slice of the padded vocabulary."""
    gathered_inside: bool
    """Whether weights are gathered block by block (stage 3)."""
    stacks: frozenset[int]
    """First dimensions of a stack: periods, layers."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """The moment at which the program uses most memory."""

    arguments: int
    """Bytes of the state and the batch, which are held throughout."""
    temporaries: int
    """Bytes that the program reserves for temporaries: those alive at the peak, and the gaps between them."""
    buffers: tuple[Buffer, ...]
    """Alive at the peak, largest first, arguments included."""
    host: int
    """Bytes that the program reserves in the host's memory."""

    def by_purpose(self) -> dict[Purpose, int]:
        """Bytes at the peak for each purpose, in the order of `PURPOSES`."""
        total = dict.fromkeys(PURPOSES, 0)
        for buffer in self.buffers:
            total[buffer.purpose] += buffer.size
        return total

    @property
    def gaps(self) -> int:
        """Bytes reserved but not in use at the peak: the allocator's fragmentation."""
        return self.arguments + self.temporaries - sum(buffer.size for buffer in self.buffers)


def read_peak(folder: Path, program: Program, shapes: Shapes) -> Peak:
    """The peak of the one program whose dump stands in `folder`.

    Raises:
        RunError: the compiler wrote no buffer assignment, or one in another form.
    """
    values = _values(_only(folder, "*after_optimizations-buffer-assignment.txt"))
    ranges = _ranges(_only(folder, "*after_optimizations-live-range.txt"))
    arguments = _arguments(values, program)
    heaps: dict[int, list[_Value]] = {}
    on_host: dict[int, int] = {}
    for value in values:
        if value.temporary and value.memory == _DEVICE_MEMORY:
            heaps.setdefault(value.allocation, []).append(value)
        elif value.temporary and value.memory == HOST_MEMORY:
            on_host[value.allocation] = value.allocation_size
    purposes = _Purposes(program, shapes)
    alive = [purposes.buffer(v) for v in arguments.values()]
    reserved = 0
    for heap in heaps.values():
        reserved += heap[0].allocation_size
        alive += [purposes.buffer(v) for v in _fullest(heap, ranges)]
    alive.sort(key=lambda buffer: (-buffer.size, buffer.instruction))
    return Peak(sum(v.allocation_size for v in arguments.values()), reserved, tuple(alive), sum(on_host.values()))


@dataclasses.dataclass(frozen=True)
class _Value:
    """One line of the buffer assignment."""

    name: str
    index: str
    size: int
    offset: int
    shape: str
    memory: int
    allocation: int
    allocation_size: int
    parameter: bool
    temporary: bool


def _only(folder: Path, pattern: str) -> str:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise RunError(f"the compiler wrote {len(found)} files {pattern}, expected 1: its memory cannot be read")
    return found[0].read_text(errors="replace")


def _values(text: str) -> list[_Value]:
    values: list[_Value] = []
    allocation, size, kind = -1, 0, ""
    for line in text.splitlines():
        if found := _ALLOCATION.match(line):
            allocation, size, kind = int(found[1]), int(found[2]), found[3]
        elif found := _VALUE.match(line):
            values.append(
                _Value(
                    found[1],
                    found[2] or "{}",
                    int(found[4]),
                    int(found[5]),
                    found[6],
                    int(found[3]),
                    allocation,
                    size,
                    " parameter " in kind,
                    "preallocated-temp" in kind,
                )
            )
    if not values:
        raise RunError("the compiler's buffer assignment has a form that this reader does not know")
    return values


def _ranges(text: str) -> dict[str, tuple[int, int]]:
    found = (_RANGE.match(line) for line in text.splitlines())
    return {m[1] + m[2]: (int(m[3]), int(m[4])) for m in found if m}


def _arguments(values: Iterable[_Value], program: Program) -> dict[int, _Value]:
    """The argument in each allocation that holds one. Results written back into its place have other names."""
    found: dict[int, _Value] = {}
    for value in values:
        instruction = program.instructions.get(value.name)
        if value.parameter and instruction is not None and instruction.opcode == "parameter":
            found.setdefault(value.allocation, value)
    return found


def _fullest(heap: Iterable[_Value], ranges: Mapping[str, tuple[int, int]]) -> list[_Value]:
    """The values alive when most of the heap is in use.

    Several values can share one place, such as a loop's element before, inside and after the loop: the largest counts.
    """
    known = sorted(
        ((v, ranges[v.name + v.index]) for v in heap if v.size and v.name + v.index in ranges),
        key=lambda pair: (pair[0].offset, -pair[0].size),
    )
    best: list[_Value] = []
    most = -1
    for moment in sorted({start for _, (start, _) in known}):
        there: list[_Value] = []
        total = end = 0
        for value, (first, last) in known:
            if first <= moment <= last and value.offset + value.size > end:
                total += value.offset + value.size - max(value.offset, end)
                end = value.offset + value.size
                there.append(value)
        if total > most:
            best, most = there, total
    return best


class _Purposes:
    """Says what a buffer is for, by the scopes of the traced program that its instruction came from."""

    def __init__(self, program: Program, shapes: Shapes) -> None:
        self._program, self._shapes = program, shapes
        self._loops = {
            i.called("body")[0]: i for i in program.instructions.values() if i.opcode == "while" and i.called("body")
        }

    def buffer(self, value: _Value) -> Buffer:
        origin = self._origin(value.name, value.index, 0)
        op_name = origin.op_name if origin else ""
        source = self._program.source(origin) if origin else ""
        return Buffer(value.size, _plain(value.shape), self._purpose(value, op_name), op_name, source, value.name)

    def _origin(self, name: str, index: str, depth: int) -> Instruction | None:
        """The instruction that computes a value: a loop's element is followed to what the loop's body makes of it, or,
        where it only passes through, to what stood before the loop."""
        instruction = self._program.instructions.get(name)
        if instruction is None or depth > 20:
            return instruction
        place = [int(i) for i in re.findall(r"\d+", index)]
        if instruction.opcode == "while" and place:
            (body,) = instruction.called("body")
            made = self._element(self._program.roots[body], place[0])
            if made is not None and not self._passes_through(made, place[0]):
                return self._origin(made.name, "{}", depth + 1)
            before = self._program.instructions.get(instruction.operands[0])
            came = self._element(before, place[0]) if before else None
            return self._origin(came.name, "{}", depth + 1) if came else instruction
        if instruction.opcode == "parameter" and place:
            loop = next((w for w in self._loops.values() if name in self._parameters(w)), None)
            return self._origin(loop.name, index, depth + 1) if loop else instruction
        if instruction.opcode == "custom-call" and (inside := instruction.called("called_computations")):
            # What a TPU's sparse core runs for it.
            root = self._program.roots.get(inside[0])
            return self._origin(root.name, "{}", depth + 1) if root and not instruction.op_name else instruction
        if instruction.opcode in ("bitcast", "copy", "copy-start", "copy-done", "get-tuple-element", "all-gather-done"):
            if instruction.opcode == "get-tuple-element":
                number = re.search(r"index=(\d+)", instruction.attributes)
                inner = f"{{{number[1]}}}" if number else "{}"
            else:
                inner = "{}"
            deeper = self._origin(instruction.operands[0], inner, depth + 1) if instruction.operands else None
            return deeper if deeper is not None and deeper.op_name else instruction
        return instruction

    def _element(self, instruction: Instruction | None, place: int) -> Instruction | None:
        if instruction is None or instruction.opcode != "tuple" or place >= len(instruction.operands):
            return None
        return self._program.instructions.get(instruction.operands[place])

    def _passes_through(self, made: Instruction, place: int) -> bool:
        return made.opcode == "get-tuple-element" and f"index={place}" in made.attributes.replace(" ", "").split(",")

    def _parameters(self, loop: Instruction) -> frozenset[str]:
        return frozenset(
            name for callee in loop.called("body", "condition") for name in self._program.parameters(callee)
        )

    def _purpose(self, value: _Value, op_name: str) -> Purpose:
        if value.parameter:
            argument = op_name or value.name  # which bears it where the compiler has lost the other
            if re.search(r"[._](mu|nu)[._]", argument):
                return "moments"
            return "master weights" if re.search(r"(^|[._])params[._]", argument) else "batch"
        if op_name.startswith(("state.", "rows")):
            return "temporary"  # an argument copied into another layout
        dims = tuple(d for d in _dims(value.shape) if d != 1)
        scopes = set(re.split(r"[/()]+", op_name))
        if scopes & {"optimizer", "clip"}:
            return "temporary"
        if "reduce_gradients" in scopes or "ni,no->io" in scopes:  # the einsum of a kernel's gradient
            return "gradients"
        if "gather_weights" in scopes:
            return "gathered weights"
        if self._stacked(dims, self._shapes.shards):
            return "gradients"
        # Only below stage 3 a stack of whole weights is ever there; a stack of activations may have its shape.
        whole = not self._shapes.gathered_inside and self._stacked(dims, self._shapes.block)
        if whole or _sorted(dims) in self._shapes.top:
            return "gradients" if "transpose" in scopes or value.shape.startswith("f32") else "gathered weights"
        if self._shapes.vocab in dims:
            return "logits"
        return "activations" if len(dims) > 2 and dims[0] in self._shapes.stacks else "temporary"

    def _stacked(self, dims: Shape, matrices: frozenset[Shape]) -> bool:
        """Whether this is a stack of such matrices: over layers, or over periods and their blocks."""
        stacks = self._shapes.stacks
        return any(
            len(dims) > depth + 1 and math.prod(dims[:depth]) in stacks and _sorted(dims[depth:]) in matrices
            for depth in (1, 2)
        )


def _sorted(dims: Shape) -> Shape:
    """Sorted, because the compiler may reorder dimensions."""
    return tuple(sorted(dims))


def _plain(shape: str) -> str:
    """A shape without its layout: ``bf16[768,3072]``."""
    return re.sub(r"\{[^{}]*\}", "", shape).strip()


def _dims(shape: str) -> tuple[int, ...]:
    found = re.search(r"\[([\d,]*)\]", shape)
    return tuple(int(d) for d in found[1].split(",") if d) if found else ()
