"""What each of `memory.remat`'s settings costs: memory, work and predicted time of one configuration."""

from __future__ import annotations

from collections.abc import Mapping

from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.plan.table import host_limit
from gpt3_jax.quantities import duration, grid, share, size


def table(model: str, receipts: Mapping[str, Receipt]) -> str:
    """The table of `report remat`.

    Args:
        model: its name.
        receipts: by remat.
    """
    first = next(iter(receipts.values()))
    rows = [
        (
            remat,
            size(r.memory.total),
            {True: "fits", False: "does not fit", None: ""}[r.memory.fits],
            size(r.memory.host) if r.memory.host else "",
            f"{share(r.flops.device * r.topology['devices'], r.flops.model_visible):.3f}",
            duration(r.prediction.step_seconds) if r.prediction else "",
            duration(r.scheduled_seconds) if r.scheduled_seconds and r.memory.fits is not False else "",
        )
        for remat, r in receipts.items()
    ]
    lines = [
        f"{model} on {first.topology['name']}, {first.mesh}, ZeRO stage {first.settings['stage']}",
        grid(rows, ("remat", "memory", "", "of the host", "work", "predicted step", "in the schedule's order")),
        "  work: matmuls that run, over the model's own (6N and visible attention)",
        *(
            f"  {remat}: {size(r.memory.host)} of the host for each device{limit}"
            for remat, r in receipts.items()
            if r.memory.host and (limit := host_limit(r))
        ),
    ]
    if first.prediction:
        lines += ["  predicted step: as gpt3-jax plan predicts it, which lists what it assumes"]
    return "\n".join(lines)
