"""The receipt of a compiled step: what it needs and what it costs, as plain data that a program or a person reads."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from gpt3_jax import __version__
from gpt3_jax.config import ModelConfig, cost_settings
from gpt3_jax.model.params import count_params, train_flops_per_token
from gpt3_jax.model.transformer import band_shares, gathers_ahead
from gpt3_jax.parallel.compiler_options import overlaps_scatters
from gpt3_jax.parallel.mesh import DATA, MeshShape, shape_of
from gpt3_jax.plan import formulas
from gpt3_jax.plan.predict import place, predict_compiled, rates
from gpt3_jax.plan.roofline import Exposed, Prediction
from gpt3_jax.plan.step import CompiledStep
from gpt3_jax.program.buffers import Buffer
from gpt3_jax.program.flops import matmul_flops
from gpt3_jax.program.host_copies import host_copies
from gpt3_jax.program.memory_traffic import hbm_bytes
from gpt3_jax.program.schedule import Overlap, Transfer, add_up, read_schedule
from gpt3_jax.program.traffic import Collective
from gpt3_jax.train.step import unroll

LARGEST = 12
"""Number of buffers that a receipt lists."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    purposes: dict[str, int]
    """At the peak, by purpose."""
    gaps: int
    """Reserved for temporaries but not in use at the peak."""
    code: int
    total: int
    """What a device must have."""
    refused: bool
    """Whether the compiler refused the program for its memory."""
    usable: int | None
    """What a device has for a program (`Topology.usable`); None for a device that is not in the table."""
    zero_formula: int
    """Model state by ZeRO's formula for this stage: 16-bit weights and gradients, fp32 moments and masters."""
    largest: tuple[Buffer, ...]
    """The largest buffers at the peak."""
    host: int = 0
    """In the host's memory, for one device; not in the total."""

    @property
    def results(self) -> int:
        """Results that take no argument's place."""
        return self.total - sum(self.purposes.values()) - self.gaps - self.code

    @property
    def fits(self) -> bool | None:
        """None when the device's capacity is not known."""
        if self.refused:
            return False
        return None if self.usable is None else self.total <= self.usable


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one step."""

    model: float
    """6 per parameter and token (GPT-3 appendix D)."""
    model_dense: float
    """With every layer's attention as if it were dense and not causal: 12 × d_model × n_ctx a layer and token, the
    convention of most published figures."""
    model_visible: float
    """With the attention that the model has: causal, banded where it is banded."""
    device: float
    """Matmul work of one device as the program runs it, recomputation included."""


@dataclasses.dataclass(frozen=True)
class TrafficRow:
    """One line of the traffic: what a device sends in a step over one mesh axis with one kind of collective, or moves
    to or from its host."""

    axes: str
    """Mesh axes, ``data`` or ``replica+data``; ``host`` for copies to the host's memory and back."""
    kind: str
    calls: float
    bytes: float
    """Sent by a device, by the ring formula."""


@dataclasses.dataclass(frozen=True)
class Receipt:
    """Everything that a plan says about one configuration on one topology."""

    model: dict[str, Any]
    batch: dict[str, int]
    mesh: MeshShape
    settings: dict[str, Any]
    """Those that change the cost of a step, as they run."""
    topology: dict[str, Any]
    memory: Memory
    flops: Flops
    hbm_bytes: float
    traced: tuple[TrafficRow, ...]
    """From the traced program, which states every collective."""
    compiled: tuple[TrafficRow, ...]
    """From the compiled program: what the compiler made of them."""
    overlap: tuple[Overlap, ...]
    """How much of the compiled program's traffic runs beside compute; empty for a device that is not in the table."""
    scheduled_seconds: float | None
    """The time of a step in the order of the compiled schedule, at the prediction's rates."""
    zero_elements: dict[str, float]
    """Over `data`: the paper's count for this stage and what the traced program moves, in units of the parameters that
    a tensor shard has."""
    prediction: Prediction | None
    """The roofline's; None for a program that does not fit, and for a device that is not in the table."""
    too_large: str
    """The compiler's words when it refused the program for its memory, else empty."""
    seconds: dict[str, float]
    versions: dict[str, str]
    gathers_ahead: bool | None = None
    """Whether the loop over depth gathers a block ahead (`transformer.gathers_ahead`); None where an earlier receipt
    does not say."""


def make_receipt(step: CompiledStep) -> Receipt:
    """Reads everything off a compiled step."""
    config, mesh, peak = step.config, shape_of(step.mesh), step.peak
    parameters = count_params(config.model)
    tokens = step.batch.sequences * config.model.n_ctx
    device = step.topology.device
    psi = formulas.psi_of_shard(config.model, mesh.tensor)
    state = formulas.model_state(psi, mesh.data, config.parallel.stage)
    memory = Memory(
        {str(purpose): size for purpose, size in peak.by_purpose().items()},
        peak.gaps,
        step.code,
        step.total_bytes,
        bool(step.too_large),
        step.topology.usable,
        round(state.total),
        peak.buffers[:LARGEST],
        peak.host,
    )
    flops = step_flops(config.model, tokens, step.jaxpr)
    transfers: list[Transfer] = [*step.program.collectives(), *host_copies(step.program)]
    seconds: float | None = None
    overlap: tuple[Overlap, ...] = ()
    if device:
        schedule_rates = rates(device, place(step.topology, mesh), mesh.axes)
        seconds, collectives = read_schedule(step.program, schedule_rates)
        overlap = add_up(collectives, mesh.axes)
    return Receipt(
        model={
            "n_layers": config.model.n_layers,
            "d_model": config.model.d_model,
            "n_heads": config.model.n_heads,
            "n_ctx": config.model.n_ctx,
            "attention_pattern": list(config.model.attention_pattern),
            "parameters": parameters,
        },
        batch={
            "tokens": tokens,
            "sequences": step.batch.sequences,
            "microbatches": step.batch.microbatches,
            "tokens_to_train": config.train.tokens,
        },
        mesh=mesh,
        settings=cost_settings(config) | {"unroll": unroll(config, step.mesh)},
        topology={
            "name": step.topology.name,
            "devices": len(step.topology.devices),
            "devices_of_a_host": step.topology.shape[1] if step.topology.has_nodes else None,
            "platform": step.topology.platform,
            "device": device.name if device else f"{step.topology.devices[0].device_kind} (not in the device table)",
        },
        memory=memory,
        flops=flops,
        hbm_bytes=hbm_bytes(step.program),
        traced=traffic_rows((c.axes, c) for c in step.collectives),
        compiled=traffic_rows((c.axes(mesh.axes), c) for c in transfers),
        overlap=overlap,
        scheduled_seconds=seconds,
        zero_elements=_zero_elements(step),
        prediction=None if memory.fits is False else predict_compiled(step),
        too_large=step.too_large,
        seconds={
            "trace": round(step.trace_seconds, 1),
            "lower": round(step.lower_seconds, 1),
            "compile": round(step.compile_seconds, 1),
        },
        versions=versions(step.topology.platform),
        gathers_ahead=gathers_ahead(config, mesh, step.topology.platform, overlaps_scatters(step.topology.devices[0])),
    )


def step_flops(model: ModelConfig, tokens: int, jaxpr: Any) -> Flops:
    """The arithmetic of a step on so many tokens, in each convention; `jaxpr` is the traced step's."""
    parameters = count_params(model)
    attention = 12.0 * model.n_layers * model.d_model * model.n_ctx
    return Flops(
        6.0 * parameters * tokens,
        (6.0 * parameters + attention) * tokens,
        train_flops_per_token(model, attention=True) * tokens,
        float(matmul_flops(jaxpr, tuple(band_shares(model).values()))),
    )


def receipt_to_json(receipt: Receipt) -> dict[str, Any]:
    """The receipt as plain data for JSON."""
    return dataclasses.asdict(receipt) | {"fits": receipt.memory.fits}


def receipt_from_json(data: dict[str, Any]) -> Receipt:
    """The inverse of `receipt_to_json`.

    Raises:
        KeyError, TypeError, ValueError: data of another form.
    """
    data = {key: value for key, value in data.items() if key != "fits"}
    # An earlier one has `gathers_ahead` among the settings, or not at all.
    data["settings"] = dict(data["settings"])
    data.setdefault("gathers_ahead", data["settings"].pop("gathers_ahead", None))
    memory = dict(data["memory"])
    memory["largest"] = tuple(Buffer(**buffer) for buffer in memory["largest"])
    data["memory"] = Memory(**memory)
    data["mesh"] = MeshShape(**data["mesh"])
    data["flops"] = Flops(**data["flops"])
    for key in ("traced", "compiled"):
        data[key] = tuple(TrafficRow(**row) for row in data[key])
    # One kept from before schedules were read has neither.
    data["overlap"] = tuple(Overlap(**row) for row in data.get("overlap", ()))
    data.setdefault("scheduled_seconds", None)
    if data["prediction"] is not None:
        prediction = dict(data["prediction"])
        prediction["links"] = tuple(Exposed(**link | {"axes": tuple(link["axes"])}) for link in prediction["links"])
        prediction["assumptions"] = tuple(prediction["assumptions"])
        data["prediction"] = Prediction(**prediction)
    return Receipt(**data)


def traffic_rows(moved: Iterable[tuple[tuple[str, ...], Collective | Transfer]]) -> tuple[TrafficRow, ...]:
    """Adds up what moves, by mesh axes and kind."""
    rows: dict[tuple[str, str], TrafficRow] = {}
    for axes, one in moved:
        key = "+".join(axes), one.kind
        old = rows.get(key, TrafficRow(*key, 0, 0.0))
        rows[key] = TrafficRow(*key, old.calls + one.calls, old.bytes + one.bytes_sent)
    return tuple(rows[key] for key in sorted(rows))


def _zero_elements(step: CompiledStep) -> dict[str, float]:
    """Elements over `data` in units of Ψ. The paper counts one backward pass a step; here each microbatch has its
    own."""
    mesh = shape_of(step.mesh)
    stage, micro = step.config.parallel.stage, step.batch.microbatches
    psi = formulas.psi_of_shard(step.config.model, mesh.tensor)
    once = {0: 2, 1: 2, 2: 1, 3: 0}[stage]
    again = formulas.traffic(stage) - once
    sent = sum(c.elements_sent for c in step.collectives if DATA in c.axes)
    # The paper leaves out the ring's (N - 1) / N.
    moved = float(sent * Fraction(mesh.data, mesh.data - 1)) if mesh.data > 1 else 0.0
    return {"paper": float(once + again * micro) if mesh.data > 1 else 0.0, "program": moved / psi, "psi": float(psi)}


def versions(platform: str) -> dict[str, str]:
    """Versions of all packages that take part in a plan for ``tpu`` or ``gpu``."""
    wanted = ["jax", "jaxlib", "flax", "optax"]
    wanted += ["libtpu"] if platform == "tpu" else ["jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13"]
    found = {"gpt3-jax": __version__}
    for name in wanted:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
