"""The paper's schedules as tables, in tokens: learning rate and batch size."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from shipped_configs import shipped

from gpt3_jax.config import Config, OptimizerConfig, load_config, preset, presets, replace
from gpt3_jax.errors import UserError
from gpt3_jax.train import optimizer
from gpt3_jax.train.schedule import (
    BatchSchedule,
    batch_schedule,
    describe,
    deviations,
    line_updates,
    updates,
)

PEAK, WARMUP, DECAY = 6.0e-4, 375_000_000, 260_000_000_000


def exact(tokens: float, decay_ends: float = DECAY) -> float:
    """Appendix B in float64: linear to the peak over 375 million tokens, cosine to a tenth at 260 billion, constant."""
    if tokens < WARMUP:
        return PEAK * tokens / WARMUP
    done = min(1.0, (tokens - WARMUP) / (decay_ends - WARMUP))
    return PEAK * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [
        (0, 0.0),
        (187_500_000, 3.0e-4),
        (375_000_000, 6.0e-4),
        (130_187_500_000, 3.3e-4),  # half the cosine: halfway between the peak and a tenth of it
        (260_000_000_000, 6.0e-5),
        (280_000_000_000, 6.0e-5),
        (300_000_000_000, 6.0e-5),
    ],
)
def test_learning_rate(tokens: int, rate: float) -> None:
    assert exact(tokens) == pytest.approx(rate, rel=1e-12)
    assert float(optimizer.learning_rate(OptimizerConfig())(jnp.float32(tokens))) == pytest.approx(rate, rel=1e-6)


def test_decay_may_be_counted_from_the_end_of_the_warmup() -> None:
    rate = optimizer.learning_rate(OptimizerConfig(decay_after_warmup=True))
    for tokens in (WARMUP, 260_000_000_000, DECAY + WARMUP, 290_000_000_000):
        assert float(rate(jnp.float32(tokens))) == pytest.approx(exact(tokens, DECAY + WARMUP), rel=1e-6)
    assert float(rate(jnp.float32(DECAY))) > 6.0e-5


def test_no_warmup_starts_at_the_peak() -> None:
    rate = optimizer.learning_rate(OptimizerConfig(warmup_tokens=0))
    assert float(rate(jnp.float32(0))) == pytest.approx(PEAK)


def test_fp32_holds_the_schedule_over_300_billion_tokens() -> None:
    """As the step computes it, from a uint32 count of sequences: from the first batch of 32k tokens on, within a
    millionth of the peak, within a thousandth of itself (0.08 % at the first update, where optax subtracts from 1), and
    within 1e-5 of itself after a tenth of the warm-up. It never rises again once it falls."""
    sequences = np.unique(np.concatenate([np.arange(16, 20_000, 16), np.linspace(16, 300e9 // 2048, 20_000)]))
    sequences = sequences.astype(np.uint32)
    rate = optimizer.learning_rate(OptimizerConfig())
    got = np.asarray(rate(jnp.asarray(sequences).astype(jnp.float32) * 2048), np.float64)
    tokens = sequences.astype(np.float64) * 2048
    want = np.array([exact(n) for n in tokens])
    error = np.abs(got - want)
    assert error.max() < 1e-6 * PEAK
    assert (error / want).max() < 1e-3
    assert (error / want)[tokens > WARMUP / 10].max() < 1e-5
    assert (np.diff(got[tokens > WARMUP]) <= 0).all()


# ---------------------------------------------------------------------------------------------------------------
# Batch size
# ---------------------------------------------------------------------------------------------------------------


def ramp(**train: int) -> Config:
    """Sequences of 2048; 32k to 524,288 tokens (16 to 256 sequences) over 4 billion tokens unless told otherwise."""
    fields = {"batch_tokens": 524_288, "ramp_start_tokens": 32_768, "ramp_tokens": 4_000_000_000, **train}
    memory = {"microbatch": fields.pop("microbatch", 0)}
    return replace(Config(), train=fields, memory=memory)


def sizes(schedule: BatchSchedule) -> list[tuple[int, int]]:
    return [(size.first_sequence, size.sequences) for size in schedule.sizes]


def test_the_ramp_as_a_table() -> None:
    """Five sizes a factor of 2 apart, 16 to 256 sequences. The line reaches them at 0, 1/15, 3/15, 7/15 and all of
    1,953,125 sequences. The next size begins where the line is at 2 ln 2 of the one before: with a/b = 1/2,
    (m - 1) / 1 + (2 - m) / 2 = ln 2. At 22.18, 44.36, 88.72 and 177.45 sequences that is, in whole batches."""
    found = sizes(batch_schedule(ramp(ramp_sizes=5), shards=1))
    assert [size for _, size in found] == [16, 32, 64, 128, 256]
    wanted = [1_953_125 * (2 * math.log(2) * size - 16) / 240 for size in (16, 32, 64, 128)]
    for (first, _), (_, before), at in zip(found[1:], found[:-1], wanted, strict=True):
        assert abs(first - at) <= before / 2
    assert found[1][0] == 50_304  # 3,144 batches of 16: 50,306.8 is the nearest to it


def test_the_papers_line_counts_updates_as_its_integral() -> None:
    """The closed form against a sum of small steps of the line itself, and 175B's counts as known: 109,148 updates,
    5,314 of them in the warm-up."""
    for name in presets():
        train = preset(name).train
        start, full, length = train.ramp_start_tokens, train.batch_tokens, train.ramp_tokens
        ends = np.concatenate([np.linspace(0, length, 2_000_001), [train.tokens]])
        middle = (ends[1:] + ends[:-1]) / 2
        made = np.diff(ends) / np.minimum(start + (full - start) * middle / length, full)
        line = line_updates(preset(name))
        assert line.total == pytest.approx(made.sum(), rel=1e-8)
        assert line.warmup == pytest.approx(made[middle < WARMUP].sum(), rel=1e-3)
    line = line_updates(preset("gpt3-175b"))
    assert (round(line.total), round(line.warmup)) == (109_148, 5_314)
    assert line_updates(ramp(ramp_tokens=0)).total == 300e9 / 524_288


# By data shards (replica × data), the largest part of the line's updates that is missing in all and in the warm-up, of
# any size. A batch is at least a sequence a shard, and the ramp starts at 16 sequences: above 16 shards it starts
# higher, and makes fewer updates until the line is there.
MESHES = ("mesh-cpu-8", "mesh-v4-32")
FEWER = {32: (0.01, 0.30), 64: (0.03, 0.65), 128: (0.05, 0.85), 256: (0.07, 0.92), 512: (0.09, 0.96)}
ON_MESHES = [(name, mesh) for mesh in (None, *MESHES) for name in presets()]
ON_MESHES += [(size, mesh) for mesh, size in shipped()]


@pytest.mark.parametrize(("name", "mesh"), ON_MESHES)
def test_a_run_makes_as_many_updates_as_the_papers_line(name: str, mesh: str | None) -> None:
    """Within 0.01 % in all and 1.5 % in the warm-up, where a batch of 32,768 tokens divides over the mesh; where it
    does not, too few, and it is said. Some meshes do not carry some sizes' heads; only batches are looked at."""
    config = preset(name)
    shards = 1
    if mesh is not None:
        # Heads of 175B divide on every mesh.
        on_mesh = load_config(["gpt3-175b" if mesh in MESHES else name, mesh])
        shards = on_mesh.parallel.replica * on_mesh.parallel.data
        config = replace(config, memory={"microbatch": on_mesh.memory.microbatch})
    schedule = batch_schedule(config, shards)
    ours, line = updates(config, schedule), line_updates(config)
    if shards <= 16:
        assert ours.total == pytest.approx(line.total, rel=1e-4)
        assert ours.warmup == pytest.approx(line.warmup, rel=0.015)
        assert schedule.sizes[0].sequences * 2048 == 32_768
        off = abs(ours.warmup / line.warmup - 1) > 0.01
        assert len(list(deviations(config, schedule, shards))) == off
    else:
        fewer, fewer_in_warmup = FEWER[shards]
        assert -fewer < ours.total / line.total - 1 < 0
        assert -fewer_in_warmup < ours.warmup / line.warmup - 1 < 0
        [*_, said] = deviations(config, schedule, shards)
        assert f"begins at {shards * 2048:,} tokens" in said
        assert f"{ours.warmup / line.warmup - 1:+.1%} in the warm-up" in said
    assert len(schedule.sizes) <= config.train.ramp_sizes == 16
    assert f"{ours.total:,} updates in 300,000,000,000 tokens, {ours.warmup:,} of them" in describe(config, schedule)
    assert f"line: {line.total:,.0f} and {line.warmup:,.0f})" in describe(config, schedule)


def test_sizes_are_spaced_by_ratio() -> None:
    """Neighbours of 175B's sixteen are 96 ** (1 / 15) = 1.356 apart, but for rounding to whole sequences."""
    found = [size for _, size in sizes(batch_schedule(preset("gpt3-175b"), shards=1))]
    assert len(found) == 16 and (found[0], found[-1]) == (16, 1536)
    ratios = [b / a for a, b in itertools.pairwise(found)]
    assert max(ratios) < 1.356 * 1.04 and min(ratios) > 1.356 / 1.04


CASES = [
    (shards, microbatch, count, length)
    for shards, microbatch in ((1, 0), (1, 4), (8, 0), (8, 4), (16, 16), (64, 2), (256, 0))
    for count in (2, 3, 16, 500)
    for length in (3_000_000, 100_000_001, 4_000_000_000)
]


@pytest.mark.parametrize(("shards", "microbatch", "count", "length"), CASES)
def test_the_ramp_follows_the_line_in_whole_batches(shards: int, microbatch: int, count: int, length: int) -> None:
    config = ramp(ramp_sizes=count, ramp_tokens=length, microbatch=microbatch)
    schedule = batch_schedule(config, shards)
    assert len(schedule.sizes) <= count
    assert schedule.sizes[0].first_sequence == 0
    assert schedule.sizes[-1].sequences == 256
    for size in schedule.sizes:
        per_shard = size.sequences // shards
        assert size.sequences % shards == 0
        assert per_shard % size.microbatches == 0
        assert not microbatch or per_shard // size.microbatches <= microbatch
    for a, b in itertools.pairwise(schedule.sizes):
        assert a.sequences < b.sequences
        assert (b.first_sequence - a.first_sequence) % a.sequences == 0
        assert b.first_sequence > a.first_sequence

    # Batch by batch: the line is between the neighbours of a batch's size, but before it has reached the first size;
    # and it rises by one batch's tokens within a batch. The count of updates never parts from the line's by more than
    # half the sizes' distance allows: at each size that the line reaches, it has caught up.
    found = [size.sequences for size in schedule.sizes]
    rises = 240 * 2048 * 256 / length
    for first, sequences in schedule.batches(0):
        line = 16 + 240 * min(1.0, first * 2048 / length)
        assert sequences == schedule.at(first).sequences
        at = found.index(sequences)
        assert line <= [*found, 256][at + 1] + rises
        assert at == 0 or found[at - 1] <= line + rises
        if first * 2048 > length:
            assert sequences == 256
            break
    if found[0] == 16 and length > 1e8:
        assert updates(config, schedule).total == pytest.approx(line_updates(config).total, rel=1e-4)


def test_updates_are_counted_as_the_batches_are() -> None:
    config = ramp(ramp_tokens=100_000_001, tokens=150_000_001)
    schedule = batch_schedule(config, shards=8)
    firsts = [first for first, _ in schedule.batches(0)]
    assert updates(config, schedule).total == schedule.updates(schedule.total_sequences) == len(firsts)
    for until in (0, 1, 16, 17, 5_000, firsts[-1], firsts[-1] + 1):
        assert schedule.updates(until) == sum(first < until for first in firsts)


def test_a_start_below_the_smallest_batch_of_the_mesh_is_rounded_to_the_nearest() -> None:
    """20 sequences on 16 shards: 16 is nearer than 32, and the count still fits; 28 begin at 32."""
    low, high = (ramp(ramp_start_tokens=2048 * n) for n in (20, 28))
    assert [batch_schedule(config, 16).sizes[0].sequences for config in (low, high)] == [16, 32]
    assert updates(low, batch_schedule(low, 16)).total == pytest.approx(line_updates(low).total, rel=1e-4)


def test_without_a_ramp_there_is_one_size() -> None:
    assert sizes(batch_schedule(ramp(ramp_tokens=0), shards=8)) == [(0, 256)]
    assert sizes(batch_schedule(ramp(ramp_start_tokens=524_288), shards=8)) == [(0, 256)]


@pytest.mark.parametrize(
    ("train", "shards", "said"),
    [
        ({}, 8, []),
        ({"microbatch": 32}, 8, []),
        (
            {"microbatch": 64, "ramp_tokens": 0},
            8,
            ["memory.microbatch 64 is above a data shard's part of a batch of 524,288 tokens, 32 sequences per shard;"],
        ),
        ({"ramp_start_tokens": 32_768}, 64, ["the batch ramp begins at 131,072 tokens, not at"]),
        ({"microbatch": 5}, 256, ["1 sequences per shard;", "the batch ramp begins at 524,288 tokens"]),
        ({"ramp_sizes": 2}, 8, ["on the batch ramp's 2 sizes, updates beside the paper's line: +"]),
    ],
)
def test_what_is_less_than_asked_for_is_said(train: dict[str, int], shards: int, said: list[str]) -> None:
    config = ramp(**train)
    lines = list(deviations(config, batch_schedule(config, shards), shards))
    assert len(lines) == len(said)
    for line, words in zip(lines, said, strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("tensor", "parts", "said"),
    [(1, 1, ["no effect: parallel.tensor is 1"]), (4, 1, []), (4, 4, ["attention alone: with memory.mlp_parts 4"])],
)
def test_rings_that_are_left_out_are_said(tensor: int, parts: int, said: list[str]) -> None:
    config = ramp(ramp_tokens=0)
    parallel = dataclasses.replace(config.parallel, stage=3, tensor=tensor, tensor_overlap="rings")
    config = dataclasses.replace(config, parallel=parallel, memory=dataclasses.replace(config.memory, mlp_parts=parts))
    lines = list(deviations(config, batch_schedule(config, 8), 8))
    assert [words in line for line, words in zip(lines, said, strict=True)] == [True] * len(said)


def test_batches_follow_one_another_from_anywhere_to_the_end() -> None:
    schedule = batch_schedule(ramp(ramp_sizes=4, ramp_tokens=8_000_000, tokens=20_000_000), shards=8)
    assert schedule.total_sequences == math.ceil(20_000_000 / 2048)
    plan = list(schedule.batches(0))
    for (first, sequences), (following, _) in itertools.pairwise(plan):
        assert following == first + sequences
    last, sequences = plan[-1]
    assert last < schedule.total_sequences <= last + sequences
    middle = plan[len(plan) // 3][0]
    assert list(schedule.batches(middle)) == plan[len(plan) // 3 :]
    used = {sequences for _, sequences in plan[len(plan) // 3 :]}
    assert {size.sequences for size in schedule.ahead(middle)} == used
    assert schedule.ahead(schedule.total_sequences) == [] and list(schedule.batches(schedule.total_sequences)) == []


def test_a_resumed_run_keeps_its_batches_on_another_mesh(said: list[str]) -> None:
    """On 2 shards the sizes would be others; those of 16 divide, so they stay. 6 shards do not divide them."""
    config = replace(ramp(ramp_sizes=5), model={"n_ctx": 2048}, train={"batch_tokens": 2048 * 192})
    first = batch_schedule(config, shards=16)
    assert sizes(first) != sizes(batch_schedule(config, shards=2))
    assert sizes(batch_schedule(config, 2, sizes(first))) == sizes(first) and said == []
    other = batch_schedule(config, 6, sizes(first))
    assert sizes(other) == sizes(batch_schedule(config, 6)) != sizes(first)
    assert len(said) == 1 and "do not divide over 6 data shards" in said[0]


@pytest.mark.parametrize(
    ("train", "shards", "message"),
    [
        ({}, 24, "524288 is 256 sequences of 2048 tokens, which 24 .* nearest that they do: 491520 and 540672"),
        ({}, 512, "nearest that they do: 1048576$"),
        ({"microbatch": 24}, 8, "microbatch 24 does not divide the 32 .* choose one of 1, 2, 4, 8, 16, 32"),
        ({"ramp_sizes": 1}, 8, "ramp_sizes is 1; a ramp has at least 2"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(train: dict[str, int], shards: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        batch_schedule(ramp(**train), shards)
