"""The words that one group's texts have more often than the others': the paper's "most favored" words (section 6.2)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
"""Letters, with hyphens and apostrophes inside."""


def words_of(text: str) -> list[str]:
    """A text's words, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


@dataclasses.dataclass(frozen=True)
class Word:
    """A word that a group favours."""

    word: str
    count: int
    """How often it occurs in the group's outputs."""
    per_thousand: float
    """Outputs of the group with this word, of a thousand."""
    elsewhere: float
    """Outputs of the other groups with this word, of a thousand."""
    skew: float
    """Natural logarithm of the ratio of the two shares, with one output of all groups' together added to each."""
    p: float
    """Fisher's exact test of outputs with and without the word, two-sided."""
    q: float
    """p for all words that were compared: the false discovery rate (Benjamini and Hochberg)."""

    def as_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def favoured(groups: Mapping[str, Sequence[Sequence[str]]], least: int) -> dict[str, list[Word]]:
    """By group, the words that it favours, the most skewed first: those that a larger share of its outputs has than of
    the other groups'. A single group favours none.

    Args:
        groups: by group, the words of each output.
        least: outputs, of all groups together, that must have a word for it to count.
    """
    from scipy import stats

    having = {name: Counter(word for output in outputs for word in set(output)) for name, outputs in groups.items()}
    counts = {name: Counter(word for output in outputs for word in output) for name, outputs in groups.items()}
    everywhere = sum(having.values(), Counter())
    known = sorted(word for word, n in everywhere.items() if n >= least)
    total = sum(len(outputs) for outputs in groups.values())
    found: dict[str, list[Word]] = {}
    for name, outputs in groups.items():
        n, others = len(outputs), total - len(outputs)
        tests = []
        for word in known:
            here = having[name][word]
            there = everywhere[word] - here
            tests.append(float(stats.fisher_exact([[here, n - here], [there, others - there]]).pvalue))
        adjusted = stats.false_discovery_control(tests).tolist() if tests else []
        words = []
        for word, p, q in zip(known, tests, adjusted, strict=True):
            here = having[name][word]
            there = everywhere[word] - here
            if here * others > there * n:  # a larger share, in whole numbers; the skew is then above 0
                # The same is added to both shares, so that a small group does not favour a word by its size.
                skew = math.log((here / n + 1 / total) / (there / others + 1 / total))
                rates = 1000 * here / n, 1000 * there / others
                words.append(Word(word, counts[name][word], *rates, skew, p, q))
        found[name] = sorted(words, key=lambda each: (-each.skew, each.p, each.word))
    return found
