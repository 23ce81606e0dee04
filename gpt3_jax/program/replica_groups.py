"""Which devices a compiled collective runs over: XLA's three notations of its replica groups."""

from __future__ import annotations

import math
import re

import numpy as np


def replica_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The groups of devices of a collective, by their place in the mesh; for a permute, its pairs of source and target.
    Empty where none are stated.

    Args:
        attributes: what the compiled program writes behind a collective's operands.
    """
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        dims = [int(d) for d in found[3].split(",")]
        grid = np.arange(math.prod(dims)).reshape(dims)
        if found[4]:
            grid = grid.transpose([int(d) for d in found[4].split(",")])
        return tuple(map(tuple, grid.reshape(int(found[1]), int(found[2])).tolist()))
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        return tuple(tuple(int(d) for d in g.split(",") if d) for g in re.findall(r"\{([\d,]*)\}", found[1]))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\(([\d,]*)\))? *\{([^}]*)\}", attributes):
        return _mesh_groups(found[1], found[2], found[3])
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        pairs = [tuple(int(d) for d in pair.split(",")) for pair in re.findall(r"\{(\d+,\d+)\}", found[1])]
        return tuple(pairs)
    return ()


def _mesh_groups(mesh: str, order: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
    """Groups along named axes of a mesh: ``'data'=4,'tensor'=2`` and ``'data'``, or ``'data':(2)2``, which is the part
    of size 2 behind the first 2 of the axis."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh)}
    dims: list[int] = []
    along: list[int] = []
    parts = {name: (int(before or 1), int(size or 0)) for name, before, size in _PART_OF_AXIS.findall(axes)}
    for name, size in sizes.items():
        before, middle = parts.get(name, (size, 1))
        middle = middle or size
        if name in parts:
            along.append(len(dims) + 1)
        dims += [before, middle, size // (before * middle)]
    grid = np.arange(math.prod(dims)) if not order else np.array([int(d) for d in order.split(",")])
    moved = np.moveaxis(grid.reshape(dims), along, range(-len(along), 0))
    return tuple(map(tuple, moved.reshape(-1, math.prod(dims[i] for i in along)).tolist()))


_PART_OF_AXIS = re.compile(r"'([^']*)'(?::\((\d+)\)(\d+))?")
