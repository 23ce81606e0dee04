"""Completes prompts with a trained model, as a list of texts or as a stream."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import itertools
import numbers
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import UserError, require_type
from gpt3_jax.interop.loading import load_model
from gpt3_jax.model.decode import Cache, DecodeWeights, decode_step, decode_weights, prefill
from gpt3_jax.model.params import Params
from gpt3_jax.model.sampling import sample
from gpt3_jax.parallel.mesh import platform_of

Finish = Literal["end_of_text", "max_tokens", "context"]

_ROWS = 16
"""Maximum number of completions computed at once. More are computed in turn, to limit the memory of their caches."""
_SHORTEST = 32
"""Prompts and caches are padded to powers of two of at least this, so that few shapes are compiled."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is sampled from the model's distribution. The settings are applied in this order."""

    temperature: float = 1.0
    """Divides the logits. Below 1 sharpens the distribution, above 1 flattens it; 0 always takes the likeliest
    token."""
    top_k: int = 0
    """Sample from the k likeliest tokens only; 0: from all."""
    top_p: float = 1.0
    """Sample from the smallest set of likeliest tokens whose probability reaches this; 1: from all."""

    def __post_init__(self) -> None:
        require_type("temperature", self.temperature, numbers.Real, "a number")
        require_type("top_k", self.top_k, numbers.Integral, "a whole number")
        require_type("top_p", self.top_p, numbers.Real, "a number")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; expected 0 (the likeliest token) or more")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; expected 0 < top_p <= 1")


@dataclasses.dataclass(frozen=True)
class Piece:
    """The text that one token adds to one completion."""

    prompt: int
    """Index of the prompt, from 0."""
    sample: int
    """Index of the completion of this prompt, from 0."""
    text: str
    """Whole characters only: "" while a character's bytes are incomplete. U+FFFD for bytes that are not UTF-8."""
    tokens: int
    """Tokens of the completion so far, without end-of-text."""
    finish: Finish | None
    """In a completion's last piece, why it ended: end-of-text, max_tokens, or a full context."""


@flax.struct.dataclass
class _Draw:
    """Everything except the logits that a sample depends on."""

    key: jax.Array
    samples_B: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


class Generator:
    """A loaded model that completes prompts on one device."""

    def __init__(self, params: Params, config: ModelConfig, tokenizer: Tokenizer) -> None:
        """Raises UserError if the tokenizer has more tokens than the model."""
        if tokenizer.n_vocab > config.n_vocab:
            raise UserError(
                f"tokenizer {tokenizer.name!r} has {tokenizer.n_vocab} tokens but the model only {config.n_vocab}; "
                "it was trained with another one"
            )
        start_devices()
        self.config = config
        self.tokenizer = tokenizer
        self._weights = decode_weights(params, config)
        self._platform = platform_of(self._weights)

    @classmethod
    def load(cls, checkpoint: str | os.PathLike[str]) -> Generator:
        """Loads a run's or a Hugging Face folder. Raises the errors of `load_model`."""
        loaded = load_model(checkpoint)
        return cls(loaded.params, loaded.config, loaded.tokenizer)

    def stream(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int = 128,
        sampling: Sampling = Sampling(),
        samples: int = 1,
        seed: int = 0,
    ) -> Iterator[Piece]:
        """Completes each prompt `samples` times. Yields one piece per token and completion, as they are generated.

        An empty prompt is the beginning of a document. A completion ends at end-of-text, which is not part of it, after
        `max_tokens`, or when prompt and completion fill the context. Sample n of a prompt is a function of the prompt,
        the sampling settings, the seed and n (up to rounding, which depends on the batch size).

        Raises:
            UserError: a prompt is not a text or leaves no room in the context, or a number is out of range. Raised
                before anything is computed.
        """
        for name, value in (("max_tokens", max_tokens), ("samples", samples), ("seed", seed)):
            require_type(name, value, numbers.Integral, "a whole number")
        if max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}; expected at least 1")
        if samples < 1:
            raise UserError(f"samples is {samples}; expected at least 1")
        if not 0 <= seed < 2**32:
            raise UserError(f"seed is {seed}; expected 0 <= seed < 2**32")
        rows = [
            _Row(self.tokenizer, prompt, sample, ids, max_tokens, self.config.n_ctx)
            for prompt, ids in enumerate(self._encode(prompts))
            for sample in range(samples)
        ]
        groups = (rows[first : first + _ROWS] for first in range(0, len(rows), _ROWS))
        return itertools.chain.from_iterable(self._complete(group, sampling, seed) for group in groups)

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        n_ctx = self.config.n_ctx
        for number, prompt in enumerate(prompts, start=1):
            if not isinstance(prompt, str):
                raise UserError(
                    f"prompt {number} is of type {type(prompt).__name__}; expected text (`gpt3_jax.model.prefill` and "
                    "`decode_step` take token ids)"
                )
        encoded = [self.tokenizer.encode(prompt) or [self.tokenizer.eot] for prompt in prompts]
        for number, ids in enumerate(encoded, start=1):
            if len(ids) >= n_ctx:
                raise UserError(
                    f"prompt {number} is {len(ids)} tokens long; the model's context is {n_ctx} tokens and has to hold "
                    f"the completion too: shorten it to {n_ctx - 1} at most"
                )
        return encoded

    def _complete(self, rows: list[_Row], sampling: Sampling, seed: int) -> Iterator[Piece]:
        config = self.config
        longest = max(len(row.prompt_ids) for row in rows)
        n_tokens = max(row.limit for row in rows)
        capacity = min(_round_up(max(len(row.prompt_ids) + row.limit for row in rows), _SHORTEST), config.n_ctx)
        # The number of rows is rounded up too. Rows past the end repeat the first one and are ignored.
        padded = rows + [rows[0]] * (_round_up(len(rows), 1) - len(rows))
        tokens_BT = np.zeros((len(padded), min(_round_up(longest, _SHORTEST), capacity)), np.int32)
        for i, row in enumerate(padded):
            tokens_BT[i, : len(row.prompt_ids)] = row.prompt_ids
        lengths_B = np.array([len(row.prompt_ids) for row in padded], np.int32)
        draw = _Draw(
            jax.random.key(seed),
            jnp.array([row.stream for row in padded], jnp.int32),
            jnp.float32(sampling.temperature),
            jnp.int32(sampling.top_k),
            jnp.float32(sampling.top_p),
        )
        options: dict[str, Any] = {"config": config, "platform": self._platform, "n_tokens": self.tokenizer.n_vocab}
        drawn_B, cache = _begin(self._weights, tokens_BT, lengths_B, draw, capacity=capacity, **options)
        for n in range(n_tokens):
            tokens_B = drawn_B
            if n + 1 < n_tokens:
                # The next token is dispatched before this one is read, so the device never waits for the reader.
                drawn_B, cache = _advance(self._weights, cache, tokens_B, draw, **options)
            ids = np.asarray(tokens_B)
            yield from (row.add(int(token)) for row, token in zip(rows, ids, strict=False) if not row.finished)
            if all(row.finished for row in rows):
                return


def generate(
    checkpoint: str | os.PathLike[str],
    prompts: str | Sequence[str],
    *,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
) -> list[str]:
    """Completes prompts with a run's newest checkpoint. Returns all samples of the first prompt, then of the second, …

    Args:
        checkpoint: a run's folder (``train.run_dir``), or a folder in Hugging Face's format.
        prompts: one text or several. Completions do not repeat them.
        max_tokens: maximum tokens of a completion. It also ends at end-of-text and when the context is full.
        temperature, top_k, top_p: see `Sampling`.
        samples: number of completions of each prompt.
        seed: equal seeds give equal texts.

    Raises:
        UserError: there is no checkpoint, a prompt is longer than the context, or a number is out of range.
        RunError: no checkpoint can be read.
    """
    require_type("prompts", prompts, (str, Sequence), "a text or a list of texts")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    sampling = Sampling(temperature, top_k, top_p)
    generator = Generator.load(checkpoint)
    texts = [""] * (len(prompts) * samples)
    for piece in generator.stream(prompts, max_tokens=max_tokens, sampling=sampling, samples=samples, seed=seed):
        texts[piece.prompt * samples + piece.sample] += piece.text
    return texts


class _Row:
    """A completion in progress."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: int, sample: int, prompt_ids: list[int], max_tokens: int, n_ctx: int
    ) -> None:
        self.prompt, self.sample, self.prompt_ids = prompt, sample, prompt_ids
        # The random key depends on the prompt itself, so that different prompts get different random numbers and a
        # prompt's completion does not depend on the other prompts.
        self.stream = (zlib.crc32(np.asarray(prompt_ids, np.int32).tobytes()) + sample) % 2**31
        self.limit = min(max_tokens, n_ctx - len(prompt_ids))
        self.finished = False
        self._at_limit: Finish = "max_tokens" if self.limit == max_tokens else "context"
        self._tokenizer = tokenizer
        self._count = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> Piece:
        finish: Finish | None = None
        if token == self._tokenizer.eot:
            finish, added = "end_of_text", b""
        else:
            added = self._tokenizer.decode_bytes([token])
            self._count += 1
            if self._count == self.limit:
                finish = self._at_limit
        self.finished = finish is not None
        return Piece(self.prompt, self.sample, self._decoder.decode(added, self.finished), self._count, finish)


def _round_up(n: int, least: int) -> int:
    """The next power of two that is at least `least`."""
    return max(least, 1 << (n - 1).bit_length())


def _sample(logits_BV: jax.Array, cache: Cache, draw: _Draw, n_tokens: int) -> jax.Array:
    return sample(
        # A model may have more ids than its tokenizer has tokens.
        logits_BV[:, :n_tokens],
        draw.key,
        draw.samples_B,
        cache.lengths_B,
        draw.temperature,
        draw.top_k,
        draw.top_p,
    )


@functools.partial(jax.jit, static_argnames=("config", "platform", "n_tokens", "capacity"))
def _begin(
    weights: DecodeWeights,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    draw: _Draw,
    config: ModelConfig,
    platform: str,
    n_tokens: int,
    capacity: int,
) -> tuple[jax.Array, Cache]:
    logits_BV, cache = prefill(weights, tokens_BT, lengths_B, config, platform, capacity)
    return _sample(logits_BV, cache, draw, n_tokens), cache


@functools.partial(jax.jit, static_argnames=("config", "platform", "n_tokens"), donate_argnames="cache")
def _advance(
    weights: DecodeWeights,
    cache: Cache,
    tokens_B: jax.Array,
    draw: _Draw,
    config: ModelConfig,
    platform: str,
    n_tokens: int,
) -> tuple[jax.Array, Cache]:
    logits_BV, cache = decode_step(weights, cache, tokens_B, config, platform)
    return _sample(logits_BV, cache, draw, n_tokens), cache
