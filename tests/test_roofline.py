"""The roofline: each term alone, what overlaps what, and mesh axes on tori and nodes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest

from gpt3_jax import devices
from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.parallel.mesh import DATA, REPLICA, TENSOR, MeshShape
from gpt3_jax.parallel.rings import hide
from gpt3_jax.plan import placement, roofline
from gpt3_jax.plan.placement import Interconnect
from gpt3_jax.plan.roofline import HBM, LINK, MATMUL, Traffic, Work
from gpt3_jax.program.traffic import Collective


def device(kind: str) -> devices.Device:
    found = devices.lookup(kind)
    assert found is not None
    return found


V5P, V5E, V6E, TPU7X = device("TPU v5p"), device("TPU v5 lite"), device("TPU v6 lite"), device("TPU7x")
H100 = device("NVIDIA H100 80GB HBM3")

PEAK = V5P.bf16_flops * MATMUL["TPU"].share
MEMORY = V5P.hbm_bandwidth * HBM.share
WIRE = 1e11 * LINK["ICI"].share
PLACED = {
    DATA: Interconnect("ICI", 1e11, "data"),
    TENSOR: Interconnect("ICI", 2e11, "tensor"),
    REPLICA: Interconnect("network", 1e9, "replica"),
}
WORK = Work(
    tokens=1_000_000,
    devices=100,
    matmul_flops=10 * PEAK,
    model_flops=6e15,
    attention_flops=1e15,
    hbm_bytes=2 * MEMORY,
)


def with_traffic(*parts: Traffic) -> Work:
    return dataclasses.replace(WORK, traffic=parts)


def test_matmuls_and_what_stands_between_them_take_turns() -> None:
    prediction = roofline.predict(WORK, V5P, PLACED)
    assert prediction.compute_seconds == pytest.approx(10)
    assert prediction.hbm_seconds == pytest.approx(2)
    assert prediction.step_seconds == pytest.approx(12)
    assert prediction.bound == "compute"


def test_what_follows_from_the_step_time() -> None:
    prediction = roofline.predict(WORK, V5P, PLACED, total_tokens=300e9)
    assert prediction.tokens_per_second == pytest.approx(1_000_000 / 12)
    assert prediction.days == pytest.approx(300e9 / 1_000_000 * 12 / 86400)
    assert prediction.device_hours == pytest.approx(prediction.days * 24 * 100)
    assert prediction.mfu == pytest.approx(6e15 / (V5P.bf16_flops * 12))
    assert prediction.mfu_with_attention == pytest.approx(prediction.mfu * 7 / 6)


def test_a_collective_of_each_block_hides_but_for_one() -> None:
    prediction = roofline.predict(with_traffic(Traffic((DATA,), "all-gather", 8 * WIRE, 16)), V5P, PLACED)
    (link,) = prediction.links
    assert link.seconds == pytest.approx(8)
    assert link.exposed == pytest.approx(0.5)
    assert prediction.step_seconds == pytest.approx(12.5)


def test_a_share_that_is_known_to_be_waited_for_is() -> None:
    part = Traffic((DATA,), "all-gather", 8 * WIRE, 16, exposed=0.25)
    prediction = roofline.predict(with_traffic(part), V5P, PLACED)
    assert prediction.links[0].exposed == pytest.approx(2)
    assert prediction.step_seconds == pytest.approx(14)


def test_a_collective_of_the_step_is_waited_for() -> None:
    prediction = roofline.predict(with_traffic(Traffic((DATA,), "all-gather", 8 * WIRE, 1)), V5P, PLACED)
    assert prediction.step_seconds == pytest.approx(20)


def test_what_is_longer_than_the_compute_binds() -> None:
    prediction = roofline.predict(with_traffic(Traffic((DATA,), "all-gather", 64 * WIRE, 64)), V5P, PLACED)
    assert prediction.step_seconds == pytest.approx(64)
    assert prediction.bound == "ICI of data"
    assert prediction.fastest_seconds == pytest.approx(64)
    assert prediction.slowest_seconds == pytest.approx(76)


@pytest.mark.parametrize(("share", "step"), [(1.0, 16), (0.5, 14), (0.0, 12)])
def test_tensor_parallel_collectives_stand_between_matmuls(share: float, step: float) -> None:
    part = Traffic((TENSOR,), "all-gather", 4 * 2 * WIRE, 1000)
    prediction = roofline.predict(with_traffic(part), V5P, PLACED, tensor_exposed=share)
    assert prediction.step_seconds == pytest.approx(step)
    assert any(f"{share:.0%} of the tensor-parallel" in sentence for sentence in prediction.assumptions)


@pytest.mark.parametrize(("rings", "step"), [(False, 12 + 2 + 3), (True, 12 + 2 / 8 + 3)])
def test_rings_of_tensor_shards_hide_their_pieces_and_not_the_collectives_left(rings: bool, step: float) -> None:
    parts = (Traffic((TENSOR,), "permute", 2 * 2 * WIRE, 8), Traffic((TENSOR,), "all-gather", 3 * 2 * WIRE, 8))
    prediction = roofline.predict(with_traffic(*parts), V5P, PLACED, rings=rings)
    assert prediction.step_seconds == pytest.approx(step)
    text = "\n".join(prediction.assumptions)
    assert ("in rings hide" in text, "100% of the other tensor-parallel collectives" in text) == (rings, rings)
    assert ("100% of the tensor-parallel collectives" in text) != rings


@pytest.mark.parametrize(
    ("shards", "overlap", "expected"), [(8, "rings", True), (2, "rings", False), (8, "none", False)]
)
def test_rings_of_more_than_two_shards_hide(shards: int, overlap: Any, expected: bool) -> None:
    assert hide(ParallelConfig(tensor=shards, tensor_overlap=overlap)) == expected


def test_parts_over_the_same_axes_add_up_and_others_stay_apart() -> None:
    prediction = roofline.predict(
        with_traffic(
            Traffic((DATA,), "all-gather", 4 * WIRE, 4),
            Traffic((DATA,), "reduce-scatter", 2 * WIRE, 2),
            Traffic((REPLICA,), "all-reduce", 3e9 * LINK["network"].share, 1),
        ),
        V5P,
        PLACED,
    )
    found: dict[tuple[str, ...], Any] = {link.axes: (link.seconds, link.exposed) for link in prediction.links}
    assert found == {
        (DATA,): (pytest.approx(6), pytest.approx(2)),
        (REPLICA,): (pytest.approx(3), pytest.approx(3)),
    }
    assert prediction.step_seconds == pytest.approx(17)
    assert prediction.slowest_seconds == pytest.approx(21)


def test_a_group_over_several_axes_runs_at_the_slowest() -> None:
    part = Traffic((REPLICA, DATA), "all-reduce", 1e9 * LINK["network"].share, 1)
    (link,) = roofline.predict(with_traffic(part), V5P, PLACED).links
    assert link.medium == "network"
    assert link.seconds == pytest.approx(1)


def test_assumptions_state_every_number() -> None:
    parts = [Traffic((DATA,), "all-gather", 1e9, 8), Traffic((TENSOR,), "all-gather", 1e9, 8)]
    placed = placement.torus(V5P, (8, 8, 8), MeshShape(data=64, tensor=8))
    text = "\n".join(roofline.predict(with_traffic(*parts), V5P, placed).assumptions)
    for stated in (
        f"{MATMUL['TPU'].share:.0%} of the 459 TFLOP/s",
        f"{HBM.share:.0%} of 2765 GB/s",
        f"ICI reaches {LINK['ICI'].share:.0%}",
        "data 64 on 8x8 of 8x8x8: 4 links: 400 GB/s",
        "tensor 8 on 8 of 8x8x8: 2 links: 200 GB/s",
        "100% of the tensor-parallel",
        "but for one block's",
        "no batch ramp",
    ):
        assert stated in text
    assert "network" not in text


def test_traffic_over_an_axis_that_is_not_placed() -> None:
    with pytest.raises(ValueError, match="'data' carries traffic and is not placed"):
        roofline.predict(with_traffic(Traffic((DATA,), "all-gather", 1, 1)), V5P, {})


def test_traffic_of_collectives() -> None:
    gather = Collective("all-gather", (DATA,), 4, 400, "bfloat16", 12, "a")
    parts = roofline.traffic_of(
        [
            gather,
            dataclasses.replace(gather, elements=40, source="b"),
            dataclasses.replace(gather, calls=1),
            dataclasses.replace(gather, kind="all-reduce", dtype="float32", calls=1),
        ]
    )
    assert parts == (
        Traffic((DATA,), "all-gather", 12 * 2 * (300 + 30), 12),
        Traffic((DATA,), "all-gather", 2 * 300, 1),
        Traffic((DATA,), "all-reduce", 4 * 2 * 300, 1),
    )


def links(placed: dict[str, Interconnect], of: devices.Device) -> dict[str, float]:
    return {axis: link.bandwidth / of.links.bandwidth for axis, link in placed.items()}


@pytest.mark.parametrize(
    ("chip", "dims", "axes", "expected"),
    [
        (V5P, (8, 8, 8), {DATA: 64, TENSOR: 8}, {DATA: 4, TENSOR: 2}),
        (V5P, (8, 8, 8), {DATA: 512, TENSOR: 1}, {DATA: 6}),
        (V5P, (4, 8, 16), {DATA: 64, TENSOR: 8}, {DATA: 4, TENSOR: 2}),
        (V5P, (2, 2, 1), {DATA: 4, TENSOR: 1}, {DATA: 2}),
        (V5E, (16, 16), {DATA: 16, TENSOR: 16}, {DATA: 2, TENSOR: 2}),
        (V5E, (16, 16), {DATA: 256, TENSOR: 1}, {DATA: 4}),
        (V5E, (8, 8), {DATA: 64, TENSOR: 1}, {DATA: 2}),  # an extent of 8 does not close on a v5e
        (V6E, (8, 16), {DATA: 16, TENSOR: 8}, {DATA: 2, TENSOR: 1}),
        (V5P, (8, 8, 8), {DATA: 32, TENSOR: 16}, {DATA: 3, TENSOR: 3}),  # a ring and a part of a dimension, each
        (V5E, (16, 16), {DATA: 64, TENSOR: 4}, {DATA: 3, TENSOR: 1}),
    ],
)
def test_axes_on_a_torus(
    chip: devices.Device, dims: tuple[int, ...], axes: dict[str, int], expected: dict[str, int]
) -> None:
    assert links(placement.torus(chip, dims, MeshShape(**axes)), chip) == expected


def test_an_axis_is_a_ring_where_its_dimensions_close() -> None:
    for chip, dims, mesh, ring in (
        (V5P, (8, 8, 8), MeshShape(data=64, tensor=8), (True, True)),
        (V5E, (8, 8), MeshShape(data=8, tensor=8), (False, False)),
        (V5P, (8, 8, 8), MeshShape(data=32, tensor=16), (False, False)),
    ):
        placed = placement.torus(chip, dims, mesh)
        assert (placed[DATA].ring, placed[TENSOR].ring) == ring


def test_axes_never_share_a_link() -> None:
    for dims in ((4, 4, 4), (8, 8, 8), (4, 8, 12), (2, 4, 4), (16, 16, 24)):
        chips = math.prod(dims)
        for tensor in (size for size in range(1, chips + 1) if chips % size == 0):
            placed = links(placement.torus(V5P, dims, MeshShape(data=chips // tensor, tensor=tensor)), V5P)
            assert sum(placed.values()) <= 6, (dims, tensor)
            assert min(placed.values()) >= 1, (dims, tensor)


def test_more_links_never_slow_an_axis() -> None:
    for smaller, larger in itertools.pairwise(((4, 4, 4), (8, 4, 4), (8, 8, 4), (8, 8, 8))):
        before, after = (
            placement.torus(V5P, dims, MeshShape(data=math.prod(dims)))[DATA] for dims in (smaller, larger)
        )
        assert after.bandwidth >= before.bandwidth


def test_two_devices_on_a_chip() -> None:
    placed = links(placement.torus(TPU7X, (4, 4, 4), MeshShape(data=16, tensor=8), devices_per_chip=2), TPU7X)
    assert placed == {DATA: 4, TENSOR: 2}
    placed = links(placement.torus(TPU7X, (4, 4, 4), MeshShape(data=64, tensor=2), devices_per_chip=2), TPU7X)
    assert placed == {DATA: 6, TENSOR: 1}


def test_an_axis_that_would_cut_a_chip_in_two() -> None:
    with pytest.raises(UserError, match="tensor 3 is not divisible by the 2 devices of a chip"):
        placement.torus(TPU7X, (3, 4, 4), MeshShape(data=32, tensor=3), devices_per_chip=2)


def test_a_mesh_that_does_not_fill_the_slice() -> None:
    with pytest.raises(UserError, match=r"replica 1 × data 32 × tensor 8 = 256 devices, but a slice of 8x8x8 has 512"):
        placement.torus(V5P, (8, 8, 8), MeshShape(data=32, tensor=8))


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({DATA: 8, TENSOR: 1}, {DATA: ("NVLink", 450e9)}),
        ({DATA: 64, TENSOR: 8}, {TENSOR: ("NVLink", 450e9), DATA: ("network", 50e9)}),  # one of a group in each node
        ({DATA: 48, TENSOR: 2}, {TENSOR: ("NVLink", 450e9), DATA: ("network", 200e9)}),  # four of a group in each
        ({DATA: 64, TENSOR: 1}, {DATA: ("network", 400e9)}),  # all eight network cards carry its rings
        ({REPLICA: 16, DATA: 8}, {DATA: ("NVLink", 450e9), REPLICA: ("network", 50e9)}),
        ({REPLICA: 2, DATA: 4}, {DATA: ("NVLink", 450e9), REPLICA: ("NVLink", 450e9)}),
        ({DATA: 4, TENSOR: 16}, {TENSOR: ("network", 400e9), DATA: ("network", 50e9)}),
        (
            {REPLICA: 2, DATA: 4, TENSOR: 2},
            {TENSOR: ("NVLink", 450e9), DATA: ("NVLink", 450e9), REPLICA: ("network", 50e9)},
        ),
    ],
)
def test_axes_on_nodes(axes: dict[str, int], expected: dict[str, tuple[str, float]]) -> None:
    placed = placement.nodes(H100, MeshShape(**axes))
    assert {axis: (link.medium, link.bandwidth) for axis, link in placed.items()} == expected


def test_network_cards_carry_no_more_than_nvlink() -> None:
    fast = dataclasses.replace(H100, network=100e9)
    assert placement.nodes(fast, MeshShape(data=64))[DATA].bandwidth == 450e9


def test_slices_talk_over_the_data_center_network() -> None:
    assert placement.slices(V5E, REPLICA, 4)[REPLICA].bandwidth == V5E.network


def test_every_family_has_an_efficiency_and_says_why() -> None:
    assert set(MATMUL) == {known.family for known in devices.known().values()}
    for efficiency in (*MATMUL.values(), *LINK.values(), HBM):
        assert 0 < efficiency.share < 1
        assert len(efficiency.why) > 10
