"""What an evaluation found: cells of a table, and the files that say how they came about."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gpt3_jax import quantities
from gpt3_jax.evals.metrics import METRICS
from gpt3_jax.evals.protocol import Shots
from gpt3_jax.evals.table_h1 import paper_value

RESULTS = "results.json"
FORMAT = "gpt3_jax evaluation"
STANDARD_ERROR = (
    "standard deviation of the items' scores, each averaged over the seeds, divided by the square root of their "
    "number; where all items or none are right, that of two right and two wrong items more; for ratios (loss, "
    "perplexity, bits, F1a) by linearisation over items; for macro F1 by the jackknife over items; for BLEU the "
    "standard deviation over 1,000 corpora of items drawn with replacement"
)
SUPERGLUE = ("BoolQ", "CB", "Copa", "MultiRC", "ReCoRD", "RTE", "WiC", "WSC")
"""The rows of Table H.1 that its row SuperGLUE averages."""
DETECTABLE = (
    "(1.96 + 0.84) · sqrt(2) · standard error: two models evaluated on as many items each, two-sided level 5 %, power "
    "80 %"
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number: a model, a task, a metric, a K."""

    model: str
    task: str
    metric: str
    shots: Shots
    value: float
    stderr: float | None
    detectable: float | None
    """Minimum detectable difference."""
    items: int
    left_out: int
    """Items that do not fit into the model's context."""
    seeds: tuple[int, ...]
    by_seed: tuple[float, ...]
    """The value with each seed's demonstrations."""
    chance: float | None
    row: str | None
    """Of Table H.1."""
    size: str | None
    """The paper's model of the same shape."""
    shots_mean: float
    """Demonstrations in a prompt, on average."""
    prompts_with_fewer: int
    """Prompts from which demonstrations were dropped, because they did not fit."""
    prompts_lacking: int
    """Prompts with fewer demonstrations, because no other example was left to draw."""
    straddling: int
    """Requests in which a token straddles the border of context and completion."""

    @property
    def paper(self) -> float | None:
        """The paper's value for the size of the same shape and this K."""
        return None if self.shots == "max" else paper_value(self.row, self.metric, self.shots, self.size)

    def as_data(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"unit": METRICS[self.metric].unit, "paper": self.paper}


@dataclasses.dataclass(frozen=True)
class Results:
    """An evaluation of one or several models."""

    cells: tuple[Cell, ...]
    models: tuple[Mapping[str, Any], ...]
    """Each: name, folder, weights, tokenizer, parameters, tokens trained, configuration, engine settings."""
    tasks: Mapping[str, Mapping[str, Any]]
    """How each was set up: source, scoring, open settings, …"""
    made_by: Mapping[str, Any]
    """Versions, command, time, protocol."""

    def table(self) -> str:
        """All numbers as aligned text, with what was left out or dropped below."""
        several = len(self.models) > 1
        head = ["task", "metric", "K", "value", "± s.e.", "items", "paper", "chance", "detectable"]
        rows = []
        for cell in self.cells:
            row = [cell.task, cell.metric, str(cell.shots), _number(cell.value), _number(cell.stderr)]
            row += [f"{cell.items:,}", _number(cell.paper), _number(cell.chance), _number(cell.detectable)]
            rows.append([cell.model, *row] if several else row)
        return quantities.grid(rows, ["model", *head] if several else head, left=3 if several else 2) + self._notes()

    def superglue(self) -> list[dict[str, Any]]:
        """SuperGLUE's average for each model and K that have all eight tasks: the mean over tasks of the mean over a
        task's metrics. The standard error takes tasks as independent, and the metrics of one task as one."""
        found = []
        for model, shots in dict.fromkeys((cell.model, cell.shots) for cell in self.cells):
            here = [cell for cell in self.cells if (cell.model, cell.shots) == (model, shots)]
            tasks = [[cell for cell in here if cell.row == row] for row in SUPERGLUE]
            if not all(tasks) or shots == "max":
                continue
            errors = [statistics.fmean(cell.stderr or 0.0 for cell in cells) for cells in tasks]
            found.append(
                {
                    "model": model,
                    "shots": shots,
                    "value": statistics.fmean(statistics.fmean(cell.value for cell in cells) for cells in tasks),
                    "stderr": math.hypot(*errors) / len(tasks),
                    "paper": paper_value("SuperGLUE", "average", shots, here[0].size),
                }
            )
        return found

    def _notes(self) -> str:
        lines = ["", "", "  accuracy, exact match and F1 in per cent; paper: Table H.1, the model of the same shape"]
        signatures = {name: sign for task in self.tasks.values() for name, sign in task.get("signatures", {}).items()}
        shown = {cell.metric for cell in self.cells}
        lines += [f"  {name}: {sign}" for name, sign in signatures.items() if name in shown]
        for each in self.superglue():
            model = f", {each['model']}" if len(self.models) > 1 else ""
            paper = "" if each["paper"] is None else f", the paper's is {_number(each['paper'])}"
            value = f"{_number(each['value'])} ± {_number(each['stderr'])}"
            lines.append(f"  SuperGLUE, K = {each['shots']}{model}: the average of the eight tasks is {value}{paper}")
        for cell in self.cells:
            if METRICS[cell.metric] is not METRICS[next(c.metric for c in self.cells if c.task == cell.task)]:
                continue  # said once for each task
            where = f"{cell.task}, K = {cell.shots}" + (f", {cell.model}" if len(self.models) > 1 else "")
            if cell.left_out:
                lines.append(f"  {where}: {cell.left_out} items left out: too long for the model's context")
            if cell.prompts_with_fewer:
                lines.append(
                    f"  {where}: {cell.prompts_with_fewer} prompts with fewer demonstrations, which did not fit; "
                    f"{cell.shots_mean:.1f} on average"
                )
            if cell.prompts_lacking:
                lines.append(
                    f"  {where}: {cell.prompts_lacking} prompts with fewer demonstrations, because no other example "
                    f"was left to draw; {cell.shots_mean:.1f} on average"
                )
            if cell.shots == "max":
                lines.append(f"  {where}: {cell.shots_mean:.1f} demonstrations on average")
            if cell.straddling:
                lines.append(f"  {where}: in {cell.straddling} requests a token straddles context and completion")
        return "\n".join(lines)

    def as_data(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": 1,
            "made_by": dict(self.made_by),
            "standard_error": STANDARD_ERROR,
            "detectable": DETECTABLE,
            "models": [dict(model) for model in self.models],
            "tasks": {name: dict(task) for name, task in self.tasks.items()},
            "cells": [cell.as_data() for cell in self.cells],
            "superglue": self.superglue(),
        }

    def to_json(self) -> str:
        return to_json(self.as_data(), indent=1) + "\n"


def to_json(data: Any, indent: int | None = None) -> str:
    """JSON, which has no infinity: null stands for a number that is not finite."""
    return json.dumps(_finite(data), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1e6 else f"{value:.2e}"


def by_task(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """Cells by (task, metric)."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.task, cell.metric), []).append(cell)
    return found
