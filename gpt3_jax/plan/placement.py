"""How mesh axes lie on the hardware: dimensions of a torus, NVLink in a node, the network between nodes or slices."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from gpt3_jax.devices import Device
from gpt3_jax.errors import UserError
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.program.traffic import HOST

Medium = Literal["ICI", "NVLink", "network", "PCIe"]


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """What a mesh axis runs on."""

    medium: Medium
    bandwidth: float
    """Bytes per second that a device can send along the axis."""
    how: str
    """How the axis lies on the hardware, in words."""
    ring: bool = False
    """Whether it takes dimensions of a torus that close: either neighbour has a link of its own."""


Placement = Mapping[str, Interconnect]
"""For each mesh axis of more than one device, what it runs on; and for `HOST` the way to the host's memory, where a
document states its bandwidth."""


def torus(device: Device, dims: Sequence[int], mesh: MeshShape, devices_per_chip: int = 1) -> dict[str, Interconnect]:
    """Mesh axes on the torus of a slice.

    An axis takes whole dimensions of the torus where some of them multiply to its size: two links in each that closes
    to a ring, one in each that does not. Otherwise it takes what whole dimensions it can and a part of another, which
    is a line; what it leaves of that dimension is a line too.

    Args:
        device: with a torus.
        dims: extents of the slice in chips, e.g. (8, 8, 8).
        mesh: its part inside the slice; axes of size 1 are left out.
        devices_per_chip: 2 where JAX shows a chip as two devices. They are the nearest neighbours of all: the last axis
            of more than one device begins inside the chip. An axis that does not leave it is counted as one link.

    Raises:
        UserError: the axes do not multiply to the devices of the slice.
    """
    chips = math.prod(dims)
    if mesh.devices != chips * devices_per_chip:
        raise UserError(
            f"mesh {mesh} = {mesh.devices} devices, but a slice of {_x(dims)} has {chips * devices_per_chip}; choose "
            "axes that multiply to it"
        )
    links = device.links
    free = [_Dimension(extent, extent % links.wrap_multiple == 0) for extent in dims if extent > 1]
    inside = devices_per_chip
    placed: dict[str, Interconnect] = {}
    for name, size in reversed(mesh.axes.items()):
        if size == 1:
            continue
        if size % inside:
            raise UserError(
                f"mesh axis {name} {size} is not divisible by the {inside} devices of a chip; choose one that does"
            )
        taken, free = _take(free, size // inside)
        count = sum(2 if part.ring else 1 for part in taken) or 1
        where = f"on {_x(taken)} of {_x(dims)}" if taken else "inside a chip"
        plural = "link" if count == 1 else "links"
        ring = bool(taken) and all(part.ring for part in taken)
        placed[name] = Interconnect("ICI", links.bandwidth * count, f"{name} {size} {where}: {count} {plural}", ring)
        inside = 1
    return placed


def nodes(device: Device, mesh: MeshShape) -> dict[str, Interconnect]:
    """Mesh axes on nodes of GPUs, filled in order from the last axis on.

    An axis inside a node runs on NVLink. One that leaves the node shares the node's network cards with the other groups
    of its axis: a device has its own card's bandwidth, times the devices of its own group in the node, whose rings go
    through different cards; never more than NVLink carries.

    Args:
        device: with `links.node_devices` behind one switch.
        mesh: axes of size 1 are left out.
    """
    links = device.links
    inner = 1
    placed: dict[str, Interconnect] = {}
    for name, size in reversed(mesh.axes.items()):
        if size == 1:
            continue
        together = max(1, min(size, links.node_devices // inner))
        if inner * size <= links.node_devices:
            placed[name] = Interconnect("NVLink", links.device_bandwidth, f"{name} {size} inside a node")
        else:
            bandwidth = min(links.device_bandwidth, device.network * together)
            placed[name] = Interconnect(
                "network", bandwidth, f"{name} {size} across nodes, {together} of a group in each"
            )
        inner *= size
    return placed


def host(device: Device) -> dict[str, Interconnect]:
    """The way to the host's memory; nothing where no document states its bandwidth."""
    if device.host_link is None:
        return {}
    return {HOST: Interconnect("PCIe", device.host_link, "host's memory, one way at a time")}


def slices(device: Device, axis: str, count: int) -> dict[str, Interconnect]:
    """A mesh axis over whole slices, on the data-center network."""
    return {axis: Interconnect("network", device.network, f"{axis} {count} across slices")}


@dataclasses.dataclass(frozen=True)
class _Dimension:
    """A dimension of a torus, or a part of one."""

    extent: int
    ring: bool

    def __str__(self) -> str:
        return str(self.extent)


def _take(free: list[_Dimension], size: int) -> tuple[list[_Dimension], list[_Dimension]]:
    """What an axis of `size` takes of the free dimensions, and what it leaves."""
    ways = itertools.chain.from_iterable(
        itertools.combinations(reversed(range(len(free))), count) for count in range(len(free) + 1)
    )
    # As few dimensions as can be, the last first, as the nearest neighbours are; where none are exact, the most.
    fitting = [way for way in ways if size % math.prod(free[i].extent for i in way) == 0]
    exact = [way for way in fitting if math.prod(free[i].extent for i in way) == size]
    way = exact[0] if exact else max(fitting, key=lambda way: math.prod(free[i].extent for i in way))
    taken = [free[i] for i in way]
    left = [part for i, part in enumerate(free) if i not in way]
    rest = size // math.prod(part.extent for part in taken)
    for i, part in enumerate(reversed(left)):
        if rest > 1 and part.extent % rest == 0:
            taken.append(_Dimension(rest, False))
            left[len(left) - 1 - i] = _Dimension(part.extent // rest, False)
            rest = 1
    if rest > 1:
        # No dimension divides by what is left: one line through all of them.
        return [_Dimension(size, False)], left
    return taken, left


def _x(dims: Sequence[int | _Dimension]) -> str:
    return "x".join(map(str, dims))
