"""Beam search of one prompt: which of its candidates go on, which have ended, and when the search ends.

The device proposes the 2W best continuations of W hypotheses; everything else is here, on the host. The rules are those
of `transformers`: of the W best candidates, those that have ended become finished hypotheses, ranked by their
log-likelihood over the length penalty; the W best that have not ended go on. `Beam.stopping` says when the search ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import RunError
from gpt3_jax.generation.completion import Completed, Finish, limit
from gpt3_jax.generation.decoding import Beam
from gpt3_jax.generation.stops import StopStrings

NO_HYPOTHESIS = float("-inf")
"""The score in a place that holds none."""


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A completion of the prompt, ended or not."""

    score: float
    """Log-likelihood of its tokens; nats."""
    length: int
    """In tokens, all of them."""
    text: bytes
    """Without end-of-text; without the stop string where it ended in one."""
    parent: int
    """The place of the hypothesis that it continues."""
    token: int
    """Its last."""
    finish: Finish | None = None


def empty_places(count: int) -> tuple[list[float], list[int], list[int]]:
    """Scores, parents and tokens of so many places that hold no hypothesis."""
    return [NO_HYPOTHESIS] * count, [0] * count, [0] * count


class BeamSearch:
    """The hypotheses of one prompt."""

    def __init__(
        self, beam: Beam, tokenizer: Tokenizer, stop: StopStrings, prompt_tokens: int, max_tokens: int, n_ctx: int
    ) -> None:
        self._beam, self._tokenizer, self._stop = beam, tokenizer, stop
        self._prompt_tokens = prompt_tokens
        self.limit, self._at_limit = limit(prompt_tokens, max_tokens, n_ctx)
        self.running = [Hypothesis(0.0, 0, b"", 0, 0)]
        """Those that go on, the best first; W at most."""
        self._ended: list[tuple[float, Hypothesis]] = []
        """W at most, with their score over the length penalty, the best first."""

    @property
    def finished(self) -> bool:
        """Whether nothing goes on."""
        return not self.running

    def places(self) -> tuple[list[float], list[int], list[int]]:
        """Scores, parents and tokens of the hypotheses that go on, W of each."""
        scores, parents, tokens = empty_places(self._beam.width - len(self.running))
        return (
            [h.score for h in self.running] + scores,
            [h.parent for h in self.running] + parents,
            [h.token for h in self.running] + tokens,
        )

    def offer(self, scores: Sequence[float], parents: Sequence[int], tokens: Sequence[int]) -> None:
        """Takes the candidates, the best first."""
        width = self._beam.width
        candidates = [
            self._continued(self.running[parent], score, parent, token)
            for score, parent, token in zip(scores, parents, tokens, strict=True)
            if score > NO_HYPOTHESIS
        ]
        # Only of the W best: the others are there so that enough can go on.
        ended = [hypothesis for hypothesis in candidates[:width] if hypothesis.finish]
        self._ended += [(h.score / self._beam.divisor(h.length), h) for h in ended]
        self._ended = sorted(self._ended, key=lambda pair: -pair[0])[:width]
        self.running = [hypothesis for hypothesis in candidates if not hypothesis.finish][:width]
        if self.running and self._over():
            self.running = []

    def _over(self) -> bool:
        """Whether the search ends although hypotheses could go on."""
        best, width = self.running[0], self._beam.width
        now = best.score / self._beam.divisor(best.length)
        if self._beam.stopping == "heuristic":
            return len(self._ended) == width and now <= self._ended[-1][0]
        # A log-likelihood never grows, so the most that it can reach is itself over the largest penalty to come:
        # that of the longest completion, or with a negative alpha of the shortest.
        reachable = max(now, best.score / self._beam.divisor(self.limit))
        return bool(self._ended) and reachable <= self._ended[0][0]

    def _continued(self, hypothesis: Hypothesis, score: float, parent: int, token: int) -> Hypothesis:
        length, text = hypothesis.length + 1, hypothesis.text
        finish: Finish | None = None
        if token == self._tokenizer.eot:
            finish = "end_of_text"
        else:
            text += self._tokenizer.decode_bytes([token])
            end = self._stop.cut(text, len(hypothesis.text))
            if end is not None:
                finish, text = "stop", text[:end]
            elif length == self.limit:
                finish = self._at_limit
        return Hypothesis(score, length, text, parent, token, finish)

    def completed(self) -> Completed:
        """The best hypothesis, once the search is finished. Raises RunError if the model gave no numbers."""
        if not self._ended:
            raise RunError("the model's logits are not numbers: beam search found no likeliest token")
        _, best = self._ended[0]
        assert best.finish is not None
        tokens = best.length - (best.finish == "end_of_text")
        text = best.text.decode(errors="replace")
        return Completed(text, tokens, best.finish, best.score, self._prompt_tokens)
