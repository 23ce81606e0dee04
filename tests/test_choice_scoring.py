"""How tasks with labels, answers and last words are scored, and their metrics, on cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from gpt3_jax.evals.metrics import METRICS, Estimate, Scored
from gpt3_jax.evals.requests import Answer, Completed, Completion, Continuation, Score
from gpt3_jax.evals.scoring import EachAnswer, Judgement, Labelled, LastWord, Referent, Rule
from gpt3_jax.evals.tasks.item import Item


def text(of: str) -> Completed:
    return Completed(of, 1, "stop", -1.0, 1)


def score(logprob: float, tokens: int = 1, greedy: bool = False) -> Score:
    return Score(logprob, tokens, greedy, (logprob / tokens,) * tokens, (greedy,) * tokens, 1)


def chosen(rule: Rule, item: Item, *answers: Answer) -> int | None:
    return rule.judge(answers, item).chosen


def estimate(metric: str, *scored: tuple[Item, Judgement], seed: int = 0) -> Estimate:
    found = METRICS[metric]
    return found.estimate(found, [Scored(item, seed, judgement) for item, judgement in scored])


# ---- rules


def test_a_generated_label_is_one_of_the_words() -> None:
    item = Item("0", "q", "yes", ("yes", "no"), (0,))
    for said, index in ((" yes", 0), ("no ", 1), ("Yes", None), ("yes.", None), ("", None), ("yes no", None)):
        assert chosen(Labelled(), item, text(said)) == index
    (asked,) = Labelled().requests(["q"], " ", item)
    assert isinstance(asked, Completion)


def test_a_label_can_be_the_likelier_word_per_token() -> None:
    item = Item("0", "q", "not so", ("so", "not so"), (1,))
    rule = Labelled(framing="choices")
    assert rule.requests(["q"], " ", item) == [Continuation("q", " so"), Continuation("q", " not so")]
    assert chosen(rule, item, score(-2.0), score(-3.0, tokens=2)) == 1


@pytest.mark.parametrize(
    ("said", "noun", "overlap", "exact"),
    [
        ("the trophy", "the trophy", 0, 0),
        ("Trophy", "the trophy", 0, 1),  # determiners and case do not count
        ("the gold trophy", "trophy", 0, 1),  # all words of one are in the other
        ("the suitcase", "the trophy", 1, 1),
        ("the gold suitcase", "gold trophy", 1, 1),
        ("bob", "bob's hat", 1, 1),
        ("hat", "bob's hat", 1, 1),  # an apostrophe in one of them only
        ("bob's", "bob's hat", 0, 1),
        ("", "the trophy", None, None),
        ("the", "the trophy", None, 1),  # nothing but a determiner
        ("THE TROPHY", "the trophy", 0, 0),
    ],
)
def test_a_generated_noun_is_the_referent_or_not(said: str, noun: str, overlap: int | None, exact: int | None) -> None:
    item = Item("0", "q", noun, ("the referent", "not the referent"), (0,))
    assert chosen(Referent(), item, text(f" {said}")) == overlap
    assert chosen(Referent(referent="exact"), item, text(f" {said}")) == exact


def test_the_last_word_is_told_if_each_of_its_tokens_is_the_likeliest() -> None:
    item = Item("0", "a ____. ->", "hat", right=(0,))
    assert LastWord().requests(["a"], " ", item) == [Continuation("a", " hat")]
    told = LastWord().judge([score(-1.5, tokens=2, greedy=True)], item)
    assert (told.chosen, told.logprob, told.tokens) == (0, -1.5, 2)
    assert LastWord().judge([score(-1.5, tokens=2)], item).chosen is None


def test_the_last_word_can_be_the_first_that_is_generated() -> None:
    item = Item("0", "a", "hat", right=(0,))
    rule = LastWord(answer="generated")
    asked = rule.requests(["a"], " ", item)
    assert isinstance(asked[0], Continuation) and isinstance(asked[1], Completion)
    for said in (" hat", " hat. And", ' hat," he'):
        assert chosen(rule, item, score(-1.5), text(said)) == 0
    for said in (" hats", " the hat", "", " Hat"):
        assert chosen(rule, item, score(-1.5, greedy=True), text(said)) is None


def test_each_answer_is_judged_by_the_likelier_line_per_token() -> None:
    item = Item("0", "q\n", "", ("a", "b", "c"), (0, 2))
    asked = EachAnswer().requests(["q\n"], " ", item)
    lines = [f"- [{truth}] {answer}" for answer in "abc" for truth in ("True", "False")]
    assert asked == [Continuation("q\n", line) for line in lines]
    answers = [score(-3.0, 3), score(-4.0, 3), score(-4.0, 4), score(-3.0, 2), score(-5.0), score(-2.0)]
    judged = EachAnswer().judge(answers, item)
    assert judged.picked == (0, 1) and judged.values == pytest.approx((1 / 3, 0.5, -3.0))


def test_answers_can_be_judged_after_the_earlier_ones() -> None:
    item = Item("0", "q\n", "", ("a", "b", "c"), (0, 2))
    asked = EachAnswer(earlier_answers=True).requests(["q\n"], " ", item)
    contexts = [request.context for request in asked if isinstance(request, Continuation)]
    assert contexts[::2] == ["q\n", "q\n- [True] a\n", "q\n- [True] a\n- [False] b\n"] == contexts[1::2]


# ---- metrics

WORDS = ("true", "false", "neither")


def _labelled(id: int, right: int, chosen: int | None) -> tuple[Item, Judgement]:
    return Item(str(id), str(id), WORDS[right], WORDS, (right,)), Judgement(chosen=chosen)


FOUR = (_labelled(0, 0, 0), _labelled(1, 0, 1), _labelled(2, 1, 1), _labelled(3, 2, None))


def test_macro_f1_is_the_mean_over_classes() -> None:
    """true: 1 found, 1 missed, F1 2/3. false: 1 found, 1 wrongly chosen, 2/3. neither: 0. Their mean is 4/9.

    Without each item in turn: 2/9, 2/3, 2/9, and 2/3 because neither is then no class. The mean is 4/9, each 2/9 from
    it, so the jackknife's error is sqrt(3/4 · 4 · (2/9)^2) = 0.3849.
    """
    found = estimate("macro F1", *FOUR)
    assert found.value == pytest.approx(400 / 9) and found.items == 4
    assert found.stderr == pytest.approx(100 * math.sqrt(12) / 9)
    assert estimate("accuracy", *FOUR).value == 50


def test_a_class_that_is_neither_right_nor_chosen_does_not_count() -> None:
    assert estimate("macro F1", FOUR[0], FOUR[2]).value == 100
    assert estimate("macro F1", FOUR[0], _labelled(4, 0, 2)).value == pytest.approx(100 * (2 / 3 + 0) / 2)
    alone = estimate("macro F1", FOUR[3])
    assert (alone.value, alone.stderr, alone.detectable) == (0, None, None)


def test_macro_f1_of_several_seeds_is_their_mean() -> None:
    metric = METRICS["macro F1"]
    all_right = [Scored(item, 1, Judgement(chosen=item.right[0])) for item, _ in FOUR]
    both = [*(Scored(item, 0, judgement) for item, judgement in FOUR), *all_right]
    found = metric.estimate(metric, both)
    assert found.value == pytest.approx((400 / 9 + 100) / 2) and found.items == 4
    assert found.stderr == pytest.approx(100 * math.sqrt(12) / 9 / 2), "the second seed is 100 without any item"


def _picked(id: int, right: tuple[int, ...], picked: tuple[int, ...]) -> tuple[Item, Judgement]:
    return Item(str(id), str(id), "", ("a", "b", "c"), right), Judgement(picked=picked)


def test_all_answers_of_a_question_must_be_right() -> None:
    cases = ((0, 2), (0, 2), 1), ((0, 2), (0,), 0), ((), (), 1), ((), (1,), 0), ((1,), (0, 1), 0)
    for right, picked, value in cases:
        assert estimate("all answers right", _picked(0, right, picked)).value == 100 * value
    assert estimate("all answers right", *(_picked(n, a, b) for n, (a, b, _) in enumerate(cases))).value == 40


def test_f1a_is_over_the_answers_of_all_questions() -> None:
    """2 found of 2 picked and 3 right, over both questions: 4 / 5. F1 by question would be 2/3 and 1."""
    found = estimate("F1a", _picked(0, (0, 1), (0,)), _picked(1, (2,), (2,)))
    assert found.value == pytest.approx(80)
    # Ratio 1/3, residuals 2 - 1 and 0 - 1, sum of weights 6: sqrt(2 · (1 + 1)) / 6.
    found = estimate("F1a", _picked(0, (0, 1), (0,)), _picked(1, (0,), (1, 2)))
    assert found.value == found.stderr == pytest.approx(100 / 3)


def test_records_f1_is_of_the_entity() -> None:
    item = Item("0", "q", "", ("- Mia Berg won", "- Oslo won"), (0,), fillings=("Mia Berg", "Oslo"), answers=("Berg",))
    assert estimate("ReCoRD F1", (item, Judgement(chosen=0))).value == pytest.approx(200 / 3)
    assert estimate("ReCoRD F1", (item, Judgement(chosen=1))).value == 0


def test_the_perplexity_of_completions_is_per_word() -> None:
    items = [Item(str(n), str(n), "w", right=(0,)) for n in range(2)]
    found = estimate(
        "perplexity of the completion",
        (items[0], Judgement(logprob=-math.log(8), tokens=3)),
        (items[1], Judgement(logprob=-math.log(2), tokens=1)),
    )
    assert found.value == pytest.approx(4)
