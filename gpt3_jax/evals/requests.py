"""What can be asked of a model, in strings, and what it answers.

Three kinds: how likely a continuation of a context is, how likely a text is, and what the model generates. A task turns
its items into requests, the engine answers them in any order, and the task turns answers into a metric.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from gpt3_jax.errors import UserError

Finish = Literal["stop", "end_of_text", "max_tokens", "context"]


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
class Greedy:
    """Takes the likeliest token each time."""


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search (GPT-3 section 2.4)."""

    width: int = 4
    """Hypotheses kept (GPT-3 section 2.4)."""
    alpha: float = 0.6
    """Length penalty (GPT-3 section 2.4, after T5)."""
    penalty: Literal["gnmt", "power"] = "gnmt"
    """What a hypothesis' log-likelihood is divided by; n is its length in tokens. gnmt: ((5 + n) / 6)^alpha, as T5's
    code has it. power: n^alpha, as transformers has it. The paper does not say."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"beam width is {self.width}; expected at least 1")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Samples as `gpt3_jax.generation.Sampling` describes."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Completion:
    """Asks for a completion of `prompt`, which ends at a stop string, at end-of-text, after `max_tokens`, or when the
    context is full."""

    prompt: str
    stop: tuple[str, ...] = ("\n",)
    """The completion ends in front of the first of them, also where it begins inside a token."""
    max_tokens: int = 64
    decoding: Greedy | Beam | Sample = Beam()


Request = Continuation | Text | Completion


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
class TextScore:
    """The log-likelihood of a text."""

    logprob: float
    """Natural logarithm, summed over its tokens."""
    tokens: int
    bytes: int
    """Of its UTF-8 encoding."""
    words: int
    """Separated by white space."""


@dataclasses.dataclass(frozen=True)
class Completed:
    """What the model generated."""

    text: str
    """Without the stop string."""
    tokens: int
    """Generated, those of the stop string included."""
    finish: Finish
    logprob: float
    """Of the generated tokens, summed; nats."""
    prompt_tokens: int


Answer = Score | TextScore | Completed
