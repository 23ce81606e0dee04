"""A completion in progress, and what it is when it has ended."""

from __future__ import annotations

import codecs
import dataclasses
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.generation.stops import StopStrings

Finish = Literal["stop", "end_of_text", "max_tokens", "context"]
"""Why a completion ended: a stop string, end-of-text, max_tokens, or a full context."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """The text that one token adds to one completion."""

    prompt: int
    """Index of the prompt, from 0."""
    sample: int
    """Index of the completion of this prompt, from 0."""
    text: str
    """Whole characters only: "" while a character's bytes are incomplete, or may begin a stop string. U+FFFD for bytes
    that are not UTF-8."""
    tokens: int
    """Tokens of the completion so far, without end-of-text."""
    finish: Finish | None
    """In a completion's last piece, why it ended."""


@dataclasses.dataclass(frozen=True)
class Completed:
    """What the model generated."""

    text: str
    """Without the stop string."""
    tokens: int
    """Generated, those of the stop string included, without end-of-text."""
    finish: Finish
    logprob: float
    """Of the generated tokens, end-of-text included, summed; nats."""
    prompt_tokens: int


class Row:
    """A completion that grows by one token at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: int,
        sample: int,
        prompt_ids: Sequence[int],
        max_tokens: int,
        n_ctx: int,
        stop: StopStrings,
    ) -> None:
        self.prompt, self.sample, self.prompt_ids = prompt, sample, prompt_ids
        # The random key depends on the prompt itself, so that different prompts get different random numbers and a
        # prompt's completion does not depend on the other prompts.
        self.stream = (zlib.crc32(np.asarray(prompt_ids, np.int32).tobytes()) + sample) % 2**31
        self.limit, self._at_limit = limit(len(prompt_ids), max_tokens, n_ctx)
        self.finished = False
        self._tokenizer, self._stop = tokenizer, stop
        self._count = 0
        self._logprob = 0.0
        self._bytes = b""
        self._shown = 0
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._finish: Finish | None = None

    def add(self, token: int, logprob: float) -> Piece:
        """Appends a token; what it adds to the text."""
        self._logprob += logprob
        finish: Finish | None = None
        end: int | None = None
        if token == self._tokenizer.eot:
            finish = "end_of_text"
        else:
            seen = len(self._bytes)
            self._bytes += self._tokenizer.decode_bytes([token])
            self._count += 1
            end = self._stop.cut(self._bytes, seen)
            if end is not None:
                finish = "stop"
            elif self._count == self.limit:
                finish = self._at_limit
        if end is None:
            end = len(self._bytes) - (0 if finish else self._stop.held(self._bytes))
        self.finished, self._finish = finish is not None, finish
        text = self._decoder.decode(self._bytes[self._shown : end], self.finished)
        self._shown = end
        self._text += text
        return Piece(self.prompt, self.sample, text, self._count, finish)

    def completed(self) -> Completed:
        """The completion, once it is finished."""
        assert self._finish is not None
        return Completed(self._text, self._count, self._finish, self._logprob, len(self.prompt_ids))


def limit(prompt_tokens: int, max_tokens: int, n_ctx: int) -> tuple[int, Finish]:
    """The most tokens that a completion may have, and why it ends there."""
    room = n_ctx - prompt_tokens
    return (max_tokens, "max_tokens") if max_tokens <= room else (room, "context")
