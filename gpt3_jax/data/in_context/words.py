"""Rules on words: single steps, their compositions, and which of both are in training, which are for choosing a recipe,
and which for measuring the chosen one."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH = 4
"""Letters of a word."""
LONGEST = 9
"""Characters of the longest answer of a composition, so that 16 examples fit a context of 256. Nothing is put around a
word that was doubled."""
Split = Literal["training", "validation", "test"]
"""Which words and compositions. Those of "validation" and "test" are in no training document. Choose a recipe by
"validation" alone, and "test" says what it reaches on words and rules that had no part in the choice."""
_WORDS_HELD_OUT: dict[int, Split] = {0: "test", 10: "validation"}
"""By a hash modulo 20: one word in ten is held out. All others are training's."""
_PAIRS_HELD_OUT: dict[int, Split] = {0: "test", 5: "validation", 10: "test"}
"""By a hash modulo 15: 20 of the 122 pairs of steps are held out. All others are training's."""
STEPS = (2, 3)
"""Steps of a composition."""


def _shifted(text: str, by: int) -> str:
    return "".join(LETTERS[(LETTERS.index(letter) + by) % 26] for letter in text)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of step."""

    instruction: str
    apply: Callable[[str, str], str]
    """(word, what is added) -> word."""
    adds: tuple[str, ...] = ("",)
    """What it may add."""


_ARRANGES = {
    "reverse": _Kind("reverse", lambda w, c: w[::-1]),
    "cycle-left": _Kind("cycle left", lambda w, c: w[1:] + w[:1]),
    "cycle-right": _Kind("cycle right", lambda w, c: w[-1:] + w[:-1]),
    "swap-ends": _Kind("swap the ends", lambda w, c: w[-1] + w[1:-1] + w[0]),
    "swap-first": _Kind("swap the first two", lambda w, c: w[1] + w[0] + w[2:]),
    "swap-last": _Kind("swap the last two", lambda w, c: w[:-2] + w[-1] + w[-2]),
    "cut-first": _Kind("cut the first", lambda w, c: w[1:]),
    "cut-last": _Kind("cut the last", lambda w, c: w[:-1]),
    "double": _Kind("double", lambda w, c: w + w),
    "double-first": _Kind("double the first", lambda w, c: w[:1] + w),
    "double-last": _Kind("double the last", lambda w, c: w + w[-1:]),
}
_WRITES = {
    "capitals": _Kind("write capitals", lambda w, c: w.upper()),
    "capital-first": _Kind("write the first as a capital", lambda w, c: w[:1].upper() + w[1:]),
    "capital-last": _Kind("write the last as a capital", lambda w, c: w[:-1] + w[-1:].upper()),
    "next": _Kind("write the next letters", lambda w, c: _shifted(w, 1)),
    "previous": _Kind("write the previous letters", lambda w, c: _shifted(w, -1)),
}
_ADDS = {
    "add-front": _Kind("put {adds} in front", lambda w, c: c + w, tuple(LETTERS)),
    "add-back": _Kind("put {adds} at the end", lambda w, c: w + c, tuple(LETTERS)),
    "add-both": _Kind("put {adds} at both ends", lambda w, c: c + w + c, tuple(LETTERS)),
}
_FRAMES = {
    "frame": _Kind("put it between {adds}", lambda w, c: c[0] + w + c[1], ("()", "**", "--", '""')),
}
_SORTS = ((0.55, _ARRANGES), (0.25, _WRITES), (0.1, _ADDS), (0.1, _FRAMES))
"""A composition has at most one step of each sort, in this order. The number is the sort's share of the rules of one
step."""
_KINDS = {name: kind for _, sort in _SORTS for name, kind in sort.items()}
Names = tuple[str, ...]
"""The kinds of a rule's steps. What they add makes no other rule: "put a in front" and "put b in front" are one."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One change of a word."""

    kind: str
    adds: str = ""

    @property
    def instruction(self) -> str:
        return _KINDS[self.kind].instruction.format(adds=self.adds)

    def __call__(self, word: str) -> str:
        return _KINDS[self.kind].apply(word, self.adds)


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
    def names(self) -> Names:
        return tuple(step.kind for step in self.steps)


@cache
def single_rules() -> tuple[Names, ...]:
    """All rules of one step. Training has all of them."""
    return tuple((name,) for name in _KINDS)


@cache
def composed_rules(split: Split) -> tuple[Names, ...]:
    """All compositions of a split. A pair of steps belongs to one split. Training has the compositions without a pair
    that is held out, in whatever order or distance; the other splits have those with such pairs of theirs alone."""
    found = []
    for count in STEPS:
        for sorts in itertools.combinations([sort for _, sort in _SORTS], count):
            for names in itertools.product(*sorts):
                longest = WordRule(tuple(Step(name, _KINDS[name].adds[0]) for name in names))("a" * LENGTH)
                held_out = {_pair_split(pair) for pair in itertools.combinations(names, 2)} - {"training"}
                if len(longest) <= LONGEST and held_out == ({split} - {"training"}):
                    found.append(names)
    return tuple(found)


def _pair_split(pair: Names) -> Split:
    return _PAIRS_HELD_OUT.get(_hash("/".join(pair)) % 15, "training")


def word_split(text: str) -> Split:
    """Where a word belongs, however it is written and framed."""
    word = "".join(filter(str.isalpha, text)).lower()
    return _WORDS_HELD_OUT.get(_hash(word) % 20, "training")


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def draw_single(rng: np.random.Generator) -> WordRule:
    """A rule of one step."""
    kinds = list(_SORTS[rng.choice(len(_SORTS), p=[share for share, _ in _SORTS])][1])
    return with_additions(rng, (kinds[rng.integers(len(kinds))],))


def draw_composed(rng: np.random.Generator, split: Split) -> WordRule:
    """A rule of two or three steps, of one split: each of them as likely as another."""
    rules = composed_rules(split)
    return with_additions(rng, rules[rng.integers(len(rules))])


def with_additions(rng: np.random.Generator, names: Names) -> WordRule:
    """A rule of these kinds of steps, with what they add drawn."""
    adds = (_KINDS[name].adds for name in names)
    return WordRule(
        tuple(Step(name, choice[rng.integers(len(choice))]) for name, choice in zip(names, adds, strict=True))
    )


def draw_words(rng: np.random.Generator, count: int, split: Split) -> list[str]:
    """Words of random letters, of one split."""
    words: list[str] = []
    while len(words) < count:
        letters = rng.integers(ord("a"), ord("z") + 1, size=(count, LENGTH), dtype=np.uint8)
        drawn = (bytes(row).decode() for row in letters)
        words += [word for word in drawn if word_split(word) == split]
    return words[:count]
