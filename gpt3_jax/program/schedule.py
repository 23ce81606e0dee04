"""How much of a compiled program's traffic runs beside compute, read from the compiled schedule.

The program's text is its schedule: instructions between a collective's start and its done run while the collective
does. This module runs through the schedule in time, computation by computation. Compute instructions follow each other
at given rates. Collectives over one mesh axis follow each other too, each no earlier than its start. At a done, compute
waits until the collective has finished. A collective that is not split into a start and a done is waited for in full.

Asynchronous collectives have four forms:

- ``all-gather-start`` and its kin;
- an ``async-start`` around any collective (GPUs);
- the same on a TPU's sparse core, which begins at the ``async-update`` that hands it its operands;
- a sequence of fusions (TPUs), of which one starts the collective, some carry it beside a matmul, and one ends it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from gpt3_jax.program.hlo import COLLECTIVES, CompiledCollective, Instruction, Program
from gpt3_jax.program.host_copies import HostCopy, host_copies_of
from gpt3_jax.program.kernels import instruction_flops
from gpt3_jax.program.memory_traffic import instruction_bytes

Transfer: TypeAlias = CompiledCollective | HostCopy
"""What moves while compute may run. A copy to the host's memory is treated like a collective."""


class Link(NamedTuple):
    """What a collective runs on."""

    axes: str
    """The mesh axes, ``data`` or ``replica+data``; ``host`` for copies to the host's memory and back."""
    direction: Literal["", "up", "down"] = ""
    """Of a ring's two, the one that it uses; empty: the whole link."""

    def shares(self, other: Link) -> bool:
        """Whether collectives on the two follow each other: on the same link, or on a link and one of its
        directions. One over several axes, ``data+tensor``, counts as free of ``data`` and of ``tensor``."""
        return self.axes == other.axes and (not self.direction or other.direction in ("", self.direction))


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates at which the schedule is timed."""

    flops: float
    """FLOPs per second of matmuls."""
    hbm: float
    """Bytes per second of everything but matmuls."""
    link: Callable[[Transfer], tuple[Link, float | None]]
    """The link that a collective uses, and the seconds of one call. None where no document states the speed of the
    link: then nothing waits for it."""


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """One collective in the schedule. All figures but its `calls` are for one call."""

    collective: Transfer
    """With the calls of its computation."""
    seconds: float | None
    """Its duration; None where the speed of its link is not known."""
    waited: float
    """Seconds of these during which compute waited."""
    flops: float
    """Of the matmuls between its start and its done."""
    hbm_bytes: float
    """Moved in between by other instructions than matmuls."""

    @property
    def hidden(self) -> float | None:
        """The share of it that ran beside compute; None where the speed of its link is not known."""
        if self.seconds is None:
            return None
        return 1 - self.waited / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class Overlap:
    """One line of a receipt: a device's collectives of one kind over the same axes, in one step."""

    axes: str
    kind: str
    bytes: float
    """Sent by a device, by the ring formula; or received from its host."""
    asynchronous: float
    """Bytes of the collectives that are split into a start and a done."""
    hidden: float | None
    """Bytes that move while compute runs; None where the speed of the link is not known."""
    seconds: float | None
    """Their duration; None where the speed of the link is not known."""
    waited: float
    """Seconds of these during which compute waited."""


def read_schedule(program: Program, rates: Rates) -> tuple[float, list[Scheduled]]:
    """The seconds of one call of the program, and every collective in its schedule.

    Raises:
        RunError: a loop whose trip count does not stand in the program.
    """
    timeline = _Timeline(program, rates)
    return timeline.run(program.entry, 1).seconds, timeline.found


def add_up(found: Iterable[Scheduled], shape: Mapping[str, int]) -> tuple[Overlap, ...]:
    """The collectives added up by mesh axes and kind."""
    rows: dict[tuple[str, str], Overlap] = {}
    for one in found:
        collective, calls = one.collective, one.collective.calls
        key = "+".join(collective.axes(shape)), collective.kind
        old = rows.get(key, Overlap(*key, 0.0, 0.0, 0.0, 0.0, 0.0))
        rows[key] = Overlap(
            *key,
            old.bytes + collective.bytes_sent,
            old.asynchronous + collective.asynchronous * collective.bytes_sent,
            None if old.hidden is None or one.hidden is None else old.hidden + one.hidden * collective.bytes_sent,
            None if old.seconds is None or one.seconds is None else old.seconds + calls * one.seconds,
            old.waited + calls * one.waited,
        )
    return tuple(rows[key] for key in sorted(rows))


@dataclasses.dataclass
class _Span:
    """Time and work of one run of a computation so far."""

    seconds: float = 0.0
    flops: float = 0.0
    hbm_bytes: float = 0.0

    def add(self, other: _Span, times: float = 1.0) -> None:
        self.seconds += times * other.seconds
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes


@dataclasses.dataclass
class _Flight:
    """A collective that was started."""

    collective: Transfer
    link: Link
    begin: float
    end: float
    known: bool
    """Whether the speed of its link is known; if not, it takes no time."""
    passed: _Span
    """Time and work at its start."""
    waited: float = 0.0


class _Timeline:
    def __init__(self, program: Program, rates: Rates) -> None:
        self._program, self._rates = program, rates
        self.found: list[Scheduled] = []

    def run(self, computation: str, calls: float) -> _Span:
        """One run of a computation that the program runs `calls` times."""
        return _Run(self, self._program, self._rates, calls).through(computation)


class _Run:
    """One run of one computation."""

    def __init__(self, timeline: _Timeline, program: Program, rates: Rates, calls: float) -> None:
        self._timeline, self._program, self._rates, self._calls = timeline, program, rates, calls
        self._passed = _Span()
        self._flights: list[_Flight] = []
        self._open: dict[str, list[_Flight]] = {}
        """By the name of their start."""
        self._carried: dict[str, str] = {}
        """Names of values that belong to a collective under way, to the name of its start."""
        self._unfed: dict[str, list[Transfer]] = {}
        """Started without operands: they begin when they get them."""

    def through(self, computation: str) -> _Span:
        for instruction in self._program.computation(computation).values():
            self._step(instruction)
        return self._passed

    def _step(self, i: Instruction) -> None:
        start = self._belongs_to(i)
        if i.opcode == "get-tuple-element":
            if start:
                self._carried[i.name] = start
        elif i.opcode == "async-update" and start:
            self._carried[i.name] = start
            if start in self._unfed:
                self._begin(start, self._unfed.pop(start))
        elif start and (i.opcode.endswith("-done") or i.name.startswith("async-collective-done")):
            self._end(start)
        elif start and i.opcode == "fusion" and self._carries(i):
            self._carried[i.name] = start
            self._compute(i)
        elif i.opcode in ("while", "conditional", "call"):
            self._inner(i)
        elif found := self._transfers(i):
            self._carried[i.name] = i.name
            if i.opcode == "async-start" and not i.operands:
                self._unfed[i.name] = found
                return
            self._begin(i.name, found)
            if not found[0].asynchronous:
                self._end(i.name)
                if any(isinstance(transfer, HostCopy) for transfer in found):
                    self._compute(i)  # of a fusion, what it does beside
        else:
            self._compute(i)

    def _transfers(self, i: Instruction) -> list[Transfer]:
        return [*self._program.collectives_of(i), *host_copies_of(self._program, i)]

    def _belongs_to(self, i: Instruction) -> str:
        """The start of the collective that most of its operands come from; empty for none."""
        held = Counter(self._carried[name] for name in i.operands if name in self._carried)
        return held.most_common(1)[0][0] if held else ""

    def _carries(self, fusion: Instruction) -> bool:
        return any(i.opcode in COLLECTIVES for i in self._program.fused(fusion))

    def _begin(self, name: str, collectives: list[Transfer]) -> None:
        flights = []
        for collective in collectives:
            link, seconds = self._rates.link(collective)
            free = max((flight.end for flight in self._flights if flight.link.shares(link)), default=0.0)
            begin = max(self._passed.seconds, free)
            end, known = begin + (seconds or 0.0), seconds is not None
            flight = _Flight(collective, link, begin, end, known, dataclasses.replace(self._passed))
            self._flights.append(flight)
            flights.append(flight)
        self._open[name] = flights

    def _end(self, start: str) -> None:
        """The done of what `start` began: waits until it has finished."""
        for flight in self._open.pop(start, ()):
            now = self._passed.seconds
            if flight.end > now:
                # Waited for: all that runs on this link until then.
                for other in self._flights:
                    if other.link.shares(flight.link):
                        other.waited += max(0.0, min(other.end, flight.end) - max(other.begin, now))
                self._passed.seconds = flight.end
            self._timeline.found.append(
                Scheduled(
                    dataclasses.replace(flight.collective, calls=self._calls),
                    flight.end - flight.begin if flight.known else None,
                    flight.waited,
                    self._passed.flops - flight.passed.flops,
                    self._passed.hbm_bytes - flight.passed.hbm_bytes,
                )
            )
        self._carried = {name: of for name, of in self._carried.items() if of != start}

    def _inner(self, i: Instruction) -> None:
        if i.opcode == "while":
            (body,) = i.called("body")
            trips = self._program.trip_count(i)
            self._passed.add(self._timeline.run(body, self._calls * trips), trips)
            return
        callees = i.called("to_apply", "calls", "branch_computations", "true_computation", "false_computation")
        share = 1 / len(callees) if i.opcode == "conditional" else 1.0
        for callee in callees:
            self._passed.add(self._timeline.run(callee, self._calls * share), share)

    def _compute(self, i: Instruction) -> None:
        flops, moved = instruction_flops(self._program, i), instruction_bytes(self._program, i)
        self._passed.add(_Span(flops / self._rates.flops + moved / self._rates.hbm, flops, moved))
