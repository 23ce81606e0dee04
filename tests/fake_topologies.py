"""Topologies for plans, made of the fake CPU devices: their programs can be compiled and run here."""

from __future__ import annotations

import dataclasses
import math

import jax

from gpt3_jax import devices
from gpt3_jax.plan.topologies import Topology


def fake_topology(devices: int = 8) -> Topology:
    return Topology(f"cpu:{devices}", "cpu", (devices,), 1, tuple(jax.devices()[:devices]), None)


def small_node(memory: int) -> Topology:
    """The eight fake devices as GPUs of which XLA takes `memory` bytes."""
    h100 = devices.lookup("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    small = dataclasses.replace(h100, hbm_usable=math.ceil(memory / devices.XLA_GPU_FRACTION))
    return dataclasses.replace(fake_topology(), name="h100:1x8", family="h100", shape=(1, 8), device=small)
