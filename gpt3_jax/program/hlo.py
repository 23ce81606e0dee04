"""The compiled program, read from XLA's text of it: its instructions, how often each runs, and its collectives.

The text is what the compiler itself writes on request (`xla_dump_to`): it exists for TPU programs too, whose
``as_text()`` some versions refuse.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

import numpy as np

from gpt3_jax.errors import RunError
from gpt3_jax.program.frames import Frames, relative
from gpt3_jax.program.replica_groups import replica_groups
from gpt3_jax.program.shapes import shape_bytes, shape_parts
from gpt3_jax.program.traffic import Kind, ring_share

_KINDS: dict[str, Kind] = {
    "all-gather": "all-gather",
    "all-gather-start": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "all-reduce": "all-reduce",
    "all-reduce-start": "all-reduce",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",
    "collective-permute": "permute",
    "collective-permute-start": "permute",
}
COLLECTIVES = frozenset(opcode for opcode in _KINDS if not opcode.endswith("-start"))
"""Opcodes of collectives; each may also be split into ``-start`` and ``-done``."""
_STARTED = "async-collective-start"
_INDEX = re.compile(r"\bindex=(\d+)")
_HEAD = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program."""

    name: str
    opcode: str
    shape: str
    """Its result, as XLA writes it: ``bf16[768,3072]{1,0}``; a tuple in parentheses."""
    operands: tuple[str, ...]
    attributes: str
    """Everything behind the operands."""

    @property
    def op_name(self) -> str:
        """Its place in the traced program: ``jit(step)/shard_map/attention/dot_general``."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def called(self, *attributes: str) -> tuple[str, ...]:
        """Computations that it calls under these attributes (``body``, ``calls``, ...)."""
        found: list[str] = []
        for attribute in attributes:
            for one, many in re.findall(rf"\b{attribute}=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.attributes):
                found += [one] if one else [name.strip().lstrip("%") for name in many.split(",")]
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class CompiledCollective:
    """One collective of the compiled program, which may carry many tensors."""

    kind: Kind
    groups: tuple[tuple[int, ...], ...]
    """Devices that talk to each other, by their place in the mesh; empty: all of them. Of a permute, the pairs of
    source and target."""
    devices: int
    """Devices of one group."""
    bytes: float
    """Bytes of the whole tensors: gathered; about to be scattered; reduced."""
    calls: float
    """Times that the program runs it."""
    asynchronous: bool
    """Whether it is split into a start and a done, so that other work can stand in between."""
    op_name: str

    @property
    def bytes_sent(self) -> float:
        """Bytes that a device sends in all calls, by the ring formula (see `program.traffic`)."""
        return self.calls * float(ring_share(self.kind, self.devices)) * self.bytes

    @property
    def upwards(self) -> bool:
        """Of a permute: whether most devices send to one further on in the mesh."""
        return 2 * sum(source < target for source, target in self.groups) > len(self.groups)

    def between_neighbours(self, shape: Mapping[str, int]) -> bool:
        """Of a permute: whether each device of a mesh of this shape sends one step along one axis, which closes."""
        places = np.unravel_index(np.array(self.groups), tuple(shape.values()))
        ways = [(place[:, 1] - place[:, 0]) % size for place, size in zip(places, shape.values(), strict=True)]
        hops = [np.minimum(way, size - way) for way, size in zip(ways, shape.values(), strict=True)]
        return bool((sum(hops) <= 1).all())

    def axes(self, shape: Mapping[str, int]) -> tuple[str, ...]:
        """The axes of a mesh of this shape that a group runs over: those in which its members' places differ."""
        if not self.groups:
            return tuple(name for name, size in shape.items() if size > 1)
        places = np.unravel_index(np.array(self.groups[0]), tuple(shape.values()))
        return tuple(name for name, place in zip(shape, places, strict=True) if len(set(place.tolist())) > 1)


class Program:
    """A compiled module.

    Args:
        text: the module after all optimisations.

    Raises:
        RunError: text that is not a module in a form that this reader knows.
    """

    def __init__(self, text: str) -> None:
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry = ""
        self._frames = Frames(text)
        found_partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
        self._partitions = int(found_partitions[1]) if found_partitions else 0
        current: dict[str, Instruction] | None = None
        for line in _lines(text):
            if current is None:
                if (found := _COMPUTATION.match(line)) and " = " not in line.split("(", 1)[0]:
                    current = self._computations.setdefault(found[2], {})
                    self._entry = found[2] if found[1] else self._entry
            elif line.startswith("}"):
                current = None
            elif (instruction := _parse(line)) is not None:
                for name in instruction.operands:
                    if "#" in name and name not in current:
                        current[name] = _element(name, current)
                current[instruction.name] = instruction
        if not self._entry:
            raise RunError("the compiler's text of the program has no ENTRY computation: it cannot be read")

    @property
    def entry(self) -> str:
        """The name of the computation that the program begins with."""
        return self._entry

    @functools.cached_property
    def instructions(self) -> dict[str, Instruction]:
        """Every instruction by its name; names are unique in a module."""
        return {name: i for computation in self._computations.values() for name, i in computation.items()}

    @functools.cached_property
    def roots(self) -> dict[str, Instruction]:
        """The last instruction of each computation, which is its result."""
        return {name: list(body.values())[-1] for name, body in self._computations.items() if body}

    def computation(self, name: str) -> dict[str, Instruction]:
        """The instructions of one computation, by name, in its order."""
        return self._computations.get(name, {})

    def fused(self, instruction: Instruction) -> list[Instruction]:
        """The instructions inside a fusion, or whatever else names its computation under ``calls``."""
        return [i for name in instruction.called("calls") for i in self.computation(name).values()]

    def parameters(self, computation: str) -> frozenset[str]:
        """Names of a computation's parameters."""
        body = self._computations.get(computation, {})
        return frozenset(name for name, i in body.items() if i.opcode == "parameter")

    def source(self, instruction: Instruction) -> str:
        """The line of Python that made it, ``gpt3_jax/model/loss.py:71``; empty where the compiler lost it."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if found:
            return self._frames.source(int(found[1]))
        found = re.search(r'source_file="([^"]*)" source_line=(\d+)', instruction.attributes)
        return f"{relative(found[1])}:{found[2]}" if found else ""

    def sources(self, instruction: Instruction) -> list[str]:
        """Every line of this project that stood on Python's stack when it was traced, innermost first."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        if found:
            return self._frames.own(int(found[1]))
        here = self.source(instruction)
        return [here] if here.startswith("gpt3_jax/") else []

    def running(self) -> Iterator[tuple[Instruction, float, bool]]:
        """Each instruction that is scheduled on its own (not inside a fusion), how often it runs, and whether it is
        wrapped into an asynchronous start. Of a condition, each branch runs an equal share."""
        yield from self._walk(self._entry, 1, False)

    def _walk(self, computation: str, calls: float, wrapped: bool) -> Iterator[tuple[Instruction, float, bool]]:
        for instruction in self._computations.get(computation, {}).values():
            yield instruction, calls, wrapped
            if instruction.opcode == "while":
                (body,) = instruction.called("body")
                yield from self._walk(body, calls * self.trip_count(instruction), False)
            elif instruction.opcode == "conditional":
                branches = instruction.called("branch_computations", "true_computation", "false_computation")
                for branch in branches:
                    yield from self._walk(branch, calls / len(branches), False)
            elif instruction.opcode in ("call", "async-start") or (wrapped and instruction.opcode == "custom-call"):
                # The custom call: what a TPU's sparse core runs beside the rest.
                for callee in instruction.called("to_apply", "calls", "called_computations"):
                    yield from self._walk(callee, calls, wrapped or instruction.opcode == "async-start")

    def trip_count(self, loop: Instruction) -> int:
        """Iterations of a while loop.

        Raises:
            RunError: the program does not state the loop's trip count.
        """
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if found:
            return int(found[1])
        (condition,) = loop.called("condition")
        constants = [i for i in self._computations[condition].values() if i.opcode == "constant"]
        limits = {int(m[0]) for i in constants if (m := re.search(r"-?\d+", " ".join(i.operands)))}
        if self.roots[condition].opcode in ("compare", "fusion") and len(limits) == 1:
            return -(-limits.pop() // self._increment(loop))
        raise RunError(f"the compiled program does not state the trip count of the loop {loop.name}")

    def _increment(self, loop: Instruction) -> int:
        """What one iteration adds to the loop's counter: more than 1 where the compiler has unrolled it."""
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        counters = [found[1] for i in self._computations[condition].values() if (found := _INDEX.search(i.attributes))]
        if len(counters) != 1 or self.roots[body].opcode != "tuple":
            return 1
        instructions = self._computations[body]
        following = instructions.get(self.roots[body].operands[int(counters[0])])
        while following is not None and following.opcode in ("copy", "bitcast"):
            following = instructions.get(following.operands[0])
        if following is None or following.opcode != "add":
            return 1
        values = (instructions[name] for name in following.operands if name in instructions)
        added = [int(i.operands[0]) for i in values if i.opcode == "constant" and i.operands[0].isdecimal()]
        return added[0] if len(added) == 1 and added[0] > 0 else 1

    def collectives(self) -> list[CompiledCollective]:
        """The collectives, in program order; those over a single device are left out.

        An all-reduce of which a fusion keeps only one slice is a reduce-scatter, and counted as one: that is how TPU
        programs write theirs.
        """
        running = self.running()
        return [found for i, calls, wrapped in running for found in self._stated(i, calls, wrapped)]

    def collectives_of(self, instruction: Instruction) -> list[CompiledCollective]:
        """The collectives that one run of a scheduled instruction executes or starts."""
        return [found for i, calls, wrapped in self.started(instruction) for found in self._stated(i, calls, wrapped)]

    def started(self, instruction: Instruction) -> Iterator[tuple[Instruction, float, bool]]:
        """Like `running`, for one scheduled instruction: itself, or the computation that it starts."""
        if instruction.opcode != "async-start":
            yield instruction, 1, False
            return
        for name in instruction.called("calls"):
            yield from self._walk(name, 1, True)

    def _stated(self, instruction: Instruction, calls: float, wrapped: bool) -> list[CompiledCollective]:
        inside = [instruction]
        if instruction.opcode == "fusion":
            starts = instruction.name.startswith(_STARTED)
            wrapped = wrapped or starts
            inside = self.fused(instruction)
            if not starts:
                inside = [i for i in inside if i.opcode in _KINDS and not self._goes_on(instruction, i)]
        found = [self._collective(i, instruction, calls, wrapped) for i in inside if i.opcode in _KINDS]
        return [collective for collective in found if collective is not None]

    def _goes_on(self, fusion: Instruction, collective: Instruction) -> bool:
        """Whether a fusion continues or ends a collective that another one started. A TPU program repeats the
        collective in each of these fusions, with the same channel."""
        channel = _channel(collective)
        if channel:
            return channel in self._started
        if fusion.name.startswith("async-collective-done"):
            return True
        before = (self.instructions.get(name) for name in fusion.operands)
        sources = (i.operands[0] if i and i.opcode == "get-tuple-element" else i.name if i else "" for i in before)
        return any(name.startswith(_STARTED) for name in sources)

    @functools.cached_property
    def _started(self) -> frozenset[str]:
        """Channels of the collectives that a fusion of their own starts."""
        fusions = (i for i in self.instructions.values() if i.opcode == "fusion" and i.name.startswith(_STARTED))
        inside = (i for fusion in fusions for i in self.fused(fusion))
        return frozenset(channel for i in inside if i.opcode in _KINDS and (channel := _channel(i)))

    def _collective(self, i: Instruction, outer: Instruction, calls: float, wrapped: bool) -> CompiledCollective | None:
        kind = _KINDS[i.opcode]
        groups = replica_groups(i.attributes)
        devices = len(groups[0]) if groups else self._partitions
        if kind != "permute" and devices < 1:
            raise RunError(f"the devices of the collective {i.name} cannot be read: {i.attributes[:200]}")
        if devices == 1:
            return None
        # The side that holds whole tensors: what goes into a reduction or out of a gather.
        operands = sum(shape_bytes(found.shape) for name in i.operands if (found := self.instructions.get(name)))
        size = operands * devices if kind == "all-gather" else operands
        fused = outer is not i
        if kind == "all-reduce" and fused and 0 < shape_bytes(outer.shape) <= 1.5 * size / max(devices, 1):
            kind = "reduce-scatter"
        asynchronous = wrapped or i.opcode.endswith("-start")
        return CompiledCollective(kind, groups, devices, size, calls, asynchronous, i.op_name or outer.op_name)


def _channel(collective: Instruction) -> str:
    found = re.search(r"\bchannel_id=(\d+)", collective.attributes)
    return found[1] if found else ""


def _lines(text: str) -> Iterator[str]:
    """Lines. An attribute that contains line breaks (a Pallas kernel's metadata) is joined to its own line."""
    whole = ""
    for line in text.splitlines():
        if whole.startswith("  ") and line and not line.startswith(" ") and line != "}" and not line.startswith("}, "):
            whole += line
        else:
            yield whole
            whole = line
    yield whole


def _parse(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    closing = _closing(rest, opening)
    inside = re.sub(r"/\*.*?\*/", "", rest[opening + 1 : closing])
    operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", inside)) or tuple(
        part.strip() for part in inside.split(",") if part
    )
    return Instruction(head[1], rest[:opening], shape, operands, rest[closing + 1 :])


def _element(name: str, body: dict[str, Instruction]) -> Instruction:
    """The `get-tuple-element` for ``loop#3``. Newer texts name an element of a tuple where it is used, without one."""
    whole, _, place = name.partition("#")
    parts = shape_parts(body[whole].shape) if whole in body else []
    shape = parts[int(place)] if int(place) < len(parts) else ""
    return Instruction(name, "get-tuple-element", shape, (whole,), f", index={place}")


def _closing(text: str, opening: int) -> int:
    """The position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)
