"""How the next token is chosen: the likeliest, a sample, or by beam search."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Literal, TypeAlias

from gpt3_jax.errors import UserError, require_type


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


AS_IT_IS = Sampling()
"""The model's own distribution."""


@dataclasses.dataclass(frozen=True)
class Sample(Sampling):
    """`Sampling` with the seed of its random numbers."""

    seed: int = 0
    number: int = 0
    """Which of the samples that a prompt has with this seed, from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        require_type("sample number", self.number, numbers.Integral, "a whole number")
        if not 0 <= self.number < 2**31:
            raise UserError(f"sample number is {self.number}; expected 0 <= number < 2**31")


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
    """What a hypothesis' log-likelihood is divided by; n is its length in tokens, end-of-text and those of a stop
    string included. gnmt: ((5 + n) / 6)^alpha, as T5's code has it. power: n^alpha, as transformers has it. The paper
    does not say."""
    stopping: Literal["bound", "heuristic"] = "bound"
    """When the search ends. bound: when no hypothesis that goes on can become better than the best that has ended,
    however long it gets, as T5's code has it (in transformers ``early_stopping="never"``). heuristic: when W have ended
    and the best that goes on, at its present length, is no better than the worst of them: transformers'
    ``early_stopping=False``, which may miss a better one that is longer. The paper does not say."""

    def __post_init__(self) -> None:
        require_type("beam width", self.width, numbers.Integral, "a whole number")
        require_type("beam alpha", self.alpha, numbers.Real, "a number")
        if self.width < 1:
            raise UserError(f"beam width is {self.width}; expected at least 1")
        if self.penalty not in ("gnmt", "power"):
            raise UserError(f"beam penalty is {self.penalty!r}; expected gnmt or power")
        if self.stopping not in ("bound", "heuristic"):
            raise UserError(f"beam stopping is {self.stopping!r}; expected bound or heuristic")

    def divisor(self, length: int) -> float:
        """The length penalty of a hypothesis of so many tokens."""
        return float(length if self.penalty == "power" else (5 + length) / 6) ** float(self.alpha)


PAPER_BEAM = Beam()
"""As GPT-3 decodes its free-form answers (section 2.4)."""
Decoding: TypeAlias = Greedy | Sample | Beam


def require_seed(seed: int) -> None:
    """Raises UserError unless `seed` is a whole number of 32 bits."""
    require_type("seed", seed, numbers.Integral, "a whole number")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; expected 0 <= seed < 2**32")
