"""What is measured: a configuration on the attached devices' mesh, with a batch that they can hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from gpt3_jax.bench.machine import capacity
from gpt3_jax.config import Config, cost_settings, replace
from gpt3_jax.errors import UserError
from gpt3_jax.model.attention import choose
from gpt3_jax.model.params import count_params
from gpt3_jax.model.transformer import bands
from gpt3_jax.parallel.compiler_options import overlaps_scatters
from gpt3_jax.parallel.mesh import batch_shards, mesh_platform, shape_of
from gpt3_jax.plan import estimate
from gpt3_jax.train.schedule import BatchSize, batch_schedule
from gpt3_jax.train.step import unroll

_CPU_STEP_FLOPS = 2e12
"""Maximum FLOPs (6N) of a step on a CPU, if it has more than one sequence: seconds on a laptop."""
_SHARD_TOKENS = 32_768
"""Maximum tokens of a microbatch on other devices: by arithmetic, enough to keep the device busy."""
_ROOM = 0.7
"""Fraction of a device's memory below which an estimate counts as fitting. `plan.search` states its error."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """The shape of a step."""

    config: Config
    """The configuration, with the batch that is run."""
    mesh: Mesh
    batch: BatchSize
    """Number of sequences and microbatches."""
    why: str
    """Why the batch differs from the configuration's; empty if it does not."""

    @property
    def tokens(self) -> int:
        return self.batch.sequences * self.config.model.n_ctx

    @property
    def shard_sequences(self) -> int:
        """Sequences of one microbatch on one data shard."""
        return self.batch.sequences // batch_shards(self.mesh) // self.batch.microbatches


def with_batch(config: Config, shard_sequences: int, shards: int) -> Config:
    """The configuration with `shard_sequences` sequences on each data shard, in one microbatch, without a ramp."""
    tokens = shard_sequences * shards * config.model.n_ctx
    return replace(config, train={"batch_tokens": tokens, "ramp_tokens": 0}, memory={"microbatch": 0})


def cpu_shard_sequences(config: Config) -> int:
    """Number of sequences for one microbatch on a CPU's data shard. Needs no device."""
    one = 6.0 * count_params(config.model) * config.model.n_ctx
    whole = config.memory.microbatch or max(1, config.train.batch_tokens // config.model.n_ctx)
    return max(1, min(whole, int(_CPU_STEP_FLOPS / one)))


def make_workload(config: Config, mesh: Mesh, keep_batch: bool, largest: int | None = None) -> Workload:
    """The workload: one microbatch on each data shard, as large as the configuration's, or as large as fits. A
    `memory.microbatch` above the batch is used as it is.

    Args:
        keep_batch: use the configuration's whole batch with its microbatches.
        largest: maximum sequences of a data shard, after larger numbers turned out not to fit.

    Raises:
        UserError: the mesh does not divide the batch or the model, or the devices cannot hold the model.
    """
    shards = batch_shards(mesh)
    device = mesh.devices.flat[0]
    room = capacity(device)
    micro = config.memory.microbatch
    whole = max(1, config.train.batch_tokens // config.model.n_ctx // shards)
    asked = micro or whole
    if keep_batch:
        run, sequences, reason = replace(config, train={"ramp_tokens": 0}), asked, ""
    else:
        sequences, reason = asked, ""
        if device.platform == "cpu":
            sequences, reason = min(sequences, cpu_shard_sequences(config)), "limited by the CPU's speed"
        elif not micro:
            sequences = max(1, min(sequences, _SHARD_TOKENS // config.model.n_ctx))
            reason = "enough to keep the device busy"
        if largest is not None:
            sequences, reason = min(sequences, largest), "limited by memory"
        while (
            not micro and sequences > 1 and room is not None and estimated_bytes(config, mesh, sequences) > _ROOM * room
        ):
            sequences, reason = sequences // 2, "limited by memory"
        run = with_batch(config, sequences, shards)
    batch = batch_schedule(run, shards).sizes[0]
    need = estimated_bytes(config, mesh, 1)
    # Refused only if it certainly does not fit, except on a CPU, where the system would kill a process without a
    # message.
    if room is not None and need > (0.9 if device.platform == "cpu" else 1.3) * room:
        raise UserError(
            f"{count_params(config.model):,} parameters at ZeRO stage {config.parallel.stage} need about "
            f"{need / 2**30:,.1f} GiB on a device for one sequence, and {device.device_kind} has "
            f"{room / 2**30:,.1f} GiB; take a smaller model, more devices, or raise parallel.stage"
        )
    why = ""
    if batch.sequences * run.model.n_ctx != config.train.batch_tokens or sequences < asked:
        why = f"one microbatch per data shard instead of the configuration's {config.train.batch_tokens:,} tokens"
        if asked > whole:
            why = f"memory.microbatch {micro} per data shard, above the {whole} of the configuration's batch"
        if sequences < asked:
            why += f", {sequences} of its {asked} sequences ({reason})"
    if keep_batch and micro > whole:
        why = f"one microbatch per data shard: memory.microbatch {micro} is above its {whole} sequences"
    return Workload(run, mesh, batch, why)


def estimated_bytes(config: Config, mesh: Mesh, shard_sequences: int) -> float:
    """Estimated bytes on a device for one microbatch of `shard_sequences` sequences on each data shard."""
    run = with_batch(config, shard_sequences, batch_shards(mesh))
    return estimate.memory(run, shape_of(mesh), 1, mesh_platform(mesh), overlaps_scatters(mesh.devices.flat[0]))


def attention_choices(work: Workload) -> dict[str, str]:
    """The implementation of attention for each kind of layer: ``{"dense": "cudnn", ...}``."""
    model = work.config.model
    heads = model.n_heads // shape_of(work.mesh).tensor
    shape = (work.shard_sequences, model.n_ctx, heads, model.d_head)
    found = {}
    for band in dict.fromkeys(bands(model)):
        seen = None if band is None or band >= model.n_ctx else band
        kind = "dense" if band is None else f"banded, {band} wide"
        found[kind] = str(choose(shape, jax.numpy.dtype(model.dtype), seen, mesh_platform(work.mesh)))
    return found


def describe(work: Workload, names: list[str]) -> dict[str, Any]:
    """The workload as JSON. `names` are the configuration files."""
    config, model = work.config, work.config.model
    return {
        "configuration": names,
        "parameters": count_params(model),
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "n_heads": model.n_heads,
        "n_ctx": model.n_ctx,
        "n_vocab": model.n_vocab,
        "attention": attention_choices(work),
        "mesh": shape_of(work.mesh).axes,
        **cost_settings(config),
        "unroll": unroll(config, work.mesh),
        "batch_tokens": work.tokens,
        "sequences": work.batch.sequences,
        "microbatches": work.batch.microbatches,
        "batch_note": work.why,
    }
