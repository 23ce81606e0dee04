"""How planning GPT-3 175B scales: the time to compile its step against depth and devices, and its model state against
the devices that ZeRO shards it over (ZeRO section 5.3: 16 Ψ / N at stage 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpt3_jax.config import Config, ParallelConfig, preset
from gpt3_jax.errors import UserError
from gpt3_jax.plan import formulas
from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.plan.table import grid, size
from gpt3_jax.plan.topologies import Topology

TENSOR = 8
"""Tensor shards at every size: those of a node of GPUs, or of a line of a torus."""
DEPTHS = (12, 24, 48, 96)
DEVICES = (8, 64, 512, 1024, 4096)
MACHINES = {
    "v5p": {8: "2x2x2", 64: "4x4x4", 512: "8x8x8", 1024: "8x8x16", 4096: "16x16x16"},
    "v6e": {8: "2x4", 64: "8x8", 256: "16x16"},
    "h100": {8: "1x8", 64: "8x8", 512: "64x8", 1024: "128x8", 4096: "512x8"},
}
DEPTH_ON = {"v5p": 512, "v6e": 256, "h100": 512}
"""Devices on which depth is varied."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One compiled step."""

    layers: int
    devices: int
    seconds: float
    """To trace, lower and compile it."""
    code: int
    """Bytes of the program; 0 where the compiler does not say."""
    state: int
    """Bytes of master weights and moments on one device."""
    state_formula: float
    """12 Ψ / N: the same by ZeRO's formula."""
    total: int
    """Bytes that a device needs."""
    total_formula: float
    """16 Ψ / N: masters, moments, 16-bit weights and gradients."""


def config_of(layers: int, devices: int) -> Config:
    """175B of this depth at stage 3, one whole sequence for each data shard.

    Raises:
        UserError: devices that the tensor shards do not divide.
    """
    if devices % TENSOR:
        raise UserError(f"{devices} devices do not divide by {TENSOR} tensor shards; choose a multiple")
    base = preset("gpt3-175b")
    data = devices // TENSOR
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, n_layers=layers),
        parallel=ParallelConfig(stage=3, data=data, tensor=TENSOR),
        train=dataclasses.replace(base.train, batch_tokens=data * base.model.n_ctx, ramp_tokens=0),
        memory=dataclasses.replace(base.memory, microbatch=0, remat="full"),
    )


def measure(
    family: str,
    depths: Sequence[int],
    devices: Sequence[int],
    plan: Callable[[Config, Topology], Receipt],
    machine: Callable[[str], Topology],
) -> tuple[list[Point], list[Point]]:
    """The steps by depth and by devices.

    Args:
        family: a key of `MACHINES`.
        plan: compiles.
        machine: opens a topology by name.

    Raises:
        UserError: a number of devices that the family has no machine of.
    """
    known = MACHINES[family]
    if strange := [n for n in devices if n not in known]:
        raise UserError(f"--devices {strange[0]} is no size that is compiled; choose from {', '.join(map(str, known))}")

    def point(layers: int, n: int) -> Point:
        receipt = plan(config_of(layers, n), machine(f"{family}:{known[n]}"))
        purposes, formula = receipt.memory.purposes, receipt.memory.zero_formula
        return Point(
            layers,
            n,
            sum(receipt.seconds.values()),
            receipt.memory.code,
            purposes["master weights"] + purposes["moments"],
            formula * formulas.K / (4 + formulas.K),
            receipt.memory.total,
            formula,
        )

    return [point(layers, DEPTH_ON[family]) for layers in depths], [point(DEPTHS[-1], n) for n in devices]


def table(by_depth: Iterable[Point], by_devices: Iterable[Point]) -> str:
    """Both as text."""
    depth = [(f"{p.layers}", f"{p.devices:,}", f"{p.seconds:.1f} s", size(p.code) if p.code else "") for p in by_depth]
    parts = [grid(depth, ("layers", "devices", "compiled in", "program"))]
    devices = [
        (
            f"{p.devices:,}",
            f"{p.seconds:.1f} s",
            size(p.state),
            size(p.state_formula),
            f"{p.state / p.state_formula - 1:+.1%}",
            size(p.total),
            size(p.total_formula),
        )
        for p in by_devices
    ]
    head = ("devices", "compiled in", "masters, moments", "12 Ψ / N", "", "whole device", "16 Ψ / N")
    parts.append(grid(devices, head))
    return f"GPT-3 175B, ZeRO stage 3, {TENSOR} tensor shards; N and Ψ of a tensor shard\n" + "\n\n".join(parts) + "\n"


def as_data(by_depth: Iterable[Point], by_devices: Iterable[Point]) -> dict[str, Any]:
    """Both for JSON."""
    return {
        "by_depth": [dataclasses.asdict(point) for point in by_depth],
        "by_devices": [dataclasses.asdict(point) for point in by_devices],
    }
