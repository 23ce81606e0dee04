"""Pictures of an evaluation (optional: matplotlib), in the manner of the paper's Figures 1.2 and 3.10."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt3_jax.config import preset
from gpt3_jax.evals.metrics import METRICS
from gpt3_jax.evals.protocol import Shots
from gpt3_jax.evals.results import Cell, Results, by_task
from gpt3_jax.evals.table_h1 import SIZES, row_of
from gpt3_jax.model.params import count_params
from gpt3_jax.plan.picture import pyplot, save

BY_SHOTS, BY_SIZE, BY_TOKENS = "shots.png", "size.png", "tokens.png"
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
_PAPER = {"0S": ("paper, zero-shot", ":"), "1S": ("paper, one-shot", "--"), "FS": ("paper, few-shot", "-.")}


def draw(results: Results, folder: Path) -> list[str]:
    """Draws what the results are enough for, and returns the files' names.

    `BY_SHOTS` for several K, `BY_SIZE` where models of different size or a row of Table H.1 are there, `BY_TOKENS`
    for several models with known numbers of training tokens.

    Raises:
        UserError: matplotlib is not installed.
        RunError: a picture cannot be written.
    """
    groups = by_task(results.cells)
    several = {name: cells for name, cells in groups.items() if len({cell.shots for cell in cells}) > 1}
    sizes = {model["parameters"] for model in results.models if model.get("parameters")}
    known = {name: cells for name, cells in groups.items() if len(sizes) > 1 or row_of(cells[0].row, name[1])}
    tokens = {model["tokens"] for model in results.models if model.get("tokens")}
    made = []
    if several:
        several = _mean(several) | several
        made.append(_grid(results, several, folder / BY_SHOTS, "demonstrations in the prompt (K)", _by_shots))
    if sizes and known:
        made.append(_grid(results, known, folder / BY_SIZE, "parameters", _by("parameters", paper=True)))
    if len(tokens) > 1:
        made.append(_grid(results, groups, folder / BY_TOKENS, "training tokens", _by("tokens", paper=False)))
    return made


def _mean(groups: dict[tuple[str, str], list[Cell]]) -> dict[tuple[str, str], list[Cell]]:
    """The mean over all tasks that are measured in per cent, as a group of its own, if there are three or more. A task
    with several such metrics counts with the first of them."""
    first: dict[str, list[Cell]] = {}
    for (task, metric), cells in groups.items():
        if METRICS[metric].unit == "%":
            first.setdefault(task, cells)
    tasks = list(first.values())
    if len(tasks) < 3:
        return {}
    by_place = [{(cell.model, cell.shots): cell for cell in cells} for cells in tasks]
    means = []
    for place in by_place[0]:
        cells = [found[place] for found in by_place if place in found]
        if len(cells) == len(tasks):
            stderr = math.sqrt(sum((cell.stderr or 0.0) ** 2 for cell in cells)) / len(cells)
            value = statistics.fmean(cell.value for cell in cells)
            shots = statistics.fmean(cell.shots_mean for cell in cells)
            mean = dataclasses.replace(cells[0], value=value, stderr=stderr, shots_mean=shots, row=None, chance=None)
            means.append(mean)
    metrics = {cells[0].metric for cells in tasks}
    name = metrics.pop() if len(metrics) == 1 else "accuracy"  # as the paper calls it in Figure 1.3
    return {(f"mean of {len(tasks)} tasks", name): means} if means else {}


_Panel = Callable[[Any, Results, Sequence[Cell]], None]
_Groups = Mapping[tuple[str, str], Sequence[Cell]]


def _grid(results: Results, groups: _Groups, path: Path, below: str, panel: _Panel) -> str:
    plt = pyplot()
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.4 * columns, 0.7 + 2.5 * rows), layout="constrained", squeeze=False
    )
    handles: dict[str, Any] = {}
    for place, ((task, metric), cells) in enumerate(groups.items()):
        ax = axes.flat[place]
        panel(ax, results, cells)
        ax.set_title(task, fontsize=9)
        unit = METRICS[metric].unit
        ax.set_ylabel(f"{metric}, {unit}" if unit else metric, fontsize=8)
        ax.set_xlabel(below, fontsize=8)
        ax.tick_params(labelsize=7, which="both")
        if unit == "%":
            ax.set_ylim(bottom=0, top=max(ax.get_ylim()[1], 1.0))
        ax.spines[["top", "right"]].set_visible(False)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    save(figure, str(path))
    return path.name


def _by_shots(ax: Any, results: Results, cells: Sequence[Cell]) -> None:
    for model in results.models:
        own = sorted((cell for cell in cells if cell.model == model["name"]), key=lambda cell: cell.shots_mean)
        if own:
            _points(ax, [cell.shots_mean for cell in own], own, label=model["name"])
    _chance(ax, cells)
    ax.set_xscale("symlog", linthresh=1)
    ticks = sorted({round(cell.shots_mean, 1) for cell in cells})
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    ax.minorticks_off()


def _by(what: str, paper: bool) -> _Panel:
    def panel(ax: Any, results: Results, cells: Sequence[Cell]) -> None:
        known = {model["name"]: float(model.get(what) or 0) for model in results.models}
        order = sorted(dict.fromkeys(cell.shots for cell in cells), key=_as_number)
        for shots in order:
            own = [cell for cell in cells if cell.shots == shots and known[cell.model]]
            own.sort(key=lambda cell: known[cell.model])
            colour = _COLOURS[order.index(shots) % len(_COLOURS)]
            if own:
                _points(ax, [known[cell.model] for cell in own], own, f"K = {shots}", colour)
        if paper:
            _table_h1(ax, cells[0])
        _chance(ax, cells)
        ax.set_xscale("log")

    return panel


def _as_number(shots: Shots) -> float:
    return float("inf") if shots == "max" else shots


def _points(ax: Any, places: Sequence[float], cells: Sequence[Cell], label: str, colour: str | None = None) -> None:
    """Values with bars of one standard error."""
    errors = [cell.stderr or 0.0 for cell in cells]
    style = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2, "elinewidth": 0.8}
    ax.errorbar(places, [cell.value for cell in cells], yerr=errors, label=label, color=colour, **style)


def _table_h1(ax: Any, cell: Cell) -> None:
    """The paper's curve of the same task and metric."""
    row = row_of(cell.row, cell.metric)
    if row is None:
        return
    sizes = [count_params(preset(name).model) for name in SIZES.values()]
    for setting, (label, style) in _PAPER.items():
        values = [row.values[setting, size] for size in SIZES]
        ax.plot(sizes, values, style, color="0.45", linewidth=1, label=label)
        if setting == "FS":
            ax.annotate(f"K = {row.shots}", (sizes[-1], values[-1]), fontsize=6, color="0.45", ha="right", va="bottom")


def _chance(ax: Any, cells: Sequence[Cell]) -> None:
    if cells[0].chance is not None:
        ax.axhline(cells[0].chance, color="0.7", linewidth=1, label="chance")
