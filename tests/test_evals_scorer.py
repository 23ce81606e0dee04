"""Log-likelihoods: equal to the model's own logits, whatever is batched, shared, sharded or shuffled."""

from __future__ import annotations

import dataclasses
import functools
import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax import model
from gpt3_jax.config import ModelConfig, ParallelConfig
from gpt3_jax.data.tokenizer import load_tokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import batches
from gpt3_jax.evals.batches import Batch, Ids, arrange, trunk_lengths
from gpt3_jax.evals.encoding import encode, windows, windows_of
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.requests import Completion, Continuation, Greedy, Text, TextScore, Window, WindowScore
from gpt3_jax.evals.scorer import Likelihood, Scorer
from gpt3_jax.model.params import Params
from gpt3_jax.parallel.mesh import make_mesh

CONFIG = ModelConfig(
    n_layers=2, d_model=64, n_heads=8, n_ctx=192, n_vocab=257, band_width=20, vocab_multiple=64, dtype="float32"
)
Request = tuple[list[int], list[int]]


@functools.cache
def params() -> Params:
    """Far from their initial values: a position or a bias that is forgotten must show."""
    initial = model.init(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: 2 * x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), initial)


def ids(rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(0, CONFIG.n_vocab, length).tolist()


def mixed() -> list[Request]:
    """Contexts with one and with several continuations, of one token and of more; some with a long common prefix."""
    rng = np.random.default_rng(0)
    requests = []
    for length, sizes in (
        (1, (3,)),
        (30, (1, 1, 1, 1)),
        (31, (4, 1, 6)),
        (90, (1,)),
        (120, (9, 2)),
        (191, (1, 1)),
        (3, (150,)),
    ):
        context = ids(rng, length)
        requests += [(context, ids(rng, size)) for size in sizes]
    for common in (ids(rng, 70), ids(rng, 70)):
        for sizes in ((2, 5), (1, 1), (3,), (1,), (2, 2, 2)):
            context = common + ids(rng, 20)
            requests += [(context, ids(rng, size)) for size in sizes]
    return requests


forward = jax.jit(model.forward, static_argnums=2)


def all_logprobs(tokens: list[int]) -> np.ndarray:
    """[T, V]. What fills up the row comes after every token, and is seen by none."""
    row = np.zeros((1, CONFIG.n_ctx), np.int32)
    row[0, : len(tokens)] = tokens
    return np.asarray(jax.nn.log_softmax(forward(params(), row, CONFIG)[0, : len(tokens)], axis=-1))


def by_logits(request: Request) -> Likelihood:
    """From all logits of the context and the continuation as one row: the definition."""
    context, continuation = request
    rows = all_logprobs((context + continuation)[:-1])[len(context) - 1 :]
    found = rows[np.arange(len(continuation)), continuation]
    return Likelihood(tuple(found.tolist()), tuple((rows.argmax(-1) == continuation).tolist()))


@functools.cache
def expected() -> list[Likelihood]:
    return [by_logits(request) for request in mixed()]


def assert_equal(found: list[Likelihood], wanted: list[Likelihood], tolerance: float = 3e-5) -> None:
    assert len(found) == len(wanted)
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(one.token_logprobs, other.token_logprobs, atol=tolerance, err_msg=f"request {i}")
        assert one.token_greedy == other.token_greedy, i


def test_likelihoods_are_those_of_the_models_logits() -> None:
    # Batches so small that both groups of contexts with a common prefix fill one.
    assert_equal(Scorer(params(), CONFIG, batch_tokens=400).score(mixed()), expected())


def test_long_contexts_are_scored_like_short_ones() -> None:
    """Trunks and prefixes of 256 positions and more have attention of their own on a CPU (`attention.triangle`)."""
    config = dataclasses.replace(CONFIG, n_ctx=640, n_layers=4)  # the last layer is apart
    weights = jax.tree.map(lambda x: 4 * x, model.init(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    common = ids(rng, 330)
    contexts = [ids(rng, 300), *(common + ids(rng, 10) for _ in range(8))]
    requests = [(context, ids(rng, 3)) for context in contexts]
    rows = np.stack([np.pad(context + asked, (0, 640))[:640] for context, asked in requests])
    logprobs = jax.nn.log_softmax(forward(weights, rows, config), axis=-1)
    for i, found in enumerate(Scorer(weights, config, batch_tokens=640).score(requests)):
        (context, continuation), first = requests[i], len(requests[i][0]) - 1
        wanted = np.asarray(logprobs[i, first : first + 3])[np.arange(3), continuation]
        np.testing.assert_allclose(found.token_logprobs, wanted, atol=3e-5, err_msg=f"{len(context)} tokens")


def test_the_likeliest_tokens_are_flagged() -> None:
    rng = np.random.default_rng(2)
    context = ids(rng, 40)
    best: list[int] = []
    for _ in range(3):
        best.append(int(all_logprobs(context + best)[-1].argmax()))
    other = [best[0], (best[1] + 1) % CONFIG.n_vocab, best[2]]
    found = Scorer(params(), CONFIG).score([(context, best), (context, other), (context, best[:1])])
    assert [one.greedy for one in found] == [True, False, True]
    assert found[1].token_greedy[:2] == (True, False)


def alike() -> list[Request]:
    """With and without a common prefix, in as few shapes as there are kinds of programs: each is compiled per mesh."""
    rng = np.random.default_rng(0)
    common = ids(rng, 70)
    contexts = [(ids(rng, 30), (1, 1, 1, 1)), (ids(rng, 31), (4, 1, 6))]
    contexts += [(common + ids(rng, 20), sizes) for sizes in ((2, 5), (1, 1), (3,), (1,), (2, 2, 2)) * 4]
    return [(context, ids(rng, size)) for context, sizes in contexts for size in sizes]


@pytest.mark.parametrize(
    ("shape", "stage"),
    [
        ((1, 8, 1), 1),
        pytest.param((1, 8, 1), 3, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), 1, marks=pytest.mark.slow),
        ((2, 2, 2), 3),
        ((1, 1, 8), 3),
    ],
)
def test_a_mesh_gives_the_likelihoods_of_one_device(shape: tuple[int, int, int], stage: int) -> None:
    replica, data, tensor = shape
    parallel = ParallelConfig(replica=replica, data=data, tensor=tensor, stage=stage)  # type: ignore[arg-type]
    requests, shards = alike(), replica * data
    made = arranged(requests, batch_tokens=1600 // shards, shards=shards, tensor=tensor)
    assert [bool(batch.prefix) for batch in made] == [True, False]
    scorer = Scorer(params(), CONFIG, make_mesh(parallel), parallel, batch_tokens=1600 // shards)
    assert_equal(scorer.score(requests), [by_logits(request) for request in requests])


def test_parameters_cast_ahead_give_the_same_likelihoods_to_the_bit() -> None:
    """What `plan --for evaluate --weights compute` reckons with."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    parallel = ParallelConfig(replica=1, data=4, tensor=2, stage=3)
    cast = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params())
    requests = [([1, 2, 3], [4, 5]), ([7] * 9, [8]), (list(range(14)), [15, 16]), ([200], [3])]
    found = [Scorer(given, config, make_mesh(parallel), parallel).score(requests) for given in (params(), cast)]
    assert found[0] == found[1]


def test_order_and_batch_size_do_not_matter() -> None:
    requests = mixed()
    order = np.random.default_rng(1).permutation(len(requests))
    found = Scorer(params(), CONFIG, batch_tokens=300).score([requests[i] for i in order])
    assert_equal(found, [expected()[i] for i in order])


# -- batches -------------------------------------------------------------------------------------------------------


def arranged(requests: list[Request], **options: Any) -> list[Batch]:
    frozen: list[tuple[Ids, Ids]] = [(tuple(context), tuple(continuation)) for context, continuation in requests]
    return list(arrange(frozen, CONFIG.n_ctx, **{"batch_tokens": 512, **options}))


def test_a_context_is_computed_once_for_its_choices() -> None:
    rng = np.random.default_rng(0)
    contexts = [ids(rng, 40) for _ in range(5)]
    made = arranged([(context, ids(rng, 3)) for context in contexts for _ in range(4)])
    trunks = [
        row[: batch.trunk][: batch.lengths_B[b]].tolist() for batch in made for b, row in enumerate(batch.tokens_BS)
    ]
    assert sorted(trunk for trunk in trunks if len(trunk) > 1) == sorted(contexts)
    assert all(batch.branches == 4 for batch in made)


def test_choices_of_one_token_need_no_tokens_of_their_own() -> None:
    rng = np.random.default_rng(0)
    made = arranged([(context, [choice]) for context in (ids(rng, 40), ids(rng, 50)) for choice in range(4)])
    assert [(batch.branches, batch.tokens_BS.shape[1]) for batch in made] == [(0, 56)]


def test_texts_that_only_begin_alike_have_rows_of_their_own() -> None:
    """All begin with end-of-text. As branches of it they would not be computed by the attention kernel."""
    rng = np.random.default_rng(0)
    made = arranged([([256], ids(rng, length)) for length in (64, 64, 60, 64)])
    assert [(batch.branches, batch.tokens_BS.shape) for batch in made] == [(0, (4, 64))]
    rows = [(context, ids(rng, 20)) for context in (ids(rng, 2), ids(rng, 8)) for _ in range(4)]
    assert [batch.branches for batch in arranged(rows)] == [0, 4]  # 2 + 4 × 19 of 84 tokens; 8 + 4 × 19 of 108


def test_a_common_prefix_is_computed_once() -> None:
    rng = np.random.default_rng(0)
    common = ids(rng, 100)
    made = arranged([(common + ids(rng, 8), ids(rng, 2)) for _ in range(20)])
    assert [len(batch.prefix) for batch in made] == [96]
    assert made[0].prefix == tuple(common[:96])
    assert made[0].trunk == 16


def test_few_users_of_a_prefix_get_no_batches_of_their_own() -> None:
    """As questions about one passage: apart they would leave the batches of each passage nearly empty."""
    rng = np.random.default_rng(0)
    passages = [ids(rng, 80) for _ in range(12)]
    made = arranged([(passage + ids(rng, 8), ids(rng, 2)) for passage in passages for _ in range(4)], batch_tokens=4096)
    assert {batch.prefix for batch in made} == {()}
    assert len(made) == 2


def test_a_prefix_that_is_a_small_part_of_the_contexts_is_not_apart() -> None:
    rng = np.random.default_rng(0)
    common = ids(rng, 70)
    made = arranged([(common + ids(rng, 100), ids(rng, 2)) for _ in range(20)])
    assert {batch.prefix for batch in made} == {()}


def test_prefixes_are_multiples_of_the_tensor_axis() -> None:
    rng = np.random.default_rng(0)
    common = ids(rng, 80)
    made = arranged([(common + ids(rng, 8), ids(rng, 2)) for _ in range(20)], tensor=3)
    assert {len(batch.prefix) for batch in made} <= {0, 72, 75, 78}
    common = ids(rng, 100)
    made = arranged([(common + ids(rng, 8), ids(rng, 2)) for _ in range(20)], tensor=3)
    assert [len(batch.prefix) for batch in made] == [96]


@pytest.mark.parametrize("lengths", [(4, 150), (1, 40)])
def test_branches_count_to_the_tokens_of_a_batch(lengths: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    requests = []
    for _ in range(30):
        context = ids(rng, int(rng.integers(5, 40)))
        requests += [(context, ids(rng, int(rng.integers(*lengths)))) for _ in range(int(rng.integers(1, 6)))]
    made = arranged(requests, batch_tokens=2048)
    assert all(batch.tokens_BS.size <= 2048 for batch in made)
    contexts = {tuple(context) for context, _ in requests}
    real = sum(map(len, contexts)) + sum(len(continuation) - 1 for _, continuation in requests)
    assert sum(batch.tokens_BS.size for batch in made) < 3 * real


def test_rows_are_not_padded_to_the_context() -> None:
    rng = np.random.default_rng(0)
    made = arranged([(ids(rng, length), ids(rng, 1)) for length in range(1, 180)])
    padded = sum(batch.tokens_BS.size for batch in made)
    assert padded < 1.5 * sum(range(1, 180))
    assert len({batch.shape for batch in made}) <= 9
    assert all(batch.tokens_BS.size <= 512 for batch in made)


def test_rows_are_as_long_as_the_longest_of_few_and_of_several_lengths_where_that_saves_enough() -> None:
    assert trunk_lengths([300, 310], 4096) == {300: 320, 310: 320}  # between 256 and 384
    assert trunk_lengths([384, 260], 4096) == {384: 384, 260: 384}
    # 40 rows of 260 tokens save 112 tokens each at 272, another 10 of 300 tokens 80 each at 304: too little.
    many = [384] * 9 + [260] * 40 + [300] * 10
    assert trunk_lengths(many, 4480) == {384: 384, 260: 272, 300: 384}
    assert trunk_lengths(many, 4481) == {384: 384, 260: 384, 300: 384}
    assert trunk_lengths([5000, 2049], 4096) == {5000: 5056, 2049: 2112}


def test_a_batch_that_is_not_full_has_rows_as_long_as_its_own_items() -> None:
    """It is a program of its own anyway."""
    rng = np.random.default_rng(0)
    contexts = [ids(rng, length) for length in (190, 150, 185, 145, 170, 188)]
    made = arranged([(context, [choice]) for context in contexts for choice in range(4)], batch_tokens=4 * 192)
    assert [batch.tokens_BS.shape for batch in made] == [(4, 192), (2, 152)]


def test_a_last_batch_is_not_filled_up_to_a_power_of_two() -> None:
    rng = np.random.default_rng(0)
    for items, rows in ((6, 6), (11, 12), (21, 24)):
        (made,) = arranged([(ids(rng, 20), [1]) for _ in range(items)], batch_tokens=1024)
        assert made.tokens_BS.shape == (rows, 20)
    (made,) = arranged([(ids(rng, 20), [1]) for _ in range(9)], batch_tokens=1024, shards=4)
    assert made.tokens_BS.shape == (12, 20)


def test_each_request_is_in_one_row() -> None:
    made = arranged(mixed(), batch_tokens=200, shards=4, tensor=4, kernel_block=8)
    found = sorted(request for batch in made for row in batch.places for request, _, _ in row)
    assert found == list(range(len(mixed())))
    assert all(batch.tokens_BS.shape[0] % 4 == 0 and batch.trunk % 8 == 0 for batch in made)


def test_many_continuations_of_a_context_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    context = ids(rng, 20)
    requests = [(context, ids(rng, 2)) for _ in range(40)]
    assert max(batch.branches for batch in arranged(requests)) == batches.MOST_BRANCHES
    assert_equal(Scorer(params(), CONFIG).score(requests[:20]), [by_logits(request) for request in requests[:20]])


# -- strings -------------------------------------------------------------------------------------------------------


def test_a_token_that_straddles_the_border_counts_to_the_continuation() -> None:
    tokenizer = load_tokenizer("bytes")
    encoded = encode("né", "é", tokenizer)
    assert (encoded.context, encoded.continuation) == (tuple("né".encode()), tuple("é".encode()))
    assert not encoded.straddles
    pairs: Any = _Pairs()
    apart = encode("abc", "def", pairs)
    assert (apart.context, apart.continuation, apart.straddles) == ((0, 1, 2), (3, 4, 5), False)
    joined = encode("abc", "cab", pairs)  # "cc" is one token: it begins in the context
    assert (joined.context, joined.continuation, joined.straddles) == ((0, 1), (6, 0, 1), True)
    assert encode("c", "c", pairs) == dataclasses.replace(joined, context=(pairs.eot,), continuation=(6,))


class _Pairs:
    """Letters a to f, and one pair."""

    pieces = ("a", "b", "c", "d", "e", "f", "cc")
    eot = 7

    def encode_array(self, text: str) -> np.ndarray:
        found, at = [], 0
        while at < len(text):
            piece = next(piece for piece in reversed(self.pieces) if text.startswith(piece, at))
            found.append(self.pieces.index(piece))
            at += len(piece)
        return np.array(found, np.uint32)

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        return np.array([len(self.pieces[i]) for i in ids], np.int64)


def test_an_empty_context_is_the_beginning_of_a_document() -> None:
    tokenizer = load_tokenizer("bytes")
    assert encode("", "ab", tokenizer).context == (tokenizer.eot,)


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 40])
def test_windows_score_each_token_once(length: int, stride: int) -> None:
    stream = list(range(1, length + 1))
    found = windows(stream, 0, 8, stride)
    assert [token for _, scored in found for token in scored] == stream
    for context, scored in found:
        # A window is a piece of the text, no longer than the context, and has as much context as fits.
        piece = [0, *stream][scored[0] - len(context) : scored[-1] + 1]
        assert [*context, *scored] == piece
        assert len(piece) - 1 == min(8, scored[-1])
        assert len(scored) <= (8 if scored[0] == 1 else stride)


def engine(**options: Any) -> Engine:
    return Engine(params(), CONFIG, load_tokenizer("bytes"), **options)


def test_a_text_is_scored_in_windows() -> None:
    text, tokenizer = "The quick brown fox jümps over the lazy dog. " * 8, load_tokenizer("bytes")
    for stride in (None, 50):
        asked = windows_of(Text(text, stride), tokenizer, CONFIG.n_ctx)
        scores = [score for _, score in engine().answer(asked) if isinstance(score, WindowScore)]
        parts = windows(list(text.encode()), tokenizer.eot, CONFIG.n_ctx, stride or CONFIG.n_ctx)
        wanted = sum(by_logits((list(context), list(scored))).logprob for context, scored in parts)
        answer = TextScore.of(text, scores)
        assert answer.logprob == pytest.approx(wanted, abs=2e-3)
        assert dataclasses.astuple(answer)[1:] == (len(text.encode()), len(text.encode()), 72)


def test_windows_of_texts_are_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = windows_of(Text("two wörds and more " * 25, stride=100), load_tokenizer("bytes"), CONFIG.n_ctx)
    asked += windows_of(Text("short"), load_tokenizer("bytes"), CONFIG.n_ctx)
    assert len(asked) > 4
    streams: list[int] = []
    stream = Scorer.stream

    def counted(self: Scorer, requests: Any) -> Any:
        streams.append(len(requests))
        return stream(self, requests)

    monkeypatch.setattr(Scorer, "stream", counted)
    assert sorted(dict(engine().answer(asked))) == list(range(len(asked)))
    assert [n for n in streams if n] == [len(asked)]
    with pytest.raises(TypeError, match="asked for in windows"):
        list(engine().answer([*asked, Text("short")]))


def test_an_engine_lets_go_of_its_parameters_and_takes_others() -> None:
    def held() -> int:
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    of_parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(params()))
    before_all = held()
    own = jax.tree.map(lambda x: x + 0.0, params())
    made = Engine(own, CONFIG, load_tokenizer("bytes"))
    requests: list[Any] = [Continuation("ab", "cd"), Completion("ab", max_tokens=2, decoding=Greedy())]
    before = dict(made.answer(requests))
    del own
    assert held() - before_all > 0.9 * of_parameters
    made.release()
    assert held() - before_all < 0.1 * of_parameters
    made.use(params())
    assert dict(made.answer(requests)) == before


@pytest.mark.parametrize(
    ("dtype", "parallel"), [("bfloat16", None), ("float32", ParallelConfig(replica=2, data=2, tensor=2, stage=3))]
)
def test_an_engine_that_owns_its_parameters_holds_them_once(dtype: Any, parallel: ParallelConfig | None) -> None:
    """Whether it scores or generates; moved there and back they are the same bits, and so are the answers."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    mesh = None if parallel is None else make_mesh(parallel)
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params())
    requests: list[Any] = [Continuation("ab", "cd"), Completion("ab", max_tokens=2, decoding=Greedy())]
    beside = Engine(cast, config, load_tokenizer("bytes"), mesh, parallel)
    expected = dict(beside.answer(requests))
    of_generation = jax.tree.leaves(beside._uses.generator()._weights)
    once = sum(shard.data.nbytes for leaf in of_generation for shard in leaf.addressable_shards)
    del beside, of_generation
    there = {id(array) for array in jax.live_arrays()}

    def held() -> int:
        gc.collect()
        new = (array for array in jax.live_arrays() if id(array) not in there)
        return sum(shard.data.nbytes for array in new for shard in array.addressable_shards)

    owner = Engine(jax.tree.map(jnp.copy, cast), config, load_tokenizer("bytes"), mesh, parallel, consume=True)
    scoring = held()
    assert dict(owner.answer(requests)) == expected
    assert once <= held() < 1.02 * once
    assert dict(owner.answer(requests)) == expected
    assert dict(owner.answer(requests[:1])) == {0: expected[0]}
    assert held() == scoring
    owner.release()
    assert held() < 0.05 * once


def test_weights_lost_in_a_move_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    config = dataclasses.replace(CONFIG, dtype="float32")
    owner = Engine(jax.tree.map(jnp.copy, params()), config, load_tokenizer("bytes"), consume=True)
    scored, free = Continuation("ab", "cd"), Completion("ab", max_tokens=2, decoding=Greedy())
    expected = dict(owner.answer([scored]))
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr("gpt3_jax.evals.one_set.Generator", full)
        list(owner.answer([free]))
    for request in (scored, free):
        with pytest.raises(RunError, match="weights are gone"):
            list(owner.answer([request]))
    owner.release()
    owner.use(params())
    assert dict(owner.answer([scored])) == expected


def test_the_engine_answers_every_request_in_its_own_terms() -> None:
    requests: list[Any] = [
        Continuation("ab", "cd"),
        Window((256,), (120,)),
        Continuation("ab", "é"),
        Continuation("", "cd"),
    ]
    answers: dict[int, Any] = dict(engine().answer(requests))
    assert sorted(answers) == [0, 1, 2, 3]
    wanted = by_logits(([97, 98], [99, 100]))
    assert answers[0].logprob == pytest.approx(wanted.logprob, abs=1e-4)
    assert (answers[2].tokens, answers[3].context_tokens) == (2, 1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Continuation("a", ""), "continuation of 'a' is empty"),
        (Continuation("a" * 190, "bcde"), "193 tokens long without the last; the model's context, n_ctx, is 192"),
        (Text(""), "a text to score is empty"),
        (Text("a", stride=0), "the stride is 0; expected 1 to the model's context, 192"),
        (Text("a", stride=193), "the stride is 193"),
    ],
)
def test_what_cannot_be_scored_is_said(request_: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        if isinstance(request_, Text):
            windows_of(request_, load_tokenizer("bytes"), CONFIG.n_ctx)
        list(engine().answer([request_]))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([], [1]), "the context of request 0 has no tokens"),
        (([1], []), "the continuation of request 0 has no tokens"),
        (([1], [257]), "the continuation of request 0 has token id 257; expected 0 to 256"),
        (([-1], [1]), "the context of request 0 has token id -1"),
        (([1.5], [1]), "ids of type float64"),
        (([1] * 192, [1, 1]), r"192 \+ 2 tokens; the model's context, n_ctx, is 192"),
    ],
)
def test_wrong_ids_are_said(request_: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Scorer(params(), CONFIG).score([request_])
