"""What can be asked of a model, in strings, and what it answers.

Three kinds: how likely a continuation of a context is, how likely a text is, and what the model generates. A task turns
its items into requests, the engine answers them in any order, and the task turns answers into a metric.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from gpt3_jax.generation import Beam as Beam
from gpt3_jax.generation import Completed as Completed
from gpt3_jax.generation import Decoding
from gpt3_jax.generation import Finish as Finish
from gpt3_jax.generation import Greedy as Greedy
from gpt3_jax.generation import Sample as Sample
from gpt3_jax.generation.decoding import PAPER_BEAM


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Asks for the log-likelihood of `continuation` after `context`.

    Both are tokenized together and split where the context ends. A token that straddles the border counts to the
    continuation. An empty context is the beginning of a document (end-of-text).
    """

    context: str
    continuation: str


@dataclasses.dataclass(frozen=True)
class Text:
    """Asks for the log-likelihood of a whole text, the beginning of a document. A text longer than the context is read
    in windows of n_ctx tokens, each `stride` tokens further than the one before; each token is scored once."""

    text: str
    stride: int | None = None
    """Tokens that a window scores; the others are its context. None: n_ctx, windows without overlap."""


@dataclasses.dataclass(frozen=True)
class Window:
    """Asks for the log-likelihood of tokens after tokens: a part of a text that is longer than the context."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
    """Asks for a completion of `prompt`, which ends at a stop string, at end-of-text, after `max_tokens`, or when the
    context is full."""

    prompt: str
    stop: tuple[str, ...] = ("\n",)
    """The completion ends in front of the first of them, also where it begins inside a token."""
    max_tokens: int = 64
    decoding: Decoding = PAPER_BEAM


Request = Continuation | Text | Window | Completion


@dataclasses.dataclass(frozen=True)
class Score:
    """The log-likelihood of a continuation."""

    logprob: float
    """Natural logarithm, summed over the continuation's tokens."""
    tokens: int
    """Tokens of the continuation."""
    greedy: bool
    """Whether every token is the likeliest at its place."""
    token_logprobs: tuple[float, ...]
    token_greedy: tuple[bool, ...]
    context_tokens: int
    straddles: bool = False
    """Whether the first token of the continuation begins inside the context."""


@dataclasses.dataclass(frozen=True)
class WindowScore:
    """The log-likelihood of a window's continuation."""

    logprob: float
    """Natural logarithm, summed over its tokens."""
    tokens: int


@dataclasses.dataclass(frozen=True)
class TextScore:
    """The log-likelihood of a text."""

    logprob: float
    """Natural logarithm, summed over its tokens."""
    tokens: int
    bytes: int
    """Of its UTF-8 encoding."""
    words: int
    """Separated by white space."""

    @staticmethod
    def of(text: str, windows: Sequence[WindowScore]) -> TextScore:
        """Of a text from those of all its windows. The sum does not depend on their order."""
        logprob, tokens = math.fsum(each.logprob for each in windows), sum(each.tokens for each in windows)
        return TextScore(logprob, tokens, len(text.encode(errors="replace")), len(text.split()))


Answer = Score | TextScore | WindowScore | Completed
