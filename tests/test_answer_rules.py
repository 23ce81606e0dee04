"""When a free answer is right: each data set's rule on cases worked out by hand, and sacrebleu's BLEU."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from gpt3_jax.evals import answer_rules as rules
from gpt3_jax.evals.metrics import METRICS, Scored
from gpt3_jax.evals.scoring import Judgement
from gpt3_jax.evals.tasks.item import Item

NONE = "no answer"


# ---- SQuAD, and NaturalQuestions and WebQuestions by its rule


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Beatles'", "beatles"),
        ("an Apple, a day", "apple day"),
        ("Anna and the other", "anna and other"),  # articles are whole words
        ("rock-and-roll", "rockandroll"),  # punctuation leaves nothing
        ("the-end", "theend"),  # and goes before articles do
        ("«Ça va»", "«ça va»"),  # only ASCII is punctuation
        ("A.", ""),
        (" \t\n", ""),
    ],
)
def test_squad_normalises(text: str, normalised: str) -> None:
    assert rules.squad_normalised(text) == normalised


def test_squad_exact_match_is_of_any_answer() -> None:
    assert rules.squad_exact("the Eiffel tower!", ["Paris", "Eiffel Tower"]) == 1
    assert rules.squad_exact("Eiffel", ["Paris", "Eiffel Tower"]) == 0
    assert rules.squad_exact("", ["Paris"]) == 0


@pytest.mark.parametrize(
    ("text", "answers", "f1"),
    [
        ("big red car", ["a red car"], 0.8),  # 2 of 3 words, 2 of 2: 2 · 2 / (3 + 2)
        ("red", ["blue", "red car"], 2 / 3),  # 1 of 1, 1 of 2: the better of two answers
        ("red red", ["red"], 2 / 3),  # a word counts as often as both have it
        ("green", ["red car"], 0.0),
        ("", ["red car"], 0.0),
        ("the", ["red car"], 0.0),  # an article alone is nothing
        ("the", ["a"], 1.0),  # an answer that is an article only: both are empty
    ],
)
def test_squad_f1_is_of_words(text: str, answers: list[str], f1: float) -> None:
    assert rules.squad_f1(text, answers) == pytest.approx(f1)


def test_squad_knows_questions_without_an_answer() -> None:
    for score in (rules.squad_exact, rules.squad_f1):
        assert score("No answer.", [NONE], NONE) == 1
        assert [score(text, [NONE], NONE) for text in ("", "The.", "...")] == [0, 0, 0], "silence is no answer"
        assert score("The.", ["The", "A."]) == 1, "but articles alone agree, as in the script"
        assert score("answer", [NONE], NONE) == 0, "words in common with the text that says so are no part of it"
        assert score(NONE, ["no doubt"], NONE) == 0
        assert score("no doubt", ["no doubt", NONE], NONE) == 1, "of people who do not agree, those who answer count"


# ---- TriviaQA


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Rock-and-Roll", "rock and roll"),  # punctuation leaves a space
        ("The_Who", "who"),
        ("‘Tis O´Brien`s", "tis o brien s"),
        ("the-end", "end"),
        ("A.B.C.", "b c"),  # the lone a is an article now
    ],
)
def test_trivia_qa_normalises(text: str, normalised: str) -> None:
    assert rules.trivia_normalised(text) == normalised


def test_trivia_qa_takes_any_alias_and_the_whole_of_it() -> None:
    aliases = ["Sunset Boulevard", "Sunset Blvd.", "West Sunset Blvd"]
    assert rules.trivia_exact("sunset blvd", aliases) == 1
    assert rules.trivia_exact("the Sunset-Boulevard", aliases) == 1
    assert rules.trivia_exact("Sunset", aliases) == 0
    assert rules.trivia_exact("", aliases) == 0


# ---- CoQA


def test_coqa_leaves_each_reference_out_in_turn() -> None:
    answers = ["white", "white kitten", "a kitten", "unknown"]
    # F1 of "white" with each: 1, 2/3, 0, 0. Without the first the best is 2/3, without any other it is 1.
    assert rules.coqa_f1("white", answers) == pytest.approx((2 / 3 + 1 + 1 + 1) / 4)
    assert rules.coqa_f1("white", answers[:2]) == pytest.approx((2 / 3 + 1) / 2)
    assert rules.coqa_f1("white", answers[:1]) == 1, "a single reference is not left out"
    assert rules.coqa_f1("white", ["white", "white", "black"]) == 1, "equal references are two people"
    assert rules.coqa_f1("", ["", "yes"]) == 0.5  # "" with "" is 1, with "yes" 0; one is left each time


# ---- QuAC


def test_quac_takes_no_answer_where_half_say_so() -> None:
    assert rules.quac_references(["in May", NONE], NONE) == [NONE]
    assert rules.quac_references(["in May", NONE, "May"], NONE) == ["in May", "May"]
    assert rules.quac_references([NONE], NONE) == [NONE]
    assert rules.quac_references(["in May"], NONE) == ["in May"]
    assert rules.quac_f1("No answer", [NONE, NONE, "in May"], NONE) == 1
    assert rules.quac_f1("no", [NONE], NONE) == 0, "part of it is not it"
    assert rules.quac_f1("in May", [NONE, "in May"], NONE) == 0
    assert rules.quac_f1(NONE, ["no doubt"], NONE) == 0


def test_quac_leaves_each_reference_out_in_turn() -> None:
    # F1 of "in May" with each: 1, 2/3, 0. Left out in turn, the best of the others: 2/3, 1, 1.
    assert rules.quac_f1("in May", ["in May", "May", "June"], NONE) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert rules.quac_f1("May", ["in May"], NONE) == pytest.approx(2 / 3)
    assert rules.quac_f1("", ["the"], NONE) == 0, "QuAC's script has no rule for two empty answers"


def test_quac_leaves_out_questions_on_which_people_disagree() -> None:
    # Best with another: "in May" 2/3, "May" 2/3, "June" 0.
    assert rules.quac_human_f1(["in May", "May", "June"], NONE) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert rules.quac_human_f1(["May"], NONE) == rules.quac_human_f1([NONE, NONE, "May"], NONE) == 1
    apart = Item("0", "q", "May", answers=("May", "June", "July"), unanswerable=NONE)  # human F1 0
    agreed = Item("1", "q", "May", answers=("in May", "May", "June"), unanswerable=NONE)  # human F1 4/9
    scored = [Scored(item, 0, Judgement(text=" May ")) for item in (apart, agreed)]
    f1 = METRICS["QuAC F1"].estimate(METRICS["QuAC F1"], scored)
    # F1 of "May" with each of the second's: 2/3, 1, 0; the best of the others: 1, 2/3, 1.
    assert f1.items == 1 and f1.value == pytest.approx(100 * (1 + 2 / 3 + 1) / 3)
    assert METRICS["QuAC HEQ-Q"].estimate(METRICS["QuAC HEQ-Q"], scored).value == 100  # 8/9 is not below 4/9
    none = METRICS["QuAC F1"].estimate(METRICS["QuAC F1"], scored[:1])
    assert none.items == 0 and np.isnan(none.value)


# ---- DROP


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("12", "12.0"),
        ("12.50%", "1250.0"),  # the sign makes it no number, so the point goes with it, as in the script
        ("1,234", "1234.0"),
        ("3-yard run", "3.0 yard run"),
        ("the 20-yard", "20.0 yard"),
        ("New-York's", "new yorks"),
        ("-5", "5.0"),  # a hyphen cuts words, also where it is a sign
        ("a", ""),
    ],
)
def test_drop_normalises_word_by_word(text: str, normalised: str) -> None:
    assert rules.drop_normalised(text) == normalised


@pytest.mark.parametrize(
    ("text", "answers", "exact", "f1"),
    [
        ("12", [("12.0",)], 1.0, 1.0),
        ("12 yards", [("12",)], 0.0, 0.67),  # 1 of 2 and 1 of 1: 2/3, rounded to two digits as the script does
        ("13 yards", [("12 yards",)], 0.0, 0.0),  # the answer has a number, and the text has another
        ("yards", [("12 yards",)], 0.0, 0.0),
        ("12 yards", [("yards",)], 0.0, 0.67),  # a number too many is only a word too many
        ("2 May 1920", [("2 May 1920",)], 1.0, 1.0),
        ("May 1920", [("2 May 1920",)], 0.0, 0.8),  # one number in common is enough
        ("red red car", [("red car",)], 0.0, 1.0),  # bags are sets
        ("green", [("red",), ("green",)], 1.0, 1.0),  # the best of several people
        ("", [("red",)], 0.0, 0.0),
        ("green", [("",), ("red",)], 0.0, 0.0),  # an empty answer does not count
        ("", [("",)], 0.0, 0.0),
    ],
)
def test_drop_scores_one_span(text: str, answers: list[tuple[str, ...]], exact: float, f1: float) -> None:
    assert rules.drop_scores(text, answers) == (exact, f1)


def test_drop_aligns_several_spans() -> None:
    answer = [("Tom Brady", "Randy Moss")]
    assert rules.drop_scores("Randy Moss, Tom Brady", answer, ", ") == (1.0, 1.0), "in any order"
    # "Brady" with "Tom Brady" is 2/3, "Moss" with "Randy Moss" is 2/3.
    assert rules.drop_scores("Moss, Brady", answer, ", ") == (0.0, 0.67)
    assert rules.drop_scores("Tom Brady", answer, ", ") == (0.0, 0.5), "a span that is missing counts 0"
    assert rules.drop_scores("Tom Brady, Randy Moss, Wes Welker", answer, ", ") == (0.0, 0.67), "and one too many"
    # As one span: {tom, brady, randy, moss} with either is 2 of 4 and 2 of 2, 2/3; the other has no partner.
    assert rules.drop_scores("Tom Brady, Randy Moss", answer) == (0.0, 0.33)
    # "red car" is the best partner of both, 1 and 2/3, and is taken once.
    assert rules.drop_scores("red car, blue", [("red car", "red")], ", ") == (0.0, 0.5)
    # The first answer's best partner is "x" with 2/3, as good as "x z y w"; the second's is "x" with 1: 2/3 + 1.
    assert rules.drop_scores("x, x z y w", [("x y", "x")], ", ") == (0.0, 0.83)


def test_drop_reads_a_text_both_as_one_span_and_as_several() -> None:
    assert rules.drop_scores("Denver, Colorado", [("Denver, Colorado",)], ", ") == (1.0, 1.0)
    assert rules.drop_scores("Denver, Colorado", [("Denver", "Colorado")], ", ") == (1.0, 1.0)
    assert rules.drop_scores(", ", [("Denver",)], ", ") == (0.0, 0.0)


# ---- metrics


@pytest.mark.parametrize(
    ("metric", "item", "text", "score"),
    [
        ("TriviaQA exact match", Item("0", "q", "The Who", answers=("The Who", "who")), " The-Who\t", 1.0),
        ("SQuAD exact match", Item("0", "q", NONE, unanswerable=NONE), "No answer.", 1.0),
        ("SQuAD F1", Item("0", "q", "red car", answers=("red car", "car")), "car", 1.0),
        ("CoQA F1", Item("0", "q", "red", answers=("red", "car")), "red", 0.5),
        ("QuAC F1", Item("0", "q", NONE, unanswerable=NONE), "No answer", 1.0),
        ("QuAC HEQ-Q", Item("0", "q", "red", unanswerable=NONE), "red car", 0.0),
        ("DROP F1", Item("0", "q", "a1, b2", answers=("a1, b2",), spans=(("a1", "b2"),), joiner=", "), "b2, a1", 1.0),
        ("DROP exact match", Item("0", "q", "a1, b2", answers=("a1, b2",), spans=(("a1", "b2"),)), "b2, a1", 0.0),
    ],
)
def test_metrics_score_the_text_by_their_rule(metric: str, item: Item, text: str, score: float) -> None:
    assert METRICS[metric].score(item, Judgement(text=text)) == score
    nothing = METRICS[metric].score(item, Judgement(text=None))
    assert nothing == METRICS[metric].score(item, Judgement(text=""))


def test_words_of_a_text_may_be_given() -> None:
    metric = METRICS["perplexity per word"]
    judgement = Judgement(logprob=-6.0, tokens=4, bytes=9, words=2)
    for item, value in ((Item("0", "", "I'm"), np.exp(3)), (Item("0", "", "I'm", words=3), np.exp(2))):
        assert metric.estimate(metric, [Scored(item, 0, judgement)]).value == pytest.approx(value)


# ---- BLEU

TEXTS = [
    "The cat sat on the mat, and slept.",
    "She bought three red apples.",
    "",
    "It is raining cats and dogs in Łódź – again!",
    "Nothing matches whatsoever",
]
REFERENCES = [
    "The cat sat on a mat and slept.",
    "She has bought three green apples.",
    "He went home.",
    "It rains cats and dogs in Łódź – again!",
    "Zero overlap.",
]


def scored(texts: list[str], references: list[str], seed: int = 0) -> list[Scored]:
    return [
        Scored(Item(str(n), "q", reference), seed, Judgement(text=text))
        for n, (text, reference) in enumerate(zip(texts, references, strict=True))
    ]


@pytest.mark.parametrize(("name", "tokenize", "smooth"), [("BLEU", "intl", "exp"), ("BLEU 13a", "13a", "none")])
def test_bleu_is_sacrebleus(name: str, tokenize: str, smooth: Any) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    from gpt3_jax.evals import bleu

    metric = METRICS[name]
    whole = metric.estimate(metric, scored(TEXTS, REFERENCES))
    expected = sacrebleu.corpus_bleu(TEXTS, [REFERENCES], tokenize=tokenize, smooth_method=smooth).score
    assert whole.value == pytest.approx(expected) and 10 < expected < 90 and whole.items == 5
    swapped = sacrebleu.corpus_bleu(REFERENCES, [TEXTS], tokenize=tokenize, smooth_method=smooth).score
    assert swapped != pytest.approx(expected), "or the test would not tell them apart"
    # Two seeds are a corpus of twice as many sentences.
    twice = metric.estimate(metric, [*scored(TEXTS, REFERENCES), *scored(TEXTS[::-1], REFERENCES, 1)])
    both = sacrebleu.corpus_bleu([*TEXTS, *TEXTS[::-1]], [[*REFERENCES, *REFERENCES]], smooth, tokenize=tokenize)
    assert twice.value == pytest.approx(both.score) and twice.items == 5
    assert bleu.signature(name).startswith(f"nrefs:1|case:mixed|eff:no|tok:{tokenize}|smooth:{smooth}|version:")
    assert METRICS[name].score(Item("0", "q", REFERENCES[0]), Judgement(text=REFERENCES[0])) == pytest.approx(1.0)
    assert METRICS[name].score(Item("0", "q", REFERENCES[0]), Judgement(text="")) == 0
    nothing = metric.estimate(metric, scored(["", ""], REFERENCES[:2]))
    assert nothing.value == nothing.stderr == 0


def test_the_error_of_bleu_is_that_of_sacrebleus_bootstrap() -> None:
    pytest.importorskip("sacrebleu")
    from sacrebleu.metrics.bleu import BLEU

    generator = np.random.default_rng(0)
    words = ["cat", "sat", "on", "a", "red", "mat", "and", "slept", "all", "day"]
    references = [" ".join(generator.choice(words, 12)) for _ in range(60)]
    texts = [" ".join(w if generator.random() < 0.8 else "dog" for w in each.split()) for each in references]
    metric = METRICS["BLEU"]
    ours = metric.estimate(metric, scored(texts, references))
    interval = BLEU(tokenize="intl").corpus_score(texts, [references], n_bootstrap=1000)
    half = re.search(r"± ([0-9.]+)", interval.format(width=6))  # of an interval of 95 %
    assert half and ours.stderr == pytest.approx(float(half[1]) / 1.96, rel=0.12)
    assert ours.value == pytest.approx(interval.score)


def test_two_systems_are_compared_on_the_same_draws() -> None:
    pytest.importorskip("sacrebleu")
    from gpt3_jax.evals import bleu

    a = [[pair] for pair in zip(TEXTS, REFERENCES, strict=True)]
    b = [[pair] for pair in zip([f"{text} more" for text in TEXTS], REFERENCES, strict=True)]
    first, second = bleu.bootstrapped("BLEU", a), bleu.bootstrapped("BLEU", b)
    assert np.std(second - first) < 0.5 * np.hypot(np.std(first), np.std(second))
    # By hand: the corpora of the first draws.
    drawn = np.random.default_rng(bleu._SEED).integers(0, 5, (bleu.SAMPLES, 5))
    for row, value in itertools.islice(zip(drawn, first, strict=True), 3):
        assert value == pytest.approx(bleu.corpus("BLEU", [a[n][0] for n in row]))


def test_bleu_without_sacrebleu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from gpt3_jax.errors import UserError
    from gpt3_jax.evals import bleu

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"pip install -c constraints\.txt -e '\.\[evals\]'"):
        bleu.require()
