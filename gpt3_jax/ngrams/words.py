"""Cuts text into words as the paper compares them, and hashes words and N-grams of words (GPT-3, appendix C).

The paper's gram is "a lowercase, whitespace delimited word with no punctuation". What it leaves open:

- White space is what `str.isspace` calls so.
- Punctuation is what Unicode calls punctuation (P…) or symbol (S…). These hold all 32 of Python's
  ``string.punctuation``, such as = and $.
- Punctuation separates words, as white space does: "don't" is "don" and "t". The paper does not say so, but its N of 7
  for Symbol Insertion does ("r e!c.i p r o.c a/l = reciprocal"): on OpenAI's file the 5th percentile of the lengths is
  7 if punctuation separates words and 2 if it is deleted. `Rule` has the other reading.
- Lower case is character by character (``Σ`` is ``σ``, also at the end of a word).

Hashes only find candidates. Whoever uses one compares the text (`Words.gram`).
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from typing import Literal

import numpy as np

SPACE = 32
_DELETED = 0x110000
_PLANES = 0x20000
"""Code points from here on, which are ideographs and others without case or punctuation, stay as they are."""
_BASE, _GRAM_BASE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
"""Odd, so that they have an inverse modulo 2**64."""
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How words are compared."""

    punctuation: Literal["separates", "deleted", "kept"] = "separates"
    """What becomes of punctuation: it separates words, it is deleted, or it is compared too."""
    lower: bool = True
    """Whether case is ignored."""


PAPER = Rule()
AS_WRITTEN = Rule("kept", lower=False)
"""Words as they are written; only white space between them is not compared."""


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a text."""

    raw: str
    rule: Rule
    codes: np.ndarray
    """What is left of the text: code points, any white space as a space; uint8 for ASCII, else uint32 [n]."""
    starts: np.ndarray
    """Index in `codes` of each word's first character, int64 [words]."""
    ends: np.ndarray
    """Index after its last."""
    hashes: np.ndarray
    """uint64 [words]."""

    def __len__(self) -> int:
        return len(self.starts)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Index in the text of each word's first character that is left, int64 [words]."""
        if len(self.codes) == len(self.raw):
            return self.starts
        codes = np.frombuffer(self.raw.encode("utf-32-le", "surrogatepass"), np.uint32)
        left: np.ndarray = np.flatnonzero(_mapped(codes, self.rule) != _DELETED)[self.starts]
        return left

    @functools.cached_property
    def _text(self) -> str:
        return _decoded(self.codes)

    def gram(self, first: int, n: int) -> str:
        """`n` words from `first` on, with one space between."""
        return " ".join(self._text[self.starts[first] : self.ends[first + n - 1]].split())


def words(text: str, rule: Rule = PAPER) -> Words:
    """The words of a text, in order."""
    if text.isascii():
        mapping, deleted = _ascii(rule)
        codes = np.frombuffer(text.encode("ascii").translate(mapping, deleted), np.uint8)
    else:
        mapped = _mapped(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), rule)
        codes = mapped[mapped != _DELETED] if rule.punctuation == "deleted" else mapped
    inside = np.zeros(len(codes) + 2, np.int8)
    np.not_equal(codes, SPACE, out=inside[1:-1].view(np.bool_))
    borders = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = borders[::2], borders[1::2]
    return Words(text, rule, codes, starts, ends, _hashes(codes, starts, ends))


def normalised(text: str, rule: Rule = PAPER) -> str:
    """The words of a text with one space between."""
    return " ".join(_decoded(words(text, rule).codes).split())


def gram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the N-grams that begin at each word but the last n - 1, uint64."""
    if len(hashes) < n:
        return np.empty(0, np.uint64)
    powers, inverses = _powers(_GRAM_BASE, len(hashes))
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * powers, out=sums[1:])
    return _mixed((sums[n:] - sums[:-n]) * inverses[: len(hashes) - n + 1])


def _hashes(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A polynomial in the characters of each word, as a difference of two sums over all of the text."""
    powers, inverses = _powers(_BASE, len(codes))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.multiply(codes, powers, out=sums[1:])
    np.cumsum(sums, out=sums)
    return _mixed((sums[ends] - sums[starts]) * inverses[starts])


def _mixed(hashes: np.ndarray) -> np.ndarray:
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(29)
    return hashes


_kept_powers: dict[int, tuple[np.ndarray, np.ndarray]] = {}


def _powers(base: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers 0 to count - 1 of an odd number modulo 2**64, and their inverses."""
    known = _kept_powers.get(base)
    if known is None or len(known[0]) < count:
        size = max(1 << 16, 1 << (count - 1).bit_length())
        known = _kept_powers[base] = (_powers_of(base, size), _powers_of(pow(base, -1, 2**64), size))
    return known[0][:count], known[1][:count]


def _powers_of(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _decoded(codes: np.ndarray) -> str:
    if codes.dtype == np.uint8:
        return codes.tobytes().decode("ascii")
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


def _mapped(codes: np.ndarray, rule: Rule) -> np.ndarray:
    """What becomes of each code point: another, a space, or `_DELETED`."""
    table = _table(rule)
    mapped = table[np.minimum(codes, _PLANES)]
    beyond = codes >= _PLANES
    if beyond.any():
        mapped[beyond] = codes[beyond]
    return mapped


@functools.cache
def _ascii(rule: Rule) -> tuple[bytes, bytes]:
    """Arguments of bytes.translate."""
    table = _table(rule)[:128]
    mapping = bytes(table.astype(np.uint8)) + bytes(range(128, 256))  # what is deleted may be anything
    return mapping, bytes(np.flatnonzero(table == _DELETED).astype(np.uint8))


@functools.cache
def _table(rule: Rule) -> np.ndarray:
    """uint32 [_PLANES + 1]."""
    return np.array([_become(chr(code), rule) for code in range(_PLANES)] + [_PLANES], np.uint32)


def _become(character: str, rule: Rule) -> int:
    if character.isspace():
        return SPACE
    if rule.punctuation != "kept" and unicodedata.category(character)[0] in "PS":
        return SPACE if rule.punctuation == "separates" else _DELETED
    # One character lower-cases to two, İ; the first is taken.
    return ord(character.lower()[0]) if rule.lower else ord(character)
