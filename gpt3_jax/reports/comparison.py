"""The prediction of `gpt3_jax.plan.roofline` against published measurements, misses included.

A row's work follows by arithmetic from its shape, its mesh and what it recomputes; nothing is set per row. One constant
for each family of devices, the matmul efficiency, is set from the rows that calibrate; all others are held out.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from gpt3_jax import devices
from gpt3_jax.parallel.mesh import DATA, REPLICA, TENSOR
from gpt3_jax.plan import elementwise, placement, roofline
from gpt3_jax.plan.placement import Interconnect
from gpt3_jax.plan.roofline import Prediction, Traffic, Work
from gpt3_jax.program.traffic import ring_share
from gpt3_jax.reports.published import ROWS, Row


def work(row: Row) -> Work:
    """What one device does in a step of a published configuration."""
    shape = row.shape
    tokens = row.tokens / row.devices
    blocks = shape.n_layers
    # The embedding is counted as looked up, though MaxText multiplies with one-hot rows: under a hundredth of the rest.
    # Of the matmuls, the backward pass is twice the forward; of attention's, too, and under either remat its
    # forward runs again.
    flops: float = (8 if row.remat == "full" else 6) * shape.block_params + 6 * shape.n_vocab * shape.d_model
    flops += shape.attention_flops * (0.5 if row.flash else 1) * (1 if row.remat == "none" else 4 / 3)
    moved: float = elementwise.block_bytes(shape.d_model, shape.d_ff, row.remat, shape.gated)
    if row.flash:
        moved += elementwise.flash_bytes(shape.d_attention, row.remat)
    else:
        moved += elementwise.score_bytes(shape.n_heads, shape.n_ctx, row.remat)
    moved = blocks * moved + elementwise.loss_bytes(shape.n_vocab)

    shard = shape.params / row.mesh.tensor
    ring = float(ring_share("all-gather", row.mesh.data))
    # ZeRO section 7; a microbatch gathers and scatters for itself, which the distributed optimizer (stage 1) need not.
    gathers = {1: 1, 2: row.microbatches, 3: 2 * row.microbatches}[row.stage]
    scatters = 1 if row.stage == 1 else row.microbatches
    parts = [
        Traffic((DATA,), "all-gather", gathers * 2 * shard * ring, gathers * blocks),
        Traffic((DATA,), "reduce-scatter", scatters * row.reduce_bytes * shard * ring, scatters * blocks),
    ]
    if row.mesh.tensor > 1:
        # Attention and MLP each gather their input and scatter their output, forward and backward. The inputs are
        # wanted again for the gradients of the weights: gathered again, or had from a block that runs again, which
        # needs all but the last scatter.
        calls = 4 + 4 + (3 if row.remat == "full" else 2)
        activations = 2 * tokens * row.mesh.tensor * shape.d_model * float(ring_share("all-gather", row.mesh.tensor))
        parts.append(Traffic((TENSOR,), "all-gather", calls * blocks * activations, calls * blocks))
    if row.mesh.replica > 1:
        ring = float(ring_share("all-reduce", row.mesh.replica))
        parts.append(Traffic((REPLICA,), "all-reduce", ring * (2 * shard / row.mesh.data), 1))
    return Work(
        tokens=row.tokens,
        devices=row.devices,
        matmul_flops=flops * tokens,
        model_flops=6 * shape.params * tokens,
        attention_flops=shape.attention_flops / 2 * tokens,
        hbm_bytes=moved * tokens + elementwise.optimizer_bytes(shard / row.mesh.data),
        traffic=tuple(parts),
    )


def place(row: Row) -> dict[str, Interconnect]:
    """What each axis of a published configuration runs on."""
    chip = device(row)
    if not row.slice_dims:
        return placement.nodes(chip, row.mesh)
    placed = placement.torus(chip, row.slice_dims, dataclasses.replace(row.mesh, replica=1))
    if row.mesh.replica > 1:
        placed |= placement.slices(chip, REPLICA, row.mesh.replica)
    return placed


def predict(row: Row) -> Prediction:
    return roofline.predict(work(row), device(row), place(row))


def miss(row: Row) -> float:
    """Predicted over measured step time, less one: positive where the prediction is too slow."""
    return predict(row).step_seconds / row.seconds - 1


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that no constant was set from, taken together."""

    name: str
    rows: int
    median: float
    """Of the absolute misses."""
    worst: float
    """Absolute."""
    bias: float
    """Median of the misses with their signs."""


def groups() -> list[Group]:
    """All held-out rows, and parts of them."""
    found = []
    for name, rows in (
        ("all", ROWS),
        ("TPU", [row for row in ROWS if device(row).family == "TPU"]),
        ("TPU, tensor up to 8", [row for row in ROWS if device(row).family == "TPU" and row.mesh.tensor <= 8]),
        ("GPU, XLA", [row for row in ROWS if device(row).family != "TPU" and row.xla]),
        ("GPU, PyTorch", [row for row in ROWS if not row.xla]),
    ):
        misses = [miss(row) for row in rows if not row.calibrates]
        absolute = [abs(value) for value in misses]
        found.append(Group(name, len(misses), statistics.median(absolute), max(absolute), statistics.median(misses)))
    return found


def table() -> str:
    """All rows, predicted beside published, as aligned text; then how far off the held-out ones are."""
    head = f"{'system':<12}{'model':<12}{'devices':<26}{'mesh':<10}{'measured s':>11}{'predicted s':>12}{'miss':>7}"
    lines = [head + f"{'limits s':>18}"]
    for row in ROWS:
        prediction = predict(row)
        name = device(row).name
        slices = "x".join(map(str, row.slice_dims)) or str(row.mesh.data * row.mesh.tensor)
        where = f"{row.mesh.replica} × {name} {slices}" if row.mesh.replica > 1 else f"{name} {slices}"
        mesh = "/".join(map(str, row.mesh.sizes))
        limits = f"{prediction.fastest_seconds:.2f} to {prediction.slowest_seconds:.2f}"
        lines.append(
            f"{row.system:<12}{row.model:<12}{where:<26}{mesh:<10}{row.seconds:>11.2f}{prediction.step_seconds:>12.2f}"
            f"{miss(row):>+7.0%}{limits:>18}  {'calibrates' if row.calibrates else ''}".rstrip()
        )
    lines += ["", f"{'held out':<24}{'rows':>6}{'median':>8}{'worst':>8}{'bias':>8}"]
    lines += [f"{g.name:<24}{g.rows:>6}{g.median:>8.1%}{g.worst:>8.1%}{g.bias:>+8.1%}" for g in groups()]
    return "\n".join(lines) + "\n"


def as_data() -> list[dict[str, Any]]:
    """All rows for a program: what was measured, what is predicted, and whether the row set a constant."""
    return [
        {
            "system": row.system,
            "model": row.model,
            "device": device(row).name,
            "devices": row.devices,
            "measured_seconds": row.seconds,
            "predicted_seconds": predict(row).step_seconds,
            "miss": miss(row),
            "calibrates": row.calibrates,
        }
        for row in ROWS
    ]


def device(row: Row) -> devices.Device:
    """The device of a row, with the network that it ran on."""
    found = devices.lookup(row.device_kind)
    assert found is not None, row.device_kind
    return dataclasses.replace(found, network=row.network) if row.network else found
