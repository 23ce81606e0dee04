"""A receipt of generation or evaluation as text for people."""

from __future__ import annotations

from gpt3_jax.plan.inference import InferenceReceipt, ProgramReceipt
from gpt3_jax.plan.table import VERDICTS
from gpt3_jax.quantities import count, duration, grid, measured, share, size

_DOES = {
    "prefill": "reads the prompts",
    "decode": "appends one token to each row",
    "beam prefill": "reads the prompts, each once, and makes a cache for each hypothesis",
    "beam decode": "reorders the cache to the hypotheses that go on and appends one token to each",
    "evaluate": "gives the log-likelihood of every token",
}


def render_inference(r: InferenceReceipt) -> str:
    """The whole receipt: memory, traffic and time of each program."""
    m, b = r.model, r.batch
    sharded = f"parameters in {m['weights']}, sharded as at stage {m['stage']}"
    kept = f"weights in {m['weights']} over tensor" if r.use == "generate" else sharded
    tokens = f"prompts of {b.prompt_tokens:,} tokens, room for {b.new_tokens:,} new ones"
    search = f", beam search: {b.prompts:,} prompts × {b.beams} hypotheses" if b.beams else ""
    head = [
        f"{count(m['parameters'])} parameters ({m['n_layers']} layers × {m['d_model']}, context {m['n_ctx']}) "
        f"on {r.topology['name']}: {r.topology['devices']:,} × {r.topology['device']}, to {r.use}",
        f"mesh {r.mesh}, {m['dtype']}, {kept}",
        f"{b.rows:,} rows at once{search}, {tokens if r.use == 'generate' else f'of {b.prompt_tokens:,} tokens'}",
    ]
    parts = ["\n".join(head), *(_program(program, r) for program in r.programs)]
    if r.moving is not None:
        verdict = VERDICTS[None if r.usable is None else r.moving <= r.usable]
        parts.append(
            "weights lie there once: as the stage keeps them for likelihoods, over tensor for free answers\n"
            f"  memory of one device while they are moved: {size(r.moving)}: {verdict}"
        )
    if summary := _summary(r):
        parts.append(summary)
    seconds = "; ".join(f"{p.name}: " + ", ".join(f"{k} {v:.1f} s" for k, v in p.seconds.items()) for p in r.programs)
    parts.append(f"Made by {', '.join(f'{name} {version}' for name, version in r.versions.items())}\nin {seconds}")
    return "\n\n".join(parts) + "\n"


def _program(p: ProgramReceipt, r: InferenceReceipt) -> str:
    m = p.memory
    fits = None if r.usable is None else m.total <= r.usable
    verdict = VERDICTS[False if m.refused else fits]
    of = f" of {size(r.usable)} ({share(m.total, r.usable):.1%})" if r.usable else ""
    rows = [
        (name, size(n), f"{share(n, m.total):.1%}")
        for name, n in (
            ("weights", m.weights),
            ("keys and values", m.cache),
            ("parameters of scoring", m.beside),
            ("temporaries", m.temporaries),
            ("tokens and program", m.other),
        )
        if n
    ]
    lines = [
        f"{p.name}, which {_DOES[p.name]}",
        f"  memory of one device: {size(m.total)}{of}: {verdict}",
        _deeper(grid(rows)),
    ]
    if p.too_large:
        lines.append(f"    the compiler refused it: {p.too_large}")
    if p.traced:
        sent = [(row.axes, row.kind, f"{row.calls:,.0f}", size(row.bytes)) for row in p.traced]
        lines += ["  sent by one device", _deeper(grid(sent, ("", "", "calls", "bytes"), left=2))]
    t = p.time
    if t is None:
        why = f"{r.topology['device']} has no figures" if r.usable is None else "it does not fit"
        return "\n".join([*lines, f"  time: no prediction, because {why}"])
    return "\n".join(
        [
            *lines,
            f"  predicted time: {measured(t.seconds)}, {count(t.tokens_per_second)} tokens/s; bound by {t.bound}",
            _deeper(grid([(name, measured(n)) for name, n in t.parts.items()])),
            "    assumed:",
            *(f"      {line}" for line in t.assumptions),
        ]
    )


def _summary(r: InferenceReceipt) -> str:
    """What a batch of completions takes in all."""
    if r.use != "generate":
        return ""
    prefill, decode = (p.time for p in r.programs)
    if prefill is None or decode is None:
        return ""
    b = r.batch
    seconds = prefill.seconds + (b.new_tokens - 1) * decode.seconds
    return (
        f"{b.prompts:,} completions of {b.new_tokens:,} tokens: {duration(seconds)}, "
        f"{count(b.prompts * b.new_tokens / seconds)} new tokens/s"
    )


def _deeper(lines: str) -> str:
    return "\n".join(f"  {line}" for line in lines.splitlines())
