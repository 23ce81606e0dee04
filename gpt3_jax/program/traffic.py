"""The collectives of a program, and its copies to the host's memory and back, counted from its jaxpr.

The step is manual over every mesh axis, so its jaxpr states each collective, with the trip counts of the loops around
it: what a configuration moves over each axis is known on any machine, without a compiler for the target.

Bytes are those that a device sends in a ring (ZeRO section 7.1): with N devices, (N - 1) / N of the whole tensor in
an all-gather or a reduce-scatter, twice that in an all-reduce.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Literal

import jax
import numpy as np
from jax.extend import core, source_info_util

from gpt3_jax.errors import RunError

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all", "permute", "to host", "from host"]
HOST = "host"
"""Stands in the place of the mesh axes where something moves between a device and its host."""

_KINDS: dict[str, Kind] = {
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",  # jax.shard_map's psum, typed as the same on every device
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_to_all": "all-to-all",
    "ppermute": "permute",
}
_MOVE_NOTHING = frozenset({"axis_index", "pvary", "pbroadcast"})
_RUN_ONCE = frozenset({"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_vjp_call", "custom_jvp_call"})
"""Primitives that run their inner program once. Their derivatives, where taken, stand in the jaxpr already."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, or one copy to the host's memory or back: one tensor, at one place of the code."""

    kind: Kind
    axes: tuple[str, ...]
    """Mesh axes that it runs over, in the mesh's order; `HOST` for a copy."""
    devices: int
    """Devices of one group; fewer than the axes have where a gather runs in steps over a part of them at a time."""
    elements: int
    """Elements of the whole tensor: gathered; about to be scattered; reduced."""
    dtype: str
    calls: int
    """Times that the program runs it."""
    source: str
    """Where it stands: file, line, function."""

    @property
    def elements_sent(self) -> Fraction:
        """Elements that a device sends in all calls, by the ring formula."""
        n = self.devices
        once: dict[Kind, Fraction] = {
            "all-gather": Fraction(n - 1, n) * self.elements,
            "reduce-scatter": Fraction(n - 1, n) * self.elements,
            "all-reduce": Fraction(2 * (n - 1), n) * self.elements,
            "all-to-all": Fraction(n - 1, n) * self.elements,
            "permute": Fraction(self.elements),
            "to host": Fraction(self.elements),
            "from host": Fraction(self.elements),
        }
        return self.calls * once[self.kind]

    @property
    def bytes_sent(self) -> float:
        """Bytes that a device sends in all calls."""
        return float(self.elements_sent * np.dtype(self.dtype).itemsize)


def count(function: Any, *args: Any) -> list[Collective]:
    """The collectives and the host's copies of one call, in program order; collectives over a single device are left
    out.

    Args:
        function: jitted or plain, with its collectives inside `jax.shard_map`; or its jaxpr.
        args: arrays or `jax.ShapeDtypeStruct`; global shapes.

    Raises:
        RunError: traffic that cannot be known from the program: a collective in a loop without a fixed trip count,
            in a branch of which the other branches differ, or within something that this counter does not know.
    """
    closed = function if hasattr(function, "jaxpr") else jax.make_jaxpr(function)(*args)
    return list(_walk(_open(closed), {}, 1))


def per_axis(collectives: Iterable[Collective]) -> dict[tuple[str, ...], float]:
    """Bytes that a device sends over each mesh axis (or group of axes), all kinds together."""
    result: dict[tuple[str, ...], float] = {}
    for collective in collectives:
        result[collective.axes] = result.get(collective.axes, 0.0) + collective.bytes_sent
    return result


def _walk(jaxpr: Any, sizes: dict[str, int], calls: int) -> Iterator[Collective]:
    """`sizes` are the mesh axes in scope, `calls` how often this jaxpr runs."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _KINDS and _axes(eqn):
            yield from _collectives(eqn, sizes, calls)
        elif name == "device_put":
            yield from _host_copies(eqn, calls)
        elif name == "shard_map":
            yield from _walk(_open(eqn.params["jaxpr"]), sizes | dict(eqn.params["mesh"].shape), calls)
        elif name == "scan":
            yield from _walk(_open(eqn.params["jaxpr"]), sizes, calls * eqn.params["length"])
        elif name == "cond":
            branches = [list(_walk(_open(branch), sizes, calls)) for branch in eqn.params["branches"]]
            if any(_without_source(branch) != _without_source(branches[0]) for branch in branches[1:]):
                raise _unknown(eqn, "stands in one branch of a condition and not in the others")
            yield from branches[0]
        elif name in _RUN_ONCE:
            for inner in core.jaxprs_in_params(eqn.params):
                yield from _walk(_open(inner), sizes, calls)
        else:
            if set(_axes(eqn)) & set(sizes) and name not in _MOVE_NOTHING:
                raise _unknown(eqn, f"is a {name}, whose traffic is not known")
            for inner in core.jaxprs_in_params(eqn.params):
                if next(_walk(_open(inner), sizes, calls), None) is not None:
                    why = "without a fixed trip count" if name == "while" else "which may run any number of times"
                    raise _unknown(eqn, f"stands in a {name}, {why}")


def _collectives(eqn: Any, sizes: dict[str, int], calls: int) -> Iterator[Collective]:
    axes = tuple(axis for axis in sizes if axis in _axes(eqn))
    devices = math.prod(sizes[axis] for axis in axes)
    groups = eqn.params.get("axis_index_groups")
    if groups is not None:
        if len({len(group) for group in groups}) != 1:
            raise _unknown(eqn, "runs over groups of different sizes")
        devices = len(groups[0])
    if devices == 1:
        return
    kind = _KINDS[eqn.primitive.name]
    source = source_info_util.summarize(eqn.source_info)
    whole = eqn.outvars if kind == "all-gather" else eqn.invars
    for atom in whole:
        shape, dtype = atom.aval.shape, np.dtype(atom.aval.dtype).name
        yield Collective(kind, axes, devices, math.prod(shape), dtype, calls, source)


def _host_copies(eqn: Any, calls: int) -> Iterator[Collective]:
    source = source_info_util.summarize(eqn.source_info)
    for before, after in zip(eqn.invars, eqn.outvars, strict=True):
        spaces = [getattr(atom.aval, "memory_space", None) for atom in (before, after)]
        if spaces[0] != spaces[1]:
            kind: Kind = "to host" if spaces[1] == jax.memory.Space.Host else "from host"
            elements, dtype = math.prod(after.aval.shape), np.dtype(after.aval.dtype).name
            yield Collective(kind, (HOST,), 1, elements, dtype, calls, source)


def _axes(eqn: Any) -> tuple[str, ...]:
    """The named axes of an equation; a `reduce_sum` has `axes` too, but numbers."""
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(axis for axis in (axes if isinstance(axes, (tuple, list)) else (axes,)) if isinstance(axis, str))


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _without_source(collectives: list[Collective]) -> list[Collective]:
    return [dataclasses.replace(collective, source="") for collective in collectives]


def _unknown(eqn: Any, why: str) -> RunError:
    where = source_info_util.summarize(eqn.source_info)
    return RunError(f"what moves between devices, or to the host, at {where} {why}: it cannot be counted")
