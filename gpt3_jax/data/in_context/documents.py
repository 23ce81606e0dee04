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
    WordRule,
    draw_composed,
    draw_single,
    draw_words,
    is_held_out_word,
)

Kind = Literal["single", "composed", "table", "function", "base"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SHARES: dict[Kind, float] = {"single": 0.45, "composed": 0.31, "table": 0.16, "function": 0.04, "base": 0.04}
"""Share of the training documents of each kind."""
INSTRUCTED = 0.35
"""Share of the training documents with an instruction at the top."""
HELD_OUT_BASES = (6, 9)
BASES = (5, 6, 7, 8, 9, 10)

Example = tuple[str, str]
"""A question and its answer."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Looks a letter up in a table of random pairs of letters, which is nowhere but in the examples."""

    entries: tuple[Example, ...]
    instruction: str = "look up the letter"

    def examples(self, rng: np.random.Generator, count: int, held_out: bool) -> list[Example]:
        return [self.entries[i] for i in rng.integers(len(self.entries), size=count)]


@dataclasses.dataclass(frozen=True)
class Function:
    """Multiplies each digit of a number and adds to it, without a carry."""

    times: int
    plus: int

    @property
    def instruction(self) -> str:
        return f"each digit times {self.times} plus {self.plus}"

    def examples(self, rng: np.random.Generator, count: int, held_out: bool) -> list[Example]:
        return [
            (f"{x}{y}", f"{(self.times * x + self.plus) % 10}{(self.times * y + self.plus) % 10}")
            for x, y in rng.integers(10, size=(count, 2)).tolist()
        ]

    @property
    def held_out(self) -> bool:
        return (3 * self.times + self.plus) % 5 == 0


@dataclasses.dataclass(frozen=True)
class Base:
    """Adds two digits in another base."""

    base: int

    @property
    def instruction(self) -> str:
        return f"add in base {self.base}"

    def examples(self, rng: np.random.Generator, count: int, held_out: bool) -> list[Example]:
        return [
            (f"{x}+{y}", np.base_repr(x + y, self.base)) for x, y in rng.integers(self.base, size=(count, 2)).tolist()
        ]

    @property
    def held_out(self) -> bool:
        return self.base in HELD_OUT_BASES


@dataclasses.dataclass(frozen=True)
class Words:
    """Applies a rule to words."""

    rule: WordRule

    @property
    def instruction(self) -> str:
        return self.rule.instruction

    def examples(self, rng: np.random.Generator, count: int, held_out: bool) -> list[Example]:
        """`held_out`: words that are in no training document, neither as a question nor as an answer."""
        examples: list[Example] = []
        while len(examples) < count:
            drawn = [(word, self.rule(word)) for word in draw_words(rng, count, held_out)]
            examples += [example for example in drawn if held_out or not is_held_out_word(example[1])]
        return examples[:count]


Rule = Words | Table | Function | Base


def draw_rule(rng: np.random.Generator, kind: Kind, held_out: bool) -> Rule:
    """A rule of a kind: one that is in no training document, or one that may be.

    A table is new each time. Rules of one step are all in the training text.
    """
    if kind in ("single", "composed"):
        return Words(draw_single(rng) if kind == "single" else draw_composed(rng, held_out))
    if kind == "table":
        size = rng.integers(2, 6)
        keys, values = rng.choice(len(LETTERS), size=size, replace=False), rng.integers(len(LETTERS), size=(size, 2))
        return Table(tuple((LETTERS[k], LETTERS[a] + LETTERS[b]) for k, (a, b) in zip(keys, values, strict=True)))
    while True:
        digits = (
            Function(*rng.integers((1, 0), (4, 10)).tolist()) if kind == "function" else Base(int(rng.choice(BASES)))
        )
        if digits.held_out == held_out:
            return digits


def heading(instruction: str) -> str:
    """What a document begins with."""
    return f"{instruction}\n" if instruction else ""


def line(question: str, answer: str) -> str:
    """An example as a document shows it."""
    return f"{question}={answer}\n"


def documents(seed: int, count: int, length: int, held_out: bool = False) -> Iterator[str]:
    """`count` documents of `length` characters, as a function of the other arguments. The last example is cut.

    Args:
        held_out: documents of held-out words, and of held-out rules where a kind has them. Otherwise the training text,
            which holds none of either.
    """
    rng = np.random.default_rng((seed, held_out))
    kinds = rng.choice(len(KINDS), size=count, p=[SHARES[kind] for kind in KINDS])
    instructed = rng.random(count) < INSTRUCTED
    for number in range(count):
        rule = draw_rule(rng, KINDS[kinds[number]], held_out)
        text = heading(rule.instruction if instructed[number] else "")
        while len(text) < length:
            text += "".join(itertools.starmap(line, rule.examples(rng, 16, held_out)))
        yield text[:length]
