"""Finds the mesh, ZeRO stage, remat and microbatch to train with. Every combination that divides is pruned and ordered
by arithmetic; the best are compiled."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from gpt3_jax.cluster.log import log
from gpt3_jax.config import Config
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.model.remat import Remat
from gpt3_jax.parallel.compiler_options import overlaps_scatters
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.plan import estimate
from gpt3_jax.plan.cache import plan
from gpt3_jax.plan.predict import predict
from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.plan.roofline import Prediction
from gpt3_jax.plan.topologies import Topology
from gpt3_jax.quantities import size

REMATS: tuple[Remat, ...] = get_args(Remat)
PARTS = 8
"""Parts of an MLP that are tried where memory is short."""
ROOMY = 1 - estimate.ERROR
"""Share of the capacity. What is estimated below it fits. Where full remat is estimated above it, MLPs in parts and
offload are tried too."""
SLACK = 1 + estimate.ERROR
"""Share of the capacity. What is estimated above it does not fit, and is not compiled."""
SECONDS = 120.0
"""How long a search compiles, unless told otherwise."""


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


def in_order(tried: Iterator[Candidate], usable: int) -> list[Candidate]:
    """The candidates in the order in which a search compiles them, from fastest first: the fastest that fits by any
    error of the estimate comes first, so that there is one; those that fit only by an error come last."""
    likely: list[Candidate] = []
    unlikely: list[Candidate] = []
    for candidate in tried:
        (likely if candidate.bytes <= usable else unlikely).append(candidate)
    safe = next((c for c in likely if c.bytes <= ROOMY * usable), None)
    return [*([safe] if safe else []), *(c for c in likely if c is not safe), *unlikely]


class Clock:
    """How long a search may compile."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()
        self._longest = 0.0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def has_time(self) -> bool:
        """Whether another compilation, as long as the longest so far, ends in time. The first always has."""
        return not self._longest or self.elapsed + self._longest <= self.seconds

    def took(self, seconds: float) -> None:
        """Notes how long a compilation took."""
        self._longest = max(self._longest, seconds)


def search(
    config: Config, topology: Topology, keep: int, cache: Path | None, seconds: float = SECONDS
) -> list[tuple[Candidate, Receipt]]:
    """The `keep` fastest configurations that fit, each compiled; fastest first by what the compiled programs predict.

    Args:
        seconds: no compilation is begun that, as long as the longest before it, would end later. What is left out is
            said.

    Raises:
        UserError: as `candidates`; or none that can fit.
    """
    clock = Clock(seconds)
    found = candidates(config, topology)
    if not found:
        raise UserError(
            f"no mesh, stage, remat and microbatch fits {topology.name} by arithmetic; take more devices or a smaller "
            "model"
        )
    assert topology.usable is not None
    log.info(f"{len(found)} candidates by arithmetic; compiling the fastest until {keep} fit")
    tried = in_order(worth_compiling(found, config), topology.usable)
    attempts = 4 * keep
    confirmed, left = confirm(tried, topology, keep, attempts, cache, clock)
    if others := _of_other_remats(found, confirmed, topology):
        if clock.has_time():
            log.info("and the fastest of each other remat, in case the estimate misranks it")
        more, out = confirm(others, topology, len(others), len(others), cache, clock)
        confirmed, left = confirmed + more, left + [c for c in out if c not in left]
    confirmed = sorted(confirmed, key=_step_seconds)[:keep]
    if left:
        fastest = min(left, key=lambda c: c.prediction.step_seconds)
        log.info(
            f"stopped after {clock.elapsed:.0f} s with {len(left)} more to compile, by arithmetic the fastest of them "
            f"{fastest.options}: {size(fastest.bytes)}, {fastest.prediction.step_seconds:.2f} s a step; "
            "--minutes gives a search more time"
        )
    elif len(confirmed) < keep:
        why = (
            f"{attempts} of the fastest kinds were compiled"
            if len(tried) > attempts
            else "there are no more to compile"
        )
        log.info(
            f"{len(confirmed)} of the {keep} wanted were found: {why}; more devices or a smaller model leave more room"
        )
    return confirmed


def nearest(
    config: Config, mesh: MeshShape, topology: Topology, keep: int, cache: Path | None
) -> list[tuple[Candidate, Receipt]]:
    """Configurations that fit and differ least from one that does not: fewest changed settings first, then fastest."""
    now = {
        "parallel.stage": config.parallel.stage,
        **{f"parallel.{axis}": size for axis, size in mesh.axes.items()},
        "memory.remat": config.memory.remat,
        "memory.microbatch": config.memory.microbatch,
        "memory.mlp_parts": config.memory.mlp_parts,
    }

    def changes(candidate: Candidate) -> int:
        changed = [key for key, value in candidate.settings.items() if value != now[key]]
        return len(changed) - ("parallel.data" in changed)  # data follows from the other axes

    # Estimates are inexact: only candidates with room to spare are worth a compilation.
    tried = candidates(config, topology)
    assert topology.usable is not None
    roomy = [c for c in tried if c.bytes <= ROOMY * topology.usable and changes(c)]
    roomy.sort(key=lambda c: (changes(c), c.prediction.step_seconds))
    return confirm(roomy, topology, keep, 3 * keep, cache)[0]


def confirm(
    found: Sequence[Candidate],
    topology: Topology,
    keep: int,
    attempts: int,
    cache: Path | None,
    clock: Clock | None = None,
) -> tuple[list[tuple[Candidate, Receipt]], list[Candidate]]:
    """Compiles candidates in this order until `keep` of them fit, after as many attempts, or when the time is up.

    Returns:
        Those that fit, fastest first; and those that there was no time for.
    """
    confirmed: list[tuple[Candidate, Receipt]] = []
    for done, candidate in enumerate(found[:attempts]):
        if len(confirmed) == keep:
            break
        if clock and not clock.has_time():
            return sorted(confirmed, key=_step_seconds), list(found[done:attempts])
        began = time.monotonic()
        kept = False
        try:
            receipt, kept = plan(candidate.config, topology, cache)
        except (RunError, UserError) as error:
            log.info(f"[{done + 1}] {candidate.options}: {error}")
            continue
        finally:
            if clock and not kept:
                clock.took(time.monotonic() - began)
        verdict = "fits" if receipt.memory.fits else "does not fit"
        step = f", {receipt.prediction.step_seconds:.2f} s a step" if receipt.prediction else ""
        log.info(
            f"[{done + 1}] {candidate.options}: {size(receipt.memory.total)}, {verdict}{step}"
            f"{' (kept from before)' if kept else ''}"
        )
        if receipt.memory.fits:
            confirmed.append((candidate, receipt))
    return sorted(confirmed, key=_step_seconds), []


def _step_seconds(confirmed: tuple[Candidate, Receipt]) -> float:
    prediction = confirmed[1].prediction
    return prediction.step_seconds if prediction else 0.0


def _of_other_remats(
    found: list[Candidate], confirmed: list[tuple[Candidate, Receipt]], topology: Topology
) -> list[Candidate]:
    """For each remat that is not among those confirmed, the fastest candidate that leaves room by its estimate."""
    assert topology.usable is not None
    there = {c.config.memory.remat for c, _ in confirmed}
    fastest: dict[str, Candidate] = {}
    for candidate in found:
        remat = candidate.config.memory.remat
        if remat not in there and candidate.bytes <= ROOMY * topology.usable:
            fastest.setdefault(remat, candidate)
    return list(fastest.values())


def _variants(config: Config, mesh: MeshShape, stage: int) -> Iterator[tuple[str, int]]:
    """Every remat, each with the configured number of MLP parts and then with more, where parts are allowed. Full remat
    comes before the variants that only save memory. `none` only where it is asked for: it takes more memory than
    `minimal`, and on a TPU or GPU no less time."""
    units = config.model.d_ff // (mesh.data * mesh.tensor)
    asked = config.memory.mlp_parts
    for remat in REMATS:
        if remat == "none" != config.memory.remat:
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
    """Axes that multiply to the devices and divide the model: tensor groups inside a node, whole slices as replicas."""
    model, n = config.model, len(topology.devices)
    outer = topology.shape[0] if topology.has_nodes else topology.slices
    widest = topology.shape[1] if topology.has_nodes else min(n // topology.slices, 16)
    sequences = config.train.batch_tokens // model.n_ctx
    for tensor in _powers(widest):
        sizes = (model.n_heads, model.n_vocab_padded, model.d_ff, model.n_ctx)
        if n % tensor or any(size % tensor for size in sizes):
            continue
        for replica in sorted({topology.slices, outer}):
            if n // tensor % replica:
                continue
            shape = MeshShape(replica, n // tensor // replica, tensor)
            if sequences % shape.batch_shards == 0 and model.d_model % (shape.data * tensor) == 0:
                yield shape


def _microbatches(config: Config, mesh: MeshShape) -> Iterator[tuple[int, int]]:
    """Sequences of a microbatch, and how many microbatches they make."""
    per_shard = config.train.batch_tokens // config.model.n_ctx // mesh.batch_shards
    for sequences in range(1, per_shard + 1):
        if per_shard % sequences == 0:
            yield sequences, per_shard // sequences


def _powers(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length()) if 2**i <= limit]
