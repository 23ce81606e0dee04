"""The longest match of each text in a corpus, how often it stands there, and the documents nearest to each text.

A match is a run of words that stands in a text and within one document. Matches of fewer than n words are not looked
for: a match of n + k words is k + 1 grams that follow one another in both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from gpt3_jax.ngrams.corpus import Piece, Reader, Size
from gpt3_jax.ngrams.finder import Finder, Found
from gpt3_jax.ngrams.wanted import Wanted

PLACES = 5
"""Documents that are named for each match."""
_PAIRS = 1 << 21
"""Pairs of a place in the corpus and one in the texts that are held at once."""
_TEXT, _LENGTH, _WORD, _DOCUMENT, _OFFSET, _TIMES, _FILE = range(7)


@dataclasses.dataclass(frozen=True)
class PieceMatches:
    """What a piece holds."""

    longest: np.ndarray
    """The longest matches of each text: text, words, word of the text at which it begins, document, character of the
    document, how often it stands there; int64 [matches, 6]."""
    nearest: np.ndarray
    """The documents with most grams of each text: text, distinct grams in common, document; int64 [rows, 3]."""


@dataclasses.dataclass(frozen=True)
class Matcher:
    """Finds matches. A collector for `scan`."""

    wanted: Wanted
    """The grams of the texts; n, at least 2, is the shortest match."""
    neighbours: int = 0
    """Documents to name for each text."""

    def collect(self, reader: Reader, piece: Piece) -> PieceMatches:
        """The longest matches, and the nearest documents, within a piece."""
        finder = Finder(self.wanted.rule, [self.wanted])
        runs = _Runs(self.wanted)
        longest = np.empty((0, 6), np.int64)
        shared: list[np.ndarray] = []
        for found in finder.find(reader.parts(piece)):
            for matches in runs.add(found):
                longest = _longest([longest, matches])
            if self.neighbours and len(found.gram):
                shared.append(np.unique(np.stack([found.document, found.gram], axis=1), axis=0))
        longest = _longest([longest, runs.close()])
        return PieceMatches(longest, self._nearest(shared))

    def _nearest(self, shared: list[np.ndarray]) -> np.ndarray:
        if not shared:
            return np.empty((0, 3), np.int64)
        rows = np.unique(np.concatenate(shared), axis=0)
        owners, starts = _texts_of_grams(self.wanted)
        at, row = _expanded(starts, rows[:, 1])
        pairs, counts = np.unique(np.stack([owners[at], rows[row, 0]], axis=1), axis=0, return_counts=True)
        return nearest(np.stack([pairs[:, 0], counts, pairs[:, 1]], axis=1), self.neighbours)


@dataclasses.dataclass(frozen=True)
class Matchers:
    """Several matchers, each with a rule of its own. A collector for `scan`."""

    each: tuple[Matcher, ...]

    def collect(self, reader: Reader, piece: Piece) -> tuple[PieceMatches, ...]:
        """What each of them finds; the piece is read once for each, and counted once."""
        found = []
        for matcher in self.each:
            reader.size = Size()
            found.append(matcher.collect(reader, piece))
        return tuple(found)


class Matches:
    """The longest matches in a corpus, from those in its pieces."""

    def __init__(self, neighbours: int = 0) -> None:
        self._longest = np.empty((0, 7), np.int64)
        self._nearest = np.empty((0, 4), np.int64)
        self._neighbours = neighbours

    def add(self, file: int, found: PieceMatches) -> None:
        """Adds a piece, in the order of the corpus."""
        if len(found.longest):
            rows = np.insert(found.longest, _FILE, file, axis=1)
            self._longest = _longest([self._longest, rows])
        if len(found.nearest):
            rows = np.insert(found.nearest, 3, file, axis=1)
            self._nearest = nearest(np.concatenate([self._nearest, rows]), self._neighbours)

    def longest(self, text: int) -> np.ndarray:
        """The longest match of a text that stands in the corpus most often, or the first in the text of these, a row
        for each document in the corpus' order: text, words, word of the text, document, character, times, file; int64
        [documents, 7]. No row if there is no match."""
        rows = self._longest[self._longest[:, _TEXT] == text]
        if not len(rows):
            return rows
        words, inverse = np.unique(rows[:, _WORD], return_inverse=True)
        times = np.bincount(inverse, rows[:, _TIMES])
        chosen = rows[rows[:, _WORD] == words[np.argmax(times)]]
        in_order: np.ndarray = chosen[np.lexsort((chosen[:, _OFFSET], chosen[:, _DOCUMENT], chosen[:, _FILE]))]
        return in_order

    def nearest(self, text: int) -> np.ndarray:
        """The documents with most grams of a text: text, distinct grams in common, document, file; int64 [rows, 4]."""
        chosen: np.ndarray = self._nearest[self._nearest[:, 0] == text]
        return chosen


def nearest(rows: np.ndarray, count: int) -> np.ndarray:
    """Of rows that begin with text and grams in common, the `count` with most of each text; of equals, the first."""
    order = np.lexsort((np.arange(len(rows)), -rows[:, 1], rows[:, 0]))
    rows = rows[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows[:, 0], rows[:, 0])
    kept: np.ndarray = rows[rank < count]
    return kept


def _longest(parts: list[np.ndarray]) -> np.ndarray:
    """Of all rows, those that are the longest of their text; one row for each place in the text and document."""
    rows = np.concatenate(parts)
    if not len(rows):
        return rows
    best = np.zeros(rows[:, _TEXT].max() + 1, np.int64)
    np.maximum.at(best, rows[:, _TEXT], rows[:, _LENGTH])
    rows = rows[rows[:, _LENGTH] == best[rows[:, _TEXT]]]
    keys = rows[:, [_TEXT, _WORD, _DOCUMENT, *range(_FILE, rows.shape[1])]]
    order = np.lexsort((np.arange(len(rows)), *keys.T[::-1]))
    first = np.flatnonzero((np.diff(keys[order], axis=0, prepend=-1) != 0).any(axis=1))
    kept = rows[order[first]]
    kept[:, _TIMES] = np.add.reduceat(rows[order, _TIMES], first)
    return kept[np.argsort(order[first], kind="stable")]


class _Runs:
    """Joins grams that follow one another in the corpus and in a text."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        ids = wanted.ids
        self._places = np.argsort(ids, kind="stable")[np.count_nonzero(ids < 0) :]
        self._starts = np.searchsorted(ids[self._places], np.arange(len(wanted) + 1))
        # Runs that may go on. Of each: place in the texts less that in the corpus, the last gram's word, grams, the
        # document and the character at which it begins.
        self._open = np.empty((5, 0), np.int64)

    def add(self, found: Found) -> Iterator[np.ndarray]:
        """Matches that have ended. As many grams at once as fit into `_PAIRS`."""
        counts = np.cumsum(self._starts[found.gram + 1] - self._starts[found.gram])
        first = 0
        while first < len(counts):
            before = counts[first - 1] if first else 0
            last = max(int(np.searchsorted(counts, before + _PAIRS, "right")), first + 1)
            yield self._add(Found(*(each[first:last] for each in dataclasses.astuple(found))))
            first = last

    def close(self) -> np.ndarray:
        """The matches that were open."""
        rows, self._open = self._matches(self._open), self._open[:, :0]
        return rows

    def _add(self, found: Found) -> np.ndarray:
        at, row = _expanded(self._starts, found.gram)
        word = found.word[row]
        new = np.stack([self._places[at] - word, word, np.ones_like(word), found.document[row], found.offset[row]])
        pairs = np.concatenate([self._open, new], axis=1)
        pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
        diagonal, word, grams, document, offset = pairs
        begins = np.ones(len(word), np.bool_)
        begins[1:] = (np.diff(diagonal) != 0) | (np.diff(word) != 1) | (np.diff(document) != 0)
        first = np.flatnonzero(begins)
        ends = np.append(first[1:], len(word)) - 1
        runs = np.stack([diagonal[first], word[ends], np.add.reduceat(grams, first), document[first], offset[first]])
        goes_on = runs[1] == found.word[-1]
        self._open = runs[:, goes_on]
        return self._matches(runs[:, ~goes_on])

    def _matches(self, runs: np.ndarray) -> np.ndarray:
        diagonal, last, grams, document, offset = runs
        place = diagonal + last - grams + 1
        text = np.searchsorted(self._wanted.firsts, place, "right") - 1
        words = grams + self._wanted.n - 1
        columns = [text, words, place - self._wanted.firsts[text], document, offset, np.ones_like(text)]
        return np.stack(columns, axis=1)


def _expanded(starts: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All members of several groups: their indices, and for each the index into `groups`. Members of group g are
    starts[g] to starts[g + 1] - 1."""
    sizes = starts[groups + 1] - starts[groups]
    row = np.repeat(np.arange(len(groups)), sizes)
    inside = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return starts[groups][row] + inside, row


@functools.lru_cache(maxsize=2)
def _texts_of_grams(wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Texts that hold each gram, each once, and where those of each gram start."""
    places = np.flatnonzero(wanted.ids >= 0)
    text = np.searchsorted(wanted.firsts, places, "right") - 1
    pairs = np.unique(np.stack([wanted.ids[places], text], axis=1), axis=0)
    return pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(len(wanted) + 1))
