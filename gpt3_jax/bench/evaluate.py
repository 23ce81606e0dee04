"""Measures evaluation on the configuration's mesh, with random weights and invented items of token ids.

Three kinds of item: a context with four choices of several tokens, one with four choices of one token, and a text as
long as the context. Contexts are of different lengths, and no two share a beginning.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np
from jax.sharding import Mesh

from gpt3_jax.bench.machine import peak_memory
from gpt3_jax.bench.timing import Spread
from gpt3_jax.cluster.device_errors import out_of_memory
from gpt3_jax.config import Config
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals.batches import Ids
from gpt3_jax.evals.scorer import Scorer
from gpt3_jax.model import params as model_params
from gpt3_jax.parallel.rules import shardings
from gpt3_jax.parallel.zero import parameter_partitions
from gpt3_jax.program.compiled import without_cache

KINDS = ("choices", "one-token choices", "texts")
CHOICES = 4
CHOICE_TOKENS = (2, 12)
"""The fewest and the most tokens of a choice."""

Request = tuple[Ids, Ids]


@dataclasses.dataclass(frozen=True)
class KindTimes:
    """The measured times of one kind of item."""

    seconds: Spread
    """For all items, from token ids to likelihoods on the host."""
    items_per_second: float
    tokens_per_second: float
    """Tokens that are computed, a context once for its choices; without padding."""
    items: int
    tokens: int
    padding: float
    """Share of padding in the rows that are computed."""
    programs: int
    """Shapes of rows, each compiled once."""
    first_call_seconds: float
    """The first call, which compiles them."""


@dataclasses.dataclass(frozen=True)
class EvaluateTimes:
    """The measured times."""

    kinds: dict[str, KindTimes]
    context_tokens: int
    """The most tokens of a context; the fewest are two thirds of them."""
    mesh: dict[str, int]
    stage: int
    repeat: int
    memory: dict[str, int]
    """Peak memory of a device in bytes, by source."""


def invented(kind: str, items: int, context_tokens: int, n_ctx: int, n_vocab: int) -> list[Request]:
    """Requests of `items` items, always the same ones."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> Ids:
        return tuple(rng.integers(0, n_vocab, length).tolist())

    if kind == "texts":
        return [(ids(1), ids(n_ctx)) for _ in range(items)]
    low, high = (1, 1) if kind == "one-token choices" else CHOICE_TOKENS
    requests: list[Request] = []
    for _ in range(items):
        context = ids(int(rng.integers(max(1, 2 * context_tokens // 3), context_tokens + 1)))
        requests += [(context, ids(int(rng.integers(low, high + 1)))) for _ in range(CHOICES)]
    return requests


def measure(config: Config, mesh: Mesh, items: int | None, context_tokens: int | None, repeat: int) -> EvaluateTimes:
    """Scores the items of each kind, `repeat` times after one to warm up.

    Args:
        items: of each kind; None: as many as fill about two batches.
        context_tokens: the most of a context; None: half of n_ctx.

    Raises:
        UserError: contexts that leave no room for the choices.
        RunError: a device runs out of memory.
    """
    model, stage = config.model, config.parallel.stage
    context = max(1, model.n_ctx // 2) if context_tokens is None else context_tokens
    if context + CHOICE_TOKENS[1] - 1 > model.n_ctx:
        raise UserError(
            f"--context-tokens {context}: with choices of up to {CHOICE_TOKENS[1]} tokens, at most "
            f"{model.n_ctx - CHOICE_TOKENS[1] + 1} fit model.n_ctx, {model.n_ctx}"
        )
    try:
        placed = shardings(parameter_partitions(model_params.param_table(model), mesh, stage), mesh)
        init = jax.jit(model_params.init, static_argnums=0, out_shardings=placed)
        scorer = Scorer(init(model, jax.random.key(0)), model, mesh, config.parallel, config.memory)
        kinds = {}
        for kind in KINDS:
            length = model.n_ctx if kind == "texts" else context
            count = items or max(1, 2 * scorer.batch_tokens // length)
            kinds[kind] = _measure(scorer, invented(kind, count, context, model.n_ctx, model.n_vocab), count, repeat)
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"out of memory: {' '.join(str(error).split())[:200]}; take a smaller model, more devices, or "
            "--parallel.stage 3"
        ) from None
    return EvaluateTimes(
        kinds, context, dict(mesh.shape), stage, repeat, peak_memory(next(iter(mesh.local_devices)), None)
    )


def _measure(scorer: Scorer, requests: list[Request], items: int, repeat: int) -> KindTimes:
    with without_cache():
        first_call = _seconds(scorer, requests)
    seconds = Spread.of([_seconds(scorer, requests) for _ in range(repeat)])
    batches = list(scorer.arranged(requests))
    contexts = {context for context, _ in requests}
    tokens = sum(map(len, contexts)) + sum(len(continuation) - 1 for _, continuation in requests)
    return KindTimes(
        seconds=seconds,
        items_per_second=items / seconds.median,
        tokens_per_second=tokens / seconds.median,
        items=items,
        tokens=tokens,
        padding=1 - tokens / sum(batch.tokens_BS.size for batch in batches),
        programs=len({batch.shape for batch in batches}),
        first_call_seconds=first_call,
    )


def _seconds(scorer: Scorer, requests: list[Request]) -> float:
    started = time.perf_counter()
    scorer.score(requests)
    return time.perf_counter() - started
