"""The configurations that a search chooses from. By arithmetic, what cannot fit is dropped and the rest is ordered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from gpt3_jax.config import Config
from gpt3_jax.errors import UserError
from gpt3_jax.model.remat import Remat
from gpt3_jax.parallel.compiler_options import overlaps_scatters
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.plan import estimate
from gpt3_jax.plan.predict import predict
from gpt3_jax.plan.roofline import Prediction
from gpt3_jax.plan.topologies import Topology

REMATS: tuple[Remat, ...] = get_args(Remat)
PARTS = 8
"""Parts of an MLP that are tried where memory is short."""
ROOMY = 1 - estimate.ERROR
"""Share of the capacity. What is estimated below it fits. Where full remat is estimated above it, MLPs in parts and
offload are tried too."""
SLACK = 1 + estimate.ERROR
"""Share of the capacity. What is estimated above it does not fit, and is not compiled."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One configuration to try."""

    config: Config
    mesh: MeshShape
    microbatches: int
    bytes: float
    """Estimated need of a device."""
    prediction: Prediction
    """Estimated."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in which candidates differ, by their names in the configuration."""
        parallel, memory = self.config.parallel, self.config.memory
        return {
            "parallel.stage": parallel.stage,
            **{f"parallel.{axis}": size for axis, size in self.mesh.axes.items()},
            "memory.remat": memory.remat,
            "memory.microbatch": memory.microbatch,
            "memory.mlp_parts": memory.mlp_parts,
        }

    @property
    def options(self) -> str:
        """The settings as command-line options."""
        return " ".join(f"--{name} {value}" for name, value in self.settings.items())


def candidates(config: Config, topology: Topology) -> list[Candidate]:
    """Every combination that divides the devices, the batch and the model, and may fit; fastest estimate first.

    Raises:
        UserError: a device without a row in the device table (nothing can be ranked), or a batch that no mesh divides.
    """
    usable = topology.usable
    if usable is None:
        raise UserError(
            f"{topology.devices[0].device_kind} is not in the device table: its configurations cannot be ranked"
        )
    found = []
    scatters = overlaps_scatters(topology.devices[0])
    for mesh in _meshes(config, topology):
        for microbatch, microbatches in _microbatches(config, mesh):
            for stage in (0, 1, 2, 3) if mesh.data > 1 else (0,):
                tight = False
                for remat, parts in _variants(config, mesh, stage):
                    changed = _changed(config, mesh, stage, remat, microbatch, parts)
                    if changed is None or (_saves_only(changed, config) and not tight):
                        continue
                    need = estimate.memory(changed, mesh, microbatches, topology.platform, scatters)
                    tight = tight or (remat == "full" and need > ROOMY * usable)
                    prediction = predict(
                        estimate.work(changed, mesh, microbatches, topology.platform, scatters), changed, topology, mesh
                    )
                    if need <= SLACK * usable and prediction is not None:
                        found.append(Candidate(changed, mesh, microbatches, need, prediction))
    # The estimate gives parts no cost in time, nor copies over a link of unknown speed: ties go to candidates without.
    return sorted(
        found,
        key=lambda c: (
            c.prediction.step_seconds,
            c.config.memory.remat == "offload",
            c.config.memory.mlp_parts,
            c.bytes,
        ),
    )


def worth_compiling(found: Sequence[Candidate], asked: Config) -> Iterator[Candidate]:
    """The candidates that a search compiles, in the given order: at most two microbatch sizes per layout, and at most
    one variant of a layout that only saves memory (offload, or more parts of an MLP than asked for).

    Args:
        found: fastest first.
        asked: the configuration that the search began with.
    """
    seen: dict[tuple[Any, ...], int] = {}
    for candidate in found:
        settings = dict(candidate.settings)
        del settings["memory.microbatch"], settings["memory.mlp_parts"]
        saves = _saves_only(candidate.config, asked)
        if saves:
            settings["memory.remat"] = "full"
        key = saves, *settings.values()
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= (1 if saves else 2):
            yield candidate


def in_order(found: Sequence[Candidate], asked: Config, usable: int) -> list[Candidate]:
    """Those that are `worth_compiling`, in the order in which a search compiles them: fastest first, and last those
    that fit only by an error of the estimate, so that none of them takes the place of one that fits. Before them, so
    that there is one, the fastest that fits by any error; if there is none, the one that needs least."""
    likely = worth_compiling([c for c in found if c.bytes <= usable], asked)
    unlikely = worth_compiling([c for c in found if c.bytes > usable], asked)
    safe = next((c for c in found if c.bytes <= ROOMY * usable), None) or min(found, key=lambda c: c.bytes)
    return [safe, *(c for c in (*likely, *unlikely) if c is not safe)]


def _variants(config: Config, mesh: MeshShape, stage: int) -> Iterator[tuple[str, int]]:
    """Every remat, each with the configured number of MLP parts and then with more, where parts are allowed. Full remat
    comes before the variants that only save memory. `none` only where it is asked for: it takes more memory than
    `minimal`, and on a TPU or GPU no less time."""
    units = config.model.d_ff // (mesh.data * mesh.tensor)
    asked = config.memory.mlp_parts
    for remat in REMATS:
        if remat == "none" and config.memory.remat != "none":
            continue
        if stage != 3 or remat not in ("full", "offload"):
            yield remat, 1
            continue
        yield remat, asked if units % asked == 0 else 1
        if asked < PARTS and units % PARTS == 0:
            yield remat, PARTS


def _saves_only(candidate: Config, asked: Config) -> bool:
    """Whether a candidate trades time for memory unasked: only tried where memory is short."""
    offload = candidate.memory.remat == "offload" and asked.memory.remat != "offload"
    return offload or candidate.memory.mlp_parts > asked.memory.mlp_parts


def _changed(config: Config, mesh: MeshShape, stage: int, remat: str, microbatch: int, mlp_parts: int) -> Config | None:
    """The configuration with these settings; None where they exclude each other."""
    parallel: Any = {"stage": stage, **mesh.axes}
    memory: Any = {"remat": remat, "microbatch": microbatch, "mlp_parts": mlp_parts}
    try:
        return dataclasses.replace(
            config,
            parallel=dataclasses.replace(config.parallel, **parallel),
            memory=dataclasses.replace(config.memory, **memory),
        )
    except UserError:
        return None


def _meshes(config: Config, topology: Topology) -> Iterator[MeshShape]:
    """Axes that multiply to the devices and divide the model: tensor groups inside a node; replicas are whole slices or
    nodes, and on one slice parts of it."""
    model, n = config.model, len(topology.devices)
    widest = topology.shape[1] if topology.has_nodes else min(n // topology.slices, 16)
    sequences = config.train.batch_tokens // model.n_ctx
    for tensor in _powers(widest):
        sizes = (model.n_heads, model.n_vocab_padded, model.d_ff, model.n_ctx)
        if n % tensor or any(size % tensor for size in sizes):
            continue
        for replica in _replicas(topology):
            if n // tensor % replica:
                continue
            shape = MeshShape(replica, n // tensor // replica, tensor)
            if sequences % shape.batch_shards == 0 and model.d_model % (shape.data * tensor) == 0:
                yield shape


def _replicas(topology: Topology) -> list[int]:
    """Numbers of replicas, each a power of two of the least."""
    if topology.has_nodes:
        return [r for r in _powers(topology.shape[0]) if topology.shape[0] % r == 0]
    return [topology.slices * r for r in _powers(len(topology.devices) // topology.slices)]


def _microbatches(config: Config, mesh: MeshShape) -> Iterator[tuple[int, int]]:
    """Sequences of a microbatch, and how many microbatches they make."""
    per_shard = config.train.batch_tokens // config.model.n_ctx // mesh.batch_shards
    for sequences in range(1, per_shard + 1):
        if per_shard % sequences == 0:
            yield sequences, per_shard // sequences


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]
