"""A model to evaluate: what answers requests, and what its answers depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gpt3_jax.config import ModelConfig
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.evals.requests import Answer, Request
from gpt3_jax.evals.table_h1 import size_of

AnswerAll = Callable[[Sequence[Request]], Iterator[tuple[int, Answer]]]
"""Yields the index of a request and its answer, in the order in which they are ready."""

ANSWERS = 3
"""Version of the answers: raise it when an answer changes, so that those kept by an earlier version are not taken."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to evaluate."""

    name: str
    answer: AnswerAll
    tokenizer: Tokenizer
    config: ModelConfig
    weights: str
    """Fingerprint of the weights."""
    settings: Mapping[str, Any]
    """What else answers depend on, such as the platform that computes them. Dtypes are in `config`."""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For the result file: folder, parameters, tokens trained."""
    computed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For the result file: mesh, stage and other things that change answers by rounding only."""

    def depends_on(self) -> dict[str, Any]:
        """What an answer depends on beside its request."""
        return {
            "answers": ANSWERS,
            "weights": self.weights,
            "tokenizer": self.tokenizer.fingerprint,
            "model": dataclasses.asdict(self.config),
            "settings": dict(self.settings),
        }

    def as_data(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.about,
            "weights": self.weights,
            "tokenizer": {"name": self.tokenizer.name, "fingerprint": self.tokenizer.fingerprint},
            "size": size_of(self.config),
            "model": dataclasses.asdict(self.config),
            "engine": {**self.settings, **self.computed},
        }
