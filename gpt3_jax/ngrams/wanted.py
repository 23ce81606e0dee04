"""The N-grams that are looked for, of one length, and where in their texts they stand."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from gpt3_jax.ngrams.words import PAPER, Rule, Words, gram_hashes, normalised, words

_FILTER_BITS = (16, 26)
"""Least and most: a byte for each in two filters, so at most 128 MiB."""
_SPARSE = 4
"""log2 of entries in a filter for each gram: of the words of other text one in 16 gets through the first, and one in
256 through both, to the exact look-up, which is slower."""


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """The distinct N-grams of texts.

    Built in memory: some 50 bytes for each word of the texts.
    """

    n: int
    rule: Rule
    texts: Words
    """All texts one after the other."""
    firsts: np.ndarray
    """Index of each text's first word, and after it the number of all words, int64 [texts + 1]."""
    ids: np.ndarray
    """Which gram begins at each word, int64 [words]; -1 where a text has fewer than n words left."""
    hashes: np.ndarray
    """Of each distinct gram, ascending, uint64 [grams]."""
    places: np.ndarray
    """A word at which each gram begins, int64 [grams]."""
    filters: tuple[np.ndarray, np.ndarray]
    """Whether a gram's hash has these first, and these last bits; bool [2**bits] each."""

    def __len__(self) -> int:
        """Number of distinct grams."""
        return len(self.places)

    @property
    def fingerprint(self) -> str:
        """Identifies the grams, in their order."""
        digest = hashlib.sha256(f"{self.n} {self.rule}\n".encode())
        for array in (self.texts.codes.astype(np.uint32), self.firsts, self.places):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def of_text(self, number: int) -> np.ndarray:
        """The grams of a text, in their order; a gram that stands in it twice comes twice."""
        found = self.ids[self.firsts[number] : self.firsts[number + 1]]
        kept: np.ndarray = found[found >= 0]
        return kept

    def gram(self, number: int) -> str:
        """The words of a gram, with one space between."""
        return self.texts.gram(int(self.places[number]), self.n)

    def find(self, text: Words, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Words of `text` at which a wanted gram begins, and which: int64 [found] each. Compares the text itself.

        Args:
            hashes: of the grams of `text`, as `gram_hashes` gives them.
        """
        near = np.flatnonzero(self.filters[0][self._first(hashes)])
        near = near[self.filters[1][self._last(hashes[near])]]
        at = np.searchsorted(self.hashes, hashes[near])
        same = self.hashes[np.minimum(at, len(self.hashes) - 1)] == hashes[near]
        kept, grams = [], []
        for word, number in zip(near[same].tolist(), at[same].tolist(), strict=True):
            found = self._same(text.gram(word, self.n), number)
            if found >= 0:
                kept.append(word)
                grams.append(found)
        return np.array(kept, np.int64), np.array(grams, np.int64)

    def _same(self, gram: str, number: int) -> int:
        """The gram with this text, from `number` on among those of the same hash; -1 if there is none."""
        wanted = self.hashes[number]
        while number < len(self.hashes) and self.hashes[number] == wanted:
            if self.gram(number) == gram:
                return number
            number += 1
        return -1

    def _first(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(65 - len(self.filters[0]).bit_length())).view(np.int64)

    def _last(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64(len(self.filters[1]) - 1)).view(np.int64)


def wanted(texts: Sequence[str], n: int, rule: Rule = PAPER) -> Wanted:
    """The distinct N-grams of `texts`; none runs from one text into the next."""
    parts = [normalised(text, rule) for text in texts]
    whole = words("\n".join(parts), rule)
    lengths = np.array([part.count(" ") + 1 if part else 0 for part in parts], np.int64)
    firsts = np.append(0, np.cumsum(lengths))
    assert firsts[-1] == len(whole)  # what is normalised stays as it is
    begins = np.concatenate([np.arange(a, b - n + 1) for a, b in itertools.pairwise(firsts)] or [firsts[:0]])
    begins = begins.astype(np.int64)
    all_hashes = gram_hashes(whole.hashes, n)
    begins = begins[np.argsort(all_hashes[begins], kind="stable")]
    hashes = all_hashes[begins]
    group = np.cumsum(np.diff(hashes, prepend=hashes[:1]) != 0)
    rank = _ranks(whole, n, begins, group)
    _, first, number = np.unique(group * (rank.max(initial=0) + 1) + rank, return_index=True, return_inverse=True)
    ids = np.full(len(whole), -1, np.int64)
    ids[begins] = number
    bits = min(max(_FILTER_BITS[0], len(first).bit_length() + _SPARSE), _FILTER_BITS[1])
    filters = np.zeros(1 << bits, np.bool_), np.zeros(1 << bits, np.bool_)
    found = Wanted(n, rule, whole, firsts, ids, hashes[first], begins[first], filters)
    filters[0][found._first(found.hashes)] = True
    filters[1][found._last(found.hashes)] = True
    return found


def _ranks(whole: Words, n: int, begins: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Tells grams of one hash but different text apart: 0 for the first text in each group of equal hashes, 1 for the
    second, …, int64 [begins]. There is hardly ever a second."""
    ranks = np.zeros(len(begins), np.int64)
    again = np.diff(group, prepend=-1) == 0
    for member in np.flatnonzero(again | np.append(again[1:], False)).tolist():
        if not again[member]:
            texts: dict[str, int] = {}
        ranks[member] = texts.setdefault(whole.gram(int(begins[member]), n), len(texts))
    return ranks
