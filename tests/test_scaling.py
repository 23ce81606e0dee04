"""The scaling report, with a small model on fake CPU devices: its points are compiled steps, and its state falls as
1 / N."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
from fake_topologies import fake_topology
from step_cells import Cell, config

from gpt3_jax.config import Config, preset
from gpt3_jax.errors import UserError
from gpt3_jax.plan.receipt import Receipt, make_receipt
from gpt3_jax.plan.step import compile_step
from gpt3_jax.plan.topologies import Topology
from gpt3_jax.reports import scaling

SMALL = scaling.Sweep(config(Cell(3, (1, 4, 2))), 2, (2, 4), 8, {2: "fake:2", 4: "fake:4", 8: "fake:8"})


@functools.cache
def plan(config: Config, topology: Topology) -> Receipt:
    return make_receipt(compile_step(config, topology))


def machine(name: str) -> Topology:
    return fake_topology(int(name.partition(":")[2]))


def test_state_falls_as_one_over_n_and_depth_is_varied() -> None:
    by_depth, by_devices = scaling.measure(SMALL, (2, 8), plan, machine)
    assert [(p.layers, p.devices) for p in by_depth] == [(2, 8), (4, 8)]
    assert [(p.layers, p.devices) for p in by_devices] == [(4, 2), (4, 8)]
    # Every tensor divides; counters and the batch are no part of it.
    for point, data in zip(by_devices, (1, 4), strict=True):
        assert point.state == pytest.approx(by_devices[0].state / data, rel=1e-3)
        assert point.state == pytest.approx(point.state_formula, rel=1e-3)
        assert 0 < point.seconds < 600 and point.total > point.state
    assert by_depth[0].state < by_depth[1].state
    text = scaling.table(SMALL, by_depth, by_devices)
    assert (
        "12 Ψ / N" in text
        and "reduced in float32" in text
        and len(scaling.as_data(by_depth, by_devices)["by_devices"]) == 2
    )


def test_the_model_is_175b_at_stage_3_with_one_sequence_a_shard() -> None:
    found = scaling.config_of(scaling.sweep_of_175b("v5p"), 48, 64)
    base = preset("gpt3-175b")
    assert dataclasses.replace(found.model, n_layers=96) == base.model
    assert (found.parallel.stage, found.parallel.data, found.parallel.tensor) == (3, 8, 8)
    assert found.train.batch_tokens == 8 * 2048
    with pytest.raises(UserError, match="12 devices do not divide by 8"):
        scaling.config_of(scaling.sweep_of_175b("v5p"), 96, 12)


def test_a_size_without_a_machine_is_refused() -> None:
    with pytest.raises(UserError, match="--devices 9 has no machine"):
        scaling.measure(scaling.sweep_of_175b("h100"), (9,), plan, machine)


def test_each_machine_has_as_many_devices_as_it_is_named_for() -> None:
    for sizes in scaling.MACHINES.values():
        for devices, shape in sizes.items():
            assert math.prod(map(int, shape.split("x"))) == devices
