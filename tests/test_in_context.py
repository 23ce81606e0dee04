"""Examples of rules: right, a function of the seed, and nothing held out in the training text; the command that trains
on them."""

from __future__ import annotations

import csv
import itertools
import string
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from gpt3_jax.cli.main import main
from gpt3_jax.config import ModelConfig
from gpt3_jax.data import made_text
from gpt3_jax.data.in_context import documents as docs
from gpt3_jax.data.in_context import shards
from gpt3_jax.data.in_context.documents import Base, Function, Table, Words, documents, draw_rule
from gpt3_jax.data.in_context.words import (
    Split,
    Step,
    WordRule,
    draw_composed,
    draw_words,
    rule_split,
    single_rules,
    word_split,
)
from gpt3_jax.data.shards import ShardSource
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.in_context import GROUPS, SHOTS, Item, draw_items, evaluate, prompt, with_shuffled_examples
from gpt3_jax.evals.requests import Continuation, Score

ABC = string.ascii_lowercase
COUNT, LENGTH = 1500, 319
SPLITS: tuple[Split, ...] = get_args(Split)


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
    for rule in (*single_rules(), *(draw_composed(rng, split) for split in SPLITS for _ in range(200))):
        for question, answer in Words(rule).examples(rng, 5, SPLITS[rng.integers(3)]):
            expected = question
            for step in rule.steps:
                expected = by_hand(step, expected)
                seen.add(step.kind)
            assert answer == expected, (rule.instruction, question)
    assert len(seen) == 14
    for times, plus in itertools.product(range(1, 4), range(10)):
        for question, answer in Function(times, plus).examples(rng, 20, "test"):
            assert [(int(a) - times * int(q) - plus) % 10 for q, a in zip(question, answer, strict=True)] == [0, 0]
    for base in docs.BASES:
        for question, answer in Base(base).examples(rng, 50, "test"):
            assert int(answer, base) == sum(map(int, question.split("+"))) and (answer == "0" or answer[0] != "0")
    table = draw_rule(rng, "table", "test")
    assert isinstance(table, Table)
    assert set(table.examples(rng, 200, "test")) == set(table.entries)
    assert len(dict(table.entries)) == len(table.entries) >= 2


def test_no_word_of_the_training_text_is_held_out() -> None:
    words = {part for document in training_text() for pair in examples(document) for part in pair if part.isalpha()}
    words = {word for word in words if len(word) == 4}
    assert len(words) > 10_000 and {word_split(word) for word in words} == {"training"}
    for split in SPLITS[1:]:
        held_out = draw_words(np.random.default_rng(0), 1000, split)
        assert {word_split(word) for word in held_out} == {split} and not words & set(held_out)


def test_no_rule_of_the_training_text_is_held_out() -> None:
    """Read from the text itself: no document's examples agree with any held-out composition."""
    rng = np.random.default_rng(1)
    held_out: dict[str, WordRule] = {}
    least: dict[Split, int] = {"validation": 70, "test": 120}
    for split in least:
        drawn = {rule.behaviour: rule for rule in (draw_composed(rng, split) for _ in range(2000))}
        assert len(drawn) > least[split] and not set(drawn) & set(held_out)
        assert all(rule_split(rule) == split for rule in drawn.values())
        held_out |= drawn
    # Distinct letters, so that what is true of a word's places is true of the rule.
    agreeing = []
    for document in training_text():
        pairs = [(q, a) for q, a in examples(document) if q.isalpha() and len(q) == 4]
        if len(pairs) < 12:
            continue
        for rule in held_out.values():
            if _same_but_for_added_letters(rule, pairs):
                agreeing.append((document, rule.instruction))
    assert not agreeing


@pytest.mark.parametrize("kind", ["function", "base"])
def test_functions_and_bases_are_of_one_split(kind: docs.Kind) -> None:
    rng = np.random.default_rng(1)
    drawn = [{draw_rule(rng, kind, split) for _ in range(300)} for split in SPLITS]
    assert all(drawn) and sum(map(len, drawn)) == len(set.union(*drawn)) == (30 if kind == "function" else 6)
    assert len(drawn[0]) >= 4


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
    assert rule_split(rule("reverse", "reverse")) == "training"
    other = WordRule((Step("add-front", letter="z"),))
    assert other.behaviour == rule("add-front").behaviour


def test_there_are_thousands_of_rules() -> None:
    rng = np.random.default_rng(2)
    rules = [draw_composed(rng, "training") for _ in range(8000)]
    assert len({(rule("abcd"), rule("wxyz")) for rule in rules}) > 2000
    assert len({rule.behaviour for rule in rules}) > 700


@pytest.mark.parametrize("kind", docs.KINDS)
def test_an_instruction_says_the_rule_and_no_answer(kind: docs.Kind) -> None:
    """It stays the same whatever the question, and a table's has none of its entries."""
    rng = np.random.default_rng(6)
    for _ in range(40):
        rule = draw_rule(rng, kind, "training")
        before = rule.instruction
        asked = rule.examples(rng, 20, "test")
        assert rule.instruction == before
        said = set(before.replace(",", "").split())
        # Short answers may be a parameter of the rule, such as the base or the letter that is added.
        assert not said & (
            {answer for _, answer in asked if len(answer) > 2 or kind == "table"} - {"cut", "put", "the"}
        )
    tables = {draw_rule(rng, "table", "test").instruction for _ in range(10)}
    assert len(tables) == 1


def test_items_hold_no_example_of_their_own_question() -> None:
    for group in GROUPS:
        drawn = draw_items(group, 30, seed=1)
        assert drawn == draw_items(group, 30, seed=1) != draw_items(group, 30, seed=2)
        for item in drawn:
            assert len(item.examples) == max(SHOTS)
            assert group.kind == "table" or item.question not in dict(item.examples)
            if group.kind in ("single", "composed"):
                assert {word_split(word) for word in (item.question, *dict(item.examples))} == {"test"}


@pytest.mark.parametrize("name", [group.name for group in GROUPS])
def test_recipes_are_compared_on_other_items_than_are_reported(name: str) -> None:
    group = next(group for group in GROUPS if group.name == name)
    validation, test = (draw_items(group, 100, 1, split) for split in ("validation", "test"))
    assert not set(validation) & set(test)


def test_recipes_are_compared_on_other_words_and_rules_than_are_reported() -> None:
    group = next(group for group in GROUPS if group.name == "composed-held-out")
    asked, rules = [], []
    for split in ("validation", "test"):
        items = draw_items(group, 200, seed=1, split=split)
        asked.append({word for item in items for word in (item.question, *dict(item.examples))})
        rules.append({item.instruction for item in items})
    assert not asked[0] & asked[1] and not rules[0] & rules[1]
    assert draw_items(group, 200, seed=1) == items


def test_a_prompt_is_how_a_document_begins() -> None:
    item = Item("reverse", (("abc", "cba"), ("kqw", "wqk")), "xyz", "zyx")
    assert prompt(item, 0, instructed=False) == "xyz="
    assert prompt(item, 2, instructed=True) == "reverse\nabc=cba\nkqw=wqk\nxyz="


@pytest.mark.parametrize("name", ["single", "composed", "composed-held-out"])
def test_shuffled_examples_are_of_other_rules(name: str) -> None:
    group = next(group for group in GROUPS if group.name == name)
    drawn = draw_items(group, 300, seed=3)
    owner = {example: item.effect for item in drawn for example in item.examples}
    assert len({item.instruction for item in drawn}) > len(set(owner.values())) > 10
    for item, mixed in zip(drawn, with_shuffled_examples(drawn), strict=True):
        assert (mixed.question, mixed.answer) == (item.question, item.answer)
        assert len(mixed.examples) == len(item.examples)
        assert all(owner[example] != item.effect for example in mixed.examples)


class Knows:
    """In place of a model: right where a prompt begins with this."""

    def __init__(self, start: str) -> None:
        self._start = start
        self.tokenizer = ByteTokenizer()
        self.config = ModelConfig(n_ctx=60)
        self.asked: list[Continuation] = []

    def answer(self, requests: Sequence[Continuation]) -> Iterator[tuple[int, Score]]:
        self.asked = list(requests)
        for number in reversed(range(len(requests))):
            right = requests[number].context.startswith(self._start)
            yield number, Score(0.0, 1, right, (0.0,), (right,), 1)


def test_accuracies_count_what_was_right_in_each_form() -> None:
    """The answers come in any order; a prompt too long loses its first examples, never its question."""
    group = next(group for group in GROUPS if group.kind == "table")
    engine = Knows("look up the letter\n")
    found = evaluate(engine, [group], 5, seed=4)  # type: ignore[arg-type]
    assert {(each.instructed, each.shuffled, each.shots) for each in found} == {
        *((instructed, False, shots) for instructed in (False, True) for shots in SHOTS),
    }
    assert all(each.right == (5 if each.instructed else 0) for each in found)
    longest = max(engine.asked, key=lambda each: len(each.context))
    assert len(longest.context + longest.continuation) <= 60
    # a line is 5 bytes, the heading 19, the question 2, the answer 3: seven examples fit, and eleven without a heading
    assert {(each.instructed, each.shots): each.dropped for each in found} == {
        (instructed, shots): 5 * max(0, shots - (7 if instructed else 11))
        for instructed in (False, True)
        for shots in SHOTS
    }


@pytest.mark.parametrize("split", SPLITS)
def test_documents_begin_with_the_instruction_or_an_example(split: Split) -> None:
    text = list(documents(8, 300, 200, split))
    heads = [document.split("\n", 1)[0] for document in text]
    share = sum("=" not in head for head in heads) / len(heads)
    assert abs(share - docs.INSTRUCTED) < 0.1


# ---------------------------------------------------------------------------------------------------------------
# The text in a run, and the command
# ---------------------------------------------------------------------------------------------------------------

TINY = (
    "model.n_layers 3",
    "model.attention_pattern [banded,banded,dense]",
    "model.d_model 32",
    "model.n_heads 2",
    "model.n_ctx 128",
    "train.tokens 2048",
    "train.batch_tokens 1024",
    "optimizer.warmup_tokens 256",
)


def test_a_training_sequence_is_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "DOCUMENTS", 20)
    shards.prepare(tmp_path, seed=3, n_ctx=128)
    source = ShardSource(tmp_path / "train")
    tokens = source.read(0, source.n_tokens).reshape(20, 128)
    assert (tokens[:, -1] == ByteTokenizer().eot).all()
    assert [bytes(row[:-1].tolist()).decode() for row in tokens] == list(documents(3, 20, 127))
    before = source.fingerprint
    shards.prepare(tmp_path, seed=3, n_ctx=128)
    assert ShardSource(tmp_path / "train").fingerprint == before
    shards.prepare(tmp_path, seed=4, n_ctx=128)
    assert ShardSource(tmp_path / "train").fingerprint != before


def test_the_text_of_a_run_that_has_begun_is_kept(tmp_path: Path) -> None:
    said = []
    for seed in (3, 4, 3):
        try:
            made_text.ensure(tmp_path / "run" / "data" / "train", {"seed": seed}, [b"a=b\n" * seed], begun=True)
        except UserError as error:
            said.append(str(error))
    assert len(said) == 1 and f"{tmp_path / 'run'} began on other text" in said[0]
    assert ShardSource(tmp_path / "run" / "data" / "train").n_tokens == 4 * 3 + 1


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, line in (
        (["--seeds", "0"], "--seeds is 0; expected at least 1"),
        (["--items", "-1"], "--items is -1; expected at least 1"),
        (["--set", "model.n_layer", "2"], "n_layer"),
        (["--topology", "v5p:2x2x2"], "--topology is not an option of report in-context"),
    ):
        assert main(["report", "in-context", "--out", str(tmp_path / "out"), *wrong]) == 2
        assert line in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_command_trains_evaluates_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shards, "DOCUMENTS", 64)
    monkeypatch.setattr(shards, "HELD_OUT_DOCUMENTS", 8)
    pytest.importorskip("matplotlib")
    argv = ["report", "in-context", "--out", str(tmp_path), "--items", "3", "--split", "validation"]
    argv += [part for each in TINY for part in ("--set", *each.split(" "))]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    # Figures of the other split, which are in in_context.csv, stay.
    lines = (tmp_path / "in_context-validation.csv").read_text().splitlines()
    assert lines[0].startswith("# gpt3-jax report in-context --out ")
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    shuffled = [row["group"] for row in rows if row["shuffled"] == "1"]
    assert len(rows) - len(shuffled) == len(GROUPS) * 2 * len(SHOTS)
    # All tables have one instruction, and one base is held out in a split: no examples of theirs are of other rules.
    assert shuffled.count("single") == len(SHOTS) - 1 and not {"table-held-out", "base-held-out"} & set(shuffled)
    assert {row["split"] for row in rows} == {"validation"} and not (tmp_path / "in_context.csv").exists()
    assert {row["items"] for row in rows} == {"3"} and {row["tokens"] for row in rows} == {"2048"}
    assert all(group.name in printed for group in GROUPS)
    assert (tmp_path / "in_context-validation.svg").read_text().startswith("<?xml")
