"""The paper's schedules as tables, in tokens: learning rate and batch size."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax.config import Config, OptimizerConfig, preset, replace
from gpt3_jax.errors import UserError
from gpt3_jax.train import optimizer
from gpt3_jax.train.schedule import BatchSchedule, batch_schedule, deviations

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
    return [(stage.first_sequence, stage.sequences) for stage in schedule.stages]


def test_the_ramp_as_a_table() -> None:
    """Six sizes: 16, 64, 112, 160, 208, 256 sequences, reached at 0, 1/5, ... of 4 billion tokens = 1,953,125
    sequences, and begun with the first batch after."""
    found = sizes(batch_schedule(ramp(ramp_stages=6), shards=1))
    assert [size for _, size in found] == [16, 64, 112, 160, 208, 256]
    reached = [1_953_125 * i / 5 for i in range(6)]
    assert found[1][0] == 390_640  # 390,625 is not a whole number of batches of 16 from 0
    for (first, _), (_, before), at in zip(found[1:], found[:-1], reached[1:], strict=True):
        assert at <= first < at + before


CASES = [
    (shards, microbatch, stages, length)
    for shards, microbatch in ((1, 0), (1, 4), (8, 0), (8, 4), (16, 16), (64, 2), (256, 0))
    for stages in (2, 3, 16, 500)
    for length in (3_000_000, 100_000_001, 4_000_000_000)
]


@pytest.mark.parametrize(("shards", "microbatch", "stages", "length"), CASES)
def test_the_ramp_is_linear_in_whole_batches(shards: int, microbatch: int, stages: int, length: int) -> None:
    config = ramp(ramp_stages=stages, ramp_tokens=length, microbatch=microbatch)
    schedule = batch_schedule(config, shards)
    assert len(schedule.stages) <= stages
    assert schedule.stages[0].first_sequence == 0
    assert schedule.stages[-1].sequences == 256
    for stage in schedule.stages:
        per_shard = stage.sequences // shards
        assert stage.sequences % shards == 0
        assert per_shard % stage.microbatches == 0
        assert not microbatch or per_shard // stage.microbatches <= microbatch
    for a, b in itertools.pairwise(schedule.stages):
        assert a.sequences < b.sequences
        assert (b.first_sequence - a.first_sequence) % a.sequences == 0
        assert b.first_sequence > a.first_sequence

    # Batch by batch over the ramp: never above the line but for the first size, which is rounded up to the mesh, and
    # never an increment (and the rounding) below it.
    increment = (256 - 16) / (stages - 1) + shards * max(1, microbatch)
    for first, stage in schedule.batches(0):
        line = 16 + 240 * min(1.0, first * 2048 / length)
        assert stage == schedule.at(first)
        assert stage.sequences <= max(line, schedule.stages[0].sequences) + 1e-6
        assert line < stage.sequences + increment + 1e-6
        if first * 2048 > length + 524_288:
            assert stage.sequences == 256
            break


def test_the_papers_sizes_start_at_32k_tokens_and_end_full() -> None:
    for name in ("gpt3-small", "gpt3-175b"):
        config = preset(name)
        stages = batch_schedule(config, shards=8).stages
        assert stages[0].sequences * 2048 == 32_768
        assert stages[-1].sequences * 2048 == config.train.batch_tokens
        assert 12 <= len(stages) <= config.train.ramp_stages
        end = stages[-1].first_sequence * 2048
        assert 0 <= end - config.train.ramp_tokens < config.train.batch_tokens


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
            ["memory.microbatch 64 is above a data shard's part of a batch of 524,288 tokens, in sequences 32:"],
        ),
        ({"ramp_start_tokens": 32_768}, 64, ["the batch ramp begins at 131,072 tokens, not at"]),
        ({"microbatch": 5}, 256, ["in sequences 1:", "the batch ramp begins at 524,288 tokens"]),
    ],
)
def test_what_is_less_than_asked_for_is_said(train: dict[str, int], shards: int, said: list[str]) -> None:
    config = ramp(**train)
    lines = list(deviations(config, batch_schedule(config, shards), shards))
    assert len(lines) == len(said)
    for line, words in zip(lines, said, strict=True):
        assert words in line


def test_batches_follow_one_another_from_anywhere_to_the_end() -> None:
    schedule = batch_schedule(ramp(ramp_stages=4, ramp_tokens=8_000_000, tokens=20_000_000), shards=8)
    assert schedule.total_sequences == math.ceil(20_000_000 / 2048)
    plan = list(schedule.batches(0))
    for (first, stage), (following, _) in itertools.pairwise(plan):
        assert following == first + stage.sequences
    last, stage = plan[-1]
    assert last < schedule.total_sequences <= last + stage.sequences
    middle = plan[len(plan) // 3][0]
    assert list(schedule.batches(middle)) == plan[len(plan) // 3 :]
    used = {stage.sequences for _, stage in plan[len(plan) // 3 :]}
    assert {stage.sequences for stage in schedule.ahead(middle)} == used
    assert schedule.ahead(schedule.total_sequences) == [] and list(schedule.batches(schedule.total_sequences)) == []


def test_a_resumed_run_keeps_its_batches_on_another_mesh() -> None:
    """On 2 shards the sizes would be others; those of 16 divide, so they stay. 6 shards do not divide them."""
    config = replace(ramp(ramp_stages=5), model={"n_ctx": 2048}, train={"batch_tokens": 2048 * 192})
    first = batch_schedule(config, shards=16)
    assert sizes(first) != sizes(batch_schedule(config, shards=2))
    said: list[str] = []
    assert sizes(batch_schedule(config, 2, sizes(first), said.append)) == sizes(first) and said == []
    other = batch_schedule(config, 6, sizes(first), said.append)
    assert sizes(other) == sizes(batch_schedule(config, 6)) != sizes(first)
    assert len(said) == 1 and "do not divide over 6 data shards" in said[0]


@pytest.mark.parametrize(
    ("train", "shards", "message"),
    [
        ({}, 24, "524288 is 256 sequences of 2048 tokens, which 24 .* nearest that they do: 491520 and 540672"),
        ({}, 512, "nearest that they do: 1048576$"),
        ({"microbatch": 24}, 8, "microbatch 24 does not divide the 32 .* choose one of 1, 2, 4, 8, 16, 32"),
        ({"ramp_stages": 1}, 8, "ramp_stages is 1; a ramp has at least 2"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(train: dict[str, int], shards: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        batch_schedule(ramp(**train), shards)
