"""Strings to token ids, split where a context ends."""

from __future__ import annotations

import dataclasses

import numpy as np

from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.requests import Text, Window


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A context and its continuation."""

    context: tuple[int, ...]
    """At least one token: end-of-text where no token lies wholly inside the context."""
    continuation: tuple[int, ...]
    straddles: bool
    """Whether the continuation's first token begins inside the context."""


def encode(context: str, continuation: str, tokenizer: Tokenizer) -> Encoded:
    """Tokenizes both together, and splits in front of the first token that reaches beyond the context.

    Tokenized apart they could become tokens that the model never saw side by side.
    """
    ids = tokenizer.encode_array(context + continuation)
    ends = np.cumsum(tokenizer.lengths(ids))
    # As the tokenizer does it: a lone surrogate becomes the three bytes of U+FFFD.
    border = len(context.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode())
    inside = int(np.searchsorted(ends, border, side="right"))
    straddles = border != (ends[inside - 1] if inside else 0)
    return Encoded(tuple(ids[:inside].tolist()) or (tokenizer.eot,), tuple(ids[inside:].tolist()), bool(straddles))


def windows_of(request: Text, tokenizer: Tokenizer, n_ctx: int) -> list[Window]:
    """The windows of a text; at least one.

    Raises:
        UserError: a stride that is no part of the context, or an empty text.
    """
    stride = n_ctx if request.stride is None else request.stride
    if not 1 <= stride <= n_ctx:
        raise UserError(f"the stride is {stride}; expected 1 to the model's context, {n_ctx}")
    parts = windows(tokenizer.encode(request.text), tokenizer.eot, n_ctx, stride)
    if not parts:
        raise UserError("a text to score is empty; expected at least a character")
    return [Window(context, continuation) for context, continuation in parts]


def windows(ids: list[int], eot: int, n_ctx: int, stride: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A document as contexts with continuations, in windows of at most n_ctx tokens: each token is in one continuation,
    `stride` at a time, after all the context that still fits. The first comes after end-of-text."""
    stream = [eot, *ids]
    parts = []
    first = 1
    while first < len(stream):
        # The first window scores all that fits; it has no context to keep.
        end = min(first + (n_ctx if first == 1 else stride), len(stream))
        begin = max(0, end - 1 - n_ctx)
        parts.append((tuple(stream[begin:first]), tuple(stream[first:end])))
        first = end
    return parts
