"""Topologies for plans: of the fake CPU devices, whose programs can be compiled and run here; and drawn on paper, for
arithmetic without a compiler."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from gpt3_jax import devices
from gpt3_jax.plan.gpu_targets import TARGETS
from gpt3_jax.plan.topologies import Topology

KINDS = {
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
}


def fake_topology(devices: int = 8) -> Topology:
    return Topology(f"cpu:{devices}", "cpu", (devices,), 1, tuple(jax.devices()[:devices]), None)


def small_node(memory: int) -> Topology:
    """The eight fake devices as GPUs of which XLA takes `memory` bytes."""
    h100 = devices.lookup("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    small = dataclasses.replace(h100, hbm_usable=math.ceil(memory / devices.XLA_GPU_FRACTION))
    return dataclasses.replace(fake_topology(), name="h100:1x8", family="h100", shape=(1, 8), device=small)


@dataclasses.dataclass(frozen=True)
class DrawnDevice:
    """What a mesh is laid out by."""

    platform: str
    device_kind: str
    id: int
    process_index: int
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0
    slice_index: int = 0


def on_paper(name: str) -> Topology:
    """A topology as `open_topology` gives it, without its compiler: nothing can be compiled for it."""
    family, _, size = name.partition(":")
    shape = tuple(map(int, size.split("x")))
    gpu = family in TARGETS
    drawn: list[DrawnDevice] = []
    # Chips always have three coordinates. Their order is of no account: a mesh is laid out by the coordinates.
    for place in np.ndindex(*(shape if gpu else reversed(shape))):
        coords = () if gpu else (*reversed(place), 0, 0)[:3]
        drawn.append(DrawnDevice("gpu" if gpu else "tpu", KINDS[family], len(drawn), place[0] if gpu else 0, coords))
    devices_: Any = tuple(drawn)
    return Topology(name, family, shape, 1, devices_, devices.lookup(KINDS[family]))
