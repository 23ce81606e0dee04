"""Measures generation on one device, with random weights, random prompts and a vocabulary without end-of-text."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import jax
import numpy as np

from gpt3_jax.bench.ceilings import read_bytes
from gpt3_jax.bench.machine import capacity, peak_memory
from gpt3_jax.bench.timing import Spread
from gpt3_jax.cluster.device_errors import out_of_memory
from gpt3_jax.config import ModelConfig
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.generation import Generator
from gpt3_jax.model import params as model_params
from gpt3_jax.model.decode import decode_weights
from gpt3_jax.model.stored import Form
from gpt3_jax.program.compiled import without_cache

MOST_ROWS = 16
"""Maximum number of rows that `generate` computes at once."""


@dataclasses.dataclass(frozen=True)
class DecodeTimes:
    """The measured times."""

    prefill_seconds: Spread
    """From the prompts until the first new tokens are on the host."""
    prefill_tokens_per_second: float
    token_seconds: Spread
    """Time between two tokens of a row on the host, while the next ones are computed; over all repetitions."""
    tokens_per_second: float
    """Rate of new tokens over all rows, without the first; the median of the repetitions."""
    prompt_tokens: int
    new_tokens: int
    rows: int
    repeat: int
    first_call_seconds: float
    """The first call, which compiles."""
    weight_bytes: int
    """Size of the weights as they are kept, which are read once per token."""
    memory: dict[str, int]
    """Peak memory in bytes, by source."""
    read_bytes: float = 0.0
    """Bytes per second at which the device reads memory, measured beside it."""

    @property
    def bound_share(self) -> float:
        """The time that reading the weights once takes at `read_bytes`, as a share of a token's time."""
        return self.weight_bytes / self.read_bytes / self.token_seconds.median if self.read_bytes else 0.0


class _Unending:
    """A vocabulary without end-of-text, so that completions have the requested length. Each token is one letter."""

    name = "bench"
    eot = -1

    def __init__(self, n_vocab: int, prompt_tokens: int) -> None:
        self.n_vocab = n_vocab
        self._prompt_tokens = prompt_tokens

    def encode(self, text: str) -> list[int]:
        """Random tokens, as many as the text's number says."""
        found = np.random.default_rng(int(text)).integers(0, self.n_vocab, self._prompt_tokens)
        return [int(token) for token in found]

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"x" * len(ids)


def lengths(model: ModelConfig, prompt_tokens: int | None, new_tokens: int | None) -> tuple[int, int]:
    """Tokens of a prompt (default: half the context) and new ones (default: 128, or what the context leaves).

    Raises:
        UserError: they do not fit the context.
    """
    n_ctx = model.n_ctx
    prompt = max(1, n_ctx // 2 if prompt_tokens is None else prompt_tokens)
    new = min(128, n_ctx - prompt) if new_tokens is None else new_tokens
    if prompt + new > n_ctx or new < 2:
        raise UserError(
            f"--prompt-tokens {prompt} and --new-tokens {new}: their sum may be at most {n_ctx} (model.n_ctx), and "
            "at least 2 new tokens are needed to time one"
        )
    return prompt, new


def measure(
    model: ModelConfig,
    prompt_tokens: int | None,
    new_tokens: int | None,
    rows: int,
    repeat: int,
    form: Form = "compute",
) -> DecodeTimes:
    """Completes `rows` prompts at once, `repeat` times after one to warm up.

    Args:
        form: how the weights are kept.

    Raises:
        UserError: lengths that the context does not hold; too many rows; a model that the device does not hold.
        RunError: the device runs out of memory.
    """
    prompt, new = lengths(model, prompt_tokens, new_tokens)
    if rows > MOST_ROWS:
        raise UserError(f"--rows is {rows}; expected {MOST_ROWS} at most, which is what generate takes at once")
    if jax.process_count() > 1:
        raise UserError("bench decode runs in one process: generation is on one device")
    device = jax.local_devices()[0]
    width = 2 if model.dtype == "bfloat16" else 4
    room = capacity(device)
    if room is not None and (needed := (4 + width) * model_params.count_params(model)) > room:
        raise UserError(
            f"{model_params.count_params(model):,} parameters, in fp32 and in {model.dtype}, need "
            f"{needed / 2**30:,.1f} GiB and {device.device_kind} has {room / 2**30:,.1f} GiB; take a smaller model"
        )
    try:
        params = jax.jit(model_params.init, static_argnums=0)(model, jax.random.key(0))
        vocabulary: Any = _Unending(model.n_vocab, prompt)
        generator = Generator(params, model, vocabulary, form=form)
        kept = jax.eval_shape(lambda p: decode_weights(p, model, form, device.platform), model_params.abstract(model))
        weight_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
        del params
        with without_cache():
            started = time.perf_counter()
            _complete(generator, rows, new)
            first_call = time.perf_counter() - started
        speeds = [read_bytes(device)]
        runs = [_complete(generator, rows, new) for _ in range(repeat)]
        speeds.append(read_bytes(device))
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"out of memory on {device.device_kind}: {' '.join(str(error).split())[:200]}; lower --rows or take a "
            "smaller model"
        ) from None
    prefill = Spread.of([first for first, _ in runs])
    return DecodeTimes(
        prefill_seconds=prefill,
        prefill_tokens_per_second=rows * prompt / prefill.median,
        token_seconds=Spread.of([gap for _, gaps in runs for gap in gaps]),
        tokens_per_second=Spread.of([rows * len(gaps) / sum(gaps) for _, gaps in runs]).median,
        prompt_tokens=prompt,
        new_tokens=new,
        rows=rows,
        repeat=repeat,
        first_call_seconds=first_call,
        weight_bytes=weight_bytes,
        memory=peak_memory(device, None),
        read_bytes=max(speeds),  # before and after: the machine's, not a neighbour's share of it
    )


def _complete(generator: Generator, rows: int, new_tokens: int) -> tuple[float, list[float]]:
    """Seconds until the first tokens, and between one token of the rows and the next."""
    started = time.perf_counter()
    arrived: list[float] = []
    for piece in generator.stream([str(row) for row in range(rows)], max_tokens=new_tokens):
        if piece.tokens > len(arrived):  # the first row that has this many
            arrived.append(time.perf_counter())
    assert len(arrived) == new_tokens
    return arrived[0] - started, [b - a for a, b in itertools.pairwise(arrived)]
