"""Collectives in the text of a compiled XLA program, loops multiplied out by their known trip counts."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
from jax.sharding import Mesh

_COLLECTIVE = re.compile(r"= (.*?) (all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"(?:f|bf|u|s)\d+\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%([\w.\-]+)")


def collectives(text: str, mesh: Mesh) -> Counter[tuple[str, tuple[str, ...], int]]:
    """How often one run of the program executes each (kind, mesh axes, elements of the whole tensor)."""
    computations: dict[str, list[str]] = {}
    entry = lines = None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif lines is not None:
            lines.append(line)
    assert entry is not None, "the program has no entry"
    found: Counter[tuple[str, tuple[str, ...], int]] = Counter()

    def visit(name: str, times: int) -> None:
        for line in computations[name]:
            trips = 1
            if " while(" in line:
                trip_count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                assert trip_count, f"a loop of unknown length: {line.strip()[:120]}"
                trips = int(trip_count[1])
            if branches := re.search(r"branch_computations=\{(.*?)\}", line):
                before = found.total()
                for branch in re.findall(r"%([\w.\-]+)", branches[1]):
                    visit(branch, times)
                assert found.total() == before, "a collective in a branch, which may run or not"
            for called in _CALLED.findall(line):
                visit(called, times * trips)
            if match := _COLLECTIVE.search(line):
                axes, devices = _axes(line, mesh)
                for dims in _SHAPE.findall(match[1]):
                    elements = math.prod(int(d) for d in dims.split(",") if d)
                    elements *= devices if match[2] == "reduce-scatter" else 1
                    found[match[2], axes, elements] += times

    visit(entry, 1)
    return found


def _axes(line: str, mesh: Mesh) -> tuple[tuple[str, ...], int]:
    """The mesh axes whose devices a collective groups, and how many devices that are."""
    if named := re.search(r"replica_groups=mesh\[[^\]]*\] \{([^}]*)\}", line):
        axes = tuple(axis for axis in mesh.axis_names if f"'{axis}'" in named[1])
        return axes, math.prod(mesh.shape[axis] for axis in axes)
    if listed := re.search(r"replica_groups=\{\{(.*?)\}\}", line):
        groups = [tuple(map(int, group.split(","))) for group in listed[1].split("},{")]
    else:
        iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
        assert iota, f"groups of an unknown form: {line.strip()[:200]}"
        shape, source, order = ([int(n) for n in part.split(",")] if part else None for part in iota.groups())
        ids = np.arange(math.prod(source)).reshape(source)  # type: ignore[arg-type]
        groups = [tuple(row) for row in (ids.transpose(order) if order else ids).reshape(shape).tolist()]
    # Partition numbers run through the mesh in its order, so a device's coordinates are its number unravelled.
    grid = np.array(np.unravel_index(groups[0], tuple(mesh.shape.values())))
    moving = (grid != grid[:, :1]).any(axis=1)
    return tuple(axis for axis, moves in zip(mesh.axis_names, moving, strict=True) if moves), len(groups[0])
