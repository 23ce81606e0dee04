"""A receipt as text for people."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpt3_jax.devices import (
    XLA_GPU_FRACTION,
    XLA_GPU_FRACTION_DEFAULT,
    XLA_GPU_FRACTION_VARIABLE,
    XLA_HOST_LIMIT_DEFAULT,
    XLA_HOST_LIMIT_VARIABLE,
)
from gpt3_jax.plan.receipt import Receipt, TrafficRow
from gpt3_jax.program.traffic import HOST
from gpt3_jax.quantities import count, duration, grid, share, size

VERDICTS = {True: "fits", False: "DOES NOT FIT", None: "capacity not known"}


def render(receipt: Receipt) -> str:
    """The whole receipt: memory, arithmetic, traffic, time."""
    parts = [_head(receipt), _memory(receipt), _flops(receipt), _traffic(receipt), _time(receipt), _foot(receipt)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(r: Receipt) -> str:
    m, b, s = r.model, r.batch, r.settings
    micro = f"{b['microbatches']} microbatches" if b["microbatches"] > 1 else "one microbatch"
    parts = f", MLPs in {s['mlp_parts']} parts" if s.get("mlp_parts", 1) > 1 else ""
    return "\n".join(
        [
            f"{count(m['parameters'])} parameters ({m['n_layers']} layers × {m['d_model']}, context {m['n_ctx']}) "
            f"on {r.topology['name']}: {r.topology['devices']:,} × {r.topology['device']}",
            f"mesh {r.mesh}, ZeRO stage {s['stage']}, remat {s['remat']}{parts}, {s['dtype']}, "
            f"reduced in {s['reduce_dtype']}",
            f"batch {b['tokens']:,} tokens: {b['sequences']:,} sequences in {micro}",
            *_loop_over_depth(r),
        ]
    )


def _loop_over_depth(r: Receipt) -> list[str]:
    """Which form of it runs at stage 3."""
    if r.settings["stage"] < 3 or r.mesh.data == 1 or r.gathers_ahead is None:
        return []
    if r.gathers_ahead:
        return ["loop over depth: a block gathers the next one's weights, and reduces the gradients of the one before"]
    return ["loop over depth: a block gathers its own weights, and reduces its own gradients"]


def _memory(r: Receipt) -> str:
    memory = r.memory
    verdict = VERDICTS[memory.fits]
    rows = [(name, size(n), f"{share(n, memory.total):.1%}") for name, n in memory.purposes.items() if n]
    rows += [("gaps between buffers", size(memory.gaps), f"{share(memory.gaps, memory.total):.1%}")]
    rows += [("results", size(memory.results), f"{share(memory.results, memory.total):.1%}")] if memory.results else []
    rows += [("program", size(memory.code), f"{share(memory.code, memory.total):.1%}")] if memory.code else []
    rows += [("in all", size(memory.total), "")]
    of = f" of {size(memory.usable)} ({share(memory.total, memory.usable):.1%})" if memory.usable else ""
    lines = [
        f"Memory of one device: {size(memory.total)}{of}: {verdict}",
        grid(rows),
        f"  model state by ZeRO's formula for this stage: {size(memory.zero_formula)}",
    ]
    if memory.host:
        lines.append(f"  in the host's memory, for each device: {size(memory.host)}{host_limit(r)}")
    if r.topology["platform"] == "gpu" and memory.usable:
        default = memory.usable / XLA_GPU_FRACTION * XLA_GPU_FRACTION_DEFAULT
        lines.append(
            f"  of the GPU's memory XLA takes {XLA_GPU_FRACTION:.0%} with "
            f"{XLA_GPU_FRACTION_VARIABLE}={XLA_GPU_FRACTION}, as launch/ sets it; "
            f"without it {XLA_GPU_FRACTION_DEFAULT:.0%}, {size(default)}"
        )
    if r.too_large:
        lines.append(f"  the compiler refused it: {r.too_large}")
    if memory.fits is False:
        largest = [(size(b.size), b.shape, b.purpose, b.source or b.op_name[-60:]) for b in memory.largest]
        lines += ["  largest buffers at the fullest moment, and the line that made them:", grid(largest, left=4)]
    return "\n".join(lines)


def host_limit(r: Receipt) -> str:
    """The setting that XLA needs for the host's memory where one process has all GPUs of a node, as launch/ starts it;
    empty on TPUs."""
    devices = r.topology.get("devices_of_a_host")
    if not devices:
        return ""
    needed = r.memory.host * devices
    text = f"; for the {devices} of a node {size(needed)}"
    if needed <= XLA_HOST_LIMIT_DEFAULT * 2**30:
        return f"{text}, of {XLA_HOST_LIMIT_DEFAULT} GiB that XLA takes there for a process"
    # A tenth more than there is: its allocator leaves gaps.
    return (
        f"{text}, above the {XLA_HOST_LIMIT_DEFAULT} GiB that XLA takes there for a process: "
        f"set {XLA_HOST_LIMIT_VARIABLE}={math.ceil(1.1 * needed / 2**30)}, if the host has it"
    )


def _flops(r: Receipt) -> str:
    f, n = r.flops, r.topology["devices"]
    rows = [
        ("6 per parameter and token (GPT-3 appendix D)", f"{f.model:.3e}"),
        ("with attention as if dense and not causal", f"{f.model_dense:.3e}"),
        ("with attention as it is, causal and banded", f"{f.model_visible:.3e}"),
        ("what all devices run, recomputation included", f"{f.device * n:.3e}"),
    ]
    return "\n".join(["Floating-point operations of a step", grid(rows)])


def _traffic(r: Receipt) -> str:
    if not r.traced:
        return "Traffic: one device, none"
    from_host = ", or received from its host" if any(row.axes == HOST for row in r.traced) else ""
    lines = [f"Traffic: sent by one device in a step{from_host}", _traffic_grid(r.traced, "traced program")]
    if r.too_large:
        lines.append("  the compiled program's cannot be told: the compiler refused it before it was done")
    elif r.overlap:
        lines.append(_overlap_grid(r))
    elif r.compiled:
        lines.append(_traffic_grid(r.compiled, "compiled program"))
    if r.zero_elements["paper"]:
        lines.append(
            f"  traced over data, in elements for each parameter: {r.zero_elements['program']:.3f}, ZeRO's formula "
            f"{r.zero_elements['paper']:g}"
        )
    return "\n".join(lines)


def _traffic_grid(rows: Iterable[TrafficRow], title: str) -> str:
    return grid(
        [(row.axes, row.kind, f"{row.calls:,.0f}", size(row.bytes)) for row in rows],
        (title, "", "calls", "bytes"),
        left=2,
    )


def _overlap_grid(r: Receipt) -> str:
    """The compiled program's traffic, and how much of it runs beside compute."""
    calls = {(row.axes, row.kind): row.calls for row in r.compiled}
    rows = [
        (
            row.axes,
            row.kind,
            f"{calls[row.axes, row.kind]:,.0f}",
            size(row.bytes),
            f"{share(row.asynchronous, row.bytes):.0%}",
            "not known" if row.hidden is None else f"{share(row.hidden, row.bytes):.0%}",
        )
        for row in r.overlap
    ]
    among = [row for row in r.overlap if row.axes != HOST]
    sent, split = sum(row.bytes for row in among), sum(row.asynchronous for row in among)
    hidden = sum(row.hidden or 0.0 for row in among)
    if among:
        rows.append(("all axes", "", "", size(sent), f"{share(split, sent):.0%}", f"{share(hidden, sent):.0%}"))
    return grid(rows, ("compiled program", "", "calls", "bytes", "asynchronous", "beside compute"), left=2)


def _time(r: Receipt) -> str:
    p = r.prediction
    if r.memory.fits is False:
        return "Time: no prediction, because it does not fit"
    if p is None:
        return f"Time: no prediction, because {r.topology['device']} has no figures"
    rows = [("matmuls", duration(p.compute_seconds), ""), ("memory, between matmuls", duration(p.hbm_seconds), "")]
    rows += [
        (
            f"{link.medium}, {' + '.join(link.axes)}",
            duration(link.seconds),
            f"{duration(link.exposed)} of it waited for",
        )
        for link in p.links
    ]
    tokens = f"{count(p.total_tokens)} tokens"
    scheduled = []
    if r.scheduled_seconds is not None:
        waited = duration(sum(row.waited for row in r.overlap))
        scheduled = [
            f"  in the compiled schedule's order {duration(r.scheduled_seconds)}, {waited} of it waiting for traffic"
        ]
        if _no_room(r):
            scheduled.append(
                "  no traffic runs beside compute: so near the end of the memory the compiler leaves no room for it; "
                "try a smaller memory.microbatch"
            )
    return "\n".join(
        [
            f"Predicted time of a step: {duration(p.step_seconds)} ({duration(p.fastest_seconds)} if all overlapped, "
            f"{duration(p.slowest_seconds)} if nothing); bound by {p.bound}",
            grid(rows),
            *scheduled,
            f"  {count(p.tokens_per_second)} tokens/s; MFU {p.mfu:.1%} (6N), {p.mfu_with_attention:.1%} "
            "(6N and visible attention)",
            f"  {tokens}: {duration(p.days * 86400)}, {count(p.device_hours)} device-hours",
            "  assumed:",
            *(f"    {line}" for line in p.assumptions),
        ]
    )


def _foot(r: Receipt) -> str:
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in r.seconds.items())
    versions = ", ".join(f"{name} {version}" for name, version in r.versions.items())
    return f"Made by {versions}\nin {seconds}"


def _no_room(r: Receipt) -> bool:
    """Whether the compiler gave up overlap for memory, as a TPU's does in the last tenth of it."""
    among = [row for row in r.overlap if row.axes != HOST]
    split, hidden = sum(row.asynchronous for row in among), sum(row.hidden or 0.0 for row in among)
    full = r.memory.usable is not None and r.memory.total > 0.9 * r.memory.usable
    return r.topology["platform"] == "tpu" and full and hidden < 0.01 * split
