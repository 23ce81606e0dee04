"""Every task with choices evaluated from its files to its records, by a model that is always right or always wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from exact_model import ExactModel, subject
from published_items import CASES, write_release

from gpt3_jax.config import ModelConfig
from gpt3_jax.evals.evaluation import ITEMS, evaluate_subjects, load_tasks
from gpt3_jax.evals.metrics import METRICS
from gpt3_jax.evals.requests import Answer, Completed, Completion, Continuation, Request, Score
from gpt3_jax.evals.results import Cell, Results
from gpt3_jax.evals.run import TaskItems
from gpt3_jax.evals.scoring import EachAnswer, PartialEvaluation, Referent
from gpt3_jax.evals.table_h1 import SIZES, row_of
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.select import TASKS, select
from gpt3_jax.evals.tasks.task import Task

LARGEST = ModelConfig(n_vocab=257, n_layers=96, d_model=12288, n_heads=96, n_ctx=2048)


class Knowing(ExactModel):
    """Gives the right answer, or a wrong one."""

    def __init__(self, loaded: list[TaskItems], right: bool) -> None:
        super().__init__()
        self._items = [(each.task, item) for each in loaded for item in each.items.test]
        self._right = right

    def _answer(self, request: Request) -> Answer:
        if isinstance(request, Completion):
            return Completed(f" {self._text(*self._asked(request.prompt))}", 1, "stop", -1.0, len(request.prompt))
        assert isinstance(request, Continuation)
        n = len(request.continuation.encode())
        likely = request.context not in ("Answer:", "A:") and self._likely(request) == self._right
        each = -1.0 if likely else -2.0
        return Score(n * each, n, likely, (each,) * n, (likely,) * n, 1)

    def _asked(self, prompt: str) -> tuple[Task, Item]:
        """The task and item whose context stands at the end of a prompt, but for a question's earlier answers: the
        longest, for some end as others do."""
        prompt = re.sub(r"(- \[(True|False)\] .*\n)+$", "", prompt)
        own = [
            (context, task, item)
            for task, item in self._items
            for context in (*task.scoring.contexts(item), item.zero_shot or "\0")
            if prompt.endswith(context)
        ]
        _, task, item = max(own, key=lambda each: len(each[0]))
        return task, item

    def _text(self, task: Task, item: Item) -> str:
        if isinstance(task.scoring, Referent):
            return item.completion if (item.right == (0,)) == self._right else "nobody"
        return next(choice for n, choice in enumerate(item.choices) if (n in item.right) == self._right)

    def _likely(self, request: Continuation) -> bool:
        task, item = self._asked(request.context)
        text = request.continuation.strip()
        if isinstance(task.scoring, PartialEvaluation):
            return item.contexts[item.right[0]] in request.context
        if isinstance(task.scoring, EachAnswer):
            return any(
                text == (task.scoring.true if n in item.right else task.scoring.false) + answer
                for n, answer in enumerate(item.choices)
            )
        return text in ([item.choices[n] for n in item.right] if item.choices else [item.completion])


def evaluated(data: Path, out: Path | None, right: bool, *settings: str) -> Results:
    for case in CASES.values():
        write_release(data, case)
    loaded = load_tasks(select(list(CASES), settings, str(data)), str(data))
    return evaluate_subjects([subject(Knowing(loaded, right), config=LARGEST)], loaded, [0, 1], 1, out)


@pytest.mark.parametrize("settings", [(), ("framing=choices", "earlier_answers=true", "instructed=each")])
@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_is_right_or_wrong_gets_all_or_nothing(
    right: bool, settings: tuple[str, ...], tmp_path: Path
) -> None:
    results = evaluated(tmp_path / "data", None, right, *settings)
    assert {cell.task for cell in results.cells} == set(CASES) and {cell.shots for cell in results.cells} == {0, 1}
    for cell in results.cells:
        if METRICS[cell.metric].unit == "%":
            assert cell.value == (100 if right else 0), (cell.task, cell.metric)
        assert cell.left_out == cell.prompts_lacking == 0
    average = results.superglue()
    assert [each["value"] for each in average] == [100 if right else 0] * 2
    assert [each["paper"] for each in average] == [58.2, 68.9]
    assert "SuperGLUE, K = 1: the average of the eight tasks is" in results.table()


def test_records_hold_the_scores_of_items(tmp_path: Path) -> None:
    evaluated(tmp_path / "data", tmp_path / "out", True)
    records = [json.loads(line) for line in (tmp_path / "out" / ITEMS).read_text().splitlines()]
    scored = {name for record in records for name in record["scores"]}
    assert scored == {name for task in CASES for name in TASKS[task].metrics} - {"macro F1"}
    (multirc,) = (record for record in records if record["task"] == "multirc" and record["shots"] == 0)
    assert multirc["right"] == multirc["chosen"] == [0, 2] and multirc["weights"] == {"all answers right": 1, "F1a": 4}


def test_superglues_average_is_the_papers() -> None:
    """Of the paper's own values of its eight tasks comes its own average."""
    for size in SIZES:
        for shots in (0, 1, 32):
            cells = []
            for name in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"):
                task = TASKS[name]
                for metric in task.metrics:
                    row = row_of(task.row, metric)
                    assert row is not None
                    value = row.values[{0: "0S", 1: "1S", 32: "FS"}[shots], size]
                    cells.append(
                        Cell(
                            model="m", task=name, metric=metric, shots=shots, value=value, stderr=1.0, detectable=None,
                            items=1, left_out=0, seeds=(0,), by_seed=(), chance=None, row=task.row, size=size,
                            shots_mean=0.0, prompts_with_fewer=0, prompts_lacking=0, straddling=0,
                        )
                    )  # fmt: skip
            (average,) = Results(tuple(cells), (), {}, {}).superglue()
            assert average["value"] == pytest.approx(average["paper"], abs=0.06), (size, shots)
            assert average["stderr"] == pytest.approx(8**-0.5)
            assert Results(tuple(cells[1:]), (), {}, {}).superglue() == [], "one task is not there"
