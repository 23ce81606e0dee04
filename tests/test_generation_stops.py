"""Stop strings, and completions as answers: by hand, and against the whole forward pass."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax import model
from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.generation import Beam, Completed, Generator, Greedy, Piece, Sample, Sampling
from gpt3_jax.generation.beams import BeamSearch
from gpt3_jax.generation.completion import Row
from gpt3_jax.generation.stops import StopStrings
from gpt3_jax.inference import generate as programs
from gpt3_jax.inference.lengths import padded_length

EURO = "€".encode()
PIECES = [b"a", b"b", b"\n", b"ab", b"b\nA", b"\n\n", b"Q:", b" ", EURO[:1], EURO[1:], b"x"]


class Pieces(Tokenizer):
    """A few tokens of several bytes, and end-of-text."""

    def __init__(self) -> None:
        super().__init__("pieces", dict(enumerate(PIECES)), eot=len(PIECES), pattern="")

    def encode_array(self, text: str) -> np.ndarray:
        return np.array([PIECES.index(c.encode()) for c in text], np.uint32)


TOKENIZER = Pieces()
EOT = TOKENIZER.eot


def grown(tokens: Sequence[bytes | int], stop: str | Sequence[str], max_tokens: int = 20) -> tuple[list[Piece], Row]:
    """The pieces of a completion of these tokens."""
    row = Row(TOKENIZER, 0, 0, [0], max_tokens, 40, StopStrings(stop))
    pieces: list[Piece] = []
    for token in tokens:
        assert not row.finished, "goes on after its end"
        pieces.append(row.add(PIECES.index(token) if isinstance(token, bytes) else token, -0.5))
    return pieces, row


@pytest.mark.parametrize(
    ("tokens", "stop", "texts", "finish"),
    [
        ([b"a", b"\n"], ["\n"], ["a", ""], "stop"),
        # It begins and ends inside a token.
        ([b"a", b"b\nA"], ["\n"], ["a", "b"], "stop"),
        # It straddles tokens: what may begin it is held back, and comes when it does not.
        ([b"a", b"\n", b"\n"], ["\n\n"], ["a", "", ""], "stop"),
        ([b"a", b"\n", b"a", b"\n\n"], ["\n\n"], ["a", "", "\na", ""], "stop"),
        ([b"\n", b"Q:"], ["\nQ:", "zzz"], ["", ""], "stop"),
        ([b"\n", b"a", b"x", b"a"], ["\na\n"], ["", "", "\nax", "a"], None),
        # Inside a character.
        ([b"a", EURO[:1], EURO[1:]], ["€"], ["a", "", ""], "stop"),
        ([EURO[:1], EURO[1:], b" "], ["€€"], ["", "", "€ "], None),
        # The one that is complete first ends it, whatever the tokens are.
        ([b"ab"], ["abx", "b"], ["a"], "stop"),
        ([b"a", b"b"], ["abx", "b"], ["", "a"], "stop"),
        ([b"b\nA"], ["b\nA", "\n"], ["b"], "stop"),
        ([b"a", b"b"], ["ab", "b"], ["", ""], "stop"),
        # At the end what was held back is text.
        ([b"a", b"\n", EOT], ["\n\n"], ["a", "", "\n"], "end_of_text"),
        ([b"a"] * 19 + [b"\n"], ["\n\n"], ["a"] * 19 + ["\n"], "max_tokens"),
        ([b"a", b"\n\n"], [], ["a", "\n\n"], None),
    ],
)
def test_a_completion_ends_in_front_of_a_stop_string(
    tokens: Sequence[bytes | int], stop: Sequence[str], texts: Sequence[str], finish: str | None
) -> None:
    pieces, row = grown(tokens[: len(texts)], stop)
    assert [piece.text for piece in pieces] == list(texts)
    assert pieces[-1].finish == finish
    if finish:
        answer = row.completed()
        assert (answer.text, answer.finish) == ("".join(texts), finish)
        assert answer.tokens == sum(token != EOT for token in tokens[: len(texts)])
        assert answer.logprob == -0.5 * len(texts), "end-of-text and the stop string's tokens included"


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ([""], "stop string 1 is empty"),
        (["a", 3], "stop string 2 is of type int"),
        # As Python gives a byte of the command line that is not UTF-8.
        (["a", "\udcff"], r"stop string 2 is '\\udcff', which is not UTF-8"),
    ],
)
def test_stop_strings_that_are_none_are_refused(stop: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        StopStrings(stop)


def offered(search: BeamSearch, *candidates: tuple[float, int, bytes | int]) -> None:
    scores, parents, tokens = zip(*candidates, strict=True)
    search.offer(scores, parents, [PIECES.index(t) if isinstance(t, bytes) else t for t in tokens])


def test_a_beam_ends_in_a_stop_string_and_the_search_where_none_seems_better() -> None:
    search = BeamSearch(Beam(2, 1.0, "power", "heuristic"), TOKENIZER, StopStrings("\n"), 3, 20, 40)
    offered(search, (-1.0, 0, b"a"), (-2.0, 0, b"b"), (-3.0, 0, b"x"), (-4.0, 0, EOT))
    assert search.places() == ([-1.0, -2.0], [0, 0], [0, 1])
    # The third is not among the two best: that it has ended does not count.
    offered(search, (-1.5, 0, b"b\nA"), (-2.5, 1, b"a"), (-2.6, 0, EOT), (-2.7, 0, b"x"))
    assert search.places() == ([-2.5, -2.7], [1, 0], [0, 10])
    assert search.running
    offered(search, (-3.9, 0, b"a"), (-4.0, 1, EOT), (-4.2, 1, b"x"), (-5.0, 0, b"x"))
    # -3.9 / 3 is better than the worst of the two that have ended, -4 / 3.
    assert search.running
    offered(search, (-5.9, 0, b"a"), (-6.0, 1, b"a"), (-6.1, 1, b"x"), (-7.0, 0, b"x"))
    assert not search.running
    assert search.completed() == Completed("ab", 2, "stop", -1.5, 3)


@pytest.mark.parametrize(("stopping", "text"), [("heuristic", "ab"), ("bound", "xxxxxx")])
def test_a_sure_continuation_still_wins_where_the_search_ends_at_its_bound(stopping: Any, text: str) -> None:
    """At its present length the one that goes on is worse than those that have ended; at its longest it is better."""
    search = BeamSearch(Beam(2, 1.0, "power", stopping), TOKENIZER, StopStrings("\n"), 3, 6, 40)
    offered(search, (-1.0, 0, b"ab"), (-1.8, 0, b"x"), (-3.0, 0, b"a"), (-4.0, 0, b"b"))
    offered(search, (-1.2, 0, EOT), (-1.8, 0, b"\n"), (-1.8, 1, b"x"), (-4.0, 1, b"a"))
    assert search.finished == (stopping == "heuristic")
    while not search.finished:
        offered(search, (-1.8, 0, b"x"), (-9.0, 0, b"a"))
    assert search.completed().text == text


def test_a_search_ends_at_its_bound_as_soon_as_the_best_is_certain() -> None:
    """Before W have ended, and at a negative alpha, where the shortest is favoured, too."""
    for alpha in (1.0, 0.0, -1.0):
        search = BeamSearch(Beam(3, alpha, "power"), TOKENIZER, StopStrings(), 3, 4, 40)
        offered(search, (-0.1, 0, EOT), (-0.5, 0, b"x"), (-3.0, 0, b"a"), (-4.0, 0, b"b"))
        assert search.finished and search.completed().finish == "end_of_text"
        search = BeamSearch(Beam(3, alpha, "power"), TOKENIZER, StopStrings(), 3, 4, 40)
        offered(search, (-0.1, 0, b"x"), (-0.2, 0, EOT), (-3.0, 0, b"a"), (-4.0, 0, b"b"))
        assert not search.finished


def test_a_beam_whose_hypotheses_have_nearly_all_ended_goes_on_with_fewer() -> None:
    search = BeamSearch(Beam(3, 1.0), TOKENIZER, StopStrings(["a", "b", "\n"]), 3, 20, 40)
    ended: list[tuple[float, int, bytes | int]] = [(-3.0, 0, b"b"), (-4.0, 0, b"\n"), (-5.0, 0, EOT), (-6.0, 0, b"ab")]
    offered(search, (-1.0, 0, b"a"), (-2.0, 0, b"x"), *ended)
    assert search.places() == ([-2.0, -math.inf, -math.inf], [0, 0, 0], [10, 0, 0])


def test_the_length_penalty_is_the_papers_or_that_of_transformers() -> None:
    assert Beam().divisor(1) == 1.0
    assert Beam(alpha=0.6).divisor(7) == pytest.approx(2**0.6)
    assert Beam(alpha=0.6, penalty="power").divisor(7) == pytest.approx(7**0.6)
    assert (Beam().width, Beam().alpha) == (4, 0.6)


# -- with a model ----------------------------------------------------------------------------------------------------

CONFIG = ModelConfig(
    n_layers=2,
    d_model=32,
    n_heads=4,
    n_ctx=40,
    n_vocab=14,  # more ids than the tokenizer has tokens
    vocab_multiple=16,
    band_width=8,
    init_std=0.3,
    dtype="float32",
)
PROMPTS = [[0], [1, 3, 2, 5], [7] * 38, [], [9, 8, 7, 6, 5, 4]]


@functools.cache
def generator() -> Generator:
    return Generator(model.init(CONFIG, jax.random.key(0)), CONFIG, TOKENIZER)


forward = jax.jit(model.forward, static_argnums=2)


def logprobs(ids: list[int]) -> np.ndarray:
    """Of the next token, by the whole forward pass."""
    padded = jnp.asarray([ids + [0] * (CONFIG.n_ctx - len(ids))])
    logits = forward(model.init(CONFIG, jax.random.key(0)), padded, CONFIG)[0, len(ids) - 1]
    return np.asarray(jax.nn.log_softmax(logits))


def by_hand(prompt: list[int], stop: str, max_tokens: int) -> Completed:
    """The greedy completion, token after token."""
    ids, text, total, count = prompt or [EOT], "", 0.0, 0
    prompt_tokens = len(ids)
    while True:
        likely = logprobs(ids)
        token = int(np.argmax(likely[: EOT + 1]))
        total += float(likely[token])
        if token == EOT:
            return Completed(text, count, "end_of_text", total, prompt_tokens)
        ids, count = [*ids, token], count + 1
        text = TOKENIZER.decode(ids[prompt_tokens:])
        if stop in text:
            return Completed(text[: text.index(stop)], count, "stop", total, prompt_tokens)
        if count == max_tokens or len(ids) == CONFIG.n_ctx:
            return Completed(text, count, "max_tokens" if count == max_tokens else "context", total, prompt_tokens)


def test_answers_say_what_was_generated_how_likely_and_why_it_ended() -> None:
    found = dict(generator().complete(PROMPTS, "\n", 9, Greedy()))
    assert found.keys() == set(range(len(PROMPTS)))
    for i, prompt in enumerate(PROMPTS):
        expected = by_hand(prompt, "\n", 9)
        assert found[i].logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert dataclasses.replace(found[i], logprob=expected.logprob) == expected
    assert {answer.finish for answer in found.values()} >= {"stop", "context"}


def test_samples_and_beams_of_one_are_what_they_say() -> None:
    prompts = PROMPTS[:2]
    greedy = dict(generator().complete(prompts, "\n", 9, Greedy()))
    for other in (Beam(1), Sample(0.0), Sample(1.0, top_k=1, seed=5)):
        found = dict(generator().complete(prompts, "\n", 9, other))
        assert [found[i].text for i in found] == [greedy[i].text for i in found]
        assert [found[i].logprob for i in found] == pytest.approx([greedy[i].logprob for i in found], abs=1e-4)


def searched_by_hand(prompt: list[int], stop: str, beam: Beam, max_tokens: int) -> Completed:
    """Beam search as its definition: every hypothesis by the whole forward pass, every continuation looked at, and
    those that go on followed to the end but for the heuristic."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, float, list[int]]] = []
    while running:
        every = sorted(
            (
                (total + float(likely[token]), [*tokens, token])
                for total, tokens in running
                for likely in [logprobs(prompt + tokens)]
                for token in range(EOT + 1)
            ),
            key=lambda pair: -pair[0],
        )[: 2 * beam.width]

        def over(tokens: list[int]) -> bool:
            return tokens[-1] == EOT or stop in TOKENIZER.decode(tokens) or len(tokens) == max_tokens

        ended += [
            (total / beam.divisor(len(tokens)), total, tokens) for total, tokens in every[: beam.width] if over(tokens)
        ]
        ended = sorted(ended, key=lambda one: -one[0])[: beam.width]
        running = [one for one in every if not over(one[1])][: beam.width]
        if beam.stopping == "heuristic" and len(ended) == beam.width and running:
            total, tokens = running[0]
            if total / beam.divisor(len(tokens)) <= ended[-1][0]:
                break
    _, total, tokens = ended[0]
    whole = [token for token in tokens if token != EOT]
    text = TOKENIZER.decode(whole)
    finish: Any = "end_of_text" if tokens[-1] == EOT else "stop" if stop in text else "max_tokens"
    return Completed(text.partition(stop)[0], len(whole), finish, total, len(prompt))


def test_beams_are_those_of_the_whole_forward_pass() -> None:
    prompts = [[0], [1, 3, 2, 5], [9, 8, 7, 6, 5, 4], [4, 4]]
    for beam in (Beam(3), Beam(3, 2.0), Beam(3, 2.0, stopping="heuristic")):
        found = dict(generator().complete(prompts, "\n", 8, beam))
        for i, prompt in enumerate(prompts):
            expected = searched_by_hand(prompt, "\n", beam, 8)
            assert found[i].logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert dataclasses.replace(found[i], logprob=expected.logprob) == expected


def test_a_stream_with_stop_strings_is_the_same_texts() -> None:
    texts = ["a", "b x"]
    expected = dict(generator().complete([TOKENIZER.encode(text) for text in texts], "\n", 9, Greedy()))
    streamed = [""] * 2
    for piece in generator().stream(texts, max_tokens=9, sampling=Sampling(0), stop="\n"):
        streamed[piece.prompt] += piece.text
    assert streamed == [expected[0].text, expected[1].text]


def test_a_place_of_the_batch_without_a_prompt_holds_no_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    advance = programs.advance_beams

    def recorded(*arguments: Any) -> Any:
        given.append(arguments[2])
        return advance(*arguments)

    monkeypatch.setattr(programs, "advance_beams", recorded)
    found = dict(generator().complete([[0], [1, 3], [4, 4]], (), 4, Beam(4)))
    assert len(found) == 3 and given
    for scores_PW in given:
        assert scores_PW.shape == (4, 4) and (scores_PW[3] == -np.inf).all()


@pytest.mark.parametrize(
    ("needed", "room", "expected"),
    [
        (1, 2048, 32),
        (65, 2048, 96),
        (1025, 2048, 1280),
        (1281, 2048, 1536),
        (2049, 4096, 2560),
        (1025, 1100, 1100),
        (38, 40, 40),
    ],
)
def test_a_length_is_padded_by_a_third_at_most_and_never_beyond_the_context(
    needed: int, room: int, expected: int
) -> None:
    assert padded_length(needed, 32, room) == expected


def test_a_long_batch_takes_those_lengths() -> None:
    wide = dataclasses.replace(CONFIG, n_ctx=4096)
    made = Generator(model.init(wide, jax.random.key(0)), wide, TOKENIZER)
    tokens_BT, lengths_B, capacities, _ = made._batch([[0] * 1025, [1]], [300, 300])
    assert (tokens_BT.shape, lengths_B.tolist()) == ((2, 1280), [1025, 1])
    assert (capacities.after(1), capacities.after(300)) == (1536, 1536)


def test_shapes_are_few_and_sorted_by_length() -> None:
    """A long prompt does not pad the short ones: they are computed before it."""
    prompts = [[0] * length for length in (38, *([2] * 20), 30)]
    order = [i for i, _ in generator().complete(prompts, (), 2, Greedy())]
    assert sorted(order) == list(range(22)) and set(order[-2:]) == {0, 21} and set(order[:16]) <= set(range(1, 21))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0] * 40], (), 3, Greedy()), "prompt 1 is 40 tokens long"),
        (([[0]], (), 0, Greedy()), "max_tokens is 0"),
        (([[0]], "", 3, Greedy()), "stop string 1 is empty"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_computed(arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        generator().complete(*arguments)


def test_impossible_decodings_are_refused() -> None:
    for make, message in (
        (lambda: Beam(0), "beam width is 0"),
        (lambda: Beam(penalty="none"), "beam penalty is 'none'"),  # type: ignore[arg-type]
        (lambda: Beam(stopping="never"), "beam stopping is 'never'; expected bound or heuristic"),  # type: ignore[arg-type]
        (lambda: Sample(seed=-1), "seed is -1"),
        (lambda: Sample(temperature=-1), "temperature is -1"),
    ):
        with pytest.raises(UserError, match=message):
            make()
