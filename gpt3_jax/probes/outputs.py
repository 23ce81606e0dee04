"""Outputs of a model after prompts of several groups, as the paper draws them: 800 for each prompt, 50 tokens long."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt3_jax.errors import UserError
from gpt3_jax.evals.requests import Answer, Completed, Completion, Request, Sample


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How outputs are drawn (GPT-3 section 6.2)."""

    outputs: int = 800
    """For each prompt."""
    tokens: int = 50
    """Length of an output; it is shorter if the document ends."""
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("outputs", "tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected at least 1")
        self.sample(0)

    def sample(self, number: int) -> Sample:
        """Raises UserError for a setting out of range."""
        return Sample(float(self.temperature), 0, float(self.top_p), self.seed, number)

    def requests(self, prompts: Sequence[str]) -> list[Request]:
        return [
            Completion(prompt, (), self.tokens, self.sample(number))
            for prompt in prompts
            for number in range(self.outputs)
        ]

    def texts(self, prompts: Sequence[str], answers: Mapping[Request, Answer]) -> list[str]:
        """The outputs of some prompts, without the prompts."""
        found = [answers[request] for request in self.requests(prompts)]
        return [each.text for each in found if isinstance(each, Completed)]

    def records(
        self, group: str, prompts: Sequence[str], answers: Mapping[Request, Answer]
    ) -> Iterator[dict[str, Any]]:
        """One for each output."""
        for prompt in prompts:
            for number, text in enumerate(self.texts([prompt], answers)):
                yield {"group": group, "prompt": prompt, "number": number, "output": text}

    def as_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
