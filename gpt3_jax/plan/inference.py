"""What generation and evaluation need and cost on hardware that is not attached, from their compiled programs.

Generation is two programs: one reads the prompts, the other appends a token to each row. Those of beam search also
reorder the cache. Evaluation is three: the log-likelihoods of every token of a batch of rows; and the two of beam
search, for free answers, with the same weights moved to where generation reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt3_jax.config import Config
from gpt3_jax.errors import UserError
from gpt3_jax.inference import generate, placed, score
from gpt3_jax.model.params import Params, count_params
from gpt3_jax.model.scoring import Tree
from gpt3_jax.model.stored import Form
from gpt3_jax.model.transformer import band_shares
from gpt3_jax.parallel.mesh import MeshShape, batch_shards, make_mesh, shape_of
from gpt3_jax.parallel.rules import batch_partition, shardings
from gpt3_jax.plan import roofline
from gpt3_jax.plan.inference_batch import GENERATED_ROWS, PAPER_BEAMS, Batch, Use
from gpt3_jax.plan.predict import place, predict
from gpt3_jax.plan.receipt import TrafficRow, traffic_rows, versions
from gpt3_jax.plan.roofline import Work
from gpt3_jax.plan.step import Outcome, compile_lowered
from gpt3_jax.plan.topologies import Topology, missing_library
from gpt3_jax.program.buffers import Shapes
from gpt3_jax.program.compiled import lower, without_cache
from gpt3_jax.program.flops import matmul_flops
from gpt3_jax.program.memory_traffic import hbm_bytes
from gpt3_jax.program.traffic import count
from gpt3_jax.train.state import abstract_state

Weights = Literal["float32", "compute", "int8"]
"""float32: as training keeps them; compute: cast once, ahead, to `model.dtype`, which changes no result; int8: for
generation, the matrices with a scale for each output channel (`model.stored`)."""

_LATENCY = (
    "The latency of a collective is left out, for no document states it: with so few bytes a call it may be most of "
    "its time."
)


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Memory of one device for one program."""

    weights: int
    cache: int
    """Keys and values of all rows."""
    beside: int
    """Weights of another use that lie there meanwhile: the fp32 parameters of training, if those are evaluated."""
    temporaries: int
    """Reserved for what the program computes in between, the gaps of the allocator included."""
    other: int
    """Tokens in and out, and the program itself."""
    refused: bool
    """Whether the compiler refused the program for its memory."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.beside + self.temporaries + self.other


@dataclasses.dataclass(frozen=True)
class Time:
    """The roofline's time of one run of a program."""

    seconds: float
    tokens_per_second: float
    """Of all devices: tokens read, or appended."""
    parts: dict[str, float]
    """Seconds of each resource."""
    bound: str
    """The resource that takes longest."""
    assumptions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ProgramReceipt:
    """One compiled program."""

    name: str
    tokens: int
    """That all devices read, or append, in one run."""
    memory: Bytes
    device_flops: float
    """Of the matmuls of one device."""
    traced: tuple[TrafficRow, ...]
    """Sent by one device, from the traced program."""
    time: Time | None
    """None for a program that does not fit, and for a device that is not in the table."""
    too_large: str
    """The compiler's words when it refused the program for its memory, else empty."""
    seconds: dict[str, float]
    """To trace, lower and compile it."""


@dataclasses.dataclass(frozen=True)
class InferenceReceipt:
    """Everything that a plan says about one use of a configuration on one topology."""

    use: Use
    model: dict[str, Any]
    mesh: MeshShape
    topology: dict[str, Any]
    batch: Batch
    programs: tuple[ProgramReceipt, ...]
    usable: int | None
    """Bytes that a device has for a program; None for a device that is not in the table."""
    versions: dict[str, str]
    moving: int | None = None
    """Of evaluation, the most bytes of one device while its weights are moved to generate free answers, or back; None
    where they are not moved."""

    @property
    def fits(self) -> bool | None:
        """None when the device's capacity is not known."""
        if any(program.memory.refused for program in self.programs):
            return False
        if self.usable is None:
            return None
        return max(self.moving or 0, *(p.memory.total for p in self.programs)) <= self.usable


def plan_inference(
    config: Config, topology: Topology, use: Use, batch: Batch, weights: Weights = "compute"
) -> InferenceReceipt:
    """Compiles the programs and reads everything off them.

    Args:
        weights: how evaluation keeps its parameters: compute is what ``gpt3-jax evaluate`` loads, float32 what a
            training run evaluates. Generation has them in int8 or the compute dtype.

    Raises:
        UserError: a compiler's library is missing, or the mesh does not divide the devices or the model.
        RunError: the compiler fails for another reason than memory.
    """
    mesh = make_mesh(config.parallel, topology.devices)
    form: Form = "int8" if weights == "int8" else "compute"
    calls = _generating(config, mesh, batch, form) if use == "generate" else _evaluating(config, mesh, batch, weights)
    device = topology.device
    return InferenceReceipt(
        use=use,
        model={
            "n_layers": config.model.n_layers,
            "d_model": config.model.d_model,
            "n_ctx": config.model.n_ctx,
            "dtype": config.model.dtype,
            "stage": config.parallel.stage,
            "weights": weights if form == "int8" or _keeps_fp32(config, use, weights) else config.model.dtype,
            "parameters": count_params(config.model),
        },
        mesh=shape_of(mesh),
        topology={
            "name": topology.name,
            "devices": len(topology.devices),
            "device": device.name if device else f"{topology.devices[0].device_kind} (not in the device table)",
        },
        batch=batch,
        programs=tuple(_compiled(call, config, mesh, topology) for call in calls),
        usable=topology.usable,
        versions=versions(topology.platform),
        moving=_moving(config, mesh) if use == "evaluate" and not _keeps_fp32(config, use, weights) else None,
    )


def _keeps_fp32(config: Config, use: Use, weights: Weights) -> bool:
    """Whether the parameters stay in fp32 although the compute dtype is another."""
    return (use, weights) == ("evaluate", "float32") and config.model.dtype != "float32"


class _Call(NamedTuple):
    """One program, and what it is called with."""

    name: str
    tokens: int
    function: Any
    arguments: tuple[Any, ...]
    cache_made: int
    """Bytes of the cache that it returns, on one device."""
    cache_passes: int
    """How often the whole cache is read or written. 0: many tokens a row, so that matmuls take longer than it."""
    beside: int = 0
    """Bytes of one device that other weights take meanwhile."""


def _generating(config: Config, mesh: Mesh, batch: Batch, form: Form) -> list[_Call]:
    model, rows = config.model, batch.rows
    where = generate.make_place(model, model.n_vocab, mesh, form=form)
    weights = placed.abstract_weights(model, mesh, form)
    capacity = batch.prompt_tokens + batch.new_tokens
    cache = placed.abstract_cache(model, mesh, rows, capacity)
    by_row = shardings(batch_partition(mesh), mesh)

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_row)

    made = _of_one_device(cache)
    prompt_tokens = batch.prompts * batch.prompt_tokens
    if width := batch.beams:
        read = (weights, ints(batch.prompts, batch.prompt_tokens), ints(batch.prompts), where, capacity, width)
        places = ints(batch.prompts, width)
        scores = jax.ShapeDtypeStruct(places.shape, jnp.float32, sharding=by_row)
        going_on = (weights, cache, scores, places, places, where)
        return [
            _Call("beam prefill", prompt_tokens, generate.begin_beams, read, made, 0),
            # Gathered: read and written; then attention reads it.
            _Call("beam decode", rows, generate.advance_beams, going_on, 0, 3),
        ]
    draw = generate.Draw(np.uint32(0), ints(rows), np.float32(1), np.int32(0), np.float32(1))  # type: ignore[arg-type]
    prompts = (weights, ints(rows, batch.prompt_tokens), ints(rows), draw, where, capacity)
    return [
        _Call("prefill", prompt_tokens, generate.begin, prompts, made, 0),
        _Call("decode", rows, generate.advance, (weights, cache, ints(rows), draw, where), 0, 1),
    ]


def _evaluating(config: Config, mesh: Mesh, batch: Batch, weights: Weights) -> list[_Call]:
    by_row = shardings(batch_partition(mesh), mesh)
    rows, length = batch.rows, batch.prompt_tokens

    def ints(*shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_row)

    tree = Tree(ints(rows, length), ints(rows), ints(rows, length), ints(rows, length), trunk=length, branches=0)
    function = score.make_score(config.model, mesh, config.parallel, config.memory)
    dtype = jnp.dtype(config.model.dtype if weights == "compute" else jnp.float32)
    params = _params(config, mesh, dtype)
    # Free answers: prompts padded to the whole context, as those with many demonstrations are.
    answers = Batch(batch_shards(mesh) * GENERATED_ROWS, length, 0, PAPER_BEAMS)
    beside = _of_one_device(params) if _keeps_fp32(config, "evaluate", weights) else 0
    return [
        _Call("evaluate", rows * length, function, (params, tree, None), 0, 0),
        *(call._replace(beside=beside) for call in _generating(config, mesh, answers, "compute")),
    ]


def _params(config: Config, mesh: Mesh, dtype: jnp.dtype) -> Params[jax.ShapeDtypeStruct]:
    """The parameters as the stage keeps them, in this dtype."""
    return abstract_state(config, mesh).params.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    )


def _of_one_device(tree: Any) -> int:
    """Bytes of one device's shards."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def _moving(config: Config, mesh: Mesh) -> int:
    """The most bytes of one device while weights are moved (`placed.place_weights`, `take_params`): of the blocks one
    parameter after the other, of each of which both forms are there before the first is deleted. On the way there,
    one layer's shards more: cut out, and not yet where they go. On the way back nothing: compilers cut layers into
    shards before they stack them (175B compiled for v5p:8x8x8, 13B for h100:2x8: no temporaries; a test for CPUs)."""
    params = _params(config, mesh, jnp.dtype(config.model.dtype))
    weights = placed.abstract_weights(config.model, mesh)
    old = [_of_one_device(leaf) for leaf in params.blocks.leaves()]
    made = [sum(map(_of_one_device, layers)) for layers in zip(*(b.leaves() for b in weights.blocks), strict=True)]
    peak = max(sum(made[: i + 1]) + sum(old[i:]) + old[i] // config.model.n_layers for i in range(len(old)))
    back = max(sum(old[: i + 1]) + sum(made[i:]) for i in range(len(old)))
    rest = _of_one_device((params, weights)) - sum(old) - sum(made)
    return max(peak, back) + rest


def _compiled(call: _Call, config: Config, mesh: Mesh, topology: Topology) -> ProgramReceipt:
    try:
        low = lower(call.function, *call.arguments)
    except (NotImplementedError, RuntimeError) as error:
        if line := missing_library(error):
            raise UserError(line) from None
        raise
    started = time.perf_counter()
    nothing: Any = frozenset()
    with without_cache():
        found = compile_lowered(low.lowered, Shapes(nothing, nothing, nothing, 0, False, nothing))
    compiling = time.perf_counter() - started
    memory = _memory(found, call)
    collectives = count(low.jaxpr)
    flops = float(matmul_flops(low.jaxpr, tuple(band_shares(config.model).values())))
    work = Work(
        tokens=call.tokens,
        devices=mesh.size,
        matmul_flops=flops,
        model_flops=2.0 * count_params(config.model) * call.tokens / mesh.size,
        attention_flops=0.0,
        hbm_bytes=hbm_bytes(found.program),
        traffic=roofline.traffic_of(collectives),
    )
    fits = not memory.refused and (topology.usable is None or memory.total <= topology.usable)
    time_of: Callable[..., Time | None] = (
        functools.partial(_time_of_a_token, cache_passes=call.cache_passes) if call.cache_passes else _time_of_a_batch
    )
    return ProgramReceipt(
        name=call.name,
        tokens=call.tokens,
        memory=memory,
        device_flops=flops,
        traced=traffic_rows((c.axes, c) for c in collectives),
        time=time_of(work, memory, config, topology, mesh) if fits else None,
        too_large=found.too_large,
        seconds={
            "trace": round(low.trace_seconds, 1),
            "lower": round(low.lower_seconds, 1),
            "compile": round(compiling, 1),
        },
    )


def _memory(found: Outcome, call: _Call) -> Bytes:
    weights = cache = 0
    arguments = (buffer for buffer in found.peak.buffers if buffer.purpose in ("master weights", "batch"))
    for buffer in arguments:  # copies of them bear their names, too
        name = buffer.op_name or buffer.instruction
        if name.startswith(("weights", "params")):
            weights += buffer.size
        elif name.startswith("cache"):
            cache += buffer.size
    made = min(call.cache_made, found.results) if found.results else call.cache_made
    other = found.peak.arguments - weights - cache + max(0, found.results - made) + found.code
    return Bytes(weights, cache + made, call.beside, found.peak.temporaries, other, bool(found.too_large))


def _time_of_a_batch(work: Work, memory: Bytes, config: Config, topology: Topology, mesh: Mesh) -> Time | None:
    """Of many tokens a row: matmuls at the share of the peak that training reaches."""
    found = predict(work, config, topology, shape_of(mesh))
    if found is None:
        return None
    links = {f"{link.medium} of {' × '.join(link.axes)}": link.seconds for link in found.links}
    parts = {"matmuls": found.compute_seconds, "memory, between matmuls": found.hbm_seconds} | links
    *assumptions, _ = found.assumptions  # the last is about training
    return Time(
        found.step_seconds,
        work.tokens / found.step_seconds,
        parts,
        max(parts, key=lambda name: parts[name]),
        tuple(assumptions),
    )


def _time_of_a_token(
    work: Work, memory: Bytes, config: Config, topology: Topology, mesh: Mesh, cache_passes: int
) -> Time | None:
    """Of one token a row: weights are read once and the cache passes so often, whatever is computed with them."""
    device = topology.device
    if device is None:
        return None
    placed = place(topology, shape_of(mesh))
    matmul, hbm = roofline.MATMUL[device.family], roofline.HBM
    moved = memory.weights + cache_passes * memory.cache
    read = moved / (device.hbm_bandwidth * hbm.share)
    compute = work.matmul_flops / (device.bf16_flops * matmul.share)
    links: dict[str, float] = {}
    how: dict[str, str] = {}
    for part in work.traffic:
        link = min((placed[axis] for axis in part.axes), key=lambda link: link.bandwidth)
        name = f"{link.medium} of {' × '.join(part.axes)}"
        share = roofline.LINK[link.medium]
        links[name] = links.get(name, 0.0) + part.bytes / (link.bandwidth * share.share)
        how[name] = f"{link.how}: {link.bandwidth / 1e9:g} GB/s a device, of which {share.share:.0%} ({share.why})."
    what = "reading weights and cache" if cache_passes == 1 else "reading weights, reordering and reading the cache"
    parts = {what: read, "matmuls": compute} | links
    again = "" if cache_passes == 1 else ", and before it the cache is copied in the order of the hypotheses"
    seconds = max(read, compute) + sum(links.values())
    return Time(
        seconds,
        work.tokens / seconds,
        parts,
        max(parts, key=lambda name: parts[name]),
        (
            f"Weights and the whole cache are read once a token{again}, {moved / 1e9:.3g} GB in all, at "
            f"{hbm.share:.0%} of {device.hbm_bandwidth / 1e9:g} GB/s ({hbm.why}); matmuls run beside.",
            *how.values(),
            "All collectives are waited for.",
            *((_LATENCY,) if links else ()),
        ),
    )


def inference_to_json(receipt: InferenceReceipt) -> dict[str, Any]:
    """The receipt as plain data for JSON."""
    return dataclasses.asdict(receipt) | {"fits": receipt.fits}


def inference_from_json(data: dict[str, Any]) -> InferenceReceipt:
    """The inverse of `inference_to_json`.

    Raises:
        KeyError, TypeError, ValueError: data of another form.
    """
    data = {key: value for key, value in data.items() if key != "fits"}

    data["mesh"] = MeshShape(**data["mesh"])

    def program(found: dict[str, Any]) -> ProgramReceipt:
        timed = found["time"]
        return ProgramReceipt(
            **found
            | {
                "memory": Bytes(**found["memory"]),
                "traced": tuple(TrafficRow(**row) for row in found["traced"]),
                "time": timed and Time(**timed | {"assumptions": tuple(timed["assumptions"])}),
            }
        )

    return InferenceReceipt(
        **data | {"batch": Batch(**data["batch"]), "programs": tuple(program(p) for p in data["programs"])}
    )
