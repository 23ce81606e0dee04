"""How long a step takes, from its work: matmuls, memory traffic and collectives against the rates of the device.

A roofline, not a simulation. Each resource is busy for its work over its rate; which of them run at the same time is an
assumption, stated in the prediction with its number. Beside the central prediction stand the two limits that no
assumption about overlap can leave: everything overlaps, nothing overlaps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from gpt3_jax.config import TrainConfig
from gpt3_jax.devices import Device
from gpt3_jax.parallel.mesh import TENSOR
from gpt3_jax.plan.placement import Interconnect, Medium, Placement
from gpt3_jax.program.traffic import HOST, Collective, Kind


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
    exposed: float | None = None
    """The share of it that is waited for; None: one call out of those that a step makes."""


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
    total_tokens: float = TrainConfig.tokens,
    tensor_exposed: float = 1.0,
    rings: bool = False,
) -> Prediction:
    """The time of a step.

    Matmuls and the memory traffic between them take turns. Collectives over the tensor axis run between one matmul and
    the next: the share `tensor_exposed` of them is waited for. With `rings`, the pieces that tensor shards send hide
    behind the matmuls that use or make these pieces; the tensor collectives that are left are waited for as without
    rings. Other collectives hide behind the compute of other blocks. Of what hides, `Traffic.exposed` is waited for, by
    default one call out of those that a step makes: what runs once per step, in full. Whatever takes longer than the
    compute it hides behind is waited for too.

    Copies to the host's memory and back have a link of their own, on which they hide in the same way: those to the host
    behind the forward pass, a quarter of a step that recomputes every block, those from it behind the rest. Without a
    figure for that link they are taken as hidden, and the prediction says what it has to carry.

    Args:
        work: of one step.
        device: its rates.
        placement: what each mesh axis of `work.traffic` runs on.
        total_tokens: tokens of the run that `days` and `device_hours` are given for.
        tensor_exposed: 0 (all hidden) to 1 (none).
        rings: whether permutes over the tensor axis hide: see `parallel.rings.hide`.

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
        stands_between = part.axes == (TENSOR,) and not (rings and part.kind == "permute")
        waited = 1 / part.calls if part.exposed is None else part.exposed
        exposed = seconds * (tensor_exposed if stands_between else waited)
        if part.axes == (HOST,):
            exposed += max(0.0, seconds - exposed - beside)
        else:
            hidden += seconds - exposed
        before = links.get(part.axes, Exposed(part.axes, slowest.medium, 0.0, 0.0))
        links[part.axes] = dataclasses.replace(
            before, seconds=before.seconds + seconds, exposed=before.exposed + exposed
        )
    step = max(chip, hidden) + sum(link.exposed for link in links.values())
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
        assumptions=_assumptions(device, placement, links, tensor_exposed, rings, host_rate),
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


def _interconnect(placement: Placement, axis: str) -> Interconnect:
    if axis not in placement:
        raise ValueError(f"mesh axis {axis!r} carries traffic and is not placed; placed are {sorted(placement)}")
    return placement[axis]


def _assumptions(
    device: Device,
    placement: Placement,
    links: Mapping[tuple[str, ...], Exposed],
    tensor_exposed: float,
    rings: bool,
    host_rate: float,
) -> tuple[str, ...]:
    """The assumptions of a prediction, one sentence each. `host_rate` is what the way to the host has to carry, in
    bytes per second, where its bandwidth is not known, else 0."""
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
        if rings:
            found.append("The pieces that tensor shards send in rings hide behind the matmuls that use or make them.")
        which = "other tensor-parallel collectives" if rings else "tensor-parallel collectives"
        found.append(f"{tensor_exposed:.0%} of the {which} are waited for.")
    if any(axes != (TENSOR,) for axes in links):
        found.append(
            "A collective that runs once for each block hides behind other blocks' compute, but for one block's; one "
            "that runs once per step is waited for in full."
        )
    found.append("Every step is like this one: no batch ramp, no stragglers, no input, checkpoints or stops.")
    return tuple(found)
