"""Answers requests with a model: the same engine on one device and on any mesh that trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from gpt3_jax.config import MemoryConfig, ModelConfig, ParallelConfig
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.evals.encoding import encode, windows_of
from gpt3_jax.evals.requests import (
    Answer,
    Completion,
    Continuation,
    Request,
    Sample,
    Score,
    Text,
    TextScore,
    Window,
    WindowScore,
)
from gpt3_jax.evals.scorer import Likelihood, Scorer
from gpt3_jax.generation import Decoding, Generator
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
    ) -> None:
        """Arguments are those of `Scorer`.

        Raises:
            UserError: the tokenizer has more tokens than the model; a dimension that the mesh's axes do not divide.
        """
        if tokenizer.n_vocab > model.n_vocab:
            raise UserError(
                f"tokenizer {tokenizer.name!r} has {tokenizer.n_vocab} tokens but the model only {model.n_vocab}; it "
                "was trained with another one"
            )
        self.config, self.tokenizer = model, tokenizer
        self._params, self._mesh = params, mesh
        self._generator: Generator | None = None  # made when it is asked for: it holds its weights a second time
        self._scorer = Scorer(params, model, mesh, parallel, memory, batch_tokens)

    @classmethod
    def of(cls, loaded: Loaded, mesh: Mesh | None = None, parallel: ParallelConfig | None = None) -> Engine:
        """The engine of a model that `interop.loading.load_model` has read, on the same mesh."""
        return cls(loaded.params, loaded.config, loaded.tokenizer, mesh, parallel)

    def use(self, params: Params) -> None:
        """Takes other parameters of the same model from now on. What was compiled stays."""
        self._params, self._generator = params, None
        self._scorer.use(params)

    def release(self) -> None:
        """Lets go of the parameters and of what was made from them, until `use`: their memory is the caller's again."""
        del self._params
        self._generator = None
        self._scorer.release()

    @property
    def batch_tokens(self) -> int:
        """Tokens of a scored batch on all devices, padding included."""
        return self._scorer.batch_tokens

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Pairs of a request's index and its answer, as soon as they are known.

        Raises:
            UserError: a request that does not fit the model's context, or has nothing to score.
        """
        yield from self._continuations({i: r for i, r in enumerate(requests) if isinstance(r, Continuation)})
        yield from self._texts({i: r for i, r in enumerate(requests) if isinstance(r, Text | Window)})
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
        for n, likelihood in self._scorer.stream(pairs):
            i = order[n]
            yield i, _score(likelihood, len(encoded[i].context), encoded[i].straddles)

    def _texts(self, requests: dict[int, Text | Window]) -> Iterator[tuple[int, Answer]]:
        """All windows together, so that those of several texts fill batches."""
        parts = {
            i: [request] if isinstance(request, Window) else windows_of(request, self.tokenizer, self.config.n_ctx)
            for i, request in requests.items()
        }
        places = [(i, window) for i, found in parts.items() for window in found]
        scores: dict[int, list[WindowScore]] = {i: [] for i in parts}
        for n, likelihood in self._scorer.stream([(window.context, window.continuation) for _, window in places]):
            i, request = places[n][0], requests[places[n][0]]
            scores[i].append(WindowScore(likelihood.logprob, likelihood.tokens))
            if len(scores[i]) == len(parts[i]):
                yield i, TextScore.of(request.text, scores[i]) if isinstance(request, Text) else scores[i][0]

    def _completions(self, requests: dict[int, Completion]) -> Iterator[tuple[int, Answer]]:
        groups: dict[tuple[tuple[str, ...], int, Decoding], list[int]] = {}
        for i, request in requests.items():
            # Samples that differ in their number only are computed together.
            decoding = request.decoding
            like = dataclasses.replace(decoding, number=0) if isinstance(decoding, Sample) else decoding
            groups.setdefault((request.stop, request.max_tokens, like), []).append(i)
        for (stop, max_tokens, decoding), group in groups.items():
            if self._generator is None:
                self._generator = Generator(self._params, self.config, self.tokenizer, self._mesh)
            prompts = [self.tokenizer.encode(requests[i].prompt) for i in group]
            found = [requests[i].decoding for i in group]
            samples = [each.number for each in found if isinstance(each, Sample)] or None
            for n, completed in self._generator.complete(prompts, stop, max_tokens, decoding, samples):
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
