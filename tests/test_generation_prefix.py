"""What prompts share is computed once, and gives what each prompt gives by itself."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax import model
from gpt3_jax.config import ModelConfig, ParallelConfig
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.generation import Beam, Decoding, Generator, Greedy, Sample
from gpt3_jax.inference import generate as programs
from gpt3_jax.inference.lengths import shared_length
from gpt3_jax.model.decode import decode_step, decode_weights, prefill, read_prefix
from gpt3_jax.model.params import Params
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import make_mesh

BAND = 8
CONFIG = ModelConfig(
    n_layers=2, d_model=64, n_heads=8, n_ctx=96, n_vocab=257, vocab_multiple=64, band_width=BAND, init_std=0.3,
    dtype="float32",
)  # fmt: skip
CPU = Local("cpu")


@functools.cache
def params() -> Params:
    made = jax.jit(model.init, static_argnums=0)(CONFIG, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(made))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), made)


@pytest.mark.parametrize("shared", [1, BAND - 1, BAND, BAND + 5])
@pytest.mark.parametrize("pattern", [("dense",), ("banded",), ("dense", "banded")], ids="-".join)
def test_prompts_behind_a_prefix_are_read_as_whole_prompts(pattern: Any, shared: int) -> None:
    config = dataclasses.replace(CONFIG, attention_pattern=pattern)
    weights = decode_weights(params(), config)
    tokens = jax.random.randint(jax.random.key(2), (4, 40), 0, 257)
    tokens = tokens.at[:, :shared].set(tokens[0, :shared])
    lengths = jnp.array([1, 3, 10, 6])
    whole, cache = prefill(weights, tokens[:, : shared + 10], shared + lengths, config, CPU, 48)
    prefix = read_prefix(weights, tokens[0, :shared], config, CPU)
    found, cache_behind = prefill(weights, tokens[:, shared : shared + 10], lengths, config, CPU, 48, prefix)
    step = jax.jit(functools.partial(decode_step, config=config, local=CPU))
    for t in range(BAND + 2):
        scale = float(jnp.abs(whole).max())
        np.testing.assert_allclose(found, whole, atol=1e-5 * scale, err_msg=f"step {t}")
        np.testing.assert_array_equal(cache_behind.lengths_B, cache.lengths_B)
        following = tokens[np.arange(4), shared + lengths + t]
        whole, cache = step(weights, cache, following)
        found, cache_behind = step(weights, cache_behind, following)


COMMON = "Q: what is 130 plus 24?\nA: 154\n\n" * 2 + "Q: "  # 64 tokens are shared after rounding down
PROMPTS = [list((COMMON + rest).encode()) for rest in ("a", "the quick", "5 plus 9?", "5 plus 8?", "z" * 20)]
DECODINGS: dict[str, Decoding] = {"greedy": Greedy(), "sampling": Sample(0.9, 40, 0.95, seed=3), "beams": Beam(width=3)}


def prefixes_read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    read: list[list[int]] = []
    begin_prefix = programs.begin_prefix

    def recorded(weights: Any, tokens_P: Any, place: Any) -> Any:
        read.append(tokens_P.tolist())
        return begin_prefix(weights, tokens_P, place)

    monkeypatch.setattr(programs, "begin_prefix", recorded)
    return read


@functools.cache
def alone(decoding: str, tokens: int = 8) -> dict[int, Any]:
    """Each prompt by itself, which shares nothing."""
    one = Generator(params(), CONFIG, ByteTokenizer())
    return {i: dict(one.complete([ids], (), tokens, DECODINGS[decoding]))[0] for i, ids in enumerate(PROMPTS)}


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("mesh", [None, (1, 2, 4)], ids=str)
def test_a_shared_prefix_is_read_once_and_changes_nothing(
    decoding: str, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = prefixes_read(monkeypatch)
    over = None if mesh is None else make_mesh(ParallelConfig(replica=mesh[0], data=mesh[1], tensor=mesh[2]))
    generator = Generator(params(), CONFIG, ByteTokenizer(), over)
    found = dict(generator.complete(PROMPTS * 9, (), 8, DECODINGS[decoding]))  # 45 rows: several batches
    assert read == [list(COMMON.encode())[:64]]
    for i, answer in found.items():
        expected = alone(decoding)[i % len(PROMPTS)]
        assert answer.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert dataclasses.replace(answer, logprob=expected.logprob) == expected


def test_in_bf16_prompts_change_one_another_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one token the likelihood: rounding may change the likeliest one, but hardly how likely it is."""
    read = prefixes_read(monkeypatch)
    generator = Generator(params(), dataclasses.replace(CONFIG, dtype="bfloat16"), ByteTokenizer())
    together = dict(generator.complete(PROMPTS, (), 1, Greedy()))
    assert len(read) == 1
    for i, ids in enumerate(PROMPTS):
        (one,) = dict(generator.complete([ids], (), 1, Greedy())).values()
        assert together[i].logprob == pytest.approx(one.logprob, abs=0.15)
        assert one.logprob == pytest.approx(alone("greedy", 1)[i].logprob, abs=0.15)
    assert len(read) == 1, "one row shares nothing"
    sampled = [dict(generator.complete(PROMPTS, (), 8, DECODINGS["sampling"])) for _ in range(2)]
    assert sampled[0] == sampled[1], "the same prompts, the same texts"


def test_samples_of_a_prompt_read_it_once_and_other_prompts_another(monkeypatch: pytest.MonkeyPatch) -> None:
    read = prefixes_read(monkeypatch)
    generator = Generator(params(), CONFIG, ByteTokenizer())
    texts = [piece.text for piece in generator.stream([COMMON, COMMON[::-1]], max_tokens=4, samples=16, seed=1)]
    assert len(texts) == 2 * 16 * 4
    # All 67 tokens but the last could be shared; of the second prompt's samples the same.
    assert [len(ids) for ids in read] == [64, 64] and read[0] != read[1]
    read.clear()
    list(generator.complete([PROMPTS[0]], (), 2, Greedy()))
    list(generator.complete([PROMPTS[0], [1, *PROMPTS[0]]], (), 2, Greedy()))
    assert not read, "one row, or nothing in common"


def test_lengths_are_rounded_down() -> None:
    lengths = (0, 63, 64, 95, 1000, 2047, 2048, 5000)
    assert [shared_length(n, n + 1) for n in lengths] == [0, 0, 64, 64, 768, 1792, 2048, 4608]


def test_a_small_part_of_the_prompts_is_not_shared() -> None:
    """Half of the longest prompt at least, after rounding down."""
    assert [shared_length(64, longest) for longest in (65, 128, 129, 2000)] == [64, 64, 0, 0]
    assert [shared_length(1000, longest) for longest in (1536, 1537)] == [768, 0]
