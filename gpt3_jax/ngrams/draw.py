"""Draws passages from a corpus at random."""

from __future__ import annotations

import dataclasses
import random

from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.ngrams.corpus import Corpus
from gpt3_jax.ngrams.words import words

_TRIES = 50
"""For each passage, before it is said that the documents are too short."""
_SPARE = 2
"""A passage is cut from so many times its tokens, since another tokenizer may cut the text into fewer."""
_FEWEST = 4
"""Words of a passage, of which the first and the last may be cut."""
_REPLACED = "\ufffd"


@dataclasses.dataclass(frozen=True)
class Passage:
    """Tokens that follow one another in a document, as text."""

    where: str
    character: int | None
    """Of the document; None for token ids, where it is not known."""
    prefix: str
    continuation: str
    tokens: tuple[int, ...]
    """Of the continuation."""


def draw(corpus: Corpus, tokenizer: Tokenizer, prefix: int, continuation: int, count: int, seed: int) -> list[Passage]:
    """`count` passages of `prefix` + `continuation` tokens, each within a document. Each token of the corpus is as
    likely as another to begin one, but for those too near to the end of their document.

    Files of text are read once; token ids where a passage is.

    Raises:
        UserError: a number out of range, or the documents are too short.
        RunError: a file is damaged.
    """
    for name, value in (("prefix", prefix), ("continuation", continuation), ("count", count)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    generator = random.Random(f"passages\n{seed}")
    passages: list[Passage] = []
    window = _SPARE * (prefix + continuation)
    for _ in range(_TRIES):
        for where, character, text in corpus.windows(count - len(passages), window, generator):
            begin = len(text) - len(text.lstrip(_REPLACED))  # a character of which the window has a part
            ids = tokenizer.encode(text[begin:])[: prefix + continuation]
            first, second = tokenizer.decode(ids[:prefix]), tokenizer.decode(ids[prefix:])
            long = len(ids) == prefix + continuation and len(words(first + second)) >= _FEWEST
            if long and _REPLACED not in first + second:
                at = None if character is None else character + begin
                passages.append(Passage(where, at, first, second, tuple(ids[prefix:])))
        if len(passages) == count:
            return passages
    raise UserError(
        f"{', '.join(corpus.files[:3])}: {len(passages)} of {count} passages of {prefix} + {continuation} tokens and "
        f"{_FEWEST} words were found; the documents are too short: take fewer tokens, or fewer passages; or the "
        "passages have too few words: take more"
    )
