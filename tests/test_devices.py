"""The table of devices: what it must hold, and that figures which several documents state agree."""

from __future__ import annotations

import dataclasses

import pytest

from gpt3_jax import devices

DEVICES = {device.name: device for device in devices.known().values()}


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_each_figure_has_a_source(device: devices.Device) -> None:
    fields = {field.name for field in dataclasses.fields(device)} - {"name", "family", "sources"}
    stated = {name for name in fields if getattr(device, name) is not None}
    assert set(device.sources) == stated
    assert all(len(source) > 10 for source in device.sources.values())


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_figures_are_of_the_right_magnitude(device: devices.Device) -> None:
    """A unit slip (bits for bytes, GB for GiB, tera for peta) is a factor of 8 or 1,000; devices differ by less."""
    assert 1e14 < device.bf16_flops < 3e15
    assert 15e9 < device.hbm_bytes < 300e9
    assert 0.9 < device.hbm_usable / device.hbm_bytes < 1.1
    assert 100 < device.bf16_flops / device.hbm_bandwidth < 600
    assert 3 < device.hbm_bandwidth / device.links.device_bandwidth < 15
    assert 5 < device.links.device_bandwidth / device.network < 150
    assert device.host_link is None or 10e9 < device.host_link < 100e9


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_links_are_a_torus_or_a_switch(device: devices.Device) -> None:
    links = device.links
    if links.kind == "ICI":
        assert links.per_device == 2 * links.torus_dims
        assert links.wrap_multiple > 0
        assert links.node_devices == 0
    else:
        assert links.torus_dims == links.wrap_multiple == 0
        assert links.node_devices > 1


@pytest.mark.parametrize(
    ("kind", "per_chip"), [("TPU v5 lite", 400e9), ("TPU v5p", 1200e9), ("TPU v6 lite", 800e9), ("TPU7x", 1200e9 / 2)]
)
def test_links_add_up_to_the_documented_bandwidth_of_a_chip(kind: str, per_chip: float) -> None:
    """Google's pages state both directions of all links of a chip together; a TPU7x device is half a chip."""
    device = devices.lookup(kind)
    assert device is not None
    assert 2 * device.links.device_bandwidth == per_chip


@pytest.mark.parametrize(("kind", "both_directions"), [("NVIDIA A100-SXM4-80GB", 600e9), ("NVIDIA H200", 900e9)])
def test_nvlink_adds_up_to_the_data_sheet(kind: str, both_directions: float) -> None:
    device = devices.lookup(kind)
    assert device is not None
    assert 2 * device.links.device_bandwidth == both_directions


def test_both_names_of_a_v5p_are_one_device() -> None:
    assert devices.lookup("TPU v5") is devices.lookup("TPU v5p")


def test_an_h200_is_an_h100_with_more_memory() -> None:
    h100, h200 = DEVICES["H100 SXM"], DEVICES["H200 SXM"]
    assert h200.bf16_flops == h100.bf16_flops
    assert h200.links == h100.links
    assert h200.hbm_bytes > h100.hbm_bytes
    assert h200.hbm_bandwidth > h100.hbm_bandwidth
    assert h200.sources["bf16_flops"] != h100.sources["bf16_flops"]


@pytest.mark.parametrize("kind", ["cpu", "", "TPU v5 ultra", "NVIDIA H100", "NVIDIA GeForce RTX 4090", "tpu v4"])
def test_an_unknown_device_has_no_figures(kind: str) -> None:
    assert devices.lookup(kind) is None


def test_the_table_cannot_be_changed_through_a_copy() -> None:
    devices.known().clear()
    assert devices.lookup("TPU v4") is not None
