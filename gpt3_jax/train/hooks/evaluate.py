"""Evaluates on held-out data on a token cadence, and at the end of training."""

from __future__ import annotations

from gpt3_jax.train.evaluation import Evaluation, Evaluator
from gpt3_jax.train.hooks.hook import Hook, Moment
from gpt3_jax.train.hooks.telemetry import Telemetry
from gpt3_jax.train.setup import Run


class Evaluate(Hook):
    """Evaluates every `train.eval_tokens`. Does nothing without held-out data."""

    def __init__(self, run: Run, telemetry: Telemetry) -> None:
        self._run, self._telemetry = run, telemetry
        self._evaluator: Evaluator | None = None
        self.last: Evaluation | None = None
        """Of the trained model; None if training was stopped early."""
        if run.heldout is not None:
            self.every_tokens = run.config.train.eval_tokens
            self.compiles = "the evaluation"

    def prepare(self, moment: Moment) -> None:
        run = self._run
        if run.heldout is not None:
            per_pass = max(size.sequences // size.microbatches for size in run.schedule.sizes)
            self._evaluator = Evaluator(run.config, run.mesh, run.heldout, run.tokenizer, per_pass)

    def act(self, moment: Moment) -> None:
        self._evaluate(moment)

    def end(self, moment: Moment) -> None:
        if moment.done:
            self.last = self._evaluate(moment)

    def _evaluate(self, moment: Moment) -> Evaluation | None:
        if self._evaluator is None:
            return None
        assert self._run.heldout is not None
        self._run.heldout.check_files()  # what was held out when the run began
        with self._telemetry.pause("evaluating on held-out data"):
            evaluation = self._evaluator(moment.state.params)
        self._telemetry.evaluation(moment.tokens, evaluation)
        return evaluation
