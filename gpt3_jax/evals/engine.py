"""Answers requests with a model: the same engine on one device and on any mesh that trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from gpt3_jax.config import MemoryConfig, ModelConfig, ParallelConfig
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.batches import Ids
from gpt3_jax.evals.encoding import encode
from gpt3_jax.evals.one_set import OneSet
from gpt3_jax.evals.requests import (
    Answer,
    Completion,
    Continuation,
    Request,
    Sample,
    Score,
    Text,
    Window,
    WindowScore,
)
from gpt3_jax.evals.scorer import Likelihood, Scorer
from gpt3_jax.generation import Decoding
from gpt3_jax.interop.loading import Loaded
from gpt3_jax.model.params import Params


class Engine:
    """A model and its tokenizer."""

    def __init__(
        self,
        params: Params,
        model: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None = None,
        parallel: ParallelConfig | None = None,
        memory: MemoryConfig | None = None,
        batch_tokens: int | None = None,
        *,
        consume: bool = False,
    ) -> None:
        """Arguments are those of `Scorer`. With `consume` the parameters belong to the engine: it deletes them when it
        generates, to hold its weights once.

        Raises:
            UserError: the tokenizer has more tokens than the model; a dimension that the mesh's axes do not divide.
        """
        if tokenizer.n_vocab > model.n_vocab:
            raise UserError(
                f"tokenizer {tokenizer.name!r} has {tokenizer.n_vocab} tokens but the model only {model.n_vocab}; it "
                "was trained with another one"
            )
        self.config, self.tokenizer = model, tokenizer
        scorer = Scorer(params, model, mesh, parallel, memory, batch_tokens)
        self._uses = OneSet(scorer, tokenizer, mesh, consume=consume)

    @classmethod
    def of(
        cls, loaded: Loaded, mesh: Mesh | None = None, parallel: ParallelConfig | None = None, *, consume: bool = False
    ) -> Engine:
        """The engine of a model that `interop.loading.load_model` has read, on the same mesh."""
        return cls(loaded.params, loaded.config, loaded.tokenizer, mesh, parallel, consume=consume)

    def use(self, params: Params) -> None:
        """Takes other parameters of the same model from now on. What was compiled stays."""
        self._uses.use(params)

    def release(self) -> None:
        """Lets go of the parameters and of what was made from them, until `use`: their memory is the caller's again."""
        self._uses.release()

    @property
    def batch_tokens(self) -> int:
        """Tokens of a scored batch on all devices, padding included."""
        return self._uses.batch_tokens

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Pairs of a request's index and its answer, as soon as they are known. Texts come in windows
        (`encoding.windows_of`). They are all to be taken, or given up, before more is asked for.

        Raises:
            TypeError: a `Text`.
            UserError: a request that does not fit the model's context, or has nothing to score.
        """
        if any(isinstance(request, Text) for request in requests):
            raise TypeError("a text is to be asked for in windows (encoding.windows_of)")
        yield from self._continuations({i: r for i, r in enumerate(requests) if isinstance(r, Continuation)})
        yield from self._windows({i: r for i, r in enumerate(requests) if isinstance(r, Window)})
        yield from self._completions({i: r for i, r in enumerate(requests) if isinstance(r, Completion)})

    def _continuations(self, requests: dict[int, Continuation]) -> Iterator[tuple[int, Answer]]:
        encoded = {i: encode(request.context, request.continuation, self.tokenizer) for i, request in requests.items()}
        for i, request in requests.items():
            if not request.continuation:
                raise UserError(
                    f"the continuation of {request.context[-60:]!r} is empty; expected at least a character"
                )
            length = len(encoded[i].context) + len(encoded[i].continuation) - 1
            if length > self.config.n_ctx:
                raise UserError(
                    f"a context with its continuation {request.continuation[:60]!r} is {length} tokens long without "
                    f"the last; the model's context, n_ctx, is {self.config.n_ctx}: shorten it"
                )
        order = list(encoded)
        pairs = [(encoded[i].context, encoded[i].continuation) for i in order]
        for n, likelihood in self._stream(pairs):
            i = order[n]
            yield i, _score(likelihood, len(encoded[i].context), encoded[i].straddles)

    def _windows(self, requests: dict[int, Window]) -> Iterator[tuple[int, Answer]]:
        order = list(requests)
        pairs = [(requests[i].context, requests[i].continuation) for i in order]
        for n, likelihood in self._stream(pairs):
            yield order[n], WindowScore(likelihood.logprob, likelihood.tokens)

    def _stream(self, pairs: list[tuple[Ids, Ids]]) -> Iterator[tuple[int, Likelihood]]:
        return self._uses.scorer().stream(pairs) if pairs else iter(())

    def _completions(self, requests: dict[int, Completion]) -> Iterator[tuple[int, Answer]]:
        groups: dict[tuple[tuple[str, ...], int, Decoding], list[int]] = {}
        for i, request in requests.items():
            # Samples that differ in their number only are computed together.
            decoding = request.decoding
            like = dataclasses.replace(decoding, number=0) if isinstance(decoding, Sample) else decoding
            groups.setdefault((request.stop, request.max_tokens, like), []).append(i)
        for (stop, max_tokens, decoding), group in groups.items():
            prompts = [self.tokenizer.encode(requests[i].prompt) for i in group]
            found = [requests[i].decoding for i in group]
            samples = [each.number for each in found if isinstance(each, Sample)] or None
            for n, completed in self._uses.generator().complete(prompts, stop, max_tokens, decoding, samples):
                yield group[n], completed


def _score(likelihood: Likelihood, context_tokens: int, straddles: bool) -> Score:
    return Score(
        likelihood.logprob,
        likelihood.tokens,
        likelihood.greedy,
        likelihood.token_logprobs,
        likelihood.token_greedy,
        context_tokens,
        straddles,
    )
