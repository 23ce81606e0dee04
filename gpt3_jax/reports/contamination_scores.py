"""Scores of all, clean and dirty items of an evaluation, beside Table C.1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt3_jax import quantities
from gpt3_jax.cluster.log import log
from gpt3_jax.errors import UserError
from gpt3_jax.evals import table_h1
from gpt3_jax.evals.metrics import METRICS, Metric
from gpt3_jax.reports import paired, table_c1
from gpt3_jax.reports.contamination import Study, TaskFound


@dataclasses.dataclass(frozen=True)
class Part:
    """The metric over some items."""

    value: float
    """NaN if there are none."""
    stderr: float | None
    """None for fewer than two items."""
    items: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """One model, task, metric and K."""

    model: str
    task: str
    metric: str
    shots: str
    all: Part
    clean: Part
    dirty: Part

    @property
    def relative(self) -> float | None:
        """Clean against all, in per cent of all, as Table C.1 has it."""
        return 100 * (self.clean.value / self.all.value - 1) if self.clean.items and self.all.value else None

    @property
    def relative_stderr(self) -> float | None:
        """Of `relative`, for a share of clean items that is taken as given: clean − all is (1 − share) · (clean −
        dirty), and clean and dirty items are independent."""
        if self.clean.stderr is None or self.dirty.stderr is None or not self.all.value:
            return None
        share = self.clean.items / self.all.items
        return abs(100 * (1 - share) * math.hypot(self.clean.stderr, self.dirty.stderr) / self.all.value)


def scores(found: Study, results: str) -> list[Scores]:
    """Scores of the items of an evaluation.

    Args:
        results: folder of ``gpt3-jax evaluate --out``.

    Raises:
        UserError: the folder has no items, none of these tasks, or items that are other examples.
        RunError: its items are damaged.
    """
    gathered = []
    tasks = {each.task.name: each for each in found.tasks}
    compared = {name for name, each in tasks.items() if each.compared}
    for model, by_key in paired.read(results).items():
        for (task, shots, metric), items in by_key.items():
            if task in compared:
                gathered.append(_scores(model, tasks[task], shots, METRICS[metric], items, results))
    if not gathered and compared:
        raise UserError(f"{results} holds none of the tasks {', '.join(tasks)}; evaluate them into it, or name others")
    for task in compared:
        if task not in {each.task for each in gathered}:
            log.warning(f"{results} has no scores of {task}")
    return gathered


def _scores(model: str, task: TaskFound, shots: str, metric: Metric, items: paired.Scores, results: str) -> Scores:
    known = {each.item.id: each for each in task.items}
    missing = [name for name in items.scores if name not in known]
    other = [name for name in items.scores if name in known and items.fingerprints[name] != _fingerprint(known[name])]
    if missing or other:
        name = (missing or other)[0]
        raise UserError(
            f"task {task.task.name}: item {name!r} of {results} is not the item that was looked for; name the same "
            "files, words and settings as for evaluate"
        )
    counted = [name for name, (_, weight) in items.scores.items() if weight]
    dirty = {name for name in counted if known[name].dirty}
    parts = counted, [name for name in counted if name not in dirty], [name for name in counted if name in dirty]
    return Scores(model, task.task.name, metric.name, shots, *(_part(metric, items, part) for part in parts))


def _fingerprint(item: Any) -> str:
    return str(item.item.fingerprint())


def _part(metric: Metric, items: paired.Scores, names: Sequence[str]) -> Part:
    n = len(names)
    if not n:
        return Part(math.nan, None, 0)
    if metric.whole:  # a measure of a corpus
        value, drawn = metric.whole([items.texts[name] for name in names])
        return Part(value, float(np.std(drawn, ddof=1)) if n > 1 else None, n)
    value, rest = paired.value(metric, [items.scores[name] for name in names])
    stderr = math.sqrt(n / (n - 1)) * math.hypot(*rest) if n > 1 and math.isfinite(value) else None
    return Part(value, stderr, n)


def table(found: Study, scored: Sequence[Scores] = ()) -> str:
    """Aligned text: how much is dirty, the scores, the paper's row beside each."""
    rows = []
    for task in found.tasks:
        paper = table_c1.row_of(task.task.row)
        looked = [f"{task.dirty:,}", f"{100 * task.clean / len(task.items):.1f}"] if task.compared else ["–", "–"]
        rows.append(
            [
                *(task.task.name, str(task.n), f"{len(task.items):,}", *looked),
                *(f"{task.short:,}", str(paper.n) if paper else "–", f"{paper.clean_percent}" if paper else "–"),
            ]
        )
    head = ["task", "N", "items", "dirty", "clean %", "shorter", "paper's N", "paper's clean %"]
    text = quantities.grid(rows, head) + "\n\n"
    if scored:
        several = len({each.model for each in scored}) > 1
        head = [
            "task",
            "metric",
            "K",
            "items",
            "clean items",
            "all",
            "± s.e.",
            "clean",
            "± s.e.",
            "dirty",
            "± s.e.",
            "clean vs all %",
            "± s.e.",
        ]
        head += ["paper: all", "clean", "dirty", "clean vs all %"]
        text += quantities.grid(
            [[each.model, *_row(each, found)] if several else _row(each, found) for each in scored],
            ["model", *head] if several else head,
            left=3 if several else 2,
        )
        text += "\n\n"
    text += found.looked.took.lines(now=not found.looked.known)
    text += "  shorter: items of fewer than N words" + (
        ", which are clean\n" if found.settings.short == "clean" else ", which are compared as a whole\n"
    )
    if any(table_c1.row_of(task.task.row) for task in found.tasks):
        text += "  paper: Table C.1, 175B, on its own training text" + (
            "; its scores are few-shot, and stand beside K = the paper's and max\n" if scored else "\n"
        )
    return text


def _row(each: Scores, found: Study) -> list[str]:
    row = next(task.task.row for task in found.tasks if task.task.name == each.task)
    paper, printed = table_c1.row_of(row), table_h1.row_of(row, each.metric)
    cells = [each.task, each.metric, each.shots, f"{each.all.items:,}", f"{each.clean.items:,}"]
    for part in (each.all, each.clean, each.dirty):
        cells += [_number(part.value), _number(part.stderr)]
    cells += [_number(each.relative, "+"), _number(each.relative_stderr)]
    few_shot = printed and each.shots in ("max", str(printed.shots))  # the only setting that Table C.1 has
    if paper is None or printed is None or paper.metric != printed.metric or not few_shot:
        return [*cells, "–", "–", "–", "–"]
    return [*cells, *map(_number, (paper.all, paper.clean, paper.dirty)), f"{paper.relative_percent:+d}"]


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{sign}.2f}"


def as_data(found: Study, scored: Sequence[Scores] = ()) -> dict[str, Any]:
    """All numbers, for a program."""
    tasks: list[Mapping[str, Any]] = []
    for task in found.tasks:
        paper = table_c1.row_of(task.task.row)
        tasks.append(
            {
                "task": task.task.name,
                "n": task.n,
                "items": len(task.items),
                "dirty": task.dirty,
                "clean": task.clean,
                "compared": task.compared,
                "shorter": task.short,
                "paper": paper and dataclasses.asdict(paper),
            }
        )
    return {
        "format": "gpt3_jax contamination",
        "version": 1,
        "settings": dataclasses.asdict(found.settings),
        "corpus": {"files": found.corpus.files, "fingerprint": found.corpus.fingerprint, **found.looked.took.as_data()},
        "tasks": tasks,
        "scores": [
            {
                **dataclasses.asdict(each),
                "relative_percent": each.relative,
                "relative_percent_stderr": each.relative_stderr,
            }
            for each in scored
        ],
    }
