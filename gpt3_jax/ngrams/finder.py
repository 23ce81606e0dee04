"""Finds wanted N-grams in a stream of documents, however long one of them is, in memory for a part of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpt3_jax.ngrams.wanted import Wanted
from gpt3_jax.ngrams.words import Rule, Words, gram_hashes, words

CHUNK = 1 << 18
"""Characters that are cut into words at once: what numpy holds of them stays in a processor's cache."""


_SPACES = " \n\t"


@dataclasses.dataclass(frozen=True)
class Part:
    """Text of a document: all of it, or what comes next of it."""

    document: int
    text: str
    last: bool = True
    """Whether the document ends with it."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Where wanted grams stand, in the order of the text; int64 [found] each."""

    gram: np.ndarray
    """Of all that is wanted: those of the second `Wanted` count on from those of the first."""
    word: np.ndarray
    """Number of the gram's first word among all words of the stream."""
    document: np.ndarray
    offset: np.ndarray
    """Character of its document at which the gram begins."""


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A piece of a document, whole words."""

    document: int
    text: str
    offset: int
    """Character of the document at which the text begins."""
    carried: np.ndarray | None = None
    """For words that an earlier chunk ended with, which are looked at again together with what follows them: the
    character of the document at which each began."""


class Finder:
    """Finds grams that share a rule.

    A gram stands within one document. The last words of a chunk are carried into the next one if the document goes on,
    so that none is missed and none is counted twice.
    """

    def __init__(self, rule: Rule, wanted: Sequence[Wanted]) -> None:
        assert all(each.rule == rule for each in wanted)
        self._rule, self._wanted = rule, wanted
        self._most = max(each.n for each in wanted)
        self.words = 0
        """Words read so far."""

    def find(self, parts: Iterable[Part]) -> Iterator[Found]:
        """Looks through documents, each the parts that follow one another. Yields as much as a chunk holds at once."""
        held: list[_Segment] = []
        size, rest, offset = 0, "", 0  # `rest` may be the beginning of a word
        for part in parts:
            text, at = rest + part.text, 0
            while at < len(text):
                end = _cut(text, at, at + CHUNK - size, part.last)
                if not end:
                    break
                held.append(_Segment(part.document, text[at:end], offset + at))
                size, at = size + end - at, end
                if at < len(text) or size >= CHUNK:
                    found, held = self._look(held, at < len(text) or not part.last)
                    size = 0
                    yield found
            rest, offset = ("", 0) if part.last else (text[at:], offset + at)
        if held:
            yield self._look(held, False)[0]

    def _look(self, segments: list[_Segment], goes_on: bool) -> tuple[Found, list[_Segment]]:
        """What a chunk holds, and what is carried into the next."""
        bounds = np.cumsum([0, *(len(segment.text) + 1 for segment in segments)])
        text = words("\n".join(segment.text for segment in segments), self._rule)
        carried = 0 if segments[0].carried is None else len(segments[0].carried)
        start, self.words = self.words - carried, self.words + len(text) - carried
        grams, at, base = [], [], 0
        for wanted in self._wanted:
            word, gram = wanted.find(text, gram_hashes(text.hashes, wanted.n))
            inside = word + wanted.n > carried  # else it lies in words that were looked at before
            if len(segments) > 1 and len(word):
                where = np.searchsorted(bounds, text.offsets[[word, word + wanted.n - 1]], "right") - 1
                documents = np.array([segment.document for segment in segments])[where]
                inside &= documents[0] == documents[1]
            at.append(word[inside])
            grams.append(gram[inside] + base)
            base += len(wanted)
        word, gram = np.concatenate(at), np.concatenate(grams)
        order = np.argsort(word, kind="stable")
        document, offset = _places(segments, bounds, text, word[order])
        kept: list[_Segment] = []
        if goes_on and self._most > 1 and len(text):
            first = max(0, len(text) - self._most + 1)
            documents, offsets = _places(segments, bounds, text, np.arange(first, len(text)))
            same = documents == segments[-1].document
            first += int(np.count_nonzero(~same))
            if same.any():
                again = text.gram(first, len(text) - first)
                kept = [_Segment(segments[-1].document, again, 0, offsets[same])]
        return Found(gram[order], word[order] + start, document, offset), kept


def _places(
    segments: Sequence[_Segment], bounds: np.ndarray, text: Words, word: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Document and character of the document at which words of a chunk begin."""
    if not len(word):
        return word, word
    offsets = text.offsets
    at = np.searchsorted(bounds, offsets[word], "right") - 1
    document = np.array([segment.document for segment in segments])[at]
    offset = offsets[word] - bounds[at] + np.array([segment.offset for segment in segments])[at]
    if segments[0].carried is not None:
        again = word < len(segments[0].carried)
        offset[again] = segments[0].carried[word[again]]
    return document, offset


def _cut(text: str, start: int, end: int, last: bool) -> int:
    """Where to cut a text that is to be read from `start` to about `end`: after white space. 0 if the text does not
    have any, and goes on."""
    if last and len(text) <= end:
        return len(text)
    before = max(text.rfind(space, start, end) for space in _SPACES)
    if before >= 0:
        return before + 1
    after = [place for space in _SPACES if (place := text.find(space, max(start, end))) >= 0]
    if after:
        return min(after) + 1
    return len(text) if last else 0
