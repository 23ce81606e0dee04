"""Rules on words: single steps, their compositions, and which of both are in training, which are for choosing a recipe,
and which for measuring the chosen one."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 4
"""Letters of a word. All words have as many, so that rules which differ only on longer words are one rule."""
Split = Literal["training", "validation", "test"]
"""Which words and compositions. Those of "validation" and "test" are in no training document. Choose a recipe by
"validation" alone, and "test" says what it reaches on words and rules that had no part in the choice."""
_WORDS_HELD_OUT: dict[int, Split] = {0: "test", 10: "validation"}
"""By a hash modulo 20: one word in ten is held out. All others are training's."""
_RULES_HELD_OUT: dict[int, Split] = {0: "test", 5: "validation", 10: "test"}
"""By a hash modulo 15: one composition in five is held out. All others are training's."""
STEPS = range(2, 4)
"""Steps of a composition."""

_ANY_LETTER = "*"
"""Stands for whatever letter a step adds, where compositions are compared."""
_PROBES = ("bhnr", "tzfo", "wmya")
"""Words without a repeated letter, so that different rearrangements differ on them."""


def _shifted(text: str, by: int) -> str:
    return "".join(c if c == _ANY_LETTER else LETTERS[(LETTERS.index(c) + by) % 26] for c in text)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of step."""

    instruction: str
    apply: Callable[[str, int, str], str]
    """(word, amount, letter) -> word."""
    amounts: tuple[int, ...] = (0,)
    letters: str = ""


_REARRANGES = {
    "reverse": _Kind("reverse", lambda w, n, c: w[::-1]),
    "cycle-left": _Kind("cycle left", lambda w, n, c: w[1:] + w[:1]),
    "cycle-right": _Kind("cycle right", lambda w, n, c: w[-1:] + w[:-1]),
    "swap-ends": _Kind("swap the ends", lambda w, n, c: w if len(w) < 2 else w[-1] + w[1:-1] + w[0]),
    "swap-first": _Kind("swap the first two", lambda w, n, c: w[1:2] + w[:1] + w[2:]),
    "swap-last": _Kind("swap the last two", lambda w, n, c: w[:-2] + w[-1:] + w[-2:-1]),
}
_RESIZES = {
    "cut-first": _Kind("cut the first", lambda w, n, c: w[1:]),
    "cut-last": _Kind("cut the last", lambda w, n, c: w[:-1]),
    "double": _Kind("double", lambda w, n, c: w + w),
    "double-first": _Kind("double the first", lambda w, n, c: w[:1] + w),
    "double-last": _Kind("double the last", lambda w, n, c: w + w[-1:]),
}
_SHIFTS = {
    "shift": _Kind("shift by {amount:+d}", lambda w, n, c: _shifted(w, n), (1, 2, -1, -2)),
}
_ADDS = {
    "add-front": _Kind("put {letter} in front", lambda w, n, c: c + w, letters=LETTERS),
    "add-back": _Kind("put {letter} at the end", lambda w, n, c: w + c, letters=LETTERS),
}
_KINDS = {**_REARRANGES, **_RESIZES, **_SHIFTS, **_ADDS}
_GROUPS = ((0.35, _REARRANGES), (0.30, _RESIZES), (0.15, _SHIFTS), (0.20, _ADDS))
"""Share of steps drawn from each group."""
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
    """All rules of one step. Training has all of them."""
    for name, kind in _KINDS.items():
        for amount in kind.amounts:
            for letter in kind.letters or [""]:
                yield WordRule((Step(name, amount, letter),))


@cache
def _single_behaviours() -> frozenset[str]:
    return frozenset(rule.behaviour for rule in single_rules()) | {WordRule(()).behaviour}


def rule_split(rule: WordRule) -> Split:
    """Where a rule belongs. Rules that do the same belong together, and what a single step does is in training."""
    behaviour = rule.behaviour
    return "training" if behaviour in _single_behaviours() else _RULES_HELD_OUT.get(_hash(behaviour) % 15, "training")


def word_split(word: str) -> Split:
    """Where a word belongs, as a question or as an answer of a word rule."""
    return _WORDS_HELD_OUT.get(_hash(word) % 20, "training")


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def draw_single(rng: np.random.Generator) -> WordRule:
    """A rule of one step."""
    return WordRule((_draw_step(rng),))


def draw_composed(rng: np.random.Generator, split: Split) -> WordRule:
    """A rule of two or three steps that no single step does, of one split."""
    while True:
        rule = WordRule(tuple(_draw_step(rng) for _ in range(rng.integers(min(STEPS), max(STEPS) + 1))))
        if len(rule("a" * LENGTH)) > 2 * LENGTH + 1:
            continue
        if rule.behaviour not in _single_behaviours() and rule_split(rule) == split:
            return rule


def draw_words(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """Words of random letters, of one split."""
    words: list[str] = []
    while len(words) < count:
        letters = rng.integers(ord("a"), ord("z") + 1, size=(count, LENGTH), dtype=np.uint8)
        drawn = (bytes(row).decode() for row in letters)
        words += [word for word in drawn if word_split(word) == split]
    return words[:count]


def _draw_step(rng: np.random.Generator) -> Step:
    group = _GROUPS[np.searchsorted(_GROUP_ENDS, rng.random(), side="right")][1]
    name = list(group)[rng.integers(len(group))]
    kind = group[name]
    amount = kind.amounts[rng.integers(len(kind.amounts))]
    return Step(name, amount, kind.letters[rng.integers(len(kind.letters))] if kind.letters else "")
