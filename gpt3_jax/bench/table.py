"""Formats measurements for the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt3_jax.bench.ceilings import Ceilings
from gpt3_jax.bench.checkpoint import CheckpointTimes
from gpt3_jax.bench.decode import DecodeTimes
from gpt3_jax.bench.evaluate import EvaluateTimes
from gpt3_jax.bench.families import FAMILIES
from gpt3_jax.bench.loader import LoaderTimes
from gpt3_jax.bench.mfu import CONVENTIONS
from gpt3_jax.bench.profile import Profile
from gpt3_jax.bench.startup import StartUpTimes
from gpt3_jax.bench.step import StepTimes
from gpt3_jax.bench.timing import Spread
from gpt3_jax.quantities import count, grid, measured, size


def machine(m: dict[str, Any]) -> str:
    """The machine."""
    kind = m["device"] or m["device_kind"]
    processes = f" in {m['processes']} processes" if m["processes"] > 1 else ""
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return f"{m['devices']} × {kind}{processes}; host {m['host']}, {m['host_cores']} cores\n{versions}"


def model(w: dict[str, Any]) -> str:
    """The model."""
    return (
        f"{' + '.join(w['configuration'])}: {count(w['parameters'])} parameters ({w['n_layers']} layers × "
        f"{w['d_model']}, {w['n_heads']} heads, context {w['n_ctx']}, vocabulary {w['n_vocab']:,}), {w['dtype']}"
    )


def work(w: dict[str, Any]) -> str:
    """The batch and the layout of a step."""
    mesh = " × ".join(f"{axis} {n}" for axis, n in w["mesh"].items())
    micro = f"{w['microbatches']} microbatches" if w["microbatches"] > 1 else "one microbatch"
    sequences = f"{w['sequences']:,} {'sequence' if w['sequences'] == 1 else 'sequences'}"
    lines = [
        f"mesh {mesh}, ZeRO stage {w['stage']}, remat {w['remat']}, reduced in {w['reduce_dtype']}",
        f"attention: {', '.join(f'{kind}: {taken}' for kind, taken in w['attention'].items())}",
        f"batch {w['batch_tokens']:,} tokens: {sequences} in {micro}",
    ]
    if w["batch_note"]:
        lines[-1] += f"\n  ({w['batch_note']}; --train.batch_tokens N sets another)"
    return "\n".join(lines)


def step(s: StepTimes) -> str:
    """The step's times, its utilisation, its memory."""
    times = [("dispatched as in train", *_spread(s.loop)), ("one at a time", *_spread(s.waited))]
    lines = [
        f"Step: {count(s.tokens_per_second)} tokens/s; {s.loop.count} steps each way, after {s.warmup} for warm-up",
        grid(times, ("", "median", "quartiles", "fastest", "slowest")),
        f"  compiling: tracing {s.trace_seconds:.1f} s, lowering {s.lower_seconds:.1f} s, the compiler "
        f"{s.compile_seconds:.1f} s",
        _memory(s.memory),
    ]
    for peak in s.peaks:
        lines.append(f"Utilisation, of {peak.flops / 1e12:,.2f} TFLOP/s: {peak.name}")
        found = {u.convention: u.share for u in s.utilisations if u.peak == peak.name}
        rows = [(name, f"{found[name]:.1%}", CONVENTIONS[name]) for name in found]
        lines.append("\n".join(_columns(rows, ("", "share", "")).splitlines()[1:]))
    if s.note:
        lines.append(f"  {s.note}")
    return "\n".join(lines)


def profile(p: Profile) -> str:
    """The families and the largest operations."""
    rows = [
        (name, measured(share.seconds), f"{share.seconds / p.step_seconds:.1%}", measured(share.running), what)
        for name, what in FAMILIES.items()
        if (share := p.families.get(name)) is not None
    ]
    largest = [
        (
            o.name,
            measured(o.share.seconds),
            f"{o.share.seconds / p.step_seconds:.1%}",
            f"{o.share.calls:,.0f}",
            o.family,
            o.place,
            o.source,
        )
        for o in p.largest
    ]
    return "\n".join(
        [
            f"Where a step's time goes: {p.steps} traced steps of {measured(p.step_seconds)} each (tracing slows them)",
            _columns(rows, ("", "time", "share", "running", "")),
            f"The {len(largest)} largest operations",
            _columns(largest, ("", "time", "share", "calls", "", "", "")),
        ]
    )


def decode(d: DecodeTimes) -> str:
    """Generation."""
    return "\n".join(
        [
            f"Generation: {d.tokens_per_second:,.1f} tokens/s ({d.rows} {'rows' if d.rows > 1 else 'row'}, prompts of "
            f"{d.prompt_tokens} tokens, {d.new_tokens} new ones, drawn at temperature 1; repeated: {d.repeat})",
            grid(
                [("first token", *_spread(d.prefill_seconds)), ("each further token", *_spread(d.token_seconds))],
                ("", "median", "quartiles", "fastest", "slowest"),
            ),
            f"  {count(d.prefill_tokens_per_second)} prompt tokens/s; first call, which compiles: "
            f"{measured(d.first_call_seconds)}",
            f"  weights read once per token: {size(d.weight_bytes)}, so "
            f"{d.weight_bytes / d.token_seconds.median / 1e9:,.1f} GB/s"
            + (f": {d.bound_share:.0%} of the {d.read_bytes / 1e9:,.1f} GB/s read beside it" if d.read_bytes else ""),
            *([_memory(d.memory)] if d.memory else []),
        ]
    )


def evaluate(e: EvaluateTimes) -> str:
    """Evaluation."""
    mesh = " × ".join(f"{axis} {n}" for axis, n in e.mesh.items())
    rows = [
        (
            kind,
            f"{k.items_per_second:,.2f}",
            count(k.tokens_per_second),
            f"{k.items:,}",
            f"{k.padding:.0%}",
            measured(k.seconds.median),
            f"{measured(k.seconds.smallest)} to {measured(k.seconds.largest)}",
            measured(k.first_call_seconds),
            str(k.programs),
        )
        for kind, k in e.kinds.items()
    ]
    columns = ("", "items/s", "tokens/s", "items", "padding", "median", "range", "first call", "programs")
    return "\n".join(
        [
            f"Evaluation: likelihoods of invented items, contexts of {2 * e.context_tokens // 3:,} to "
            f"{e.context_tokens:,} tokens, four choices each; mesh {mesh}, stage {e.stage}; repeated: {e.repeat}",
            grid(rows, columns),
            *([_memory(e.memory)] if e.memory else []),
        ]
    )


def loader(r: LoaderTimes) -> str:
    """The data loader."""
    rate = r.tokens_per_second
    return (
        f"Loader: {rate.median / 1e6:,.1f} million tokens/s (median of {rate.count}; {rate.smallest / 1e6:,.1f} to "
        f"{rate.largest / 1e6:,.1f}), random access over {r.bytes / 1e9:.2f} GB, batches of {r.batch} sequences of "
        f"{r.n_ctx} tokens"
    )


def checkpoint(c: CheckpointTimes) -> str:
    """Checkpoints."""
    rows = [
        ("training waits", *_spread(c.blocking_seconds)),
        ("complete on disk", *_spread(c.on_disk_seconds)),
        ("restored, checked", *_spread(c.restore_seconds)),
    ]
    return "\n".join(
        [
            f"Checkpoint: {c.bytes / 1e9:,.2f} GB in {c.folder}, written at "
            f"{c.bytes / c.on_disk_seconds.median / 1e9:,.2f} GB/s; repeated: {c.blocking_seconds.count}",
            grid(rows, ("", "median", "quartiles", "fastest", "slowest")),
            "  restored right after the save, so the data may still be in the page cache",
        ]
    )


def startup(s: StartUpTimes) -> str:
    """The start of training."""
    rows = [
        (phase, *(cell for spread in (s.cold[phase], s.warm.get(phase)) for cell in _median_and_range(spread)))
        for phase in s.cold
    ]
    return "\n".join(
        [
            f"Start of training: from the command to the end of its first step; starts of each kind: {s.repeat}",
            grid(rows, ("", "no programs", "range", "programs kept", "range")),
            f"  gpt3-jax train --help: {measured(s.help.median)}",
        ]
    )


def _median_and_range(s: Spread | None) -> tuple[str, str]:
    return ("", "") if s is None else (measured(s.median), f"{measured(s.smallest)} to {measured(s.largest)}")


def ceilings(c: Ceilings) -> str:
    """The machine's ceilings."""
    return (
        f"Ceilings, one device: a bf16 matmul of {c.matmul_size:,}³ {c.matmul_flops / 1e12:,.2f} TFLOP/s; a copy "
        f"{c.copy_bytes / 1e9:,.0f} GB/s, read and written"
    )


def _spread(s: Spread) -> tuple[str, str, str, str]:
    middle = f"{measured(s.quartile_1)} to {measured(s.quartile_3)}"
    return measured(s.median), middle, measured(s.smallest), measured(s.largest)


def _memory(memory: dict[str, int]) -> str:
    return "  peak memory: " + "; ".join(f"{size(n)} ({name})" for name, n in memory.items())


def _columns(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Like `grid`, with left-aligned text after the numbers."""
    numbers = sum(1 for title in head if title)
    text = [row[1 + numbers :] for row in rows]
    widths = [max((len(row[i]) for row in text), default=0) for i in range(len(head) - 1 - numbers)]
    lines = grid([row[: 1 + numbers] for row in rows], head[: 1 + numbers]).splitlines()
    behind = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in text]
    return "\n".join(f"{line}  {more}".rstrip() for line, more in zip(lines, ["", *behind], strict=True))
