"""How long a step takes, from its work: matmuls, memory traffic and collectives against the rates of the device.

A roofline, not a simulation. Each resource is busy for its work over its rate; which of them run at the same time is an
assumption, stated in the prediction with its number. Beside the central prediction stand the two limits that no
assumption about overlap can leave: everything overlaps, nothing overlaps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from gpt3_jax.devices import Device
from gpt3_jax.errors import UserError
from gpt3_jax.parallel.mesh import TENSOR
from gpt3_jax.program.traffic import HOST, Collective, Kind

Medium = Literal["ICI", "NVLink", "network", "PCIe"]


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """The share of a rate that programs reach, with the reason for the figure."""

    share: float
    why: str


MATMUL: Mapping[str, Efficiency] = MappingProxyType(
    {
        "TPU": Efficiency(0.87, "median of five MaxText runs on one slice of v4 or v5e without tensor parallelism"),
        "Hopper": Efficiency(0.53, "median of two MaxText runs on one node of H100"),
        "Ampere": Efficiency(0.60, "median of nine LLM Foundry runs on one node of A100"),
    }
)
"""Of the bf16 peak in matmuls, by family of devices: the one constant that measurements set, each from the rows of
`gpt3_jax.reports.published` that calibrate. It takes in all that the rest leaves out: small matmuls, launches,
waiting."""
LINK: Mapping[Medium, Efficiency] = MappingProxyType(
    {
        "ICI": Efficiency(
            0.90, "Austin et al., How to Scale Your Model, chapter 2: 90 of the documented 100 GB/s a link"
        ),
        "NVLink": Efficiency(0.83, "NCCL issue 1264: 376 to 380 of 450 GB/s one way between two H100"),
        "network": Efficiency(0.90, "assumed: no public measurement was found"),
        "PCIe": Efficiency(0.82, "nvbandwidth issue 24: 52.8 of 64 GB/s from an H100 to its host"),
    }
)
_BESIDE_COPIES: Mapping[Kind, float] = MappingProxyType({"to host": 1 / 4, "from host": 3 / 4})
"""The share of a step's compute that copies of one direction can hide behind: with every block computed again, the
forward pass is one of four equal parts."""
HBM = Efficiency(0.80, "assumed: no public measurement was found")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over the same axes that run equally often in a step."""

    axes: tuple[str, ...]
    kind: Kind
    bytes: float
    """Bytes that a device sends in a step, all calls together, by the ring formula."""
    calls: int
    """How often a step runs each between the blocks' compute; 1 for a collective outside the blocks."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step is: the batch, and what one device computes, moves and sends for it."""

    tokens: int
    """Of the whole batch, all devices together."""
    devices: int
    matmul_flops: float
    """Per device, as the program runs them: recomputation included."""
    model_flops: float
    """Per device, 6 per parameter and token."""
    attention_flops: float
    """Per device: what attention adds to `model_flops`, over the positions that are visible."""
    hbm_bytes: float
    """Per device, bytes that operations other than matmuls move through memory: see `gpt3_jax.plan.elementwise`."""
    traffic: tuple[Traffic, ...] = ()


@dataclasses.dataclass(frozen=True)
class Interconnect:
    """What a mesh axis runs on."""

    medium: Medium
    bandwidth: float
    """Bytes per second that a device can send along the axis."""
    how: str
    """How the axis lies on the hardware, in words."""


Placement = Mapping[str, Interconnect]
"""For each mesh axis of more than one device, what it runs on; and for `HOST` the way to the host's memory, where a
document states its bandwidth."""


@dataclasses.dataclass(frozen=True)
class Exposed:
    """The traffic over one group of axes, in seconds."""

    axes: tuple[str, ...]
    medium: Medium
    seconds: float
    """Duration of all its traffic."""
    exposed: float
    """The part of it for which the device waits."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A step's predicted time and what follows from it."""

    compute_seconds: float
    hbm_seconds: float
    links: tuple[Exposed, ...]
    step_seconds: float
    fastest_seconds: float
    """Everything overlaps: the busiest resource alone."""
    slowest_seconds: float
    """Nothing overlaps: the sum of all."""
    tokens_per_second: float
    mfu: float
    """Of the bf16 peak, 6 FLOPs per parameter and token."""
    mfu_with_attention: float
    """The same with attention over visible positions."""
    bound: str
    """The resource that takes the largest part of the step."""
    total_tokens: float
    days: float
    """For `total_tokens`, all in steps like this one."""
    device_hours: float
    """The same, times all devices."""
    assumptions: tuple[str, ...]


def predict(
    work: Work,
    device: Device,
    placement: Placement,
    total_tokens: float = 300e9,
    tensor_exposed: float = 1.0,
) -> Prediction:
    """The time of a step.

    Matmuls and what stands between them take turns. Of collectives over the tensor axis, which stand between one matmul
    and the next, the share `tensor_exposed` is waited for. Other collectives hide behind the compute of other blocks,
    but for one call out of those that a step makes: what runs once per step is waited for in full. Whatever takes
    longer than the compute it hides behind is waited for too.

    Copies to the host's memory and back have a link of their own, on which they hide in the same way: those to the host
    behind the forward pass, a quarter of a step that recomputes every block, those from it behind the rest. Without a
    figure for that link they are taken as hidden, and the prediction says what it has to carry.

    Args:
        work: of one step.
        device: its rates.
        placement: what each mesh axis of `work.traffic` runs on.
        total_tokens: tokens of the run that `days` and `device_hours` are given for.
        tensor_exposed: 0 (all hidden) to 1 (none).

    Raises:
        ValueError: traffic over a mesh axis that `placement` does not hold.
    """
    matmul = MATMUL[device.family]
    compute = work.matmul_flops / (device.bf16_flops * matmul.share)
    hbm = work.hbm_bytes / (device.hbm_bandwidth * HBM.share)
    chip = compute + hbm

    links: dict[tuple[str, ...], Exposed] = {}
    hidden = 0.0
    host_rate = 0.0
    for part in work.traffic:
        beside = chip * _BESIDE_COPIES.get(part.kind, 1.0)
        if part.axes == (HOST,) and HOST not in placement:
            host_rate = max(host_rate, part.bytes / beside)
            continue
        slowest = min((_interconnect(placement, axis) for axis in part.axes), key=lambda link: link.bandwidth)
        seconds = part.bytes / (slowest.bandwidth * LINK[slowest.medium].share)
        exposed = seconds * (tensor_exposed if part.axes == (TENSOR,) else 1 / part.calls)
        if part.axes == (HOST,):
            exposed += max(0.0, seconds - exposed - beside)
        else:
            hidden += seconds - exposed
        before = links.get(part.axes, Exposed(part.axes, slowest.medium, 0.0, 0.0))
        links[part.axes] = dataclasses.replace(
            before, seconds=before.seconds + seconds, exposed=before.exposed + exposed
        )
    waited = sum(link.exposed for link in links.values())
    step = max(chip, hidden) + waited
    busy = {"compute": compute, "HBM": hbm}
    busy |= {f"{link.medium} of {' × '.join(axes)}": link.seconds for axes, link in links.items()}

    rate = work.tokens / step
    peak = device.bf16_flops * step
    seconds_in_all = total_tokens / rate
    return Prediction(
        compute_seconds=compute,
        hbm_seconds=hbm,
        links=tuple(links.values()),
        step_seconds=step,
        fastest_seconds=max(busy.values()),
        slowest_seconds=sum(busy.values()),
        tokens_per_second=rate,
        mfu=work.model_flops / peak,
        mfu_with_attention=(work.model_flops + work.attention_flops) / peak,
        bound=max(busy, key=lambda name: busy[name]),
        total_tokens=total_tokens,
        days=seconds_in_all / 86400,
        device_hours=seconds_in_all * work.devices / 3600,
        assumptions=_assumptions(device, placement, links, tensor_exposed, host_rate),
    )


def traffic_of(collectives: Iterable[Collective]) -> tuple[Traffic, ...]:
    """A program's collectives, as `gpt3_jax.program.traffic.count` gives them, added up for `Work`.

    A collective in a loop without compute hides behind nothing: callers must set `calls=1` for these.
    """
    sums: dict[tuple[tuple[str, ...], Kind, int], float] = {}
    copies: dict[Kind, int] = {}
    for collective in collectives:
        calls = collective.calls
        if collective.axes == (HOST,):  # one for each block, whatever the loop's body has of them
            copies[collective.kind] = copies.get(collective.kind, 0) + calls
            calls = 0
        key = (collective.axes, collective.kind, calls)
        sums[key] = sums.get(key, 0.0) + collective.bytes_sent
    return tuple(Traffic(axes, kind, total, calls or copies[kind]) for (axes, kind, calls), total in sums.items())


def torus(
    device: Device, dims: Sequence[int], axes: Mapping[str, int], devices_per_chip: int = 1
) -> dict[str, Interconnect]:
    """Mesh axes on the torus of a slice.

    An axis takes whole dimensions of the torus where some of them multiply to its size: two links in each that closes
    to a ring, one in each that does not. Otherwise it takes what whole dimensions it can and a part of another, which
    is a line; what it leaves of that dimension is a line too.

    Args:
        device: with a torus.
        dims: extents of the slice in chips, e.g. (8, 8, 8).
        axes: sizes of the mesh axes inside the slice, the nearest neighbours last; axes of size 1 are left out.
        devices_per_chip: 2 where JAX shows a chip as two devices. They are the nearest neighbours of all: the last axis
            of more than one device begins inside the chip. An axis that does not leave it is counted as one link.

    Raises:
        UserError: the axes do not multiply to the devices of the slice.
    """
    chips, devices = math.prod(dims), math.prod(axes.values())
    if devices != chips * devices_per_chip:
        shown = " × ".join(f"{name} {size}" for name, size in axes.items())
        raise UserError(
            f"mesh {shown} = {devices} devices, but a slice of {_x(dims)} has {chips * devices_per_chip}; choose axes "
            "that multiply to it"
        )
    links = device.links
    free = [_Dimension(extent, extent % links.wrap_multiple == 0) for extent in dims if extent > 1]
    inside = devices_per_chip
    placed: dict[str, Interconnect] = {}
    for name, size in reversed(list(axes.items())):
        if size == 1:
            continue
        if size % inside:
            raise UserError(
                f"mesh axis {name} {size} does not divide by the {inside} devices of a chip; choose one that does"
            )
        taken, free = _take(free, size // inside)
        count = sum(2 if part.ring else 1 for part in taken) or 1
        where = f"on {_x(taken)} of {_x(dims)}" if taken else "inside a chip"
        plural = "link" if count == 1 else "links"
        placed[name] = Interconnect("ICI", links.bandwidth * count, f"{name} {size} {where}: {count} {plural}")
        inside = 1
    return placed


def nodes(device: Device, axes: Mapping[str, int]) -> dict[str, Interconnect]:
    """Mesh axes on nodes of GPUs, filled in order from the last axis on.

    An axis inside a node runs on NVLink. One that leaves the node shares the node's network cards with the other groups
    of its axis: a device has its own card's bandwidth, times the devices of its own group in the node, whose rings go
    through different cards; never more than NVLink carries.

    Args:
        device: with `links.node_devices` behind one switch.
        axes: sizes of the mesh axes, the nearest neighbours last; axes of size 1 are left out.
    """
    links = device.links
    inner = 1
    placed: dict[str, Interconnect] = {}
    for name, size in reversed(list(axes.items())):
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


def _interconnect(placement: Placement, axis: str) -> Interconnect:
    if axis not in placement:
        raise ValueError(f"mesh axis {axis!r} carries traffic and is not placed; placed are {sorted(placement)}")
    return placement[axis]


def _x(dims: Sequence[int | _Dimension]) -> str:
    return "x".join(map(str, dims))


def _assumptions(
    device: Device,
    placement: Placement,
    links: Mapping[tuple[str, ...], Exposed],
    tensor_exposed: float,
    host_rate: float,
) -> tuple[str, ...]:
    """The assumptions of a prediction, one sentence each. `host_rate` is what the way to the host has to carry, in
    bytes per second, where its bandwidth is not known; else 0."""
    matmul = MATMUL[device.family]
    found = [
        f"Compute runs at {matmul.share:.0%} of the {device.bf16_flops / 1e12:g} TFLOP/s bf16 peak of a {device.name} "
        f"({matmul.why})."
    ]
    found.append(
        f"Between the matmuls, memory runs at {HBM.share:.0%} of {device.hbm_bandwidth / 1e9:g} GB/s ({HBM.why})."
    )
    used = {placement[axis].medium: axis for axes in links for axis in axes}
    for axis in sorted({axis for axes in links for axis in axes}):
        link = placement[axis]
        found.append(f"{link.how}: {link.bandwidth / 1e9:g} GB/s a device.")
    found += [f"{medium} reaches {LINK[medium].share:.0%} of this ({LINK[medium].why})." for medium in sorted(used)]
    if host_rate:
        found.append(
            f"The way to the host's memory keeps up: {host_rate / 1e9:.3g} GB/s; no document states what that of a "
            f"{device.name} carries."
        )
    if any(axes == (TENSOR,) for axes in links):
        found.append(f"{tensor_exposed:.0%} of the tensor-parallel collectives are waited for.")
    if any(axes != (TENSOR,) for axes in links):
        found.append(
            "A collective that runs once for each block hides behind other blocks' compute, but for one block's; one "
            "that runs once per step is waited for in full."
        )
    found.append("Every step is like this one: no batch ramp, no stragglers, no input, checkpoints or stops.")
    return tuple(found)
