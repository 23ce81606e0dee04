"""Documents that are examples of one rule, which can only be known from the examples or from an instruction above them:
"swap the ends", "qwr=rwq", "abel=lbea", each on a line of its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from gpt3_jax.data.in_context.words import (
    LETTERS,
    Split,
    WordRule,
    draw_composed,
    draw_single,
    draw_words,
    word_split,
)

Kind = Literal["single", "composed", "table", "function", "base"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SHARES: dict[Kind, float] = {"single": 0.45, "composed": 0.31, "table": 0.16, "function": 0.04, "base": 0.04}
"""Share of the training documents of each kind."""
INSTRUCTED = 0.35
"""Share of the training documents with an instruction at the top."""
BASES: dict[int, Split] = {
    5: "training",
    6: "validation",
    7: "training",
    8: "training",
    9: "test",
    10: "training",
}

Example = tuple[str, str]
"""A question and its answer."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Looks a letter up in a table of random pairs of letters, which is nowhere but in the examples."""

    entries: tuple[Example, ...]
    instruction: str = "look up the letter"

    def examples(self, rng: np.random.Generator, count: int, split: Split) -> list[Example]:
        return [self.entries[i] for i in rng.integers(len(self.entries), size=count)]


@dataclasses.dataclass(frozen=True)
class Function:
    """Multiplies each digit of a number and adds to it, without a carry."""

    times: int
    plus: int

    @property
    def instruction(self) -> str:
        return f"each digit times {self.times} plus {self.plus}"

    def examples(self, rng: np.random.Generator, count: int, split: Split) -> list[Example]:
        return [
            (f"{x}{y}", f"{(self.times * x + self.plus) % 10}{(self.times * y + self.plus) % 10}")
            for x, y in rng.integers(10, size=(count, 2)).tolist()
        ]

    @property
    def split(self) -> Split:
        held_out: dict[int, Split] = {0: "validation", 5: "test"}
        return held_out.get((3 * self.times + self.plus) % 10, "training")


@dataclasses.dataclass(frozen=True)
class Base:
    """Adds two digits in another base."""

    base: int

    @property
    def instruction(self) -> str:
        return f"add in base {self.base}"

    def examples(self, rng: np.random.Generator, count: int, split: Split) -> list[Example]:
        return [
            (f"{x}+{y}", np.base_repr(x + y, self.base)) for x, y in rng.integers(self.base, size=(count, 2)).tolist()
        ]

    @property
    def split(self) -> Split:
        return BASES[self.base]


@dataclasses.dataclass(frozen=True)
class Words:
    """Applies a rule to words."""

    rule: WordRule

    @property
    def instruction(self) -> str:
        return self.rule.instruction

    @property
    def effect(self) -> str:
        """The same for rules that do the same but for letters they add."""
        return self.rule.behaviour

    def examples(self, rng: np.random.Generator, count: int, split: Split) -> list[Example]:
        """Questions are words of the split. In training, no answer is a word of another split."""
        examples: list[Example] = []
        while len(examples) < count:
            drawn = [(word, self.rule(word)) for word in draw_words(rng, count, split)]
            examples += [each for each in drawn if split != "training" or word_split(each[1]) == "training"]
        return examples[:count]


Rule = Words | Table | Function | Base


def draw_rule(rng: np.random.Generator, kind: Kind, split: Split) -> Rule:
    """A rule of a kind and a split. A table is new each time. Rules of one step are of all splits."""
    if kind in ("single", "composed"):
        return Words(draw_single(rng) if kind == "single" else draw_composed(rng, split))
    if kind == "table":
        size = rng.integers(2, 6)
        keys, values = rng.choice(len(LETTERS), size=size, replace=False), rng.integers(len(LETTERS), size=(size, 2))
        return Table(tuple((LETTERS[k], LETTERS[a] + LETTERS[b]) for k, (a, b) in zip(keys, values, strict=True)))
    while True:
        digits = (
            Function(*rng.integers((1, 0), (4, 10)).tolist())
            if kind == "function"
            else Base(int(rng.choice(list(BASES))))
        )
        if digits.split == split:
            return digits


def heading(instruction: str) -> str:
    """What a document begins with."""
    return f"{instruction}\n" if instruction else ""


def asked(question: str) -> str:
    """The start of an example's line, up to its answer."""
    return f"{question}="


def answered(answer: str) -> str:
    """The rest of the line."""
    return f"{answer}\n"


def line(question: str, answer: str) -> str:
    """An example as a document shows it."""
    return asked(question) + answered(answer)


def documents(seed: int, count: int, length: int, split: Split = "training") -> Iterator[str]:
    """`count` documents of `length` characters, as a function of the other arguments. The last example is cut.

    Args:
        split: whose words, and whose rules where a kind has held-out ones. The training text holds neither words nor
            rules of the other splits.
    """
    rng = np.random.default_rng((seed, get_args(Split).index(split)))
    kinds = rng.choice(len(KINDS), size=count, p=[SHARES[kind] for kind in KINDS])
    instructed = rng.random(count) < INSTRUCTED
    for number in range(count):
        rule = draw_rule(rng, KINDS[kinds[number]], split)
        text = heading(rule.instruction if instructed[number] else "")
        while len(text) < length:
            text += "".join(itertools.starmap(line, rule.examples(rng, 16, split)))
        yield text[:length]
