"""A model whose answers are known exactly: for tests of what is asked and what is made of the answers.

Each byte has the same probability in any context. It generates the answer to the arithmetic question at the end of a
prompt, but not to all: to those for which `knows` is true.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence

from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.evals.requests import (
    Answer,
    Completed,
    Continuation,
    Request,
    Score,
    Text,
    TextScore,
    Window,
    WindowScore,
)
from gpt3_jax.evals.subject import Subject

CONFIG = ModelConfig(n_vocab=257)
LOGPROB = math.log(1 / 256)


class ExactModel:
    """Notes the requests that it was asked; stops with `stop_with` after `stop_after` answers."""

    def __init__(
        self,
        knows: Callable[[int, int], bool] = lambda a, b: True,
        stop_after: int | None = None,
        stop_with: type[BaseException] = KeyboardInterrupt,
    ) -> None:
        self.knows, self.stop_after, self.stop_with = knows, stop_after, stop_with
        self.asked: list[Request] = []

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        # The last one first: answers may come in any order.
        for count, index in enumerate(reversed(range(len(requests)))):
            if count == self.stop_after:
                raise self.stop_with
            self.asked.append(requests[index])
            yield index, self._answer(requests[index])

    def _answer(self, request: Request) -> Answer:
        if isinstance(request, Continuation):
            n = len(request.continuation.encode())
            context = max(len(request.context.encode()), 1)
            return Score(n * LOGPROB, n, False, (LOGPROB,) * n, (False,) * n, context)
        if isinstance(request, Text):
            n = len(request.text.encode())
            return TextScore(n * LOGPROB, n, n, len(request.text.split()))
        if isinstance(request, Window):
            n = len(request.continuation)
            return WindowScore(n * LOGPROB, n)
        found = re.search(r"What is (\d+) plus (\d+)\?\n\nA:$", request.prompt)
        assert found, request.prompt
        a, b = int(found[1]), int(found[2])
        text = f" {a + b}" if self.knows(a, b) else " no idea"
        return Completed(text, len(text) + 1, "stop", LOGPROB, len(request.prompt))


def subject(model: ExactModel, name: str = "exact", weights: str = "w", config: ModelConfig = CONFIG) -> Subject:
    return Subject(name, model, ByteTokenizer(), config, weights, {"dtype": "exact"}, {"parameters": 0, "tokens": None})
