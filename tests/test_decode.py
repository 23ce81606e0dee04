"""Generation's forward pass against training's, the sampler against its definition, the generator against itself."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from xla_flags import user_fusions

from gpt3_jax import model
from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.generation import Beam, Generator, Greedy, Piece, Sampling
from gpt3_jax.generation import generator as generation
from gpt3_jax.inference import generate as programs
from gpt3_jax.inference import lengths, placed
from gpt3_jax.inference.lengths import cache_length
from gpt3_jax.model import cpu
from gpt3_jax.model.decode import Cache, decode_step, decode_weights, init_cache, prefill
from gpt3_jax.model.params import Params
from gpt3_jax.model.sampling import _drawn, _likeliest, _passed, sample
from gpt3_jax.model.stored import Stored
from gpt3_jax.parallel.collectives import Local

CTX, BAND, VOCAB = 40, 8, 61
BASE = ModelConfig(
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_ctx=CTX,
    n_vocab=VOCAB,
    vocab_multiple=16,
    band_width=BAND,
    init_std=0.1,
    dtype="float32",
)
PATTERNS: dict[str, tuple[Literal["dense", "banded"], ...]] = {
    "dense": ("dense",),
    "banded": ("banded",),
    "alternating": ("dense", "banded"),
}

forward = jax.jit(model.forward, static_argnums=2)
step = jax.jit(functools.partial(decode_step, local=Local("cpu")), static_argnames="config", donate_argnames="cache")


def architecture(pattern: str, **fields: Any) -> ModelConfig:
    return dataclasses.replace(BASE, attention_pattern=PATTERNS[pattern], **fields)


@functools.cache
def made(config: ModelConfig) -> Params:
    return jax.jit(_made, static_argnums=0)(config)


def _made(config: ModelConfig) -> Params:
    """Initial parameters with random values where init has constants: a bias forgotten in decoding must show."""
    params = model.init(config, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))

    def disturb(leaf: jax.Array) -> jax.Array:
        return leaf + 0.1 * jax.random.normal(next(keys), leaf.shape)

    blocks = jax.tree.map(disturb, params.blocks)
    return dataclasses.replace(
        params, blocks=blocks, ln_f_scale=disturb(params.ln_f_scale), ln_f_bias=disturb(params.ln_f_bias)
    )


def tokens(rows: int) -> jax.Array:
    return jax.random.randint(jax.random.key(2), (rows, CTX), 0, VOCAB)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_decoding_equals_the_full_forward_pass_at_every_position(pattern: str) -> None:
    config = architecture(pattern)
    weights, given = decode_weights(made(config), config), tokens(1)
    expected = forward(made(config), given, config)
    cache = init_cache(config, 1, "cpu")
    for t in range(CTX):
        logits, cache = step(weights, cache, given[:, t], config)
        np.testing.assert_allclose(logits, expected[:, t], atol=1e-5, err_msg=f"position {t}")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_of_different_lengths_go_on_from_their_own_prompts(pattern: str) -> None:
    config = architecture(pattern)
    weights, given = decode_weights(made(config), config), tokens(5)
    expected = forward(made(config), given, config)
    lengths = np.array([1, BAND - 1, BAND, BAND + 1, 20])
    rows = np.arange(len(lengths))
    # What stands behind a prompt must not matter.
    prompts = jnp.where(jnp.arange(20) < lengths[:, None], given[:, :20], VOCAB - 1)
    logits, cache = prefill(weights, prompts, jnp.asarray(lengths), config, Local("cpu"), 36)
    for t in range(16):
        np.testing.assert_allclose(logits, expected[rows, lengths + t - 1], atol=1e-5, err_msg=f"step {t}")
        logits, cache = step(weights, cache, given[rows, lengths + t], config)


def test_decoding_in_bf16_is_the_full_forward_pass_up_to_its_rounding() -> None:
    config = architecture("alternating", dtype="bfloat16")
    weights, given = decode_weights(made(config), config), tokens(2)
    expected = forward(made(config), given, config)
    exact = forward(made(config), given, dataclasses.replace(config, dtype="float32"))
    rounding = float(jnp.max(jnp.abs(expected - exact)))
    logits, cache = prefill(weights, given[:, :10], jnp.array([10, 10]), config, Local("cpu"))
    for t in range(10, CTX):
        np.testing.assert_allclose(logits, expected[:, t - 1], atol=2 * rounding)
        logits, cache = step(weights, cache, given[:, t], config)


def test_a_banded_layer_caches_its_band_and_a_dense_one_the_context() -> None:
    config = architecture("alternating")
    slots = [keys.shape for keys in init_cache(config, 3, "cpu").keys]
    assert slots == [(3 * 4, CTX, 8), (3 * 4, BAND, 8)]
    assert [keys.shape[1] for keys in init_cache(config, 3, "cpu", capacity=4).keys] == [4, 4]
    _, cache = prefill(decode_weights(made(config), config), tokens(3)[:, :16], jnp.full(3, 16), config, Local("cpu"))
    assert [(keys.shape, values.shape) for keys, values in zip(cache.keys, cache.values, strict=True)] == [
        (shape, shape) for shape in slots
    ]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_writes_into_its_cache_and_copies_none_of_it(dtype: str, batch: int) -> None:
    config = architecture("alternating", n_ctx=4096, dtype=dtype)
    weights, cache = decode_weights(made(config), config), init_cache(config, batch, "cpu")
    compiled = step.lower(weights, cache, jnp.zeros(batch, jnp.int32), config).compile(user_fusions())
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None
    dense = cache.keys[0]
    assert memory.alias_size_in_bytes >= 2 * dense.nbytes
    assert memory.temp_size_in_bytes < dense.nbytes // 2
    # What makes an array as large as a layer's cache is the writing of a position, once for each row; XLA does it in
    # place. (A scatter, or a second shape of the same array, shows here as copies.)
    entry = text.partition("\nENTRY")[2]
    sizes = [line for line in entry.splitlines() if f"= f32[{','.join(map(str, dense.shape))}]" in line]
    made_here = [line for line in sizes if " parameter(" not in line and " bitcast(" not in line]
    assert len(made_here) == 2 * batch, made_here
    assert all("dynamic-update-slice" in line for line in made_here)


def test_prefill_refuses_more_than_the_cache_holds() -> None:
    config = architecture("dense")
    weights = decode_weights(made(config), config)
    with pytest.raises(ValueError, match="capacity 8"):
        prefill(weights, tokens(1)[:, :16], jnp.array([16]), config, Local("cpu"), 8)


def draw(
    logits: np.ndarray, draws: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Frequencies of the tokens in `draws` samples of one distribution."""
    drawn = jitted_sample(
        jnp.tile(jnp.asarray(logits, jnp.float32), (draws, 1)),
        jax.random.key(seed),
        jnp.arange(draws),
        jnp.full(draws, 7),
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
    )
    return np.bincount(np.asarray(drawn), minlength=len(logits)) / draws


jitted_sample = jax.jit(sample)
LOGITS = np.log([0.05, 0.4, 0.3, 0.15, 0.1])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.05, 0.4, 0.3, 0.15, 0.1]),
        ({"temperature": 0.5}, np.square([0.05, 0.4, 0.3, 0.15, 0.1]) / 0.285),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 99}, [0.05, 0.4, 0.3, 0.15, 0.1]),
        ({"top_p": 1e-6}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.75}, [0, 8 / 17, 6 / 17, 3 / 17, 0]),
        # Of the two that top-k leaves, the first has 4/7 of the probability: top-p counts in that.
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0, 0]),
        ({"top_k": 2, "top_p": 0.6}, [0, 4 / 7, 3 / 7, 0, 0]),
    ],
)
def test_samples_have_the_distribution_that_is_asked_for(settings: dict[str, Any], expected: list[float]) -> None:
    if settings.get("top_p") == 0.75:
        settings = {"top_p": 0.76}  # past the rounding of 0.4 + 0.3 + ...
    found = draw(LOGITS, 20_000, **settings)
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert not np.any(found[np.asarray(expected) == 0])


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e-3])
def test_cutoffs_equal_sorting(scale: float) -> None:
    """The bisection over bits, against a sorted vocabulary with values of both signs."""
    logits = scale * np.random.default_rng(0).normal(size=997).astype(np.float32)
    order = np.argsort(-logits)
    probability = np.exp(np.float64(logits[order]) - logits.max())
    probability /= probability.sum()
    for top_k in (1, 3, 50, 996):
        drawn = np.flatnonzero(draw(logits, 300, top_k=top_k))
        assert set(drawn) <= set(order[:top_k])
    for top_p in (0.1, 0.5, 0.9):
        kept = int(np.searchsorted(np.cumsum(probability), top_p)) + 1
        drawn = np.flatnonzero(draw(logits, 300, top_p=top_p))
        assert set(drawn) <= set(order[:kept])
    if scale == 1.0:
        assert set(np.flatnonzero(draw(logits, 300, top_k=3))) == set(order[:3])


def test_a_draw_is_the_token_at_which_the_cumulated_probability_passes_its_number() -> None:
    """Over more than one block of tokens; those without probability are never drawn, at no border."""
    logits = 2 * np.random.default_rng(0).normal(size=1000).astype(np.float32)
    logits[[0, 1, 255, 256, 600, *range(700, 800), 999]] = -np.inf
    probability = np.exp(np.float64(logits))
    cumulated = np.cumsum(probability / probability.sum())
    uniform = np.array([0, *(np.arange(2000) + 0.5) / 2000, 1 - 2**-23], np.float32)
    drawn = np.asarray(jax.jit(_drawn)(jnp.tile(logits, (len(uniform), 1)), uniform))
    assert np.isfinite(logits[drawn]).all()
    before = np.r_[0, cumulated][drawn]
    assert (before <= uniform + 1e-6).all() and (uniform < cumulated[drawn] + 1e-6).all()


def test_no_place_without_weight_is_drawn_in_whatever_order_sums_are_made() -> None:
    """Sums as a GPU may round them: they move over places without weight, up and down."""
    weights = np.tile(np.array([0, 1, 0, 0, 1, 0], np.float32), (5, 1))
    sums = np.tile(np.array([1e-7, 1, 1 + 3e-7, 1 - 3e-7, 2, 2 + 1e-6], np.float32), (5, 1))
    wanted = jnp.array([[-1e-7], [0], [1], [2], [3]])
    places, _ = _passed(jnp.asarray(weights), jnp.asarray(sums), wanted)
    assert places[:, 0].tolist() == [1, 1, 4, 4, 4]


def test_the_likeliest_is_the_first_and_a_nan_before_all() -> None:
    nan, inf = np.nan, np.inf
    rows = jnp.array([[1, 3, 3, 2], [-inf, -inf, 1, 0], [nan, 9, 9, 9], [1, nan, 5, nan], [-inf] * 4, [0, inf, 1, inf]])
    np.testing.assert_array_equal(_likeliest(rows), jnp.argmax(rows, axis=-1))


def test_a_draw_depends_on_seed_sample_and_position_alone() -> None:
    logits = jax.random.normal(jax.random.key(5), (1, 50))

    def one(seed: int, number: int, position: int, rows: int = 1, row: int = 0) -> int:
        numbers, positions = np.full(rows, 90), np.full(rows, 91)
        numbers[row], positions[row] = number, position
        others = jax.random.normal(jax.random.key(6), (rows, 50)).at[row].set(logits[0])
        key = jax.random.key(seed)
        drawn = jitted_sample(
            others, key, jnp.asarray(numbers), jnp.asarray(positions), jnp.float32(1), jnp.int32(0), jnp.float32(1)
        )
        return int(drawn[row])

    alone = [one(0, n, p) for n in range(4) for p in range(4)]
    assert alone == [one(0, n, p, rows=3, row=2) for n in range(4) for p in range(4)]
    assert len(set(alone)) > 4
    assert alone != [one(1, n, p) for n in range(4) for p in range(4)]
    assert alone != [one(0, p, n) for n in range(4) for p in range(4)]


BYTES = dataclasses.replace(architecture("alternating"), n_vocab=257, init_std=0.3)


@functools.cache
def generator() -> Generator:
    return Generator(made(BYTES), BYTES, ByteTokenizer())


def complete(prompts: list[str], **options: object) -> list[str]:
    samples = int(options.get("samples", 1))  # type: ignore[call-overload]
    texts = [""] * (len(prompts) * samples)
    for piece in generator().stream(prompts, **options):  # type: ignore[arg-type]
        texts[piece.prompt * samples + piece.sample] += piece.text
    return texts


def reference(prompt: str, count: int) -> bytes:
    """Greedy completion by the whole forward pass, token after token."""
    ids = list(prompt.encode())
    for _ in range(count):
        padded = jnp.asarray([ids + [0] * (CTX - len(ids))])  # one shape; the future does not matter
        ids.append(int(jnp.argmax(forward(made(BYTES), padded, BYTES)[0, len(ids) - 1])))
    return bytes(ids[len(prompt.encode()) :])


PROMPTS = ["a", "the quick brown", "GPT", "0123456789", "ü", "xyz" * 5]


def test_greedy_completions_in_a_batch_are_those_of_each_prompt_alone() -> None:
    batch = complete(PROMPTS, max_tokens=12, sampling=Sampling(temperature=0))
    assert batch == [reference(prompt, 12).decode(errors="replace") for prompt in PROMPTS]
    assert batch[:2] == [complete([p], max_tokens=12, sampling=Sampling(temperature=0))[0] for p in PROMPTS[:2]]
    assert len(set(batch)) > 3


def test_weights_are_turned_for_one_row_and_back_for_several() -> None:
    one = Generator(made(BYTES), BYTES, ByteTokenizer())
    before = jax.tree.map(np.asarray, one._weights)
    for prompts in (["GPT"], ["GPT", "a"], ["GPT"]):
        found = list(one.stream(prompts, max_tokens=3, sampling=Sampling(temperature=0)))
        text = "".join(piece.text for piece in found if piece.prompt == 0)
        assert text == reference("GPT", 3).decode(errors="replace")
        kernels = [one._weights.blocks[1].mlp_up_kernel, one._weights.blocks[0].qkv_kernel]
        assert [isinstance(kernel, Stored) for kernel in kernels] == [len(prompts) == 1] * 2
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(one._weights)) == sum(
            leaf.nbytes for leaf in jax.tree.leaves(before)
        )
    back = placed.order_for(one._weights, BYTES, "cpu", 2)
    jax.tree.map(np.testing.assert_array_equal, back, before)


def test_the_last_group_of_a_call_leaves_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three prompts, two at a time: the third is read from weights in the order for several rows, in beams too."""
    monkeypatch.setattr(generation, "_ROWS", 2)
    one = Generator(made(BYTES), BYTES, ByteTokenizer())
    greedy, orders = Sampling(temperature=0), set()
    texts = [""] * 3
    for piece in one.stream(PROMPTS[:3], max_tokens=3, sampling=greedy):
        texts[piece.prompt] += piece.text
        orders.add(isinstance(one._weights.blocks[0].qkv_kernel, Stored))
    assert texts == [reference(prompt, 3).decode(errors="replace") for prompt in PROMPTS[:3]]
    encoded = [list(prompt.encode()) for prompt in PROMPTS[:3]]
    for decoding in (Greedy(), Beam(1)):
        for _ in one.complete(encoded, (), 3, decoding):
            orders.add(isinstance(one._weights.blocks[0].qkv_kernel, Stored))
    assert orders == {False}
    assert list(one.stream([], sampling=greedy)) == []


def test_a_cache_that_grows_gives_what_one_of_the_whole_length_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is read into a cache of 32; the dense layer's becomes one of 40, the banded layer's stays its band."""
    prompts, beam = ["the quick brown", "GPT"], Beam(2)
    encoded = [list(prompt.encode()) for prompt in prompts]
    beams = dict(generator().complete(encoded, (), 24, beam))
    monkeypatch.setattr(lengths, "_SHORTEST_CACHE", 8)
    grown: list[int] = []
    grow = programs.grow

    def counted(cache: Cache, config: ModelConfig, capacity: int) -> Cache:
        grown.append(capacity)
        return grow(cache, config, capacity)

    monkeypatch.setattr(programs, "grow", counted)
    found = complete(prompts, max_tokens=24, sampling=Sampling(temperature=0))
    assert found == [reference(prompt, 24).decode(errors="replace") for prompt in prompts]
    for i, completed in generator().complete(encoded, (), 24, beam):
        assert completed.text == beams[i].text and completed.logprob == pytest.approx(beams[i].logprob, abs=1e-4)
    assert grown == [40, 40]
    monkeypatch.setattr(cpu, "grows_caches", lambda platform: False)  # as on other platforms
    dict(generator().complete(encoded, (), 24, beam))
    assert grown == [40, 40]


def test_a_banded_layers_cache_grows_to_its_band() -> None:
    config = dataclasses.replace(BYTES, band_width=36)
    fill = np.random.default_rng(0).normal
    given = jax.tree.map(lambda leaf: fill(size=leaf.shape).astype(leaf.dtype), init_cache(config, 2, "cpu", 32))
    grown = programs.grow(jax.tree.map(jnp.asarray, given), config, 40)
    assert {one.shape[1] for one in grown.keys} == {36, 40}
    for one, other in zip(grown.keys + grown.values, given.keys + given.values, strict=True):
        np.testing.assert_array_equal(one[:, :32], other)
        assert not one[:, 32:].any()


def test_caches_have_few_lengths() -> None:
    assert [cache_length(n, 1280) for n in (1, 512, 513, 1024, 1025, 1280)] == [512, 512, 1024, 1024, 1280, 1280]
    assert cache_length(1, 48) == 48


def test_the_same_seed_gives_the_same_text_whatever_else_is_in_the_batch() -> None:
    many = complete(PROMPTS[:3] * 2, max_tokens=10, samples=3, seed=4)  # 18 completions: two batches
    assert many[:9] == many[9:]
    assert many[3:5] == complete([PROMPTS[1]], max_tokens=10, samples=2, seed=4)
    assert len(set(many)) == 9
    assert many[3:5] != complete([PROMPTS[1]], max_tokens=10, samples=2, seed=5)


def test_prompts_do_not_echo_each_other() -> None:
    """So hot that the draw alone decides: with the same random numbers the texts would be the same."""
    first, second = complete(["a", "b"], max_tokens=10, sampling=Sampling(temperature=1e6), seed=4)
    assert first != second


class Scripted(Generator):
    """A generator whose model says what it is told to: its logits are those of a list of tokens, by position."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: list[int]) -> None:
        super().__init__(made(BYTES), BYTES, ByteTokenizer())
        wanted = jnp.asarray(script + [0] * CTX)

        def say(cache: Cache) -> jax.Array:
            return jax.nn.one_hot(wanted[cache.lengths_B - 1], 257)

        monkeypatch.setattr(programs, "prefill", lambda *args: (say(cache := prefill(*args)[1]), cache))
        monkeypatch.setattr(programs, "decode_step", lambda *args: (say(cache := decode_step(*args)[1]), cache))
        jax.clear_caches()


def pieces(generator: Generator, prompt: str = "a", max_tokens: int = 10) -> list[Piece]:
    return list(generator.stream([prompt], max_tokens=max_tokens, sampling=Sampling(temperature=0)))


@pytest.fixture(autouse=True)
def _forget_scripts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> object:
    yield
    if "monkeypatch" in request.fixturenames and "script" in request.node.name:
        jax.clear_caches()


def test_script_only_whole_characters_are_yielded(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [*"é€😀".encode(), 0xFF, *b"x", 0xE2, 0x82]
    found = pieces(Scripted(monkeypatch, script), max_tokens=len(script))
    assert [piece.text for piece in found] == ["", "é", "", "", "€", "", "", "", "😀", "\ufffd", "x", "", "\ufffd"]
    assert [piece.tokens for piece in found] == list(range(1, 14))
    assert [piece.finish for piece in found] == [None] * 12 + ["max_tokens"]


def test_script_ends_at_end_of_text_which_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pieces(Scripted(monkeypatch, [*b"hi", 0xE2, 256, *b"no"]))
    assert [piece.text for piece in found] == ["h", "i", "", "\ufffd"]
    assert (found[-1].tokens, found[-1].finish) == (3, "end_of_text")


@pytest.mark.parametrize("length", [CTX - 1, CTX - 5])
def test_a_completion_ends_where_the_context_is_full(length: int) -> None:
    found = list(generator().stream(["a" * length], max_tokens=100, sampling=Sampling(temperature=0)))
    assert len(found) == CTX - length
    assert found[-1].finish == "context"
    expected = reference("a" * length, CTX - length).decode(errors="replace")
    assert "".join(piece.text for piece in found) == expected


def test_an_empty_prompt_begins_a_document() -> None:
    found = complete([""], max_tokens=1, sampling=Sampling(temperature=0))
    logits = forward(made(BYTES), jnp.array([[256] + [0] * (CTX - 1)]), BYTES)
    assert found == [bytes([int(jnp.argmax(logits[0, 0]))]).decode(errors="replace")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": ["fine", "a" * CTX]}, "prompt 2 is 40 tokens long; the model's context is 40"),
        ({"prompts": ["fine", [1, 2]]}, "prompt 2 is of type list; expected text"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_computed(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generator().stream(**({"prompts": ["a"]} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}])
def test_impossible_sampling_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(field))):
        Sampling(**field)  # type: ignore[arg-type]


def test_a_tokenizer_of_another_model_is_refused() -> None:
    small = dataclasses.replace(BYTES, n_vocab=200)
    with pytest.raises(UserError, match="257 tokens but the model only 200"):
        Generator(made(small), small, ByteTokenizer())
