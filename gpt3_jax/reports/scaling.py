"""How planning GPT-3 175B scales: the time to compile its step against depth and devices, and its model state against
the devices that ZeRO shards it over (ZeRO section 5.3: 16 Ψ / N at stage 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpt3_jax.config import Config, ParallelConfig, preset
from gpt3_jax.errors import UserError
from gpt3_jax.plan import formulas
from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.plan.topologies import Topology
from gpt3_jax.quantities import grid, size

MACHINES = {
    "v5p": {8: "2x2x2", 64: "4x4x4", 512: "8x8x8", 1024: "8x8x16", 4096: "16x16x16"},
    "v6e": {8: "2x4", 64: "8x8", 256: "16x16"},
    "h100": {8: "1x8", 64: "8x8", 512: "64x8", 1024: "128x8", 4096: "512x8"},
}
"""Sizes of topologies by devices, for each family."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is varied, and on which machines."""

    base: Config
    """The model and its recipe, at full depth."""
    tensor: int
    """Tensor shards at every size."""
    depths: tuple[int, ...]
    """Layers; the last is the full depth."""
    depth_on: int
    """Devices on which depth is varied."""
    machines: Mapping[int, str]
    """Names of topologies by devices."""


def sweep_of_175b(family: str) -> Sweep:
    """GPT-3 175B on a key of `MACHINES`; eight tensor shards, those of a node of GPUs or of a line of a torus."""
    machines = {devices: f"{family}:{size}" for devices, size in MACHINES[family].items()}
    return Sweep(preset("gpt3-175b"), 8, (12, 24, 48, 96), 512 if 512 in machines else max(machines), machines)


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


def config_of(sweep: Sweep, layers: int, devices: int) -> Config:
    """The model at this depth at stage 3, one whole sequence for each data shard, every block recomputed.

    Raises:
        UserError: devices that the tensor shards do not divide.
    """
    if devices % sweep.tensor:
        raise UserError(f"{devices} devices do not divide by {sweep.tensor} tensor shards; choose a multiple")
    base, data = sweep.base, devices // sweep.tensor
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, n_layers=layers),
        parallel=ParallelConfig(stage=3, data=data, tensor=sweep.tensor),
        train=dataclasses.replace(base.train, batch_tokens=data * base.model.n_ctx, ramp_tokens=0),
        memory=dataclasses.replace(base.memory, microbatch=0, remat="full"),
    )


def measure(
    sweep: Sweep,
    devices: Sequence[int],
    plan: Callable[[Config, Topology], Receipt],
    machine: Callable[[str], Topology],
) -> tuple[list[Point], list[Point]]:
    """The compiled steps by depth, and at full depth by devices.

    Args:
        devices: keys of the sweep's machines.
        plan: compiles.
        machine: opens a topology by name.

    Raises:
        UserError: a number of devices for which the sweep has no machine.
    """
    known = sweep.machines
    if strange := [n for n in devices if n not in known]:
        raise UserError(f"--devices {strange[0]} has no machine here; choose from {', '.join(map(str, known))}")

    def point(layers: int, n: int) -> Point:
        receipt = plan(config_of(sweep, layers, n), machine(known[n]))
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

    by_depth = [point(layers, sweep.depth_on) for layers in sweep.depths]
    return by_depth, [point(sweep.depths[-1], n) for n in devices]


def table(sweep: Sweep, by_depth: Iterable[Point], by_devices: Iterable[Point]) -> str:
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
    titles = ("devices", "compiled in", "masters, moments", "12 Ψ / N", "", "whole device", "16 Ψ / N")
    parts.append(grid(devices, titles))
    train = config_of(sweep, sweep.depths[-1], sweep.depth_on)
    head = (
        f"ZeRO stage 3, {sweep.tensor} tensor shards, one sequence of {train.model.n_ctx:,} tokens for each of N data "
        f"shards, remat {train.memory.remat}, gradients reduced in {train.parallel.reduce_dtype}\n"
        "Ψ: parameters of a tensor shard; 12 Ψ / N: fp32 masters and moments; 16 Ψ / N: with 16-bit weights and "
        "gradients\n"
    )
    return head + "\n\n".join(parts) + "\n"


def as_data(by_depth: Iterable[Point], by_devices: Iterable[Point]) -> dict[str, Any]:
    """Both for JSON."""
    return {
        "by_depth": [dataclasses.asdict(point) for point in by_depth],
        "by_devices": [dataclasses.asdict(point) for point in by_devices],
    }
