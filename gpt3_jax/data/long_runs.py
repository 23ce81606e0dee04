"""Splits texts with runs that are too long or too slow for tiktoken, at boundaries of GPT-2's pattern.

GPT-2's pattern forms pieces of letters, of numbers, of other characters and of spaces. Each piece is encoded separately
by merging bytes. A run of a million blanks before a word exhausts the stack of the regular expression, and merging one
piece of ten million letters takes most of a minute. Here long pieces are found from runs of the four classes and merged
window by window. Both give exactly the tokens that tiktoken gives for the whole text; the tests compare them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

OTHER, LETTER, NUMBER, SPACE = range(4)

RUN = 2048
"""Pieces with at least this many characters of one class are cut out of the text. tiktoken accepts some 500,000."""
WINDOW = 4096
"""Number of characters of a piece that are merged at once; more than the longest token."""

_SLICE = 1 << 22
_TRIES = 16


def segments(text: str, classes: np.ndarray, run: int = RUN) -> Iterator[tuple[str, bool]]:
    """Splits a text into (part, whether it is one piece of GPT-2's pattern).

    The concatenated tokens of the parts are those of the text. Each cut is exact for two reasons. The pattern does not
    look before a piece, so the pieces after a cut are those of a text that starts there. The pieces before a cut are
    unchanged if the part does not end in spaces, or ends in all spaces of a run but the last, which form a piece.

    Args:
      text: without surrogates.
      classes: class of each code point (uint8 [0x110000]).
      run: pieces with more characters than this, at least 3, become separate parts.
    """
    at = 0
    for start, end in _runs(text, classes, run):
        before = text[start - 1] if start else ""
        if classes[ord(text[start])] == SPACE:
            # \s+(?!\S): the last space belongs to what follows, or is a piece of its own.
            end -= end < len(text)
        elif before == "'" and (contraction := _contraction(text, start, classes)):
            start += contraction
        elif before == " ":
            start -= 1
        elif before and classes[ord(before)] == SPACE:
            # A run of spaces that does not end in a blank: all but its last form a piece, the last forms another.
            if at < start - 1:
                yield text[at : start - 1], False
            at = start - 1
        if at < start:
            yield text[at:start], False
        yield text[start:end], True
        at = end
    if at < len(text):
        yield text[at:], False


def _contraction(text: str, start: int, classes: np.ndarray) -> int:
    """Number of characters from `start`, after an apostrophe, that form a contraction: 's 'd 'm 't 'll 've 're.

    The apostrophe begins a piece unless the piece of the characters or blank before includes it.
    """
    if start > 1 and (text[start - 2] == " " or classes[ord(text[start - 2])] == OTHER):
        return 0
    if text[start] in "sdmt":
        return 1
    return 2 if text[start : start + 2] in ("ll", "ve", "re") else 0


def _runs(text: str, classes: np.ndarray, run: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of one class with more than `run` characters."""
    start, last = 0, -1
    for first in range(0, len(text), _SLICE):
        kinds = classes[np.frombuffer(text[first : first + _SLICE].encode("utf-32-le"), "<u4")]
        changes = first + 1 + np.flatnonzero(kinds[1:] != kinds[:-1])
        joined = [start] if last in (-1, kinds[0]) else [start, first]
        bounds = np.concatenate([joined, changes])
        for number in np.flatnonzero(np.diff(bounds) > run).tolist():
            yield int(bounds[number]), int(bounds[number + 1])
        start, last = int(bounds[-1]), int(kinds[-1])
    if len(text) - start > run:
        yield start, len(text)


def encode_piece(
    piece: str, encode: Callable[[str], np.ndarray], token_lengths: np.ndarray, window: int = WINDOW
) -> np.ndarray:
    """The tokens of one piece, equal to those of merging it at once, uint32 [n].

    Byte-pair encoding is local: tokens are the encoding of their bytes if every two neighbours are the encoding of
    theirs. (Until the first merge across the boundary between two tokens, each side merges as it would alone, so that
    merge would also come first within the two.) So windows are encoded one after the other, each starting where a token
    of the previous window ends. A boundary is accepted if encoding a few tokens around it gives the same tokens.

    Args:
      piece: the text; longer than any token.
      encode: merges a text as one piece.
      token_lengths: bytes of each token id.
      window: characters encoded at once, more than any token has.
    """
    parts: list[np.ndarray] = []
    at, end = 0, window
    ids = encode(piece[:end])
    chars, tokens = _borders(piece[:end], ids, token_lengths)
    while end < len(piece):
        for number in range(int(np.searchsorted(chars, (end - at) * 3 // 4)) - 1, 0, -1)[:_TRIES]:
            cut, before = at + int(chars[number]), int(tokens[number])
            left, left_tokens = at + int(chars[number - 1]), int(tokens[number - 1])
            following = encode(piece[cut : cut + window])
            next_chars, next_tokens = _borders(piece[cut : cut + window], following, token_lengths)
            expected = np.concatenate([ids[left_tokens:before], following[: next_tokens[0]]])
            if np.array_equal(encode(piece[left : cut + int(next_chars[0])]), expected):
                parts.append(ids[:before])
                at, end, ids, chars, tokens = cut, cut + window, following, next_chars, next_tokens
                break
        else:  # no boundary was accepted: try a larger window
            end += end - at
            ids = encode(piece[at:end])
            chars, tokens = _borders(piece[at:end], ids, token_lengths)
    return np.concatenate([*parts, ids])


def _borders(text: str, ids: np.ndarray, token_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a token and a character end together: (characters before it [n], tokens before it [n])."""
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    ends = np.cumsum(1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF))
    token_ends = np.cumsum(token_lengths[ids])
    chars_before = np.zeros(int(ends[-1]) + 1, np.int64)
    chars_before[ends] = np.arange(1, len(ends) + 1)
    tokens = np.flatnonzero(chars_before[token_ends])
    return chars_before[token_ends[tokens]], tokens + 1
