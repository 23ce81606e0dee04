"""The configurations that the repository ships for a size on a machine, and how a search makes them anew.

    python tests/shipped_configs.py                          # all; a minute or two each
    python tests/shipped_configs.py mesh-h100-8              # one machine
    python tests/shipped_configs.py mesh-h100-8/gpt3-xl
    python tests/shipped_configs.py --table                  # those of gpt3_jax/plan/README.md and configs/README.md

Each writes configs/MESH/SIZE.yaml, its receipt (tests/receipts) and its rows of tests/shipped_searches.csv: everything
that the search compiled, and one row of a size that does not fit. Plans are kept as `gpt3-jax plan` keeps them, so that
what was interrupted goes on.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from gpt3_jax.config import config_dir, load_config, presets
from gpt3_jax.plan.receipt import Receipt, receipt_from_json
from gpt3_jax.program.traffic import HOST
from gpt3_jax.quantities import duration
from gpt3_jax.train.schedule import batch_schedule, line_updates, updates

MACHINES = {
    "mesh-h100-8": "h100:1x8",
    "mesh-h100-64x8": "h100:64x8",
    "mesh-v5p-512": "v5p:8x8x8",
    "mesh-v5e-256": "v5e:16x16",
    "mesh-v6e-256": "v6e:16x16",
    "mesh-h200-8": "h200:1x8",
}
"""The topology of each mesh that has a file for each size."""
FILE = Path(__file__).parent / "shipped_searches.csv"
RECEIPTS = Path(__file__).parent / "receipts"
KEEP = 1
MINUTES = {
    "mesh-h100-8": 30.0,
    "mesh-h100-64x8": 30.0,
    "mesh-v5p-512/gpt3-175b": 4.0,
    "mesh-v5e-256/gpt3-175b": 5.0,
    "mesh-v6e-256/gpt3-small": 4.0,
    "mesh-v6e-256/gpt3-medium": 4.0,
    "mesh-v6e-256/gpt3-large": 4.0,
    "mesh-v6e-256/gpt3-xl": 5.0,
    "mesh-v6e-256/gpt3-175b": 5.0,
}
"""Options of the searches; 2 minutes where none are named, of CPU time. What they had no time for
is in the record; more minutes go on where the last one ended."""
ALSO: dict[tuple[str, str], str] = {
    ("mesh-h100-8", "gpt3-13b"): "save_qkv_proj",
    ("mesh-h100-64x8", "gpt3-175b"): "full",
}
"""A remat that is compiled after the search, on the mesh that it found best, with a microbatch that leaves room. The
search compiles another remat only where it is within 3 % of the fastest by arithmetic; the programs of what it finds
here take 12 and 31 % longer in their schedule's order than by the roofline."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration that a search compiled; with data 0, a size of which none fits by arithmetic."""

    mesh: str
    size: str
    replica: int
    data: int
    tensor: int
    stage: int
    remat: str
    microbatch: int
    mlp_parts: int
    verdict: str
    """``best``, ``fits``, ``does not fit``, ``failed`` (the compiler, for another reason), ``left`` (out of time)."""
    bytes: int
    step_seconds: float
    """By the roofline; 0 where it does not fit."""
    scheduled_seconds: float

    @property
    def seconds(self) -> float:
        """As `plan.search.step_time`."""
        return max(self.step_seconds, self.scheduled_seconds)

    @property
    def name(self) -> str:
        return f"{self.mesh}/{self.size}"

    @property
    def settings(self) -> dict[str, Any]:
        """As `plan.candidates.Candidate.settings`."""
        sections = {"parallel": ("stage", "replica", "data", "tensor"), "memory": ("remat", "microbatch", "mlp_parts")}
        return {f"{section}.{name}": getattr(self, name) for section, names in sections.items() for name in names}


def rows() -> list[Row]:
    """The kept record."""
    if not FILE.is_file():
        return []
    types: dict[str, Any] = {f.name: {"str": str, "int": int, "float": float}[str(f.type)] for f in FIELDS}
    with FILE.open(newline="") as file:
        return [Row(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


FIELDS = dataclasses.fields(Row)


def shipped() -> list[tuple[str, str]]:
    """Mesh and size of each configuration that is there."""
    return [(mesh, size) for mesh in MACHINES for size in presets() if (config_dir() / mesh / f"{size}.yaml").is_file()]


def minutes(mesh: str, size: str) -> float:
    """How long the search compiles."""
    return MINUTES.get(f"{mesh}/{size}", MINUTES.get(mesh, 2.0))


def command(mesh: str, size: str, options: str) -> str:
    """What finds it: the search, or for those of `ALSO` the plan with these options."""
    if (mesh, size) in ALSO:
        return f"gpt3-jax plan --config {size} --topology {MACHINES[mesh]} {options}"
    searched = f"gpt3-jax plan --config {size} --topology {MACHINES[mesh]} --search"
    return f"{searched} --keep {KEEP} --minutes {minutes(mesh, size):g} --out FILE"


def make(mesh: str, size: str) -> list[Row]:
    """Searches, writes the configuration and its receipt, and returns the record."""
    from receipts_kept import Kept, keep

    from gpt3_jax.plan.cache import default_cache
    from gpt3_jax.plan.candidates import ROOMY, Candidate, candidates
    from gpt3_jax.plan.found import settings_text
    from gpt3_jax.plan.search import Tried, best_first, confirm, search
    from gpt3_jax.plan.topologies import open_topology

    topology, config, tried = open_topology(MACHINES[mesh]), load_config([size]), Tried()
    file = config_dir() / mesh / f"{size}.yaml"
    file.unlink(missing_ok=True)
    if not candidates(config, topology):
        return [Row(mesh, size, 0, 0, 0, 0, "", 0, 0, "does not fit", 0, 0.0, 0.0)]
    found = search(config, topology, KEEP, default_cache(), 60 * minutes(mesh, size), tried, time.process_time)
    if found and (mesh, size) in ALSO:
        assert topology.usable is not None
        also = [c for c in candidates(config, topology) if c.bytes <= ROOMY * topology.usable]
        also = [c for c in also if c.config.memory.remat == ALSO[mesh, size]]
        also = [c for c in also if c.config.parallel == found[0][0].config.parallel]
        found = best_first([*found, *confirm(also, topology, 1, 1, default_cache(), tried=tried)])
    if found:
        best, receipt = found[0]
        file.parent.mkdir(exist_ok=True)
        file.write_text(settings_text(best.settings, receipt, command(mesh, size, best.options)))
        keep(Kept((size, mesh), MACHINES[mesh]), receipt)
    made = []
    every: list[tuple[Candidate, Receipt | None]] = [*tried.compiled, *((c, None) for c in tried.left)]
    for candidate, planned in every:
        values = {name.partition(".")[2]: value for name, value in candidate.settings.items()}
        verdict, need, seconds, scheduled = "left" if candidate in tried.left else "failed", 0, 0.0, 0.0
        if planned is not None:
            need, scheduled = planned.memory.total, planned.scheduled_seconds or 0.0
            seconds = planned.prediction.step_seconds if planned.prediction else 0.0
            verdict = "fits" if planned.memory.fits else "does not fit"
            verdict = "best" if found and candidate is found[0][0] else verdict
        made.append(
            Row(mesh, size, **values, verdict=verdict, bytes=need, step_seconds=seconds, scheduled_seconds=scheduled)
        )
    return made


def write(made: list[Row]) -> None:
    """Puts these in the place of the record's rows of the same size and machine."""
    order = {f"{mesh}/{size}": i for i, (mesh, size) in enumerate((m, s) for m in MACHINES for s in presets())}
    kept = [row for row in rows() if row.name not in {one.name for one in made}] + made
    kept.sort(key=lambda row: order[row.name])
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in FIELDS], lineterminator="\n")
        writer.writeheader()
        for row in kept:
            values = dataclasses.asdict(row)
            writer.writerow(values | {n: f"{values[n]:.6g}" for n in ("step_seconds", "scheduled_seconds")})


def table() -> str:
    """The predicted MFU of each shipped configuration, as Markdown."""

    def cell(mesh: str, size: str) -> str:
        if (mesh, size) not in shipped():
            return "–"
        predicted = kept_receipt(mesh, size).prediction
        assert predicted is not None
        (best,) = (row for row in rows() if (row.mesh, row.size, row.verdict) == (mesh, size, "best"))
        mfu = 100 * predicted.mfu
        scheduled = mfu * best.step_seconds / best.scheduled_seconds
        return f"{mfu:.1f} / {scheduled:.1f}; {best.replica}·{best.data}·{best.tensor}, {best.remat}"

    heads = [f"`{topology}`" for topology in MACHINES.values()]
    lines = [["", *heads], ["---"] * (1 + len(heads))]
    lines += [[size.removeprefix("gpt3-"), *(cell(mesh, size) for mesh in MACHINES)] for size in presets()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


WAITS = 0.05
"""Of a step in the compiled schedule's order: what waits longer for traffic is named, with what it waits for."""


def waits() -> str:
    """The shipped configurations that wait for more than `WAITS` of a step, as Markdown."""
    lines = [["configuration", "a step", "waits", "for"], ["---"] * 4]
    for mesh, size in shipped():
        kept = kept_receipt(mesh, size)
        step, sent = kept.scheduled_seconds, [row for row in kept.overlap if row.axes != HOST]
        assert step
        waited = sum(row.waited for row in sent)
        if waited > WAITS * step:
            largest = sorted((row for row in sent if row.waited > waited / 10), key=lambda row: -row.waited)
            parts = [f"{row.kind}s over {row.axes} {100 * row.waited / step:.1f} %" for row in largest]
            share = f"{100 * waited / step:.1f} %"
            lines.append([f"`{mesh}/{size.removeprefix('gpt3-')}`", duration(step), share, ", ".join(parts)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def left() -> str:
    """What the searches had no time for, as Markdown: the mesh as replica·data·tensor, the remat, the microbatch."""
    lines = []
    for mesh, size in shipped():
        out = [row for row in rows() if (row.mesh, row.size, row.verdict) == (mesh, size, "left")]
        each = [f"{r.replica}·{r.data}·{r.tensor} {r.remat} {r.microbatch}" for r in out]
        head = f"- `{mesh}/{size.removeprefix('gpt3-')}`, {minutes(mesh, size):g} minutes: "
        lines += [head + "; ".join(each) + "\n"] if each else []
    return "".join(lines)


def ramps() -> str:
    """Where the batch ramp of each shipped configuration begins, and how many updates of the paper's line it makes, as
    Markdown."""

    def cell(mesh: str, size: str) -> str:
        if (mesh, size) not in shipped():
            return "–"
        config = load_config([size, mesh])
        schedule = batch_schedule(config, config.parallel.replica * config.parallel.data)
        first = schedule.sizes[0].sequences * config.model.n_ctx
        made = updates(config, schedule).total / line_updates(config).total - 1
        change = f"{100 * made:+.1f} %".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")
        return f"{first:,}{'' if len(schedule.sizes) > 1 else ', no ramp'}, {change}"

    lines = [["", *(f"`{mesh}`" for mesh in MACHINES)], ["---"] * (1 + len(MACHINES))]
    lines += [[size.removeprefix("gpt3-"), *(cell(mesh, size) for mesh in MACHINES)] for size in presets()]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def kept_receipt(mesh: str, size: str) -> Receipt:
    """That of a shipped configuration."""
    from receipts_kept import Kept

    kept = (RECEIPTS / f"{Kept((size, mesh), MACHINES[mesh]).name}.json").read_text()
    return receipt_from_json(json.loads(kept))


def main(asked: list[str]) -> None:
    if asked == ["--table"]:
        print(table(), waits(), left(), ramps(), sep="\n", end="")
        return
    for mesh in MACHINES:
        for size in presets():
            if not asked or mesh in asked or f"{mesh}/{size}" in asked:
                began, cpu = time.monotonic(), time.process_time()
                made = make(mesh, size)
                write(made)
                best = [row for row in made if row.verdict == "best"]
                print(
                    f"{mesh}/{size}: {len(made)} compiled, {best[0] if best else 'none fits'}; "
                    f"{time.monotonic() - began:.0f} s, {time.process_time() - cpu:.0f} s of CPU",
                    flush=True,
                )


if __name__ == "__main__":
    from gpt3_jax.plan.on_cpu import plan_on_cpu

    plan_on_cpu()
    main(sys.argv[1:])
