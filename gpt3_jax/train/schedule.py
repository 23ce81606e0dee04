"""The recipe's schedules, as functions of tokens (GPT-3 appendix B)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from gpt3_jax.cluster.log import log
from gpt3_jax.config import Config, TrainConfig
from gpt3_jax.data.loader import Batch
from gpt3_jax.errors import UserError
from gpt3_jax.parallel import rings


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """One size of the global batch, valid from one point of training on."""

    first_sequence: int
    """Sequences consumed when the first batch of this size begins."""
    sequences: int
    """Sequences per batch."""
    microbatches: int
    """Number of microbatches that each device's rows are split into."""


@dataclasses.dataclass(frozen=True)
class BatchSchedule:
    """The batch ramp as a list of fixed sizes, each of which is compiled before training starts."""

    sizes: tuple[BatchSize, ...]
    total_sequences: int
    """Sequences after which training ends. The last batch may pass it."""

    def at(self, sequence: int) -> BatchSize:
        """The size of the batch that starts at sequence `sequence`."""
        return max((s for s in self.sizes if s.first_sequence <= sequence), key=lambda s: s.first_sequence)

    def ahead(self, sequence: int) -> list[BatchSize]:
        """The batch sizes from this position to the end, each once."""
        if sequence >= self.total_sequences:
            return []
        now = self.at(sequence)
        later = [s for s in self.sizes if now.first_sequence < s.first_sequence < self.total_sequences]
        return list({size.sequences: size for size in [now, *later]}.values())

    def batches(self, sequence: int) -> Iterator[Batch]:
        """The batches from this position to the end of training."""
        while sequence < self.total_sequences:
            batch = Batch(sequence, self.at(sequence).sequences)
            yield batch
            sequence += batch.sequences

    def updates(self, sequences: int) -> int:
        """Number of batches that begin before `sequences` sequences are consumed, from the start of the run."""
        ends = [*(size.first_sequence for size in self.sizes[1:]), sequences]
        spans = ((size, min(end, sequences) - size.first_sequence) for size, end in zip(self.sizes, ends, strict=True))
        return sum(max(0, -(-span // size.sequences)) for size, span in spans)


@dataclasses.dataclass(frozen=True)
class Updates:
    """Number of updates of a run."""

    total: float
    """Until `train.tokens` are consumed."""
    warmup: float
    """Of these, until the learning rate's warm-up ends (`optimizer.warmup_tokens`)."""


def batch_schedule(config: Config, shards: int, recorded: Sequence[Sequence[int]] | None = None) -> BatchSchedule:
    """The batch sizes of a run whose batches are split into `shards` (replica × data).

    The paper's ramp is linear (GPT-3 appendix B): at t tokens the batch is start + (full - start) · t / ramp. Here the
    ramp has at most `train.ramp_sizes` sizes with about the same ratio between neighbours, rounded to the nearest
    whole number of sequences that the mesh and the microbatch divide. Each size begins where the number of updates
    equals the line's, counted from where the line reaches the previous size to where it reaches this one.

    So a run makes as many updates as the line (`line_updates`), unless the mesh's smallest batch is above the start of
    the ramp. Then it makes fewer updates until the line reaches that batch.

    `recorded` are the (first sequence, sequences) of a resumed run. They are kept, so that the same batches follow on
    another mesh. If this mesh does not divide them, the sizes are computed again, with a warning.

    Raises:
        UserError: the mesh or the microbatch does not divide a batch; a ramp of a single size.
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
    sizes = [_size(0, full, shards, micro)]
    if train.ramp_tokens:
        sizes = _ramp(train, ctx, shards, micro, full)
    if recorded is not None:
        wanted = [(size.first_sequence, size.sequences) for size in sizes]
        saved = [(first, sequences) for first, sequences in recorded]
        if saved != wanted and all(_nearest(sequences, shards, micro) == sequences for _, sequences in saved):
            sizes = [_size(first, sequences, shards, micro) for first, sequences in saved]
        elif saved != wanted:
            log.warning(
                f"the batch sizes that the run began with do not divide over {shards} data shards and microbatches of "
                f"{micro}: from here on the (first sequence, sequences) {saved} become {wanted}"
            )
    return BatchSchedule(tuple(sizes), _whole_sequences(train.tokens, ctx))


def updates(config: Config, schedule: BatchSchedule) -> Updates:
    """The number of updates with `schedule`."""
    ctx = config.model.n_ctx
    warmup = min(config.optimizer.warmup_tokens, config.train.tokens)
    return Updates(schedule.updates(schedule.total_sequences), schedule.updates(_whole_sequences(warmup, ctx)))


def line_updates(config: Config) -> Updates:
    """The number of updates on the paper's line (GPT-3 appendix B), as if batches could have any size.

    The batch at t tokens is B(t) = start + (full - start) · t / ramp, and full from t = ramp on. The number of updates
    up to t tokens is the integral of 1 / B: ramp / (full - start) · ln(B(t) / start), and (t - ramp) / full beyond the
    ramp.
    """
    train = config.train

    def until(tokens: float) -> float:
        rise = train.batch_tokens - train.ramp_start_tokens
        if not train.ramp_tokens or not rise:
            return tokens / train.batch_tokens
        climbed = min(tokens, train.ramp_tokens)
        ratio = 1 + rise * climbed / train.ramp_tokens / train.ramp_start_tokens
        return train.ramp_tokens / rise * math.log(ratio) + (tokens - climbed) / train.batch_tokens

    return Updates(until(train.tokens), until(min(config.optimizer.warmup_tokens, train.tokens)))


def describe(config: Config, schedule: BatchSchedule) -> str:
    """Describes a ramp in one line: its batch sizes, its number of updates, and the line's."""
    ours, line = updates(config, schedule), line_updates(config)
    tokens = [size.sequences * config.model.n_ctx for size in schedule.sizes]
    return (
        f"batch ramp from {tokens[0]:,} to {tokens[-1]:,} tokens, sizes: {len(tokens)}; {ours.total:,} updates in "
        f"{config.train.tokens:,} tokens, {ours.warmup:,} of them in the warm-up (the paper's line: "
        f"{line.total:,.0f} and {line.warmup:,.0f})"
    )


def deviations(config: Config, schedule: BatchSchedule, shards: int) -> Iterator[str]:
    """A warning for each setting that the mesh or another setting overrides."""
    train, ctx = config.train, config.model.n_ctx
    per_shard = train.batch_tokens // ctx // shards
    if config.memory.microbatch > per_shard:
        yield (
            f"memory.microbatch {config.memory.microbatch} is above a data shard's part of a batch of "
            f"{train.batch_tokens:,} tokens, {per_shard} sequences per shard; using one microbatch"
        )
    if rings.chosen(config.parallel):
        if config.parallel.tensor == 1:
            yield "parallel.tensor_overlap rings has no effect: parallel.tensor is 1, and there is nothing to gather"
        elif config.memory.mlp_parts > 1:
            yield (
                f"parallel.tensor_overlap rings is for attention alone: with memory.mlp_parts "
                f"{config.memory.mlp_parts} an MLP gathers and scatters in collectives"
            )
    if not train.ramp_tokens:
        return
    first = schedule.sizes[0].sequences * ctx
    asked = -(-train.ramp_start_tokens // ctx) * ctx
    off = _off_the_line(config, schedule)
    if first > asked:
        yield (
            f"the batch ramp begins at {first:,} tokens, not at train.ramp_start_tokens {train.ramp_start_tokens:,}: "
            f"{shards} data shards (replica × data) need a sequence each{off and '; ' + off}"
        )
    elif off:
        yield f"on the batch ramp's {len(schedule.sizes)} sizes, {off}"


def _off_the_line(config: Config, schedule: BatchSchedule) -> str:
    """Describes how far the number of updates is from the line's; empty within 1 %, or within one update."""
    ours, line = updates(config, schedule), line_updates(config)
    counts = (("in all", ours.total, line.total), ("in the warm-up", ours.warmup, line.warmup))
    off = [
        f"{made / wanted - 1:+.1%} {where}"
        for where, made, wanted in counts
        if abs(made - wanted) > max(1.0, wanted / 100)
    ]
    return f"updates beside the paper's line: {', '.join(off)}" if off else ""


def _ramp(train: TrainConfig, ctx: int, shards: int, micro: int, full: int) -> list[BatchSize]:
    """The batch sizes of the ramp, and where each begins.

    Consider the part of the line from size a to size b, with batches of a up to the point m and of b from there on.
    They make (m - a) / a + (b - m) / b updates where the line makes ln(b / a), both per ramp / (full - start) tokens.
    The two are equal for the m below. If the first size is below the start of the line, a is the start.
    """
    if train.ramp_sizes == 1:
        raise UserError("train.ramp_sizes is 1; a ramp has at least 2 batch sizes, or set train.ramp_tokens to 0")
    start, total = train.ramp_start_tokens / ctx, train.ramp_tokens / ctx  # in sequences
    if start >= full:
        return [_size(0, full, shards, micro)]
    gaps = train.ramp_sizes - 1
    wanted = [start * (full / start) ** (i / gaps) for i in range(gaps)]
    sizes = sorted({*(_nearest(size, shards, micro) for size in wanted), full})
    ramp = [_size(0, sizes[0], shards, micro)]
    for a, b in itertools.pairwise(sizes):
        low = max(a, start)
        m = (math.log(b / low) - 1 + low / a) / (1 / a - 1 / b)
        last = ramp[-1]
        reached = total * (m - start) / (full - start)
        begin = last.first_sequence + max(0, round((reached - last.first_sequence) / last.sequences)) * last.sequences
        if begin == last.first_sequence:  # the line rises past this size within one batch
            ramp.pop()
        ramp.append(_size(begin, b, shards, micro))
    return ramp


def _nearest(size: float, shards: int, micro: int) -> int:
    """The nearest size that the mesh divides, and also the microbatch if there are several microbatches."""
    unit = shards if size <= shards * micro else shards * micro
    return max(1, round(size / unit)) * unit


def _size(first: int, sequences: int, shards: int, micro: int) -> BatchSize:
    return BatchSize(first, sequences, max(1, sequences // shards // micro))


def _whole_sequences(tokens: int, ctx: int) -> int:
    return -(-tokens // ctx)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
