"""The predicted time of a configuration on a topology. The work comes from a compiled step, or from `estimate`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gpt3_jax.config import Config, ParallelConfig
from gpt3_jax.devices import Device
from gpt3_jax.model.params import count_params, train_flops_per_token
from gpt3_jax.model.transformer import band_shares
from gpt3_jax.parallel import rings
from gpt3_jax.parallel.mesh import BATCH_AXES, DATA, REPLICA, MeshShape, data_steps, make_mesh, shape_of
from gpt3_jax.plan import placement, roofline
from gpt3_jax.plan.placement import Interconnect, Placement
from gpt3_jax.plan.roofline import Prediction, Work
from gpt3_jax.plan.step import CompiledStep
from gpt3_jax.plan.topologies import Topology
from gpt3_jax.program.flops import matmul_flops
from gpt3_jax.program.hlo import CompiledCollective
from gpt3_jax.program.memory_traffic import hbm_bytes
from gpt3_jax.program.schedule import Link, Rates, Transfer
from gpt3_jax.program.traffic import HOST


def predict_compiled(step: CompiledStep) -> Prediction | None:
    """The prediction from what the compiled program computes, moves and sends; None for a device that is not in the
    table."""
    config, devices = step.config, len(step.topology.devices)
    tokens = step.batch.sequences * config.model.n_ctx
    model_flops = 6.0 * count_params(config.model) * tokens / devices
    visible = train_flops_per_token(config.model, attention=True) * tokens / devices
    work = Work(
        tokens=tokens,
        devices=devices,
        matmul_flops=float(matmul_flops(step.jaxpr, tuple(band_shares(config.model).values()))),
        model_flops=model_flops,
        attention_flops=visible - model_flops,
        hbm_bytes=hbm_bytes(step.program),
        traffic=roofline.traffic_of(step.collectives),
    )
    return predict(work, config, step.topology, shape_of(step.mesh))


def predict(work: Work, config: Config, topology: Topology, mesh: MeshShape) -> Prediction | None:
    """The roofline of this work; None for a device that is not in the table."""
    device = topology.device
    if device is None:
        return None
    work = dataclasses.replace(work, traffic=tuple(_as_it_stands(part, config) for part in work.traffic))
    placed, hide = place(topology, mesh), rings.hide(config.parallel)
    found = roofline.predict(work, device, placed, float(config.train.tokens), rings=hide)
    if config.model.dtype == "float32":
        slow = "float32 matmuls are timed at the bf16 peak, which they do not reach: they take several times as long."
        found = dataclasses.replace(found, assumptions=(slow, *found.assumptions))
    return found


@functools.lru_cache(maxsize=256)
def place(topology: Topology, mesh: MeshShape) -> Placement:
    """The interconnect of each mesh axis (torus, NVLink, network between nodes or slices), and of the way to the host.
    Laying a mesh on a torus takes a tenth of a second, and a search asks a hundred times for each."""
    device = topology.device
    assert device is not None
    if topology.has_nodes:
        links = dataclasses.replace(device.links, node_devices=topology.shape[1])
        return MappingProxyType(
            {**placement.nodes(dataclasses.replace(device, links=links), mesh), **placement.host(device)}
        )
    inside = dataclasses.replace(mesh, replica=mesh.replica // topology.slices)
    chips = math.prod(topology.shape) * topology.slices
    placed = dict(placement.torus(device, topology.shape, inside, len(topology.devices) // chips))
    if DATA in placed and (inner := _inner_step(topology, mesh)):
        placed[DATA] = _outer_step(placed[DATA], device, inner)
    if topology.slices > 1:
        placed |= placement.slices(device, REPLICA, mesh.replica)
    return MappingProxyType({**placed, **placement.host(device)})


def rates(device: Device, placement: Placement, shape: Mapping[str, int]) -> Rates:
    """The roofline's rates, at which `program.schedule` is timed.

    Args:
        placement: what each mesh axis runs on.
        shape: of the mesh.
    """

    def link_of(collective: Transfer) -> tuple[Link, float | None]:
        axes = collective.axes(shape)
        if not axes:  # a permute in which the first device keeps what it has
            return Link(""), 0.0
        if axes == (HOST,) and HOST not in placement:  # a device whose way to its host has no figure
            return Link(HOST), None
        slowest = min((placement[axis] for axis in axes), key=lambda found: found.bandwidth)
        bandwidth, link = slowest.bandwidth, Link("+".join(axes))
        if (
            slowest.ring
            and isinstance(collective, CompiledCollective)
            and collective.kind == "permute"
            and collective.between_neighbours(shape)
        ):
            # Over one link; the other direction is free.
            bandwidth = device.links.bandwidth
            link = Link(link.axes, "up" if collective.upwards else "down")
        return link, collective.bytes_sent / collective.calls / (bandwidth * roofline.LINK[slowest.medium].share)

    matmul = roofline.MATMUL[device.family].share
    return Rates(device.bf16_flops * matmul, device.hbm_bandwidth * roofline.HBM.share, link_of)


def _inner_step(topology: Topology, mesh: MeshShape) -> int:
    """Devices in the inner step of a gather over `data`; 0 if it has only one."""
    sizes: dict[str, Any] = mesh.axes
    steps = data_steps(make_mesh(ParallelConfig(**sizes), topology.devices))
    return len(steps[0][0]) if steps else 0


def _outer_step(whole: Interconnect, device: Device, inner: int) -> Interconnect:
    """The bandwidth of a gather in two steps: nearly all bytes go in the outer step, which lacks the links of the
    inner."""
    links = 2 if inner % device.links.wrap_multiple == 0 else 1
    left = whole.bandwidth - links * device.links.bandwidth
    if left <= 0:
        return whole
    return dataclasses.replace(whole, bandwidth=left, how=f"{whole.how}, less {links} of a gather's other step")


def _as_it_stands(part: roofline.Traffic, config: Config) -> roofline.Traffic:
    """Sets `calls` to 1 for collectives outside the blocks, which no block's compute hides: at stages 0 and 1 the
    gather of weights and the reduction of gradients, at stage 2 the gather."""
    over_data = set(part.axes) <= set(BATCH_AXES) and DATA in part.axes
    outside = config.parallel.stage <= 1 or (config.parallel.stage == 2 and part.kind == "all-gather")
    return dataclasses.replace(part, calls=1, exposed=None) if over_data and outside else part
