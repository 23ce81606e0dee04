"""What `launch/prove-gpu.sh` found, as one page of Markdown: `python -m gpt3_jax.bench.proof FOLDER`.

The folder holds `stages.tsv` (name, exit code or "no time", seconds), and of each stage NAME.out, what it printed, and
NAME.log, its messages; `numerics.xml` is pytest's. A part that cannot be read is named and the others are shown: the
files of a stage that was ended are incomplete. Starts no JAX.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt3_jax import devices
from gpt3_jax.quantities import measured

SHARES = ("6N", "6N + dense attention", "6N + visible attention")
"""The conventions of `bench.mfu` that are shown."""
NO_TIME = "no time"
"""In place of an exit code: not begun, or ended because the whole run's time was used up."""

Found = Mapping[str, Sequence[dict[str, Any]]]
"""By stage, the JSON documents that it printed: never none."""


class Stage(NamedTuple):
    """One line of `stages.tsv`."""

    name: str
    code: str
    seconds: str


def summary(folder: Path) -> str:
    """The whole page.

    Raises:
        OSError: there is no `stages.tsv`.
    """
    stages = [Stage(*line.split("\t")) for line in (folder / "stages.tsv").read_text().splitlines()]
    found = _documents(folder, [stage.name for stage in stages])
    parts: tuple[tuple[str, Callable[[], str]], ...] = (
        ("the machine", lambda: _machine(found)),
        ("numerics", lambda: _numerics(folder / "numerics.xml")),
        ("training steps", lambda: _steps(found)),
        ("plans", lambda: _plans(found, folder)),
        ("the peer", lambda: _peers(found)),
        ("profiles, generation and storage", lambda: _others(found, folder)),
        ("stages", lambda: _stages(folder, stages)),
    )
    return "\n\n".join(_readable(name, part) for name, part in parts) + "\n"


def _readable(name: str, part: Callable[[], str]) -> str:
    try:
        return part()
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, ElementTree.ParseError) as e:
        return f"{name} could not be read: {e!r}"


def _documents(folder: Path, order: Sequence[str]) -> Found:
    """In the order of the stages. A document is the whole output, or a line of it."""
    found: dict[str, Sequence[dict[str, Any]]] = {}
    known = {name: place for place, name in enumerate(order)}
    for path in sorted(folder.glob("*.out"), key=lambda path: (known.get(path.stem, len(known)), path.stem)):
        text = path.read_text(errors="replace")
        whole = _parsed([text])
        if documents := whole or _parsed(line for line in text.splitlines() if line.startswith("{")):
            found[path.stem] = documents
    return found


def _parsed(texts: Iterable[str]) -> list[dict[str, Any]]:
    found = []
    for text in texts:
        try:
            document = json.loads(text)
        except ValueError:
            continue
        if isinstance(document, dict):
            found.append(document)
    return found


def _machine(found: Found) -> str:
    machine: dict[str, Any] = next(
        (d["machine"] for documents in found.values() for d in documents if "machine" in d), {}
    )
    ceilings = found.get("machine", [{}])[0].get("ceilings", {})
    peer = found.get("peer-matmul", [{}])[0]
    lines = [f"# gpt3_jax on {machine.get('device_kind', 'an unknown device')}"]
    if machine:
        versions = {**machine["versions"], **({"torch": peer["torch"]} if peer else {})}
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"{machine['host']}, {machine['host_cores']} cores; {said}")
    reached = [
        f"by a bf16 matmul of {r['matmul_size']:,}³ in {name} {r['matmul_flops'] / 1e12:,.1f} TFLOP/s"
        for name, r in (("JAX", ceilings), ("PyTorch", peer))
        if r
    ]
    if ceilings:
        reached.append(f"by a copy {ceilings['copy_bytes'] / 1e12:.2f} TB/s")
    if reached:
        lines.append(f"Reached {', '.join(reached)}")
    return "\n\n".join(lines)


def _numerics(path: Path) -> str:
    if not path.exists():
        return "## Numerics\n\nnot measured"
    rows, held = [], 0
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        outcome = next((o for o in ("failure", "error", "skipped") if case.find(o) is not None), "")
        held += not outcome
        figures = [f"{p.get('name')} {_figure(json.loads(p.get('value', '0')))}" for p in case.iter("property")]
        if outcome:
            message = case.find(outcome)
            figures.append("" if message is None else " ".join(message.get("message", "").split())[:200])
        check = case.get("name", "").removeprefix("test_").replace("_", " ")
        rows.append((check, {"": "yes", "skipped": "skipped"}.get(outcome, "**NO**"), ", ".join(figures)))
    return _table(f"Numerics: {held} of {len(rows)} hold", ("check", "holds", "figures"), rows)


def _steps(found: Found) -> str:
    matmul = found.get("machine", [{}])[0].get("ceilings", {}).get("matmul_flops")
    rows = []
    for name, (result, *_) in found.items():
        if "step" not in result:
            continue
        ran, step = result["ran"], result["step"]
        loop = step["loop"]["median"]
        shares = {
            u["convention"]: f"{u['share']:.1%}" for u in reversed(step["utilisations"])
        }  # the data sheet's first
        of_matmul = f"{step['flops']['model_dense'] / loop / matmul:.1%}" if matmul else ""
        platform = result["machine"]["platform"]
        rows.append(
            (
                name + ("" if platform == "gpu" else f" on a {platform}"),
                f"{ran['parameters'] / 1e9:.2f}B",
                ran["remat"],
                ran["sequences"],
                f"{step['tokens_per_second']:,.0f}",
                measured(loop),
                measured(step["waited"]["median"]),
                *(shares.get(share, "") for share in SHARES),
                of_matmul,
                _gib(max(step["memory"].values(), default=0)),
                f"{step['compile_seconds']:.0f} s",
            )
        )
    head = ("stage", "size", "remat", "sequences", "tokens/s", "step", "waited for", *SHARES)
    return _table("Training step", (*head, "dense, of the matmul", "peak GiB", "compiler"), rows)


def _plans(found: Found, folder: Path) -> str:
    rows: list[Sequence[object]] = []
    for name, (result, *_) in found.items():
        kind, _, cell = name.partition("-")
        plan = found.get(f"plan-{cell}", [{}])[0]
        if kind != "step" or "step" not in result or "memory" not in plan:
            continue
        ran, step = result["ran"], result["step"]
        if (plan["batch"]["sequences"], plan["settings"]["remat"]) != (ran["sequences"], ran["remat"]):
            rows.append((name, "of another batch", "", "", "", ""))  # the first microbatch did not fit
            continue
        loop = step["loop"]["median"]
        by_roofline = (plan["prediction"] or {}).get("step_seconds")
        times = [f"{measured(t)} ({t / loop - 1:+.0%})" if t else "" for t in (by_roofline, plan["scheduled_seconds"])]
        memory = max(step["memory"].values(), default=0)
        rows.append((name, _gib(plan["memory"]["total"]), _gib(memory), *times, measured(loop)))
    head = ("stage", "planned GiB", "measured GiB", "step by roofline", "by schedule", "measured")
    failed = [
        f"- {path.stem}: no plan: {_last_line(path)}"
        for path in sorted(folder.glob("plan-*.log"))
        if path.stem not in found
    ]
    return "\n\n".join([_table("Plan against reality", head, rows), *(["\n".join(failed)] if failed else [])])


def _peers(found: Found) -> str:
    rows: list[Sequence[object]] = []
    best: dict[str, float] = {}
    for result in (r for stage in ("peer-small", "peer-xl") for r in found.get(stage, ())):
        model, rate = result["model"], result.get("tokens_per_second", 0.0)
        best[model] = max(best.get(model, 0.0), rate)
        if not rate:
            rows.append((model, result["peer"], result["microbatch"], "", "", "", "", "", ""))
            continue
        device = devices.lookup(result["device"])
        dense = 12 * result["layers"] * result["width"] * result["context"]
        per_token = [6 * result["parameters"], 6 * result["parameters"] + dense]
        shares = [f"{flops * rate / device.bf16_flops:.1%}" if device else "" for flops in per_token]
        rows.append(
            (
                model,
                result["peer"],
                result["microbatch"],
                f"{rate:,.0f}",
                measured(result["step_seconds"]),
                *shares,
                _gib(result["memory"]),
                measured(result["first_step_seconds"]),
            )
        )
    head = ("model", "peer", "sequences", "tokens/s", "step", *SHARES[:2], "peak GiB", "first step")
    times = [
        f"- {name}: {result['step']['tokens_per_second'] / best[cell]:.2f} × the peer's best"
        for name, (result, *_) in found.items()
        if "step" in result and name.startswith("step-") and best.get(cell := name.split("-")[1])
    ]
    table = _table("The peer in PyTorch, all layers dense", head, rows)
    return "\n\n".join([table, *(["\n".join(times)] if times else [])])


def _others(found: Found, folder: Path) -> str:
    lines = []
    for name, (result, *_) in found.items():
        if p := result.get("profile"):
            families = sorted(p["families"].items(), key=lambda item: -item[1]["seconds"])
            parts = ", ".join(f"{family} {share['seconds'] / p['step_seconds']:.1%}" for family, share in families)
            lines.append(f"- {name}, traced steps of {measured(p['step_seconds'])}: {parts}")
            for operation in p["largest"][:6]:
                seconds = measured(operation["share"]["seconds"])
                lines.append(f"  - {operation['name']} {seconds} ({operation['family']}, {operation['source']})")
        if d := result.get("decode"):
            token = d["token_seconds"]["median"]
            lines.append(
                f"- {name}: {d['tokens_per_second']:,.0f} tokens/s, a token in {measured(token)} (weights read at "
                f"{d['weight_bytes'] / token / 1e12:.2f} TB/s), prompts {d['prefill_tokens_per_second']:,.0f} tokens/s"
            )
        if r := result.get("loader"):
            lines.append(f"- {name}: {r['tokens_per_second']['median'] / 1e6:,.0f} million tokens/s")
        if c := result.get("checkpoint"):
            wait, disk, back = (measured(c[f"{key}_seconds"]["median"]) for key in ("blocking", "on_disk", "restore"))
            size = f"{c['bytes'] / 1e9:.2f} GB"
            lines.append(f"- {name}: {size}, training waits {wait}, on disk after {disk}, restored in {back}")
    trained = folder / "train-quickstart.out"
    if trained.exists() and (text := trained.read_text(errors="replace").partition("next:")[0].strip()):
        lines.append(f"- train-quickstart: {' '.join(text.split())[:400]}")
    return "\n".join(["## Where time goes; generation; storage; a whole run", "", *(lines or ["nothing measured"])])


def _stages(folder: Path, stages: Sequence[Stage]) -> str:
    done = ", ".join(f"{stage.name} {stage.seconds} s" for stage in stages if stage.code == "0")
    missing = ", ".join(stage.name for stage in stages if stage.code == NO_TIME)
    lines = ["## Stages", "", f"- done: {done or 'none'}", f"- not reached: {missing or 'none'}"]
    for stage in stages:
        if stage.code not in ("0", NO_TIME):
            why = "ended after its time limit" if stage.code in ("124", "137") else f"exit code {stage.code}"
            lines.append(f"- **{stage.name}**: {why}, {stage.seconds} s: {_last_line(folder / f'{stage.name}.log')}")
    return "\n".join(lines)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1][:300] if lines else "it said nothing"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    grid = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"## {title}\n\n{grid if rows else 'nothing measured'}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}" if size else ""


def _figure(value: object) -> str:
    """As it is read: two digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2g}"
    if isinstance(value, list):
        return " ".join(map(_figure, value))
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_figure(part)}" for name, part in value.items()) + ")"
    return str(value)


if __name__ == "__main__":
    print(summary(Path(sys.argv[1])), end="")
