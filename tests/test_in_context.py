"""Examples of rules: right, a function of the seed, and nothing held out in the training text; the command that trains
on them."""

from __future__ import annotations

import itertools
import string
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from gpt3_jax.data.in_context import documents as docs
from gpt3_jax.data.in_context.documents import Base, Function, Table, Words, documents, draw_rule
from gpt3_jax.data.in_context.words import (
    Step,
    WordRule,
    draw_composed,
    draw_words,
    is_held_out_rule,
    is_held_out_word,
    single_rules,
)

ABC = string.ascii_lowercase
COUNT, LENGTH = 1500, 319


def by_hand(step: Step, word: str) -> str:
    """The answer of one step, letter by letter and independently of the generator's code."""
    letters = list(word)
    forward = {c: ABC[(i + step.amount) % 26] for i, c in enumerate(ABC)}
    match step.kind:
        case "reverse":
            letters.reverse()
        case "cycle-left":
            letters.append(letters.pop(0))
        case "cycle-right":
            letters.insert(0, letters.pop())
        case "swap-ends":
            letters[0], letters[-1] = letters[-1], letters[0]
        case "swap-first" if len(letters) > 1:
            letters[0], letters[1] = letters[1], letters[0]
        case "swap-last" if len(letters) > 1:
            letters[-1], letters[-2] = letters[-2], letters[-1]
        case "cut-first":
            del letters[0]
        case "cut-last":
            del letters[-1]
        case "double":
            letters.extend(word)
        case "double-first":
            letters.insert(0, letters[0])
        case "double-last":
            letters.append(letters[-1])
        case "shift":
            letters = [forward[c] for c in letters]
        case "add-front":
            letters.insert(0, step.letter)
        case "add-back":
            letters.append(step.letter)
        case _:
            assert len(letters) < 2 and step.kind.startswith("swap"), step
    return "".join(letters)


@cache
def training_text() -> tuple[str, ...]:
    return tuple(documents(3, COUNT, LENGTH))


def examples(document: str) -> list[tuple[str, str]]:
    """Its whole examples: the last line is cut."""
    lines = document.split("\n")[:-1]
    return [(question, answer) for question, _, answer in (line.partition("=") for line in lines if "=" in line)]


def test_the_text_is_a_function_of_the_seed() -> None:
    first = tuple(itertools.islice(documents(3, COUNT, LENGTH), 50))
    assert first == training_text()[:50]
    assert first != tuple(itertools.islice(documents(4, COUNT, LENGTH), 50))
    assert {len(document) for document in training_text()} == {LENGTH}
    assert set("".join(training_text())) <= set(ABC + string.digits + "=+-, \n")


def test_every_answer_is_right_by_another_computation() -> None:
    rng = np.random.default_rng(5)
    seen = set()
    for rule in (*single_rules(), *(draw_composed(rng, held_out) for held_out in (False, True) for _ in range(300))):
        for question, answer in Words(rule, int(rng.integers(3, 6))).examples(rng, 5, held_out=bool(rng.integers(2))):
            expected = question
            for step in rule.steps:
                expected = by_hand(step, expected)
                seen.add(step.kind)
            assert answer == expected, (rule.instruction, question)
    assert len(seen) == 14
    for times, plus in itertools.product(range(1, 4), range(10)):
        for question, answer in Function(times, plus).examples(rng, 20, held_out=True):
            assert [(int(a) - times * int(q) - plus) % 10 for q, a in zip(question, answer, strict=True)] == [0, 0]
    for base in docs.BASES:
        for question, answer in Base(base).examples(rng, 50, held_out=True):
            assert int(answer, base) == sum(map(int, question.split("+"))) and (answer == "0" or answer[0] != "0")
    table = draw_rule(rng, "table", held_out=True)
    assert isinstance(table, Table)
    assert set(table.examples(rng, 200, held_out=True)) == set(table.entries)
    assert len(dict(table.entries)) == len(table.entries) >= 2


def test_no_word_of_the_training_text_is_held_out() -> None:
    words = {part for document in training_text() for pair in examples(document) for part in pair if part.isalpha()}
    words = {word for word in words if len(word) >= 3}
    assert len(words) > 10_000 and not [word for word in words if is_held_out_word(word)]
    held_out = draw_words(np.random.default_rng(0), 1000, 4, held_out=True)
    assert all(map(is_held_out_word, held_out)) and not words & set(held_out)


def test_no_rule_of_the_training_text_is_held_out() -> None:
    """Read from the text itself: no document's examples agree with any held-out composition."""
    rng = np.random.default_rng(1)
    held_out = {rule.behaviour: rule for rule in (draw_composed(rng, held_out=True) for _ in range(3000))}
    assert len(held_out) > 400
    assert all(is_held_out_rule(rule) for rule in held_out.values())
    # Distinct letters, so that what is true of a word's places is true of the rule.
    agreeing = []
    for document in training_text():
        pairs = [(q, a) for q, a in examples(document) if q.isalpha() and len(q) >= 3]
        if len(pairs) < 12:
            continue
        for rule in held_out.values():
            if _same_but_for_added_letters(rule, pairs):
                agreeing.append((document, rule.instruction))
    assert not agreeing
    bases = {rule.base for rule in (draw_rule(rng, "base", False) for _ in range(200)) if isinstance(rule, Base)}
    assert bases == set(docs.BASES) - set(docs.HELD_OUT_BASES)
    functions = {draw_rule(rng, "function", held_out) for held_out in (True, False) for _ in range(300)}
    kept = {draw_rule(rng, "function", False) for _ in range(300)}
    assert {f for f in functions if isinstance(f, Function) and f.held_out}.isdisjoint(kept) and len(functions) == 30


def _same_but_for_added_letters(rule: WordRule, pairs: list[tuple[str, str]]) -> bool:
    blank = WordRule(tuple(Step(step.kind, step.amount, step.letter and "*") for step in rule.steps))
    added: dict[int, set[str]] = {}
    for question, answer in pairs:
        pattern = blank(question)
        if len(pattern) != len(answer):
            return False
        for place, (mine, theirs) in enumerate(zip(pattern, answer, strict=True)):
            if mine == "*":
                added.setdefault(place - (len(pattern) if place > len(pattern) // 2 else 0), set()).add(theirs)
            elif mine != theirs:
                return False
    return all(len(letters) == 1 for letters in added.values())


def test_rules_that_do_the_same_are_one_rule() -> None:
    def rule(*kinds: str) -> WordRule:
        return WordRule(tuple(Step(kind, letter="k" if kind.startswith("add") else "") for kind in kinds))

    assert rule("reverse", "cut-first").behaviour == rule("cut-last", "reverse").behaviour
    assert rule("reverse", "reverse", "double").behaviour == rule("double").behaviour
    assert rule("cut-first").behaviour != rule("cut-last").behaviour
    assert not is_held_out_rule(rule("reverse", "reverse"))
    other = WordRule((Step("add-front", letter="z"),))
    assert other.behaviour == rule("add-front").behaviour


def test_there_are_thousands_of_rules() -> None:
    rng = np.random.default_rng(2)
    rules = [draw_composed(rng, held_out=False) for _ in range(8000)]
    assert len({rule.instruction for rule in rules}) > 4000 and len({rule.behaviour for rule in rules}) > 1000


def test_an_instruction_says_the_rule_and_no_answer(tmp_path: Path) -> None:
    del tmp_path
    rng = np.random.default_rng(6)
    for kind in docs.KINDS:
        for _ in range(40):
            rule = draw_rule(rng, kind, held_out=False)
            first, second = (set(rule.examples(rng, 20, held_out=True)) for _ in range(2))
            said = rule.instruction
            words = set(said.replace(",", " ").split())
            for question, answer in first | second:
                # of letters and digits, what an instruction says is a parameter of the rule
                if len(answer) > 2:
                    assert answer not in words or answer in ("cut", "put", "the"), (said, question, answer)
    assert draw_rule(rng, "table", held_out=True).instruction == draw_rule(rng, "table", held_out=True).instruction


@pytest.mark.parametrize("held_out", [False, True])
def test_documents_begin_with_the_instruction_or_an_example(held_out: bool) -> None:
    text = list(documents(8, 300, 200, held_out))
    heads = [document.split("\n", 1)[0] for document in text]
    share = sum("=" not in head for head in heads) / len(heads)
    assert abs(share - docs.INSTRUCTED) < 0.1
