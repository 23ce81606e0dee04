"""The recipe's schedules, as functions of tokens (GPT-3 appendix B)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from gpt3_jax.config import Config, TrainConfig
from gpt3_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class BatchStage:
    """One size of the global batch, from one point of training on."""

    first_sequence: int
    """Sequences consumed when this stage begins."""
    sequences: int
    """Sequences per batch."""
    microbatches: int
    """Into how many parts each device's rows are taken."""


@dataclasses.dataclass(frozen=True)
class BatchSchedule:
    """The batch ramp as a list of fixed sizes, so that each is compiled before training starts."""

    stages: tuple[BatchStage, ...]
    total_sequences: int
    """Sequences after which training ends; the last batch may pass it."""

    def at(self, sequence: int) -> BatchStage:
        """The stage of the batch that starts at this sequence."""
        return max((s for s in self.stages if s.first_sequence <= sequence), key=lambda s: s.first_sequence)

    def ahead(self, sequence: int) -> list[BatchStage]:
        """The stages of the batches from this position to the end, each size once."""
        if sequence >= self.total_sequences:
            return []
        now = self.at(sequence)
        later = [s for s in self.stages if now.first_sequence < s.first_sequence < self.total_sequences]
        return list({stage.sequences: stage for stage in [now, *later]}.values())

    def batches(self, sequence: int) -> Iterator[tuple[int, BatchStage]]:
        """From this position to the end of training: (first sequence, stage) of each batch."""
        while sequence < self.total_sequences:
            stage = self.at(sequence)
            yield sequence, stage
            sequence += stage.sequences


def batch_schedule(
    config: Config,
    shards: int,
    recorded: Sequence[Sequence[int]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> BatchSchedule:
    """The batch sizes of a run whose batches are split into `shards` (replica × data).

    The paper's ramp is linear: at t tokens the batch is start + (full - start) · t / ramp. Here it climbs in at most
    `train.ramp_stages` sizes, evenly spaced but for rounding up to whole sequences that the mesh and the microbatch
    divide, the full size among them. A batch has the largest of these sizes that the line has reached where it begins.

    `recorded` are the (first sequence, sequences) of a run that is resumed: they stay as they were, so that the same
    batches follow on another mesh; only when this mesh does not divide them are they laid out anew, said aloud.

    Raises:
        UserError: a batch that the mesh, or the microbatch, does not divide; a ramp of a single stage.
    """
    train, ctx = config.train, config.model.n_ctx
    full = train.batch_tokens // ctx
    if full % shards:
        nearest = sorted({max(full // shards, 1) * shards * ctx, (full // shards + 1) * shards * ctx})
        raise UserError(
            f"train.batch_tokens {train.batch_tokens} is {full} sequences of {ctx} tokens, which {shards} data shards "
            f"(replica × data) do not divide; the nearest that they do: {' and '.join(map(str, nearest))}"
        )
    per_shard = full // shards
    micro = config.memory.microbatch or per_shard
    if micro < per_shard and per_shard % micro:
        raise UserError(
            f"memory.microbatch {micro} does not divide the {per_shard} sequences of a data shard "
            f"(train.batch_tokens {train.batch_tokens} / {ctx} / {shards} shards); choose one of "
            f"{_divisors(per_shard)}"
        )
    total = -(-train.tokens // ctx)
    stages = [_stage(0, full, shards, micro)]
    if train.ramp_tokens:
        stages = _ramp(train, ctx, shards, micro, full)
    if recorded is not None:
        wanted = [(stage.first_sequence, stage.sequences) for stage in stages]
        saved = [(first, size) for first, size in recorded]
        if saved != wanted and all(_allowed(size, shards, micro) == size for _, size in saved):
            stages = [_stage(first, size, shards, micro) for first, size in saved]
        elif saved != wanted:
            say(
                f"the batch sizes that the run began with do not divide over {shards} data shards and microbatches of "
                f"{micro}: from here on (first sequence, sequences) {saved} are {wanted}"
            )
    return BatchSchedule(tuple(stages), total)


def deviations(config: Config, schedule: BatchSchedule, shards: int) -> Iterator[str]:
    """A line for each setting that the mesh, or another setting, leaves less of than was asked for."""
    train, ctx = config.train, config.model.n_ctx
    per_shard = train.batch_tokens // ctx // shards
    if config.memory.microbatch > per_shard:
        yield (
            f"memory.microbatch {config.memory.microbatch} is above a data shard's part of a batch of "
            f"{train.batch_tokens:,} tokens, in sequences {per_shard}: it is one microbatch"
        )
    first = schedule.stages[0].sequences * ctx
    asked = -(-train.ramp_start_tokens // ctx) * ctx
    if train.ramp_tokens and first > asked:
        yield (
            f"the batch ramp begins at {first:,} tokens, not at train.ramp_start_tokens {train.ramp_start_tokens:,}, "
            f"and has {len(schedule.stages)} batch sizes: no smaller batch divides over the mesh and the microbatch"
        )


def _ramp(train: TrainConfig, ctx: int, shards: int, micro: int, full: int) -> list[BatchStage]:
    start, rise = train.ramp_start_tokens, train.batch_tokens - train.ramp_start_tokens
    gaps = train.ramp_stages - 1
    if not gaps:
        raise UserError("train.ramp_stages is 1; a ramp has at least 2 batch sizes, or set train.ramp_tokens to 0")
    sizes = sorted({_allowed(-(-(start * gaps + rise * i) // (gaps * ctx)), shards, micro) for i in range(gaps + 1)})
    stages = [_stage(0, sizes[0], shards, micro)]
    for size in sizes[1:]:
        reached = -(-train.ramp_tokens * (size * ctx - start) // (rise * ctx))
        last = stages[-1]
        begin = last.first_sequence + max(0, -(-(reached - last.first_sequence) // last.sequences)) * last.sequences
        if begin == last.first_sequence:  # the line rises past this size within one batch
            stages.pop()
        stages.append(_stage(begin, size, shards, micro))
    return stages


def _allowed(size: int, shards: int, micro: int) -> int:
    """The smallest size not below this one that the mesh divides, and the microbatch where there are several."""
    per_shard = -(-size // shards)
    return shards * (per_shard if per_shard <= micro else -(-per_shard // micro) * micro)


def _stage(first: int, size: int, shards: int, micro: int) -> BatchStage:
    return BatchStage(first, size, max(1, size // shards // micro))


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
