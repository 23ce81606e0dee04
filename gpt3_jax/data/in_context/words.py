"""Rules on words: single steps, their compositions, and which of both are in training, which are for comparing recipes,
and which for measuring the one that was chosen."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 4
"""Letters of a word. All words have as many, so that rules which differ only on longer words are one rule. No letter
occurs twice in a word, so that an example shows where each letter goes."""
LONGEST = 6
"""Letters of an answer, at most."""
STEPS = (2, 3)
"""Steps of a composition."""
Split = Literal["training", "validation", "test"]
"""Which words and compositions. Those of "validation" and "test" are in no training document. Recipes are chosen by
"validation" alone, so that figures on "test" say what a recipe reaches on what nobody looked at."""
_WORDS_HELD_OUT: dict[int, Split] = {0: "test", 10: "validation"}
"""By a hash modulo 20. All others are training's."""
_RULES_HELD_OUT: dict[int, Split] = {0: "validation", 1: "test", 2: "test"}
"""By a hash modulo 10. All others are training's."""

_ANY_LETTER = "*"
"""Stands for whatever letter a step adds, where compositions are compared."""
_PROBES = ("bhnr", "tzfo", "wmya")
"""Words on which different rules differ."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of step."""

    instruction: str
    apply: Callable[[str, int, str], str]
    """(word, amount, letter) -> word."""
    amounts: tuple[int, ...] = (0,)
    letters: str = ""


def _half(word: str) -> int:
    """Letters of the first half, which is the longer one."""
    return (len(word) + 1) // 2


_REARRANGES = {
    "reverse": _Kind("reverse", lambda w, n, c: w[::-1]),
    "cycle-left": _Kind("cycle left", lambda w, n, c: w[1:] + w[:1]),
    "cycle-right": _Kind("cycle right", lambda w, n, c: w[-1:] + w[:-1]),
    "swap-ends": _Kind("swap the ends", lambda w, n, c: w if len(w) < 2 else w[-1] + w[1:-1] + w[0]),
    "swap-first": _Kind("swap the first two", lambda w, n, c: w[1:2] + w[:1] + w[2:]),
    "swap-last": _Kind("swap the last two", lambda w, n, c: w[:-2] + w[-1:] + w[-2:-1]),
    "swap-halves": _Kind("swap the halves", lambda w, n, c: w[_half(w) :] + w[: _half(w)]),
}
_RESIZES = {
    "cut-first": _Kind("cut the first", lambda w, n, c: w[1:]),
    "cut-last": _Kind("cut the last", lambda w, n, c: w[:-1]),
    "cut-ends": _Kind("cut the ends", lambda w, n, c: w[1:-1]),
    "double": _Kind("double", lambda w, n, c: w + w),
    "double-first": _Kind("double the first", lambda w, n, c: w[:1] + w),
    "double-last": _Kind("double the last", lambda w, n, c: w + w[-1:]),
}
_ADDS = {
    "add-front": _Kind("put {letter} in front", lambda w, n, c: c + w, letters=LETTERS),
    "add-back": _Kind("put {letter} at the end", lambda w, n, c: w + c, letters=LETTERS),
}
_SHIFTS = {
    "shift": _Kind(
        "shift by {amount:+d}",
        lambda w, n, c: "".join(LETTERS[(LETTERS.index(letter) + n) % len(LETTERS)] for letter in w),
        (1, 2, -1, -2),
    ),
}
_COMPOSED = {**_REARRANGES, **_RESIZES, **_ADDS}
"""Steps of compositions: what they do to a word depends on its places alone. Letter shifts occur on their own only."""
_KINDS = {**_COMPOSED, **_SHIFTS}
_GROUPS = ((0.35, _REARRANGES), (0.25, _RESIZES), (0.15, _ADDS), (0.25, _SHIFTS))
"""Share of the rules of one step drawn from each group."""
_GROUP_ENDS = np.cumsum([share for share, _ in _GROUPS])[:-1]


@dataclasses.dataclass(frozen=True)
class Step:
    """One change of a word."""

    kind: str
    amount: int = 0
    letter: str = ""

    @property
    def instruction(self) -> str:
        return _KINDS[self.kind].instruction.format(amount=self.amount, letter=self.letter)

    def __call__(self, word: str) -> str:
        return _KINDS[self.kind].apply(word, self.amount, self.letter)


@dataclasses.dataclass(frozen=True)
class WordRule:
    """Steps, one after the other."""

    steps: tuple[Step, ...]

    @property
    def instruction(self) -> str:
        """The rule in English: "reverse, then put k in front"."""
        return ", then ".join(step.instruction for step in self.steps)

    def __call__(self, word: str) -> str:
        for step in self.steps:
            word = step(word)
        return word

    @property
    def behaviour(self) -> str:
        """What the rule does to some words, whatever letters it adds. Rules that do the same are one rule, however they
        are composed: "reverse" twice is nothing, and "put a in front" and "put b in front" behave alike."""
        return _behaviour(tuple(dataclasses.replace(step, letter=step.letter and _ANY_LETTER) for step in self.steps))


@cache
def _behaviour(steps: tuple[Step, ...]) -> str:
    return "/".join(WordRule(steps)(word) for word in _PROBES)


def single_rules() -> Iterator[WordRule]:
    """All rules of one step whose answers are not too long. Training has all of them."""
    for name, kind in _KINDS.items():
        for amount in kind.amounts:
            for letter in kind.letters or [""]:
                rule = WordRule((Step(name, amount, letter),))
                if len(rule(_PROBES[0])) <= LONGEST:
                    yield rule


@cache
def _single_behaviours() -> frozenset[str]:
    return frozenset(rule.behaviour for rule in single_rules()) | {WordRule(()).behaviour}


@cache
def compositions(split: Split) -> tuple[tuple[WordRule, ...], ...]:
    """The compositions of one split that do what no single step does, keep a letter of the word, and give at most
    LONGEST letters: those that do the same together, with a placeholder for each letter that they add."""
    alike: dict[str, list[WordRule]] = {}
    for count in STEPS:
        for kinds in itertools.product(_COMPOSED, repeat=count):
            rule = WordRule(tuple(Step(kind, letter=_COMPOSED[kind].letters and _ANY_LETTER) for kind in kinds))
            answer = rule(_PROBES[0])
            if len(answer) <= LONGEST and set(answer) & set(_PROBES[0]):
                alike.setdefault(rule.behaviour, []).append(rule)
    return tuple(
        tuple(rules)
        for behaviour, rules in alike.items()
        if behaviour not in _single_behaviours() and rule_split(rules[0]) == split
    )


def rule_split(rule: WordRule) -> Split:
    """Where a rule belongs. Rules that do the same belong together, and what a single step does is in training."""
    behaviour = rule.behaviour
    return "training" if behaviour in _single_behaviours() else _RULES_HELD_OUT.get(_hash(behaviour) % 10, "training")


def word_split(word: str) -> Split:
    """Where a word belongs, as a question or as an answer of a word rule."""
    return _WORDS_HELD_OUT.get(_hash(word) % 20, "training")


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def draw_single(rng: np.random.Generator) -> WordRule:
    """A rule of one step."""
    while True:
        group = _GROUPS[np.searchsorted(_GROUP_ENDS, rng.random(), side="right")][1]
        name = list(group)[rng.integers(len(group))]
        rule = WordRule((_with_letter(rng, Step(name, group[name].amounts[rng.integers(len(group[name].amounts))])),))
        if len(rule(_PROBES[0])) <= LONGEST:
            return rule


def draw_composed(rng: np.random.Generator, split: Split) -> WordRule:
    """A composition of one split. All that differ in what they do are as likely."""
    alike = compositions(split)
    rules = alike[rng.integers(len(alike))]
    return WordRule(tuple(_with_letter(rng, step) for step in rules[rng.integers(len(rules))].steps))


def _with_letter(rng: np.random.Generator, step: Step) -> Step:
    letters = _KINDS[step.kind].letters
    return dataclasses.replace(step, letter=letters[rng.integers(len(letters))]) if letters else step


def draw_words(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """Words of random letters, of one split."""
    words: list[str] = []
    while len(words) < count:
        letters = rng.random((count, len(LETTERS))).argpartition(LENGTH, axis=1)[:, :LENGTH]
        drawn = ("".join(LETTERS[i] for i in row) for row in rng.permuted(letters, axis=1).tolist())
        words += [word for word in drawn if word_split(word) == split]
    return words[:count]
