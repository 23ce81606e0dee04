"""Evaluates tasks during training, on a token cadence: the loop's hook for the settings `evals`."""

from __future__ import annotations

import time

from gpt3_jax.cluster.agreement import together
from gpt3_jax.cluster.log import log
from gpt3_jax.evals import protocol
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.evaluation import load_tasks
from gpt3_jax.evals.results import Cell
from gpt3_jax.evals.run import run as evaluate
from gpt3_jax.evals.subject import Subject
from gpt3_jax.evals.tasks.select import select
from gpt3_jax.quantities import duration
from gpt3_jax.train.hooks.hook import Hook, Moment
from gpt3_jax.train.hooks.telemetry import Telemetry
from gpt3_jax.train.setup import Run


class EvaluateTasks(Hook):
    """Evaluates `evals.tasks` every `evals.every_tokens`, before the first step and at the end, with the weights where
    training keeps them. Results go to `metrics.jsonl` and TensorBoard, as kind ``tasks``."""

    compiles = "the evaluation of tasks"

    def __init__(self, run: Run, telemetry: Telemetry) -> None:
        """Reads the tasks' items.

        Raises:
            UserError: an unknown task, a broken file, or too few examples for the demonstrations.
        """
        evals = run.config.evals
        self.every_tokens = evals.every_tokens
        self._run, self._telemetry = run, telemetry
        with together("reading the tasks"):
            data = evals.data or None
            self._tasks = load_tasks(select(evals.tasks, data=data), data, evals.words or None, evals.limit)
            for each in self._tasks:
                for shots in evals.shots:
                    protocol.check_shots(each.task, each.items, shots)
        self._engine: Engine | None = None
        self._seconds = 0.0
        self._started = 0.0

    def prepare(self, moment: Moment) -> None:
        """Evaluates once. That compiles every program: later evaluations ask the same."""
        run = self._run
        started = time.monotonic()
        self._engine = Engine(
            moment.state.params, run.config.model, run.tokenizer, run.mesh, run.config.parallel, run.config.memory
        )
        cells = self._cells()
        # Between here and the start of the loop nothing else writes; the time is not the run's, it compiles.
        self._telemetry.record("tasks", moment.tokens, _values(cells))
        self._say(moment.tokens, cells, f"{duration(time.monotonic() - started)}, compilation included")

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def act(self, moment: Moment) -> None:
        assert self._engine is not None
        started = time.monotonic()
        with self._telemetry.pause("evaluating tasks"):
            self._engine.use(moment.state.params)
            cells = self._cells()
        now = time.monotonic()
        self._seconds += now - started
        share = self._seconds / (now - self._started)
        values = {**_values(cells), **_errors(cells), "seconds": now - started, "share_of_time": share}
        self._telemetry.record("tasks", moment.tokens, values)
        self._say(moment.tokens, cells, f"{duration(now - started)}; evaluations are {share:.1%} of this run's time")

    def end(self, moment: Moment) -> None:
        if moment.done:
            self.act(moment)

    def _cells(self) -> list[Cell]:
        assert self._engine is not None
        run = self._run
        subject = Subject(
            run.folder.name, self._engine.answer, run.tokenizer, run.config.model, weights="", settings={}
        )
        try:
            return evaluate(subject, self._tasks, run.config.evals.shots, seeds=1, progress=False)
        finally:
            self._engine.release()  # the next step is to have the memory, and takes the parameters

    def _say(self, tokens: int, cells: list[Cell], took: str) -> None:
        found = ", ".join(f"{name} {value:.4g}" for name, value in _values(cells).items())
        log.info(f"tasks at {tokens:,} tokens: {found} (in {took})")


def _values(cells: list[Cell]) -> dict[str, float]:
    """By task, metric and K: ``two_digit_addition/accuracy/K=1``."""
    return {_name(cell): cell.value for cell in cells}


def _errors(cells: list[Cell]) -> dict[str, float]:
    """Standard errors and numbers of items: the same names with ``/stderr`` and ``/items``."""
    errors = {f"{_name(cell)}/stderr": cell.stderr for cell in cells if cell.stderr is not None}
    return {**errors, **{f"{_name(cell)}/items": cell.items for cell in cells}}


def _name(cell: Cell) -> str:
    return f"{cell.task}/{cell.metric}/K={cell.shots}"
