"""Where a step's time goes: assigns each moment of some traced steps to the family of the operation that ran."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from gpt3_jax.bench.families import FAMILIES, Family, family, kernel_family, origin, scope
from gpt3_jax.bench.step import StepBench
from gpt3_jax.bench.trace import Event, record
from gpt3_jax.program import compiled as program
from gpt3_jax.program.hlo import Instruction, Program

LARGEST = 10
"""Number of operations listed individually."""


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of one family, or of one operation, in a step."""

    seconds: float
    """Share of the step's wall time. Operations that run at the same time share that moment equally. A collective
    counts only while no other operation runs, a loop only while nothing inside it runs."""
    running: float
    """Sum of the operations' durations; exceeds `seconds` if operations overlap."""
    calls: float


@dataclasses.dataclass(frozen=True)
class Operation:
    """One of the largest operations."""

    name: str
    family: Family
    share: Share
    shape: str
    source: str
    """The source line of Python; empty if the compiler lost it."""
    place: str
    """Place in the step: see `place`."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """The profile of an average step."""

    steps: int
    step_seconds: float
    """From the first operation of the first step to the last of the last step, divided by the steps. Tracing slows
    them."""
    families: dict[Family, Share]
    """They sum to `step_seconds`, idle included."""
    largest: list[Operation]


def profile(bench: StepBench, steps: int) -> Profile:
    """Traces `steps` steps on the first device of this process, dispatched as in the training loop.

    Raises:
        RunError: the profile or the compiled program cannot be read.
    """
    text = program.text(bench.program)
    events = record(lambda: bench.loop(steps))
    return account(events, Program(text), steps)


def account(events: Iterable[Event], compiled: Program, steps: int) -> Profile:
    """Assigns each moment from the first event to the last to the operations that ran in it."""
    events = list(events)
    known = _Names(compiled)
    families = {op: known.family(op) for op in {event.op for event in events}}
    seconds, idle = _divide(events, families)
    wall = (max(e.end for e in events) - min(e.start for e in events)) / steps
    running, calls = dict.fromkeys(families, 0.0), dict.fromkeys(families, 0)
    for event in events:
        running[event.op] += event.end - event.start
        calls[event.op] += 1
    shares = {op: Share(seconds.get(op, 0.0) / steps, running[op] / steps, calls[op] / steps) for op in families}
    totals: dict[Family, Share] = {}
    for name in FAMILIES:
        of = [share for op, share in shares.items() if families[op] == name]
        if of:
            totals[name] = Share(sum(s.seconds for s in of), sum(s.running for s in of), sum(s.calls for s in of))
    totals["idle"] = Share(idle / steps, idle / steps, 0.0)
    order = sorted((op for op in families if families[op] != "loops"), key=lambda op: (-shares[op].seconds, op))
    return Profile(steps, wall, totals, [known.operation(op, families[op], shares[op]) for op in order[:LARGEST]])


def _divide(events: list[Event], families: dict[str, Family]) -> tuple[dict[str, float], float]:
    """Seconds of each operation by the rule of `Share`, and idle seconds."""
    rank = {op: 2 if of == "loops" else 1 if of == "collectives" else 0 for op, of in families.items()}
    edges = sorted([(e.start, True, e.op) for e in events] + [(e.end, False, e.op) for e in events])
    running: tuple[dict[str, int], ...] = ({}, {}, {})
    seconds: dict[str, float] = {}
    idle = 0.0
    before = edges[0][0]
    for moment, begins, op in edges:
        if moment > before:
            first = next((ops for ops in running if ops), None)
            if first is None:
                idle += moment - before
            else:
                part = (moment - before) / sum(first.values())
                for one, count in first.items():
                    seconds[one] = seconds.get(one, 0.0) + part * count
            before = moment
        ops = running[rank[op]]
        ops[op] = ops.get(op, 0) + (1 if begins else -1)
        if not ops[op]:
            del ops[op]
    return seconds, idle


class _Names:
    """The compiled program's instructions, by their names in a trace."""

    def __init__(self, compiled: Program) -> None:
        self._program = compiled
        # A GPU kernel has its instruction's name, with characters that CUDA does not allow replaced.
        self._kernels = {name.replace(".", "_").replace("-", "_"): i for name, i in compiled.instructions.items()}

    def _find(self, op: str) -> Instruction | None:
        return self._program.instructions.get(op) or self._kernels.get(op)

    def family(self, op: str) -> Family:
        found = self._find(op)
        return family(found, self._program) if found is not None else kernel_family(op)

    def operation(self, op: str, of: Family, share: Share) -> Operation:
        found = self._find(op)
        if found is None:
            return Operation(op, of, share, "", "", "")
        traced = origin(found, self._program)
        lines = self._program.sources(traced) if traced else []
        # All matmuls are in one file, so the scope is more informative.
        line = next((one for one in lines if not one.startswith(_MATMULS_FILE)), "".join(lines[:1]))
        where = place(scope(found, self._program)) or "of " + ", ".join(found.operands[:1])
        return Operation(op, of, share, found.shape, line, where)


def place(scope: str) -> str:
    """Formats an op name of the compiled program: ``backward, mlp, ni,no->io``.

    It keeps the named scopes and the equation of a matmul, or the operation; "again" marks recomputation in the
    backward pass.
    """
    parts = [part for part in re.split(r"[/()]+", scope) if part]
    direction = "again" if "rematted_computation" in parts else "backward" if "transpose(" in scope else ""
    named = list(dict.fromkeys(part for part in parts[:-1] if part in _SCOPES))
    equation = next((part for part in parts if "->" in part), parts[-1] if parts else "")
    return ", ".join(part for part in (direction, *named, equation) if part)


_SCOPES = frozenset(
    {"attention", "mlp", "norm", "head_loss", "embed", "optimizer", "clip", "gather_weights", "reduce_gradients"}
)
_MATMULS_FILE = "gpt3_jax/model/matmul.py"
